//! What Firecracker sends a handler: one message with the regions of guest memory.

use serde::Deserialize;

/// Nobody's message is longer.
pub(super) const MAX_MESSAGE_BYTES: usize = 64 * 1024;
const MAX_REGIONS: usize = 64;

/// A part of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Region {
    /// Where it is in the VMM.
    pub base_host_virt_addr: u64,
    /// Its size.
    pub size: u64,
    /// Where it is in the memory file.
    pub offset: u64,
    /// Size of its pages; in versions before 1.12 under another name.
    #[serde(alias = "page_size_kib")]
    pub page_size: u64,
}

/// A message that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// Not the documented form.
    #[error("not a list of memory regions")]
    Form(#[source] serde_json::Error),
    /// Regions that lie outside the memory file, or overlap, or have no sane pages.
    #[error("memory regions that do not fit the file of {0} bytes")]
    Regions(u64),
}

/// Both names of the page size may be there.
#[derive(Deserialize)]
struct Raw {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
    page_size_kib: Option<u64>,
}

/// Reads the message, for a memory file of `memory_bytes`.
///
/// # Errors
/// It is none, or does not fit the file.
pub fn parse_regions(message: &[u8], memory_bytes: u64) -> Result<Vec<Region>, RegionError> {
    let raw: Vec<Raw> = serde_json::from_slice(message).map_err(RegionError::Form)?;
    let refused = || RegionError::Regions(memory_bytes);
    if raw.is_empty() || raw.len() > MAX_REGIONS {
        return Err(refused());
    }
    let mut regions = Vec::with_capacity(raw.len());
    for raw in raw {
        // Both are in bytes, whatever the older name says.
        let page_size = raw.page_size.or(raw.page_size_kib).ok_or_else(refused)?;
        let region = Region {
            base_host_virt_addr: raw.base_host_virt_addr,
            size: raw.size,
            offset: raw.offset,
            page_size,
        };
        if !region.is_sane(memory_bytes) {
            return Err(refused());
        }
        regions.push(region);
    }
    regions.sort_by_key(|region| region.base_host_virt_addr);
    let overlap = regions
        .windows(2)
        .any(|pair| pair[0].base_host_virt_addr + pair[0].size > pair[1].base_host_virt_addr);
    if overlap {
        return Err(refused());
    }
    Ok(regions)
}

impl Region {
    fn is_sane(&self, memory_bytes: u64) -> bool {
        let pages = (4096..=1 << 30).contains(&self.page_size) && self.page_size.is_power_of_two();
        let end = |start: u64| start.checked_add(self.size);
        pages
            && self.size > 0
            && self.size.is_multiple_of(self.page_size)
            && self.base_host_virt_addr.is_multiple_of(self.page_size)
            && end(self.base_host_virt_addr).is_some()
            && end(self.offset).is_some_and(|end| end <= memory_bytes)
    }

    /// Whether `address` is in it.
    #[must_use]
    pub fn holds(&self, address: u64) -> bool {
        address >= self.base_host_virt_addr && address - self.base_host_virt_addr < self.size
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"[{"base_host_virt_addr":8192,"size":4096,"offset":0,"page_size":4096,
        "page_size_kib":4096,"later":true},
        {"base_host_virt_addr":16384,"size":8192,"offset":4096,"page_size_kib":4096}]"#;

    #[test]
    fn both_forms_of_the_page_size_are_read() {
        let regions = parse_regions(GOOD.as_bytes(), 12288).unwrap();
        assert_eq!(regions.len(), 2);
        assert!(regions[0].holds(8192) && !regions[0].holds(12288));
        assert_eq!(regions[1].page_size, 4096);
    }

    #[test]
    fn what_does_not_fit_the_file_is_refused() {
        assert!(parse_regions(GOOD.as_bytes(), 8192).is_err());
        assert!(parse_regions(b"[]", 8192).is_err());
        for (from, to) in [
            ("\"size\":8192", "\"size\":5"),
            ("16384", "8192"),
            ("16384", "18446744073709547520"),
            ("\"page_size_kib\":4096}", "\"page_size_kib\":3}"),
        ] {
            let wrong = GOOD.replace(from, to);
            assert!(parse_regions(wrong.as_bytes(), 12288).is_err(), "{to}");
        }
    }

    proptest! {
        #[test]
        fn any_message_is_survived(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            numbers in any::<[u64; 4]>(), memory in any::<u64>())
        {
            let _ = parse_regions(&bytes, memory);
            let [base, size, offset, page] = numbers;
            let message = format!(
                r#"[{{"base_host_virt_addr":{base},"size":{size},"offset":{offset},"page_size":{page}}}]"#
            );
            if let Ok(regions) = parse_regions(message.as_bytes(), memory) {
                prop_assert!(regions[0].offset + regions[0].size <= memory);
            }
        }
    }
}
