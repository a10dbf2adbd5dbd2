//! Sizes as they are typed.

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
}
