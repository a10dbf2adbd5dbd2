//! kiln-daemon
