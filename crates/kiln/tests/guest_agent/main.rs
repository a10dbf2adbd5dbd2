//! A [`GuestLink`] and a real agent: everything that needs no machine.

mod commands;
mod support;
