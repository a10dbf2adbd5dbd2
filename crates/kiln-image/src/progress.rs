//! What long operations tell whoever waits for them.

/// One thing worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgressEvent {
    /// A step began: `Downloading linux-image-6.1.0-56-cloud-amd64`.
    Step(String),
    /// The running step got this far.
    Bytes {
        /// Bytes done.
        done: u64,
        /// Bytes in all, where known.
        total: Option<u64>,
    },
    /// Something the user should know: a fallback that was taken, and why.
    Note(String),
}

/// Receives progress. Called from any thread; must not block.
pub trait Progress: Send + Sync {
    /// Takes one event.
    fn report(&self, event: ProgressEvent);
}

/// Nobody is watching.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn report(&self, _event: ProgressEvent) {}
}
