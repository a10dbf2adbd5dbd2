//! Sizes and spans of time as they are typed, and sizes as they are shown.

use std::str::FromStr;

/// A size in MiB: a number of them, or one with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mebibytes(u32);

impl Mebibytes {
    pub(crate) fn as_u32(self) -> u32 {
        self.0
    }

    pub(crate) fn as_u64(self) -> u64 {
        u64::from(self.0)
    }
}

impl FromStr for Mebibytes {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unit = text
            .find(|it: char| !it.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(unit);
        let number: u32 = number.parse().map_err(|_| "not a size: write 512M or 2G")?;
        let factor = match unit.to_ascii_lowercase().as_str() {
            "" | "m" | "mb" | "mib" => 1,
            "g" | "gb" | "gib" => 1024,
            "t" | "tb" | "tib" => 1024 * 1024,
            _ => return Err("the unit is not one of M, G, T"),
        };
        number
            .checked_mul(factor)
            .map(Self)
            .ok_or("the size is too large")
    }
}

/// A span of time: a number with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(u64);

impl Span {
    pub(crate) fn as_secs(self) -> u64 {
        self.0
    }
}

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "not a span of time: write 90s, 30m, 24h or 7d";
        let seconds = match text.chars().next_back() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86_400,
            _ => return Err(WRONG),
        };
        let number = &text[..text.len() - 1];
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(WRONG);
        }
        let number: u64 = number.parse().map_err(|_| WRONG)?;
        number
            .checked_mul(seconds)
            .map(Self)
            .ok_or("the span is too long")
    }
}

/// A number of bytes in its largest unit, as `5.0M`.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [(u64, char); 4] = [
        (1 << 40, 'T'),
        (1 << 30, 'G'),
        (1 << 20, 'M'),
        (1 << 10, 'K'),
    ];
    let unit = UNITS.into_iter().find(|(size, _)| number >= *size);
    match unit {
        None => format!("{number}B"),
        Some((size, unit)) => {
            let (whole, rest) = (number / size, number % size);
            // No unit is so large that ten times a rest overflows.
            format!("{whole}.{}{unit}", rest * 10 / size)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let sizes = [
            ("512", 512),
            ("512M", 512),
            ("512mib", 512),
            ("2G", 2048),
            ("1T", 1 << 20),
        ];
        for (text, mebibytes) in sizes {
            assert_eq!(text.parse(), Ok(Mebibytes(mebibytes)), "{text}");
        }
        for text in [
            "",
            "G",
            "-1",
            "1.5G",
            "1 G",
            "1K",
            "5000000000",
            "99999T",
            "0x10",
            "²",
        ] {
            assert!(text.parse::<Mebibytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn spans_have_units() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("30m", 1800), ("7d", 604_800)] {
            assert_eq!(text.parse(), Ok(Span(seconds)), "{text}");
        }
        for text in [
            "",
            "s",
            "5",
            "-1s",
            "1.5h",
            "1w",
            "+1s",
            "99999999999999999d",
            "1²",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_are_shown_short() {
        let shown = [0, 1023, 1024, 1536, 5 << 20, u64::MAX].map(bytes);
        assert_eq!(
            shown,
            ["0B", "1023B", "1.0K", "1.5K", "5.0M", "16777215.9T"]
        );
    }
}
