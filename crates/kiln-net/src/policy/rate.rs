//! Bandwidth as users write it. Pure.

use serde::{Deserialize, Serialize};

/// A rate in bytes per second, between 8 kbit/s and 100 Gbit/s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rate(u64);

const MIN_BITS: u64 = 8_000;
const MAX_BITS: u64 = 100_000_000_000;

impl Rate {
    /// Read `500kbit`, `50mbit` or `2gbit`.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let units = [
            ("kbit", 1_000),
            ("mbit", 1_000_000),
            ("gbit", 1_000_000_000),
        ];
        let (number, unit) = units
            .iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))?;
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let bits = number.parse::<u64>().ok()?.checked_mul(unit)?;
        (MIN_BITS..=MAX_BITS)
            .contains(&bits)
            .then_some(Self(bits / 8))
    }

    /// The rate.
    pub fn bytes_per_second(self) -> u64 {
        self.0
    }
}
