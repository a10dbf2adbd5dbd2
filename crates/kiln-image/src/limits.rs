//! How much an image may cost before it is refused. Owns the numbers and the running budget of one
//! import; knows nothing of formats.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Bounds on what an image from outside may make this host read, keep or write.
///
/// The defaults let every ordinary image through and stop decompression bombs, entry floods and
/// metadata bombs long before they hurt a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Layers of one image.
    pub layers: usize,
    /// Bytes of one layer after decompression.
    pub layer_bytes: u64,
    /// Bytes of all layers together after decompression, and of a copied-in filesystem.
    pub total_bytes: u64,
    /// Files, directories, links and devices over all layers, replaced ones included.
    pub entries: u64,
    /// Bytes of names, link targets, extended attributes and sparse maps kept in memory.
    pub metadata_bytes: u64,
    /// Bytes of one path or link target.
    pub path_bytes: usize,
    /// Bytes of all extended attributes of one file, names included.
    pub xattr_bytes: usize,
    /// Bytes of one PAX or GNU extension header.
    pub extended_header_bytes: u64,
    /// Logical bytes of one file, holes included.
    pub file_bytes: u64,
    /// Data ranges of one sparse file.
    pub sparse_ranges: usize,
    /// Directory lookups made while layers are merged: bounds what chains of symlinks can cost.
    pub path_steps: u64,
    /// Memory that a decompressor may ask for (its window).
    pub decoder_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            layers: 256,
            layer_bytes: 32 << 30,
            total_bytes: 64 << 30,
            entries: 1_000_000,
            metadata_bytes: 512 << 20,
            path_bytes: 4096,
            xattr_bytes: 64 << 10,
            extended_header_bytes: 1 << 20,
            // ext4 with 4 KiB blocks ends at 16 TiB; nothing real comes near a tenth of that.
            file_bytes: 1 << 40,
            sparse_ranges: 1 << 20,
            path_steps: 200_000_000,
            // zstd --long=27 and xz -9 (65 MiB) both fit.
            decoder_bytes: 128 << 20,
        }
    }
}

/// Which limit an image ran into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Too many files.
    #[error("more than {0} entries")]
    Entries(u64),
    /// Names, attributes and sparse maps are too big together.
    #[error("more than {0} bytes of names, attributes and sparse maps")]
    Metadata(u64),
    /// All layers together are too big.
    #[error("more than {0} bytes in all layers together")]
    Total(u64),
    /// Symlinks made path lookups too expensive.
    #[error("more than {0} directory lookups (chains of symlinks)")]
    PathSteps(u64),
}

/// What is left of the limits during one import. Shared by threads that decompress layers.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    entries: AtomicU64,
    metadata: AtomicU64,
    total: AtomicU64,
    steps: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Budget {
        Budget {
            limits: limits.clone(),
            entries: AtomicU64::new(0),
            metadata: AtomicU64::new(0),
            total: AtomicU64::new(0),
            steps: AtomicU64::new(0),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn take_entry(&self) -> Result<(), LimitError> {
        let limit = self.limits.entries;
        take(&self.entries, 1, limit).map_err(|()| LimitError::Entries(limit))
    }

    pub(crate) fn take_metadata(&self, bytes: usize) -> Result<(), LimitError> {
        let limit = self.limits.metadata_bytes;
        take(&self.metadata, bytes as u64, limit).map_err(|()| LimitError::Metadata(limit))
    }

    pub(crate) fn take_total(&self, bytes: u64) -> Result<(), LimitError> {
        let limit = self.limits.total_bytes;
        take(&self.total, bytes, limit).map_err(|()| LimitError::Total(limit))
    }

    pub(crate) fn take_step(&self) -> Result<(), LimitError> {
        let limit = self.limits.path_steps;
        take(&self.steps, 1, limit).map_err(|()| LimitError::PathSteps(limit))
    }
}

fn take(used: &AtomicU64, amount: u64, limit: u64) -> Result<(), ()> {
    let before = used.fetch_add(amount, Ordering::Relaxed);
    if before.saturating_add(amount) > limit {
        Err(())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_allows_the_limit_and_not_one_more() {
        let limits = Limits {
            entries: 2,
            metadata_bytes: 10,
            ..Limits::default()
        };
        let budget = Budget::new(&limits);
        assert_eq!(budget.take_entry(), Ok(()));
        assert_eq!(budget.take_entry(), Ok(()));
        assert_eq!(budget.take_entry(), Err(LimitError::Entries(2)));
        assert_eq!(budget.take_metadata(10), Ok(()));
        assert_eq!(budget.take_metadata(1), Err(LimitError::Metadata(10)));
    }
}
