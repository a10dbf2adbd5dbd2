//! `kiln completion`, and what the shells ask while somebody types.
//!
//! The scripts know nothing of commands: they ask `kiln __complete` with the words so far. So they
//! stay right when commands are added, and names of sandboxes come from the daemon, if one runs;
//! none is started for that.

use clap::{Arg, ArgAction, Args, Command, ValueEnum};

use crate::{Output, cli::Cli, start::Daemon};

/// Print a script that completes `kiln` in a shell
///
/// For example: `kiln completion bash > /etc/bash_completion.d/kiln`.
#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// The words so far; the last is the one that is typed.
#[derive(Debug, Args)]
pub(crate) struct CompleteArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

const BASH: &str = r#"_kiln() {
    local IFS=$'\n'
    COMPREPLY=($(kiln __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _kiln kiln"#;

const ZSH: &str = r#"#compdef kiln
_kiln() {
    local -a found
    found=("${(@f)$(kiln __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    compadd -a found || _files
}
compdef _kiln kiln"#;

const FISH: &str = r#"complete -c kiln -a '(kiln __complete -- (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'"#;

pub(crate) fn run(args: &CompletionArgs, output: &Output) -> u8 {
    let script = match args.shell {
        Shell::Bash => BASH,
        Shell::Zsh => ZSH,
        Shell::Fish => FISH,
    };
    output.line(script);
    output.object(&script);
    0
}

/// Prints what could stand in the last word's place. Never fails: a shell has no use for reasons.
pub(crate) async fn complete(args: &CompleteArgs, daemon: &Daemon<'_>, output: &Output) -> u8 {
    let Some((typed, before)) = args.words.split_last() else {
        return 0;
    };
    let root = Cli::whole_command();
    let place = Place::behind(&root, before);
    let mut found = place.known(typed);
    if place.is_sandbox() && !typed.starts_with('-') {
        let sandboxes = daemon.client.list(&[]).await.unwrap_or_default();
        found.extend(sandboxes.into_iter().map(|it| it.name.unwrap_or(it.id)));
    }
    found.retain(|word| word.starts_with(typed.as_str()));
    found.sort();
    found.dedup();
    found.iter().for_each(|word| output.line(word));
    0
}

/// Where a word is typed.
struct Place<'a> {
    root: &'a Command,
    command: &'a Command,
    /// Arguments of the command before it that are no options.
    arguments: usize,
    /// The option whose value it is.
    value_of: Option<&'a Arg>,
}

impl<'a> Place<'a> {
    fn behind(root: &'a Command, words: &[String]) -> Self {
        let mut place = Self {
            root,
            command: root,
            arguments: 0,
            value_of: None,
        };
        words.iter().for_each(|word| place.pass(word));
        place
    }

    fn pass(&mut self, word: &str) {
        if self.value_of.take().is_some() {
            return;
        }
        if word.len() > 1 && word.starts_with('-') {
            self.value_of = self.option(word).filter(|it| takes_word(it));
            return;
        }
        match self.command.find_subcommand(word) {
            Some(inner) if self.arguments == 0 => self.command = inner,
            _ => self.arguments += 1,
        }
    }

    /// The option that ends a word: of `-it`, that is `-t`.
    fn option(&self, word: &str) -> Option<&'a Arg> {
        let all = || {
            self.command
                .get_arguments()
                .chain(self.root.get_arguments())
        };
        match word.strip_prefix("--") {
            Some(name) => all().find(|it| it.get_long() == Some(name)),
            None => all().find(|it| it.get_short() == word.chars().last()),
        }
    }

    /// What is known without a daemon.
    fn known(&self, typed: &str) -> Vec<String> {
        if let Some(option) = self.value_of {
            let values = option.get_possible_values();
            return values.iter().map(|it| it.get_name().to_owned()).collect();
        }
        if typed.starts_with('-') {
            let all = self
                .command
                .get_arguments()
                .chain(self.root.get_arguments());
            let visible = all.filter(|it| !it.is_hide_set());
            let long = visible.filter_map(|it| it.get_long());
            return long.map(|name| format!("--{name}")).collect();
        }
        if self.arguments > 0 {
            return Vec::new();
        }
        let visible = self
            .command
            .get_subcommands()
            .filter(|it| !it.is_hide_set());
        visible.map(|it| it.get_name().to_owned()).collect()
    }

    fn is_sandbox(&self) -> bool {
        if self.value_of.is_some() {
            return self.value_of.is_some_and(is_sandbox);
        }
        let all: Vec<_> = self.command.get_positionals().collect();
        let many = all
            .last()
            .filter(|it| matches!(it.get_action(), ArgAction::Append));
        let this = all.get(self.arguments).copied();
        this.or(many.copied()).is_some_and(is_sandbox)
    }
}

/// Whether an option's value is the next word.
fn takes_word(option: &Arg) -> bool {
    option.get_action().takes_values() && !option.is_require_equals_set()
}

/// Arguments that are a sandbox, or may be one, are called so.
fn is_sandbox(argument: &Arg) -> bool {
    argument.get_id().as_str().starts_with("sandbox")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is known, and whether a sandbox fits too.
    fn found(line: &str, typed: &str) -> (Vec<String>, bool) {
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        let root = Cli::whole_command();
        let place = Place::behind(&root, &words);
        let mut known = place.known(typed);
        known.retain(|it| it.starts_with(typed));
        (known, place.is_sandbox())
    }

    #[test]
    fn commands_and_options_are_completed() {
        let known = |line: &str, typed: &str| found(line, typed).0;
        assert_eq!(known("", "pau"), ["pause"]);
        assert_eq!(known("image", "in"), ["inspect"]);
        assert_eq!(known("run --engine", "fi"), ["firecracker"]);
        assert!(known("run", "--time").contains(&"--timeout".to_owned()));
        assert!(known("run", "--js").contains(&"--json".to_owned()));
        assert!(known("", "__").is_empty());
    }

    #[test]
    fn sandboxes_are_completed_where_they_belong() {
        for line in [
            "stop",
            "stop web",
            "--socket s stop",
            "rm -f",
            "exec -it",
            "exec --memory 64m",
            "exec -e A=b",
            "fs ls",
            "fs rm -r",
            "network inspect",
            "network update",
            "cp",
            "cp a",
            "attach",
            "logs -n 5",
            "events --sandbox",
            "watch",
            "update --rm",
            "connect",
            "shell",
        ] {
            assert!(found(line, "").1, "{line}");
        }
        for line in [
            "",
            "run",
            "create",
            "exec web",
            "exec web ls",
            "stop --time",
            "fs ls web",
            "image rm",
            "attach web",
            "exec --memory",
            "fs",
            "volume inspect",
            "completion",
            "rename web",
        ] {
            assert!(!found(line, "").1, "{line}");
        }
    }

    /// The scripts ask about every command; none makes this fall over.
    #[test]
    fn every_command_can_be_completed() {
        fn all(command: &Command, line: &str) {
            for inner in command.get_subcommands() {
                let line = format!("{line} {}", inner.get_name());
                assert!(
                    found(&line, "--").0.contains(&"--json".to_owned()),
                    "{line}"
                );
                all(inner, &line);
            }
        }
        all(&Cli::whole_command(), "");
    }
}
