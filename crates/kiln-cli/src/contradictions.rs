//! Options that contradict each other in ways that the definition of a command cannot say.
//!
//! No option is ever silently ignored: what has no meaning where it stands is refused.

use clap::{ArgMatches, error::ErrorKind, parser::ValueSource};

use crate::{
    cli::{Cli, Command, Global},
    remote::Address,
};

/// What clap does not see, since it looks at options of all commands before it hands them down.
pub(crate) fn refuse(leaf: &ArgMatches) -> Result<(), clap::Error> {
    let formatted = matches!(leaf.try_contains_id("format"), Ok(true));
    let quiet = matches!(leaf.try_get_one::<bool>("quiet"), Ok(Some(true)));
    if leaf.get_flag("json") && (formatted || quiet) {
        let other = if quiet { "--quiet" } else { "--format" };
        return Err(told(&format!(
            "the argument '--json' cannot be used with '{other}'"
        )));
    }
    Ok(())
}

/// What was typed behind the last name of a command.
pub(crate) fn leaf(matches: &ArgMatches) -> &ArgMatches {
    let mut leaf = matches;
    while let Some((_, inner)) = leaf.subcommand() {
        leaf = inner;
    }
    leaf
}

/// Which options say where the daemon is on the command line itself, which outweighs the
/// environment.
pub(crate) struct TypedGlobals {
    host: bool,
    socket: bool,
    data_dir: bool,
    secrets: bool,
}

impl TypedGlobals {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let mut all = vec![matches];
        while let Some((_, inner)) = all.last().and_then(|it| it.subcommand()) {
            all.push(inner);
        }
        let typed = |id: &str| {
            all.iter()
                .any(|it| it.value_source(id) == Some(ValueSource::CommandLine))
        };
        Self {
            host: typed("host"),
            socket: typed("socket"),
            data_dir: typed("data_dir"),
            secrets: typed("tls_ca") || typed("token_file"),
        }
    }

    /// Refuses to be told of a daemon where none is asked.
    pub(crate) fn refuse_unasked(&self, command: &Command) -> Result<(), clap::Error> {
        let has_unasked = match command {
            Command::Completion(_) | Command::Man(_) => {
                self.host || self.socket || self.data_dir || self.secrets
            }
            // It looks at directories.
            Command::Doctor(_) => self.host || self.socket,
            _ => false,
        };
        if has_unasked {
            let text = "this command asks no daemon: it takes no '--host' or '--socket'";
            return Err(told(text));
        }
        Ok(())
    }

    /// One daemon is meant: two that are named contradict each other.
    pub(crate) fn settle(&self, global: &mut Global) -> Result<(), clap::Error> {
        if self.host && self.socket {
            let text = "the argument '--host' cannot be used with '--socket'";
            return Err(told(text));
        }
        if !self.host && (self.socket || self.data_dir) {
            global.host = None;
        }
        let is_elsewhere = matches!(global.host, Some(Address::Https(_)));
        if is_elsewhere && self.data_dir {
            let text = "the argument '--host' cannot be used with '--data-dir'";
            return Err(told(text));
        }
        if !self.host && global.host.is_some() && global.socket.is_some() {
            let text = "KILN_HOST and KILN_SOCKET name two daemons";
            return Err(told(text));
        }
        if self.secrets && !is_elsewhere {
            let text = "'--tls-ca' and '--token-file' need '--host https://HOST:PORT'";
            return Err(told(text));
        }
        Ok(())
    }
}

pub(crate) fn told(text: &str) -> clap::Error {
    Cli::whole_command().error(ErrorKind::ArgumentConflict, text)
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    /// All options of all commands and which exclude each other, one command a line.
    fn options(command: &Command, above: &str, lines: &mut Vec<String>) {
        let name = format!("{above}{}", command.get_name());
        let flags = || command.get_arguments().filter(|it| it.get_long().is_some());
        let long = |it: &clap::Arg| it.get_long().unwrap_or_default().to_owned();
        let mut all: Vec<_> = flags().filter(|it| !it.is_global_set()).map(long).collect();
        all.sort();
        let mut pairs: Vec<_> = flags()
            .flat_map(|flag| {
                let others = command.get_arg_conflicts_with(flag);
                let others = others.into_iter().filter(|it| it.get_long().is_some());
                others
                    .map(move |it| [long(flag), long(it)])
                    .collect::<Vec<_>>()
            })
            .collect();
        pairs.iter_mut().for_each(|pair| pair.sort());
        pairs.sort();
        pairs.dedup();
        let pairs: Vec<_> = pairs.iter().map(|pair| pair.join("|")).collect();
        lines.push(
            format!("{name}: {} / {}", all.join(" "), pairs.join(" "))
                .trim()
                .to_owned(),
        );
        for inner in command.get_subcommands() {
            options(inner, &format!("{name} "), lines);
        }
    }

    /// Whoever adds an option looks at what it means beside each of the others, refuses what means
    /// nothing, adds a line to `no_option_is_silently_ignored` in `tests/cli.rs`, and then has this
    /// list written anew: `KILN_WRITE_OPTIONS=1 cargo test -p kiln-cli options_are_reviewed`.
    #[test]
    fn b8_2_all_options_are_reviewed() {
        let command = Cli::whole_command();
        let mut lines = Vec::new();
        options(&command, "", &mut lines);
        let found = lines.join("\n") + "\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/options.txt");
        if std::env::var_os("KILN_WRITE_OPTIONS").is_some() {
            std::fs::write(path, &found).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), found);
    }

    /// An option that its command does not read is a field that nobody reads, which the compiler
    /// refuses: unless somebody tells it not to look.
    #[test]
    fn b8_2_the_compiler_finds_options_that_nobody_reads() {
        fn look(directory: &std::path::Path) {
            for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
                if entry.path().is_dir() {
                    look(&entry.path());
                } else {
                    let text = std::fs::read_to_string(entry.path()).unwrap();
                    let hushed = ["dead", "_code"].concat();
                    assert!(!text.contains(&hushed), "{}", entry.path().display());
                }
            }
        }
        look(concat!(env!("CARGO_MANIFEST_DIR"), "/src").as_ref());
    }
}
