//! kiln-agent-proto
