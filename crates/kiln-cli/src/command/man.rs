//! `kiln man`: the manual, made of what can be typed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, Command};
use clap_mangen::Man;

use crate::{Failure, Output, cli::Cli};

/// Print the manual page of a command, or write those of all commands
///
/// For example: `kiln man | man -l -`, `kiln man network create | man -l -`,
/// `kiln man --all /usr/local/share/man/man1`.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Write all pages into this directory, which is made
    #[arg(long, value_name = "DIR", conflicts_with = "words")]
    all: Option<PathBuf>,
    /// The command's name, word by word; kiln itself when none is given
    #[arg(value_name = "COMMAND")]
    words: Vec<String>,
}

pub(crate) fn run(args: &ManArgs, output: &Output) -> Result<u8, Failure> {
    let root = whole();
    match &args.all {
        Some(directory) => {
            let written = write_all(&root, directory).map_err(Failure::io("write the manual"))?;
            written.iter().for_each(|path| output.line(path));
            output.object(&written);
        }
        None => {
            let command = find(&root, &args.words)?;
            let text = text(command).map_err(Failure::io("write the manual"))?;
            output.line(text.trim_end());
            output.object(&text);
        }
    }
    Ok(0)
}

/// All commands, each knowing its whole name.
fn whole() -> Command {
    named(Cli::whole_command(), "")
}

fn named(command: Command, above: &str) -> Command {
    let name = match above {
        "" => command.get_name().to_owned(),
        above => format!("{above}-{}", command.get_name()),
    };
    let inner: Vec<_> = command
        .get_subcommands()
        .map(|it| it.get_name().to_owned())
        .collect();
    let command = inner.into_iter().fold(command, |command, each| {
        command.mut_subcommand(each, |it| named(it, &name))
    });
    command.display_name(name)
}

fn find<'a>(root: &'a Command, words: &[String]) -> Result<&'a Command, Failure> {
    words.iter().try_fold(root, |command, word| {
        let found = command.find_subcommand(word).filter(|it| !it.is_hide_set());
        found.ok_or_else(|| {
            let text = format!("there is no command {:?}", words.join(" "));
            let report = kiln_api::ErrorReport::new("USAGE", text);
            Failure::reported(report.with_hint("see `kiln --help`"))
        })
    })
}

fn text(command: &Command) -> io::Result<String> {
    let mut page = Vec::new();
    Man::new(command.clone())
        .manual("Kiln")
        .source(format!("kiln {}", kiln_daemon::VERSION))
        .render(&mut page)?;
    String::from_utf8(page).map_err(io::Error::other)
}

/// A page for each; their paths.
fn write_all(root: &Command, directory: &Path) -> io::Result<Vec<String>> {
    fs::create_dir_all(directory)?;
    let mut written = Vec::new();
    let mut ahead = vec![root];
    while let Some(command) = ahead.pop() {
        let name = command.get_display_name().unwrap_or(command.get_name());
        let path = directory.join(format!("{name}.1"));
        fs::write(&path, text(command)?)?;
        written.push(path.display().to_string());
        ahead.extend(command.get_subcommands().filter(|it| !it.is_hide_set()));
    }
    written.sort();
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(command: &Command, above: &str, all: &mut Vec<String>) {
        let name = format!("{above}{}", command.get_name());
        for inner in command.get_subcommands().filter(|it| !it.is_hide_set()) {
            names(inner, &format!("{name}-"), all);
        }
        all.push(name);
    }

    #[test]
    fn every_command_has_a_page_that_tells_its_options() {
        let dir = tempfile::tempdir().unwrap();
        let written = write_all(&whole(), dir.path()).unwrap();
        let mut all = Vec::new();
        names(&Cli::whole_command(), "", &mut all);
        assert_eq!(written.len(), all.len());
        for name in all {
            let page = fs::read_to_string(dir.path().join(format!("{name}.1"))).unwrap();
            assert!(
                page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"),
                "{name}"
            );
            assert!(page.contains(&name.replace('-', "\\-")), "{name}: {page}");
        }
        let words = ["network", "create"].map(str::to_owned);
        let root = whole();
        let page = text(find(&root, &words).unwrap()).unwrap();
        assert!(
            page.contains("wireguard") && page.contains("kiln"),
            "{page}"
        );
        assert!(find(&root, &["__complete".to_owned()]).is_err());
        assert!(find(&root, &["nonsense".to_owned()]).is_err());
    }
}
