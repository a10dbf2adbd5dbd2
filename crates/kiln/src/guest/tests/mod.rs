//! A [`GuestLink`](super::GuestLink) and a real agent process: everything that needs no machine.

mod bulk;
mod commands;
mod files;
mod hello;
mod hostile;
mod lab;
mod links;
mod machine;
mod ports;
mod proxy;
pub(crate) mod support;
