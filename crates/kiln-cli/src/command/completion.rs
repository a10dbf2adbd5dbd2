//! `kiln completion`, and what the shells ask while somebody types.
//!
//! The scripts know nothing of commands: they ask `kiln __complete` with the words so far. So they
//! stay right when commands are added, and names of sandboxes come from the daemon, if one runs;
//! none is started for that.

use clap::{Args, Command, ValueEnum};

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

/// Commands whose arguments are sandboxes.
const OF_SANDBOXES: &[&str] = &[
    "attach", "connect", "shell", "cp", "download", "exec", "inspect", "logs", "pause", "port",
    "rename", "restart", "resume", "rm", "remove", "sessions", "start", "stats", "top", "stop",
    "update", "upload", "wait", "network",
];

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
    let mut found = known(before, typed);
    if wants_sandbox(before, typed) {
        let sandboxes = daemon.client.list(&[]).await.unwrap_or_default();
        let names = sandboxes.into_iter().map(|it| it.name.unwrap_or(it.id));
        found.extend(names.filter(|name| name.starts_with(typed.as_str())));
    }
    found.sort();
    found.dedup();
    found.iter().for_each(|word| output.line(word));
    0
}

/// Commands or options that begin so.
fn known(before: &[String], typed: &str) -> Vec<String> {
    let root = Cli::whole_command();
    let mut command = &root;
    for word in before.iter().filter(|word| !word.starts_with('-')) {
        match command.find_subcommand(word) {
            Some(sub) => command = sub,
            None => break,
        }
    }
    let words = if typed.starts_with('-') {
        options(command).chain(options(&root)).collect::<Vec<_>>()
    } else {
        subcommands(command)
    };
    words
        .into_iter()
        .filter(|it| it.starts_with(typed))
        .collect()
}

fn options(command: &Command) -> impl Iterator<Item = String> {
    let visible = command.get_arguments().filter(|it| !it.is_hide_set());
    visible.filter_map(|it| it.get_long().map(|name| format!("--{name}")))
}

fn subcommands(command: &Command) -> Vec<String> {
    let visible = command.get_subcommands().filter(|it| !it.is_hide_set());
    visible.map(|it| it.get_name().to_owned()).collect()
}

fn wants_sandbox(before: &[String], typed: &str) -> bool {
    let mut words = before.iter().filter(|word| !word.starts_with('-'));
    let of_sandboxes = match words.next().map(String::as_str) {
        Some("snapshot") => words.next().is_some_and(|word| word == "create"),
        Some(command) => OF_SANDBOXES.contains(&command),
        None => false,
    };
    !typed.starts_with('-') && of_sandboxes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn commands_and_options_are_completed() {
        assert_eq!(known(&[], "pau"), ["pause"]);
        assert_eq!(known(&words("image"), "in"), ["inspect"]);
        assert!(known(&words("run"), "--time").contains(&"--timeout".to_owned()));
        assert!(known(&words("run"), "--js").contains(&"--json".to_owned()));
        assert!(!known(&[], "__").contains(&"__complete".to_owned()));
        assert!(wants_sandbox(&words("snapshot create"), "d"));
        assert!(!wants_sandbox(&words("snapshot rm"), "d"));
        assert!(wants_sandbox(&words("stop web"), "d") && !wants_sandbox(&words("run"), "d"));
    }

    #[test]
    fn every_command_that_takes_a_sandbox_is_one_that_exists() {
        let root = Cli::whole_command();
        for name in OF_SANDBOXES {
            assert!(root.find_subcommand(name).is_some(), "{name}");
        }
    }
}
