//! What a command of `kiln exec` may take.

use std::str::FromStr;

use clap::Args;
use kiln_api::ExecLimits;

use crate::output::size::Mebibytes;

/// Limits of one command with all its processes, within what its sandbox has.
#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// Memory that the command may take with all its processes: MiB, or with a unit; what goes
    /// beyond it ends processes of the command
    #[arg(long, short, value_name = "SIZE", value_parser = at_least_one::<Mebibytes>)]
    memory: Option<Mebibytes>,
    /// Processes and threads that the command may have at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pids: Option<u32>,
    /// Processors that the command may keep busy: 2, 0.5
    #[arg(long, value_name = "N")]
    cpus: Option<Processors>,
}

impl LimitArgs {
    pub(super) fn limits(&self) -> Option<ExecLimits> {
        let limits = ExecLimits {
            mem_mib: self.memory.map(Mebibytes::as_u32),
            processes: self.pids,
            cpu_milli: self.cpus.map(|cpus| cpus.0),
        };
        (limits != ExecLimits::default()).then_some(limits)
    }
}

fn at_least_one<T: FromStr<Err = &'static str>>(text: &str) -> Result<T, &'static str> {
    // A limit of nothing would be none.
    if text.starts_with('0') {
        return Err("it is at least 1");
    }
    text.parse()
}

/// Thousandths of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Processors(u32);

impl FromStr for Processors {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "not a number of processors: write 2 or 0.5";
        const MOST: u32 = 1024;
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let is_number = |it: &str| !it.is_empty() && it.bytes().all(|it| it.is_ascii_digit());
        if !is_number(whole) || !is_number(part) || part.len() > 3 {
            return Err(WRONG);
        }
        let whole: u32 = whole.parse().map_err(|_| WRONG)?;
        if whole > MOST {
            return Err("that many there are not");
        }
        let thousandths: u32 = format!("{part:0<3}").parse().map_err(|_| WRONG)?;
        match whole * 1000 + thousandths {
            0..10 => Err("it is at least 0.01"),
            milli => Ok(Self(milli)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn processors_are_counted_in_thousandths() {
        for (text, milli) in [("2", 2000), ("0.5", 500), ("1.25", 1250), ("0.01", 10)] {
            assert_eq!(text.parse(), Ok(Processors(milli)), "{text}");
        }
        for text in [
            "", "0", ".5", "5.", "0.001", "1.0001", "-1", "1e3", "x", "99999",
        ] {
            assert!(text.parse::<Processors>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_number_or_refused(text in any::<String>(), digits in "[0-9.]{0,12}") {
            for text in [text, digits] {
                if let Ok(Processors(milli)) = text.parse() {
                    prop_assert!((10..=1_024_999).contains(&milli));
                }
            }
        }
    }
}
