//! Rules of ours in chains of others: the two that let our interfaces through a firewall that drops
//! what it does not know.
//!
//! They are found again by their comment, and only those are ever removed.

use super::encode::{comment_data, expressions_of};
use super::inspect::{attribute, dump};
use super::{Nft, begin, end, header, kind};
use crate::netlink::{ACK, Batch, CREATE, NetlinkError, text};
use crate::ruleset::Rule;

const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
const GET_TABLE: u16 = 1;
const ANY_FAMILY: u8 = 0;

/// A rule of ours in somebody's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guest {
    pub(crate) family: u8,
    pub(crate) table: String,
    pub(crate) chain: String,
    handle: Vec<u8>,
}

impl Nft {
    /// All rules in tables other than `own` whose comment is `comment`. Ours holds rules for each
    /// sandbox, and the kernel begins a long list anew for each part of it that it sends: asked for
    /// all tables at once, 1,000 sandboxes took 18 ms.
    pub(crate) fn rules_with(
        &mut self,
        comment: &str,
        own: &str,
    ) -> Result<Vec<Guest>, NetlinkError> {
        let mut tables = Vec::new();
        let batch = dump("list tables", GET_TABLE, ANY_FAMILY, |_| {});
        self.ask(batch, |payload| tables.extend(place(payload)))?;
        let mut rules = Vec::new();
        for (family, table) in tables.into_iter().filter(|(_, table)| table != own) {
            let batch = dump("list rules", GET_RULE, family, |a| {
                a.text(1, &table);
            });
            self.ask(batch, |payload| rules.extend(guest(payload, comment)))?;
        }
        Ok(rules)
    }

    /// Put a rule at the head of somebody's chain.
    pub(crate) fn insert(
        &mut self,
        family: u8,
        table: &str,
        chain: &str,
        rule: &Rule,
        comment: &str,
    ) -> Result<(), NetlinkError> {
        self.one("insert a rule", NEW_RULE, CREATE, family, |a| {
            a.text(1, table).text(2, chain);
            a.nest(4, |list| expressions_of(list, rule));
            a.bytes(7, &comment_data(comment));
        })
    }

    /// Take a rule of ours out again.
    pub(crate) fn withdraw(&mut self, rule: &Guest) -> Result<(), NetlinkError> {
        self.one("withdraw a rule", DELETE_RULE, 0, rule.family, |a| {
            a.text(1, &rule.table)
                .text(2, &rule.chain)
                .bytes(3, &rule.handle);
        })
    }

    fn one(
        &mut self,
        step: &'static str,
        message: u16,
        flags: u16,
        family: u8,
        fill: impl FnOnce(&mut crate::netlink::Attributes<'_>),
    ) -> Result<(), NetlinkError> {
        let mut batch = Batch::new();
        begin(&mut batch);
        batch.message(step, kind(message), flags | ACK, &header(family, 0), fill);
        end(&mut batch);
        self.socket.execute(batch)
    }
}

/// Family and name of a table.
fn place(payload: &[u8]) -> Option<(u8, String)> {
    Some((*payload.first()?, text(attribute(payload, 1)?)))
}

fn guest(payload: &[u8], comment: &str) -> Option<Guest> {
    let said = match attribute(payload, 7)? {
        [0, length, rest @ ..] => text(rest.get(..usize::from(*length))?),
        _ => return None,
    };
    let found = Guest {
        family: *payload.first()?,
        table: text(attribute(payload, 1)?),
        chain: text(attribute(payload, 2)?),
        handle: attribute(payload, 3)?.to_vec(),
    };
    (said == comment).then_some(found)
}

/// For fuzzing.
pub(super) fn hostile(payload: &[u8]) {
    let _ = guest(payload, "kiln");
}
