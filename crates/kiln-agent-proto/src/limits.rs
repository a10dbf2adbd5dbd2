//! How much either side may send before it has to wait, and what a peer may hold it to.
//!
//! Both sides read their streams at once and keep what they cannot hand on in buffers of their
//! own, bounded by these windows. So a slow command never blocks a signal behind its input, and
//! a peer that ignores a window is found out instead of growing a buffer.

/// Output bytes of a session that the agent sends beyond the last acknowledged one, and the size
/// of the ring that keeps them.
pub const OUTPUT_WINDOW: u64 = 256 * 1024;

/// Changes between standard output and standard error that the ring holds.
pub const OUTPUT_RUNS: usize = 8192;

/// Bytes of standard input that a host sends beyond those that the command has taken.
pub const INPUT_WINDOW: u64 = 256 * 1024;

/// Input messages that a host sends beyond those that the agent has received.
pub const INPUT_FRAMES: u64 = 1024;

/// Largest piece of input or output in one message.
pub const CHUNK: usize = 32 * 1024;

/// Largest request, over all its parts: arguments and environment of a command.
pub const MAX_REQUEST: usize = 1024 * 1024;

/// Streams that one connection has at most.
pub const MAX_STREAMS: usize = 512;
