//! Spans of time as they are typed, down to milliseconds: `90s`, `2h30m`, `1d`, `250ms`.

use std::str::FromStr;

/// A span of at least a millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Millis(u64);

const WRONG: &str = "not a span of time: write 90s, 30m, 2h30m or 1d";

impl Millis {
    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for Millis {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut rest = text;
        let mut total = 0u64;
        let mut before = u64::MAX;
        while !rest.is_empty() {
            let (part, unit);
            (part, unit, rest) = next_part(rest).ok_or(WRONG)?;
            // Each unit once, the large ones first: `30m2h` is a typing error.
            if unit >= before {
                return Err(WRONG);
            }
            before = unit;
            let span = part.checked_mul(unit).ok_or("the span is too long")?;
            total = total.checked_add(span).ok_or("the span is too long")?;
        }
        match total {
            0 if text.is_empty() => Err(WRONG),
            0 => Err("the span is 0"),
            total => Ok(Self(total)),
        }
    }
}

/// Number, milliseconds of its unit, and what follows.
fn next_part(text: &str) -> Option<(u64, u64, &str)> {
    let digits = text.find(|it: char| !it.is_ascii_digit())?;
    let (number, rest) = text.split_at(digits);
    let end = rest
        .find(|it: char| it.is_ascii_digit())
        .unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(end);
    let unit = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some((number.parse().ok()?, unit, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b1_8_spans_are_numbers_with_units() {
        let pairs = [
            ("1h", 3_600_000),
            ("30m", 1_800_000),
            ("2h30m", 9_000_000),
            ("1d1ms", 86_400_001),
            ("90s", 90_000),
        ];
        for (text, ms) in pairs {
            assert_eq!(text.parse::<Millis>().map(Millis::get), Ok(ms), "{text}");
        }
        let wrong = [
            "",
            "5",
            "h",
            "-1h",
            "1h30",
            "30m2h",
            "1h1h",
            "1y",
            "0s",
            "1 h",
            "9999999999999999d",
        ];
        for text in wrong {
            assert!(text.parse::<Millis>().is_err(), "{text}");
        }
    }
}
