//! Which pages of guest memory are still to be served, and from where: pure.

use super::Region;

/// How much is served around a page that was asked for; measured elsewhere as the best size.
const AROUND_BYTES: u64 = 64 * 1024;

/// All pages of a guest.
#[derive(Debug)]
pub(super) struct Pages {
    regions: Vec<Tracked>,
}

#[derive(Debug)]
struct Tracked {
    region: Region,
    /// One for each page.
    states: Vec<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the file.
    Filed,
    /// Served.
    Served,
    /// Given back by the guest: zero when it is asked for again.
    Removed,
}

/// What to do about a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// Copy from this offset of the file.
    Copy {
        address: u64,
        offset: u64,
        bytes: u64,
    },
    /// Nothing but zeros.
    Zero { address: u64, bytes: u64 },
}

impl Pages {
    pub(super) fn new(regions: Vec<Region>) -> Self {
        let tracked = |region: Region| Tracked {
            states: vec![
                State::Filed;
                usize::try_from(region.size / region.page_size).unwrap_or(0)
            ],
            region,
        };
        Self {
            regions: regions.into_iter().map(tracked).collect(),
        }
    }

    fn find(&mut self, address: u64) -> Option<(&mut Tracked, usize)> {
        let tracked = self
            .regions
            .iter_mut()
            .find(|tracked| tracked.region.holds(address))?;
        let region = &tracked.region;
        let page = (address - region.base_host_virt_addr) / region.page_size;
        let page = usize::try_from(page).ok()?;
        Some((tracked, page))
    }

    /// What fills the page of `address`; `None` when it is not the guest's.
    pub(super) fn fill(&mut self, address: u64) -> Option<Fill> {
        let (tracked, page) = self.find(address)?;
        let state = *tracked.states.get(page)?;
        let fill = match state {
            // A served page that is asked for again was asked for twice at once: the copy says so.
            State::Filed | State::Served => tracked.copy(page),
            State::Removed => Fill::Zero {
                address: tracked.address(page),
                bytes: tracked.region.page_size,
            },
        };
        // What was given back stays so: should the filling have to wait, it is zero still.
        if state == State::Filed {
            tracked.states[page] = State::Served;
        }
        Some(fill)
    }

    /// Pages around `address` that will be asked for soon.
    pub(super) fn around(&mut self, address: u64) -> Vec<Fill> {
        let Some((tracked, page)) = self.find(address) else {
            return Vec::new();
        };
        let pages = usize::try_from(AROUND_BYTES / tracked.region.page_size).unwrap_or(1);
        if pages < 2 {
            return Vec::new();
        }
        let first = page - page % pages;
        let last = (first + pages).min(tracked.states.len());
        let mut fills = Vec::new();
        for near in first..last {
            if tracked.states[near] == State::Filed {
                tracked.states[near] = State::Served;
                fills.push(tracked.copy(near));
            }
        }
        fills
    }

    /// The guest gave this range back.
    pub(super) fn remove(&mut self, start: u64, end: u64) {
        for tracked in &mut self.regions {
            let base = tracked.region.base_host_virt_addr;
            let size = tracked.region.page_size;
            let page = |address: u64| {
                usize::try_from(address.saturating_sub(base) / size).unwrap_or(usize::MAX)
            };
            let last = page(end.max(base)).min(tracked.states.len());
            let first = page(start).min(last);
            tracked.states[first..last].fill(State::Removed);
        }
    }
}

impl Tracked {
    fn address(&self, page: usize) -> u64 {
        self.region.base_host_virt_addr + page as u64 * self.region.page_size
    }

    fn copy(&self, page: usize) -> Fill {
        Fill::Copy {
            address: self.address(page),
            offset: self.region.offset + page as u64 * self.region.page_size,
            bytes: self.region.page_size,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 4096;

    fn pages() -> Pages {
        Pages::new(vec![Region {
            base_host_virt_addr: 0x10000,
            size: 32 * PAGE,
            offset: PAGE,
            page_size: PAGE,
        }])
    }

    #[test]
    fn a_page_comes_from_its_place_in_the_file() {
        let fill = pages().fill(0x10000 + 3 * PAGE + 17).unwrap();
        let expected = Fill::Copy {
            address: 0x10000 + 3 * PAGE,
            offset: 4 * PAGE,
            bytes: PAGE,
        };
        assert_eq!(fill, expected);
        assert_eq!(pages().fill(0x10000 - 1), None);
        assert_eq!(pages().fill(0x10000 + 32 * PAGE), None);
    }

    #[test]
    fn what_was_given_back_is_zero_and_nothing_of_the_file() {
        let mut pages = pages();
        pages.remove(0x10000 + PAGE, 0x10000 + 3 * PAGE);
        for _ in 0..2 {
            let fill = pages.fill(0x10000 + 2 * PAGE);
            assert!(matches!(fill, Some(Fill::Zero { .. })));
        }
        assert!(matches!(pages.fill(0x10000), Some(Fill::Copy { .. })));
        // Around the first page: neither it, nor the removed ones.
        assert_eq!(pages.around(0x10000).len(), 13);
        assert_eq!(pages.around(0x10000).len(), 0);
    }

    proptest! {
        #[test]
        fn every_page_is_copied_once_at_most_unless_it_is_asked_for_again(
            asked in proptest::collection::vec(0_u64..40, 0..60),
            removed in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..4))
        {
            let mut pages = pages();
            let mut seen = std::collections::HashSet::new();
            for page in asked {
                for fill in pages.around(0x10000 + page * PAGE) {
                    let fill = format!("{fill:?}");
                    prop_assert!(seen.insert(fill));
                }
            }
            for (start, end) in removed {
                pages.remove(start, end);
            }
        }
    }
}
