//! A whole host on the scripted engine: real store, real processes, a real agent in each machine,
//! no guest.

mod hooks;
mod idempotency;
mod leftovers;
mod lifecycle;
mod many;
mod places;
mod reboots;
mod restarts;
mod snapshots;
mod stage;
mod timeouts;
