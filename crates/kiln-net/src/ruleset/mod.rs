//! Rules, sets and maps as data; what a policy compiles to.
//!
//! Pure. The model speaks nftables' language without its bytes: `nft` encodes it, [`text`] prints
//! it for people and golden tests.

pub(crate) mod base;
pub(crate) mod bridge;
pub(crate) mod custom;
pub(crate) mod guest;
mod model;
pub(crate) mod names;
pub(crate) mod sandbox;
pub(crate) mod text;

pub(crate) use model::{
    Chain, Change, Data, Element, Field, Hook, HookKind, Match, Rule, Set, SetKind, Statement,
    TableFamily, Transaction, Verdict, interface_key, padded_port, padded_protocol,
};

#[cfg(test)]
mod tests;
