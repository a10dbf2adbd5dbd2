//! A [`GuestLink`](super::GuestLink) and a real agent process: everything that needs no machine.

mod commands;
mod machine;
mod support;
