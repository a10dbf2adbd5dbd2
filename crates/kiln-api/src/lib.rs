//! kiln-api
