//! kiln
#[allow(missing_docs)]
pub mod exec;
pub mod guest;
