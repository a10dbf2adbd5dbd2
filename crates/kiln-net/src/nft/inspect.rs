//! Reads back what is loaded: whose a table is, which elements it has, who else filters.

use super::encode::family as family_number;
use super::{Nft, header, kind};
use crate::netlink::{Batch, DUMP, NetlinkError, attributes, text};
use crate::ruleset::TableFamily;

const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;
const GET_SET: u16 = 10;
const GET_ELEMENTS: u16 = 13;
const ANY_FAMILY: u8 = 0;

/// An element's key and, for a map, what it leads to: data, or a chain's name.
pub(crate) type KeyAndData = (Vec<u8>, Vec<u8>);

/// A table and the comment that says whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableInfo {
    pub(crate) name: String,
    pub(crate) comment: Option<String>,
}

/// A chain that is hooked into the packet path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseChain {
    pub(crate) family: u8,
    pub(crate) table: String,
    pub(crate) name: String,
    /// As in [`crate::ruleset::Hook::number`]; `None` for a chain that is only jumped to.
    pub(crate) hook: Option<u32>,
    pub(crate) drops: bool,
}

impl Nft {
    /// All tables of a family.
    pub(crate) fn tables(&mut self, family: TableFamily) -> Result<Vec<TableInfo>, NetlinkError> {
        let mut tables = Vec::new();
        let batch = dump("list tables", GET_TABLE, family_number(family), |_| {});
        self.ask(batch, |payload| tables.extend(table(payload)))?;
        Ok(tables)
    }

    /// All chains of all families.
    pub(crate) fn chains(&mut self) -> Result<Vec<BaseChain>, NetlinkError> {
        let mut chains = Vec::new();
        let batch = dump("list chains", GET_CHAIN, ANY_FAMILY, |_| {});
        self.ask(batch, |payload| chains.extend(chain(payload)))?;
        Ok(chains)
    }

    /// The names of a table's sets and maps.
    pub(crate) fn sets(
        &mut self,
        family: TableFamily,
        table: &str,
    ) -> Result<Vec<String>, NetlinkError> {
        let mut sets = Vec::new();
        let batch = dump("list sets", GET_SET, family_number(family), |a| {
            a.text(1, table);
        });
        self.ask(batch, |payload| {
            sets.extend(attribute(payload, 2).map(text));
        })?;
        Ok(sets)
    }

    /// The elements of a set or map: key and, for a map, data.
    pub(crate) fn elements(
        &mut self,
        family: TableFamily,
        table: &str,
        set: &str,
    ) -> Result<Vec<KeyAndData>, NetlinkError> {
        let mut elements = Vec::new();
        let batch = dump("list elements", GET_ELEMENTS, family_number(family), |a| {
            a.text(1, table).text(2, set);
        });
        self.ask(batch, |payload| {
            let list = attribute(payload, 3).unwrap_or_default();
            elements.extend(attributes(list).filter_map(|(_, one)| element(one)));
        })?;
        Ok(elements)
    }
}

pub(super) fn dump(
    step: &'static str,
    message: u16,
    family: u8,
    fill: impl FnOnce(&mut crate::netlink::Attributes<'_>),
) -> Batch {
    let mut batch = Batch::new();
    batch.message(step, kind(message), DUMP, &header(family, 0), fill);
    batch
}

pub(super) fn attribute(payload: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(payload.get(4..)?)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

fn nested(value: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(value)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

fn be32(value: &[u8]) -> Option<u32> {
    value.get(..4)?.try_into().ok().map(u32::from_be_bytes)
}

fn table(payload: &[u8]) -> Option<TableInfo> {
    let name = text(attribute(payload, 1)?);
    let comment = attribute(payload, 6).and_then(|data| match data {
        [0, length, rest @ ..] => rest.get(..usize::from(*length)).map(text),
        _ => None,
    });
    Some(TableInfo { name, comment })
}

fn chain(payload: &[u8]) -> Option<BaseChain> {
    let hook = attribute(payload, 4)
        .and_then(|hook| nested(hook, 1))
        .and_then(be32);
    Some(BaseChain {
        family: *payload.first()?,
        table: text(attribute(payload, 1)?),
        name: text(attribute(payload, 3)?),
        hook,
        drops: attribute(payload, 5).and_then(be32) == Some(0) && hook.is_some(),
    })
}

fn element(value: &[u8]) -> Option<KeyAndData> {
    let key = nested(nested(value, 1)?, 1)?.to_vec();
    let data = nested(value, 2).and_then(|data| {
        let chain = || Some(text(nested(nested(data, 2)?, 2)?).into_bytes());
        nested(data, 1).map(<[u8]>::to_vec).or_else(chain)
    });
    Some((key, data.unwrap_or_default()))
}

/// For fuzzing.
pub(crate) fn hostile(payload: &[u8]) {
    let _ = (table(payload), chain(payload), element(payload));
    super::foreign::hostile(payload);
}
