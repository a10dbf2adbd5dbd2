//! What of an upstream's answer a guest may see. Pure.

use std::net::Ipv4Addr;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::policy::DomainName;

/// A chain of aliases longer than this is somebody's joke.
const MAX_ALIASES: usize = 16;
/// More addresses than this for one name are cut off.
const MAX_ADDRESSES: usize = 64;
const MAX_RECORDS: usize = 128;
const TTL_SECONDS: std::ops::RangeInclusive<u32> = 5..=300;

/// The part of an answer that follows from the question.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Filtered {
    pub(super) records: Vec<Record>,
    pub(super) addresses: Vec<Ipv4Addr>,
    pub(super) ttl: u32,
    /// Addresses that were left out: they point into networks that the sandbox may not reach.
    pub(super) rebound: Vec<Ipv4Addr>,
    pub(super) code: ResponseCode,
}

/// How a question of this type is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Treatment {
    /// Ask upstream.
    Resolve,
    /// "There is none": IPv6 and what would lead around us.
    Withhold,
    /// Not our business.
    Refuse,
}

pub(super) fn treatment(kind: RecordType) -> Treatment {
    match kind {
        RecordType::A | RecordType::CNAME | RecordType::TXT | RecordType::MX | RecordType::SRV => {
            Treatment::Resolve
        }
        RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB => Treatment::Withhold,
        _ => Treatment::Refuse,
    }
}

/// The name as policies know it; `None` for one with bytes that no host name has, which a pattern
/// could be tricked with.
pub(super) fn plain_name(name: &Name) -> Option<DomainName> {
    let plain = name.iter().all(|label| {
        label
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
    });
    if plain {
        DomainName::new(&name.to_ascii())
    } else {
        None
    }
}

/// Follow the aliases strictly from the asked name; what is not on the way is dropped.
pub(super) fn filter(
    question: &Query,
    answer: &Message,
    reachable: impl Fn(Ipv4Addr) -> bool,
) -> Filtered {
    let mut filtered = Filtered {
        records: Vec::new(),
        addresses: Vec::new(),
        ttl: *TTL_SECONDS.end(),
        rebound: Vec::new(),
        code: ResponseCode::NoError,
    };
    let mut name = question.name().to_lowercase();
    for _ in 0..MAX_ALIASES {
        match filtered.take_records_of(&name, question.query_type(), answer, &reachable) {
            Some(next) => name = next,
            None => break,
        }
    }
    filtered.ttl = filtered.ttl.clamp(*TTL_SECONDS.start(), *TTL_SECONDS.end());
    for record in &mut filtered.records {
        record.ttl = record.ttl.min(filtered.ttl);
    }
    if filtered.records.is_empty() && filtered.rebound.is_empty() {
        filtered.code = answer.metadata.response_code;
    }
    filtered
}

impl Filtered {
    /// Keep the name's records; the alias it leads to, if it is one.
    fn take_records_of(
        &mut self,
        name: &Name,
        wanted: RecordType,
        answer: &Message,
        reachable: &impl Fn(Ipv4Addr) -> bool,
    ) -> Option<Name> {
        let mut next = None;
        for record in answer
            .answers
            .iter()
            .filter(|record| record.name.to_lowercase() == *name)
        {
            match &record.data {
                RData::CNAME(alias) => {
                    next = Some(alias.0.to_lowercase());
                    self.keep(record);
                }
                RData::A(address) if wanted == RecordType::A => {
                    self.take_address(record, address.0, reachable);
                }
                _ if record.record_type() == wanted => self.keep(record),
                _ => {}
            }
        }
        next
    }

    fn take_address(
        &mut self,
        record: &Record,
        address: Ipv4Addr,
        reachable: &impl Fn(Ipv4Addr) -> bool,
    ) {
        if !reachable(address) {
            self.rebound.push(address);
        } else if self.addresses.contains(&address) {
            // Said twice.
        } else if self.addresses.len() < MAX_ADDRESSES {
            self.addresses.push(address);
            self.keep(record);
        }
    }

    fn keep(&mut self, record: &Record) {
        if self.records.len() < MAX_RECORDS {
            self.ttl = self.ttl.min(record.ttl);
            self.records.push(record.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{A, CNAME};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn a(owner: &str, ttl: u32, address: [u8; 4]) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A(address.into())))
    }

    fn ask(records: Vec<Record>) -> Filtered {
        let question = Query::query(name("shop.example."), RecordType::A);
        let mut answer = Message::query();
        answer.add_answers(records);
        filter(&question, &answer, |address| {
            !crate::policy::is_special(address)
        })
    }

    #[test]
    fn only_what_follows_from_the_question_is_kept() {
        let alias = RData::CNAME(CNAME(name("CDN.example.net.")));
        let filtered = ask(vec![
            a("other.example.", 60, [203, 0, 113, 9]),
            Record::from_rdata(name("Shop.Example."), 20, alias),
            a("cdn.example.net.", 7000, [203, 0, 113, 1]),
        ]);
        assert_eq!(filtered.addresses, [Ipv4Addr::new(203, 0, 113, 1)]);
        assert_eq!((filtered.records.len(), filtered.ttl), (2, 20));
    }

    #[test]
    fn addresses_inside_are_left_out() {
        let filtered = ask(vec![
            a("shop.example.", 0, [169, 254, 169, 254]),
            a("shop.example.", 0, [10, 0, 0, 1]),
            a("shop.example.", 0, [127, 0, 0, 1]),
            a("shop.example.", 0, [198, 18, 1, 1]),
        ]);
        assert!(filtered.records.is_empty());
        assert_eq!(
            (filtered.rebound.len(), filtered.code),
            (4, ResponseCode::NoError)
        );
    }

    #[test]
    fn loops_and_floods_end() {
        let alias = RData::CNAME(CNAME(name("shop.example.")));
        let mut records = vec![Record::from_rdata(name("shop.example."), 20, alias)];
        records.extend((0..=255).map(|last| a("shop.example.", 9, [203, 0, 113, last])));
        let filtered = ask(records);
        assert!(filtered.addresses.len() <= MAX_ADDRESSES && filtered.records.len() <= MAX_RECORDS);
    }

    #[test]
    fn names_with_strange_bytes_are_not_names() {
        let tricky = Name::from_labels(vec![&b"x.good"[..], b"example"]).unwrap();
        assert_eq!(plain_name(&tricky), None);
        assert_eq!(
            plain_name(&name("A.good.example.")),
            DomainName::new("a.good.example")
        );
        assert_eq!(plain_name(&Name::root()), None);
    }
}
