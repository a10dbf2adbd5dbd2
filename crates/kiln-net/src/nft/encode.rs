//! The ruleset's model as netlink messages. Pure.

use super::expression::{expressions, verdict};
use super::{acknowledged, begin, end, header, kind};
use crate::netlink::{APPEND, Attributes, Batch, CREATE, EXCL};
use crate::ruleset::{
    Chain, Change, Data, Element, Field, HookKind, Rule, Set, SetKind, TableFamily, Transaction,
};

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DELETE_SET: u16 = 11;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;
const NEW_OBJECT: u16 = 18;

const COUNTER_OBJECT: u32 = 1;
const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_DYNAMIC: u32 = 0x20;
const ELEMENT_INTERVAL_END: u32 = 1;
const MARK_TYPE: u32 = 19;
const VERDICT_TYPE: u32 = 0xffff_ff00;
/// `ipv4_addr . inet_service`, six bits per type.
const ADDRESS_PORT_TYPE: u32 = (7 << 6) | 13;
/// One attribute holds at most 64 KiB; an element takes less than 100 bytes.
const ELEMENTS_PER_MESSAGE: usize = 512;
const ACCEPT: u32 = 1;
const DROP: u32 = 0;

/// All changes between the opening and the closing message.
pub(super) fn transaction(transaction: &Transaction) -> Batch {
    let mut batch = Batch::new();
    begin(&mut batch);
    let mut encoder = Encoder {
        batch: &mut batch,
        family: family(transaction.family),
        inet: transaction.family == TableFamily::Inet,
        table: &transaction.table,
        next_set_id: 1,
        last: false,
    };
    for (index, change) in transaction.changes.iter().enumerate() {
        encoder.last = index + 1 == transaction.changes.len();
        encoder.change(change);
    }
    end(&mut batch);
    batch
}

pub(super) fn family(family: TableFamily) -> u8 {
    match family {
        TableFamily::Inet => 1,
        TableFamily::Bridge => 7,
    }
}

struct Encoder<'a> {
    batch: &'a mut Batch,
    family: u8,
    inet: bool,
    table: &'a str,
    next_set_id: u32,
    last: bool,
}

impl Encoder<'_> {
    fn message(
        &mut self,
        step: &'static str,
        message: u16,
        flags: u16,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let flags = flags | acknowledged(self.last);
        let table = self.table;
        self.batch
            .message(step, kind(message), flags, &header(self.family, 0), |a| {
                a.text(1, table);
                fill(a);
            });
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::AddTable { comment } => self.message("add a table", NEW_TABLE, CREATE, |a| {
                a.bytes(6, &comment_data(comment));
            }),
            Change::DeleteTable => self.message("delete a table", DELETE_TABLE, 0, |_| {}),
            Change::AddCounter(name) => self.message("add a counter", NEW_OBJECT, CREATE, |a| {
                a.text(2, name).be32(3, COUNTER_OBJECT).nest(4, |_| {});
            }),
            Change::AddSet(set) => self.add_set(set, CREATE | EXCL),
            Change::EnsureSet(set) => self.add_set(set, CREATE),
            Change::DeleteSet(name) => self.message("delete a set", DELETE_SET, 0, |a| {
                a.text(2, name);
            }),
            Change::AddChain(chain) => self.add_chain(chain),
            Change::EnsureEmptyChain(name) => self.ensure_empty_chain(name),
            Change::DeleteChain(name) => self.delete_chain(name),
            Change::AddRule { chain, rule } => self.add_rule(chain, rule),
            Change::AddElements { set, elements } => {
                self.elements("add elements", NEW_ELEMENT, CREATE | EXCL, set, elements);
            }
            Change::EnsureElements { set, elements } => {
                self.elements("add elements", NEW_ELEMENT, CREATE, set, elements);
            }
            Change::DeleteElements { set, elements } => {
                self.elements("delete elements", DELETE_ELEMENT, 0, set, elements);
            }
        }
    }

    fn add_set(&mut self, set: &Set, flags: u16) {
        let id = self.next_set_id;
        self.next_set_id += 1;
        let key_type = set
            .key
            .iter()
            .fold(0, |all, field| (all << 6) | field.type_id());
        let key_len: usize = match &set.key[..] {
            [one] => one.len(),
            many => many.iter().map(|field| field.padded_len()).sum(),
        };
        let (shape, data) = set_shape(set.kind);
        self.message("add a set", NEW_SET, flags, |a| {
            a.text(2, &set.name).be32(3, shape).be32(4, key_type);
            a.be32(5, u32::try_from(key_len).unwrap_or(u32::MAX));
            if let Some((data_type, data_len)) = data {
                a.be32(6, data_type).be32(7, data_len);
            }
            a.nest(9, |description| {
                if set.size > 0 {
                    description.be32(1, set.size);
                }
            });
            a.be32(10, id);
            a.bytes(13, &byte_order(set));
            if set.kind == SetKind::Rate {
                a.nest(17, |own| limit_over(own, SLOWEST));
            }
        });
    }

    fn add_chain(&mut self, chain: &Chain) {
        self.message("add a chain", NEW_CHAIN, CREATE | EXCL, |a| {
            a.text(3, &chain.name);
            if let Some(hook) = chain.hook {
                a.nest(4, |place| {
                    place
                        .be32(1, hook.number)
                        .bytes(2, &hook.priority.to_be_bytes());
                });
                a.be32(5, if hook.drop { DROP } else { ACCEPT });
                a.text(
                    7,
                    if hook.kind == HookKind::Nat {
                        "nat"
                    } else {
                        "filter"
                    },
                );
            }
        });
    }

    fn ensure_empty_chain(&mut self, name: &str) {
        let last = std::mem::replace(&mut self.last, false);
        self.message("add a chain", NEW_CHAIN, CREATE, |a| {
            a.text(3, name);
        });
        self.last = last;
        self.empty_chain(name);
    }

    fn empty_chain(&mut self, name: &str) {
        self.message("empty a chain", DELETE_RULE, 0, |a| {
            a.text(2, name);
        });
    }

    fn delete_chain(&mut self, name: &str) {
        let last = std::mem::replace(&mut self.last, false);
        self.empty_chain(name);
        self.last = last;
        self.message("delete a chain", DELETE_CHAIN, 0, |a| {
            a.text(3, name);
        });
    }

    fn add_rule(&mut self, chain: &str, rule: &Rule) {
        let inet = self.inet;
        self.message("add a rule", NEW_RULE, CREATE | APPEND, |a| {
            a.text(2, chain)
                .nest(4, |list| expressions(list, rule, inet));
        });
    }

    fn elements(
        &mut self,
        step: &'static str,
        message: u16,
        flags: u16,
        set: &str,
        elements: &[Element],
    ) {
        let last = self.last;
        let chunks = elements.chunks(ELEMENTS_PER_MESSAGE).count();
        for (index, chunk) in elements.chunks(ELEMENTS_PER_MESSAGE).enumerate() {
            self.last = last && index + 1 == chunks;
            self.message(step, message, flags, |a| {
                a.text(2, set);
                a.nest(3, |list| chunk.iter().for_each(|one| element(list, one)));
            });
        }
        self.last = last;
    }
}

/// A rule for a table of one family only.
pub(super) fn expressions_of(list: &mut Attributes<'_>, rule: &Rule) {
    expressions(list, rule, false);
}

fn set_shape(kind: SetKind) -> (u32, Option<(u32, u32)>) {
    match kind {
        SetKind::Plain => (0, None),
        SetKind::Interval => (SET_INTERVAL, None),
        SetKind::Timeout => (SET_TIMEOUT, None),
        SetKind::Rate => (SET_DYNAMIC, None),
        SetKind::AddressPortMap => (SET_MAP, Some((ADDRESS_PORT_TYPE, 8))),
        SetKind::MarkMap => (SET_MAP, Some((MARK_TYPE, 4))),
        SetKind::VerdictMap => (SET_MAP, Some((VERDICT_TYPE, 0))),
    }
}

/// What `nft` wants to know to print a set: whose keys and data are numbers of the host's order.
fn byte_order(set: &Set) -> Vec<u8> {
    const KEY: u8 = 0;
    const DATA: u8 = 1;
    const HOST: u32 = 1;
    let note = |what: u8| [&[what, 4][..], &HOST.to_ne_bytes()].concat();
    let by_name = matches!(
        set.key[..],
        [Field::InputInterface | Field::OutputInterface]
    );
    let mut notes = if by_name { note(KEY) } else { Vec::new() };
    if set.kind == SetKind::MarkMap {
        notes.extend(note(DATA));
    }
    notes
}

fn element(list: &mut Attributes<'_>, element: &Element) {
    list.nest(1, |a| {
        a.nest(1, |key| {
            key.bytes(1, &element.key);
        });
        match &element.data {
            Some(Data::Bytes(data)) => {
                a.nest(2, |value| {
                    value.bytes(1, data);
                });
            }
            Some(Data::Verdict(one)) => {
                a.nest(2, |value| verdict(value, one));
            }
            None => {}
        }
        if element.interval_end {
            a.be32(3, ELEMENT_INTERVAL_END);
        }
        if let Some(timeout) = element.timeout_ms {
            a.be64(4, timeout);
        }
        if let Some(rate) = element.rate {
            a.nest(7, |own| limit_over(own, rate));
        }
    });
}

/// The rate of elements without one of their own, of which there are none.
const SLOWEST: u64 = 1024;
/// Above a second's worth, which the kernel adds: never less than a frame after segmentation offload.
const BURST: u32 = 128 << 10;

/// Holds for a packet that exceeds a rate in bytes per second.
fn limit_over(expression: &mut Attributes<'_>, bytes_per_second: u64) {
    const PER_SECOND: u64 = 1;
    const OF_BYTES: u32 = 1;
    const INVERTED: u32 = 1;
    expression.text(1, "limit").nest(2, |a| {
        a.be64(1, bytes_per_second)
            .be64(2, PER_SECOND)
            .be32(3, BURST)
            .be32(4, OF_BYTES)
            .be32(5, INVERTED);
    });
}

/// A table's comment as `nft` stores it: type 0, length, text with its zero.
pub(super) fn comment_data(comment: &str) -> Vec<u8> {
    let text = comment.as_bytes();
    let text = &text[..text.len().min(120)];
    let mut data = vec![0, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)];
    data.extend_from_slice(text);
    data.push(0);
    data
}
