//! The arguments of an agent that is not process 1.

use std::path::PathBuf;
use std::time::Duration;

const USAGE: &str =
    "not process 1; for tests: kiln-agent --connect-unix PATH [--cgroup DIR] [--linger-ms N]";

/// What they say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) connect_unix: PathBuf,
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) linger: Option<Duration>,
}

impl Arguments {
    /// Understands them, or tells how they go.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, &'static str> {
        let (mut connect_unix, mut cgroup, mut linger) = (None, None, None);
        let mut arguments = arguments;
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or(USAGE)?;
            match name.as_str() {
                "--connect-unix" => connect_unix = Some(PathBuf::from(value)),
                "--cgroup" => cgroup = Some(PathBuf::from(value)),
                "--linger-ms" => {
                    let ms = value.parse().map_err(|_| USAGE)?;
                    linger = Some(Duration::from_millis(ms));
                }
                _ => return Err(USAGE),
            }
        }
        Ok(Self {
            connect_unix: connect_unix.ok_or(USAGE)?,
            cgroup,
            linger,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Arguments, &'static str> {
        Arguments::parse(words.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_are_understood_or_refused() {
        let all = parse("--connect-unix /s --linger-ms 5 --cgroup /c").unwrap();
        assert_eq!(all.connect_unix, PathBuf::from("/s"));
        assert_eq!(all.linger, Some(Duration::from_millis(5)));
        for bad in ["", "--connect-unix", "--linger-ms x", "--what ever"] {
            assert_eq!(parse(bad), Err(USAGE), "{bad}");
        }
    }
}
