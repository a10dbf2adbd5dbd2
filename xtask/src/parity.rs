//! `cargo xtask parity`: which test holds which id of the list of what Kiln has to be able to do.
//!
//! `docs/parity.md` is made of the table here and of the tests in the sources: a test holds the ids
//! that its name begins with (`b1_8_b2_5_a_time_out_…` holds B1.8 and B2.5). The check fails when the
//! page is not what the sources say, so an id cannot lose its last test unnoticed; ids without a test
//! are listed as open.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use table::TABLE;

use crate::workspace;

const PAGE: &str = "docs/parity.md";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Write the page instead of checking it.
    #[arg(long)]
    write: bool,
}

impl Options {
    /// Checks, and changes nothing.
    pub(crate) fn check() -> Self {
        Self { write: false }
    }
}

/// Why the page does not hold.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ParityError {
    #[error("cannot read or write {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("tests are named by ids that are in no table: {}", .0.join(", "))]
    Unknown(Vec<String>),
    #[error("{PAGE} is not what the sources say: `cargo xtask parity --write`")]
    Stale,
}

/// Checks or writes the page.
pub(crate) fn run(options: &Options) -> Result<(), ParityError> {
    let root = workspace::root();
    let tests = tests_by_id(&root)?;
    let unknown: Vec<_> = tests
        .keys()
        .filter(|id| TABLE.iter().all(|(known, _, _)| known != id))
        .cloned()
        .collect();
    if !unknown.is_empty() {
        return Err(ParityError::Unknown(unknown));
    }
    let made = page(&tests);
    let path = root.join(PAGE);
    if options.write {
        return fs::write(&path, made).map_err(failed(&path));
    }
    let committed = fs::read_to_string(&path).map_err(failed(&path))?;
    if committed != made {
        return Err(ParityError::Stale);
    }
    let open = TABLE
        .iter()
        .filter(|(id, _, _)| !tests.contains_key(*id))
        .count();
    println!(
        "parity: {} of {} ids have tests",
        TABLE.len() - open,
        TABLE.len()
    );
    Ok(())
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ParityError {
    let path = path.to_owned();
    move |source| ParityError::Io { path, source }
}

fn page(tests: &BTreeMap<String, BTreeSet<String>>) -> String {
    let mut text = String::from(
        "# Parity\n\nWhat the two systems before Kiln could do, what gives it here, and the tests that \
         hold it, named\nby the id. Made by `cargo xtask parity --write`; a check holds it against the \
         sources. *Open* means\nthat no test is named by the id yet, whatever is built.\n\n\
         | id | what | given by | tests |\n|---|---|---|---|\n",
    );
    for (id, what, by) in TABLE {
        let held = match tests.get(*id) {
            Some(names) => names
                .iter()
                .map(|it| format!("`{it}`"))
                .collect::<Vec<_>>()
                .join("<br>"),
            None => "*open*".to_owned(),
        };
        text.push_str(&format!("| {id} | {what} | {by} | {held} |\n"));
    }
    text
}

fn tests_by_id(root: &Path) -> Result<BTreeMap<String, BTreeSet<String>>, ParityError> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut dirs = vec![root.join("crates"), root.join("e2e")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).map_err(failed(&dir))? {
            let path = entry.map_err(failed(&dir))?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    dirs.push(path);
                }
            } else if path.extension().is_some_and(|it| it == "rs") {
                let text = fs::read_to_string(&path).map_err(failed(&path))?;
                for name in tests_in(&text) {
                    for id in ids_of(name) {
                        found.entry(id).or_default().insert(name.to_owned());
                    }
                }
            }
        }
    }
    Ok(found)
}

/// Names of functions that stand right behind a `test` attribute.
fn tests_in(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") {
            let attribute = line.trim_start_matches("#[");
            is_test |= attribute.starts_with("test]") || attribute.starts_with("tokio::test");
            continue;
        }
        let function = line.trim_start_matches("async ").strip_prefix("fn ");
        if let Some(function) = function.filter(|_| is_test || line.contains("in ")) {
            let end = function.find(|it: char| !it.is_alphanumeric() && it != '_');
            names.extend(end.map(|end| &function[..end]));
        }
        is_test &= line.is_empty() || line.starts_with("//");
    }
    names
}

/// The ids that a name begins with.
fn ids_of(name: &str) -> Vec<String> {
    let mut parts = name.split('_').peekable();
    let mut ids = Vec::new();
    while let Some(area) = parts.next_if(|part| is_area(part)) {
        let upper = area.to_ascii_uppercase();
        if upper == "A9" {
            ids.push(upper);
            continue;
        }
        match parts.next_if(|part| !part.is_empty() && part.bytes().all(|it| it.is_ascii_digit())) {
            Some(number) => ids.push(format!("{upper}.{number}")),
            None => break,
        }
    }
    ids
}

/// A letter and a digit.
fn is_area(part: &str) -> bool {
    matches!(part.as_bytes(), [b'a' | b'b', digit] if digit.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_holds_the_ids_that_its_name_begins_with() {
        assert_eq!(ids_of("b1_8_b2_5_a_time_out"), ["B1.8", "B2.5"]);
        assert_eq!(ids_of("a9_codes_are_kept"), ["A9"]);
        assert_eq!(ids_of("a4_11_words"), ["A4.11"]);
        assert!(ids_of("a_test").is_empty() && ids_of("b2_later").is_empty());
    }

    #[test]
    fn tests_are_told_from_other_functions() {
        let text = "#[test]\nfn b1_1_one() {\n}\nfn b1_2_helper() {\n}\n#[tokio::test(x)]\n#[ignore]\nasync fn b1_3_two() {\n";
        assert_eq!(tests_in(text), ["b1_1_one", "b1_3_two"]);
        let property = "proptest! {\n#[test]\nfn b1_4_three(text in \".*\") {\n";
        assert_eq!(tests_in(property), ["b1_4_three"]);
    }

    #[test]
    fn ids_are_there_once() {
        let ids: BTreeSet<_> = TABLE.iter().map(|(id, _, _)| id).collect();
        assert_eq!(ids.len(), TABLE.len());
    }
}
