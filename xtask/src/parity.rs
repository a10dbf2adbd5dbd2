//! `cargo xtask parity`: what Kiln's two predecessors could do, and the tests that show it of Kiln.
//!
//! `docs/parity.md` has a row for every id. A test says by its name which ids it is about:
//! `a4_2_pause_…` is one of A4.2, `b1_8_b2_5_a_time_out_…` one of B1.8 and of B2.5. This chore fills the rows' last column from the tests that there
//! are, and fails when an id has neither a test nor the word `open` and a reason.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use clap::Args;

use crate::workspace;

/// Where the table is.
const TABLE: &str = "docs/parity.md";
/// Where tests are.
const SOURCES: [&str; 3] = ["crates", "e2e", "xtask"];
/// What begins the last column of an id without a test.
const OPEN: &str = "open:";

/// All ids: a letter, a chapter and how many sections it has; none is the chapter itself.
const CHAPTERS: &[(char, u32, u32)] = &[
    ('A', 1, 8),
    ('A', 2, 5),
    ('A', 3, 8),
    ('A', 4, 11),
    ('A', 5, 10),
    ('A', 6, 6),
    ('A', 7, 4),
    ('A', 8, 4),
    ('A', 9, 0),
    ('B', 1, 11),
    ('B', 2, 6),
    ('B', 3, 5),
    ('B', 4, 7),
    ('B', 5, 3),
    ('B', 6, 1),
    ('B', 7, 3),
    ('B', 8, 4),
];

#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Write the tests' names into the table instead of comparing them.
    #[arg(long)]
    write: bool,
}

/// Why the table and the tests do not agree.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ParityError {
    #[error("cannot {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{TABLE} does not fit the tests:\n{}", .0.join("\n"))]
    Faults(Vec<String>),
}

/// A letter, a chapter, a section. Section 0 is a chapter without any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Id(char, u32, u32);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(letter, chapter, 0) => write!(f, "{letter}{chapter}"),
            Self(letter, chapter, section) => write!(f, "{letter}{chapter}.{section}"),
        }
    }
}

impl Id {
    fn all() -> impl Iterator<Item = Self> {
        CHAPTERS.iter().flat_map(|&(letter, chapter, sections)| {
            let sections = if sections == 0 { 0..=0 } else { 1..=sections };
            sections.map(move |section| Self(letter, chapter, section))
        })
    }

    /// From the first column of a row.
    fn of_column(text: &str) -> Option<Self> {
        Self::all().find(|id| id.to_string() == text)
    }

    /// Those that the name of a test begins with.
    fn of_test(mut name: &str) -> Vec<Self> {
        let mut found = Vec::new();
        while let Some((id, rest)) = Self::before(name) {
            found.push(id);
            name = rest;
        }
        found
    }

    /// The id that a name begins with, and what comes behind it.
    fn before(name: &str) -> Option<(Self, &str)> {
        let letter = match name.chars().next()? {
            'a' => 'A',
            'b' => 'B',
            _ => return None,
        };
        let (chapter, rest) = number(&name[1..])?;
        Some(match number(rest) {
            Some((section, rest)) => (Self(letter, chapter, section), rest),
            None => (Self(letter, chapter, 0), rest),
        })
    }
}

/// A number with the `_` behind it, and the rest.
fn number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let number = text[..end].parse().ok()?;
    Some((number, text[end..].strip_prefix('_')?))
}

/// Names of tests by id, each with its file.
type Tests = BTreeMap<Id, Vec<(String, String)>>;

pub(crate) fn run(options: &Options) -> Result<(), ParityError> {
    let root = workspace::root();
    let tests = tests_in(&root)?;
    let path = root.join(TABLE);
    let table = fs::read_to_string(&path).map_err(file("read", &path))?;
    let (filled, faults) = fill(&table, &tests);
    if !faults.is_empty() {
        return Err(ParityError::Faults(faults));
    }
    if filled == table {
        return Ok(());
    }
    if options.write {
        return fs::write(&path, filled).map_err(file("write", &path));
    }
    let other = table.lines().zip(filled.lines()).filter(|(a, b)| a != b);
    let told = other.map(|(_, should)| format!("should be: {should}"));
    let hint = "`cargo xtask parity --write` writes it".to_owned();
    Err(ParityError::Faults(told.chain([hint]).collect()))
}

/// The table with the tests in its last column, and what is wrong with it.
fn fill(table: &str, tests: &Tests) -> (String, Vec<String>) {
    let mut faults = Vec::new();
    let mut seen = Vec::new();
    let mut filled = String::new();
    for line in table.lines() {
        match row(line) {
            Some((id, columns, last)) => {
                seen.push(id);
                let last = match tests.get(&id) {
                    Some(tests) => shown(tests),
                    None if last.strip_prefix(OPEN).is_some_and(|why| why.len() > 3) => {
                        last.to_owned()
                    }
                    None => {
                        faults.push(format!(
                            "{id} has no test; its row does not say `{OPEN} why`"
                        ));
                        continue;
                    }
                };
                filled.push_str(&format!("{columns}| {last} |\n"));
            }
            None => {
                filled.push_str(line);
                filled.push('\n');
            }
        }
    }
    let missing = Id::all().filter(|id| !seen.contains(id));
    faults.extend(missing.map(|id| format!("{id} has no row")));
    let strangers = tests
        .keys()
        .filter(|id| !Id::all().any(|known| known == **id));
    faults.extend(strangers.map(|id| format!("{id} is no id, but a test is named by it")));
    seen.sort_unstable();
    let twice = seen.windows(2).filter(|pair| pair[0] == pair[1]);
    faults.extend(twice.map(|pair| format!("{} has two rows", pair[0])));
    (filled, faults)
}

/// A row of an id: its columns but the last, and the last.
fn row(line: &str) -> Option<(Id, &str, &str)> {
    let columns = line.strip_suffix('|')?.trim_end();
    let (columns, last) = columns.rsplit_once('|')?;
    let id = columns.strip_prefix('|')?.split('|').next()?.trim();
    Some((Id::of_column(id)?, columns, last.trim()))
}

fn shown(tests: &[(String, String)]) -> String {
    let mut by_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (file, name) in tests {
        by_file.entry(file).or_default().push(name);
    }
    let files = by_file.iter().map(|(file, names)| {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        format!("{file}: {}", names.join(", "))
    });
    files.collect::<Vec<_>>().join("<br>")
}

fn tests_in(root: &Path) -> Result<Tests, ParityError> {
    let mut tests = Tests::new();
    let mut directories: Vec<PathBuf> = SOURCES.iter().map(|dir| root.join(dir)).collect();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).map_err(file("list", &directory))? {
            let path = entry.map_err(file("list", &directory))?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = fs::read_to_string(&path).map_err(file("read", &path))?;
                let name = path.strip_prefix(root).unwrap_or(&path);
                let name = name.display().to_string();
                for (id, test) in named_in(&source) {
                    tests
                        .entry(id)
                        .or_default()
                        .push((name.clone(), test.to_owned()));
                }
            }
        }
    }
    for named in tests.values_mut() {
        named.sort();
    }
    Ok(tests)
}

/// Tests with the name of an id: functions under a `#[test]` or something like it.
fn named_in(source: &str) -> Vec<(Id, &str)> {
    let mut found = Vec::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            continue;
        }
        let after = line.strip_prefix("async ").unwrap_or(line);
        if let Some(name) = after.strip_prefix("fn ")
            && is_test
        {
            let end = name.find('(').unwrap_or(name.len());
            let name = &name[..end];
            found.extend(Id::of_test(name).into_iter().map(|id| (id, name)));
        }
        // In a macro of property tests, attributes stand on lines of their own too.
        is_test &= line.starts_with("//") || line.is_empty();
    }
    found
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ParityError {
    let path = path.to_owned();
    move |source| ParityError::File {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(last: &str) -> String {
        let rows = Id::all().map(|id| format!("| {id} | what | how | {last} |\n"));
        rows.collect::<String>()
    }

    #[test]
    fn tests_are_known_by_their_names() {
        assert_eq!(Id::of_test("a4_11_x"), [Id('A', 4, 11)]);
        assert_eq!(Id::of_test("a9_network"), [Id('A', 9, 0)]);
        assert_eq!(Id::of_test("b1_is_refused"), [Id('B', 1, 0)]);
        let two = [Id('B', 1, 8), Id('B', 2, 5)];
        assert_eq!(Id::of_test("b1_8_b2_5_a_time_out"), two);
        assert_eq!(Id::of_test("a_file_4_2_"), []);
        assert_eq!(Id::of_test("b12"), []);
    }

    #[test]
    fn only_tests_count() {
        let source = "#[tokio::test(flavor = \"current_thread\")]\n#[ignore]\n\
            async fn a1_1_one() {\nfn a1_2_helper() {\n  #[test]\n  // words\n  fn b8_2_two() {\n";
        let found: Vec<&str> = named_in(source).into_iter().map(|(_, name)| name).collect();
        assert_eq!(found, ["a1_1_one", "b8_2_two"]);
    }

    #[test]
    fn an_id_needs_a_test_or_a_reason() {
        let (_, faults) = fill(&table(""), &Tests::new());
        assert_eq!(faults.len(), Id::all().count());
        let (same, faults) = fill(&table("open: not built"), &Tests::new());
        assert_eq!((same, faults), (table("open: not built"), Vec::new()));
    }

    #[test]
    fn what_has_a_test_shows_it() {
        let test = ("a.rs".to_owned(), "a9_x".to_owned());
        let tests = Tests::from([(Id('A', 9, 0), vec![test])]);
        let (filled, faults) = fill(&table("open: later"), &tests);
        assert_eq!(faults, Vec::<String>::new());
        assert!(filled.contains("| A9 | what | how | a.rs: `a9_x` |\n"));
        assert!(filled.contains("| A8.4 | what | how | open: later |\n"));
    }

    #[test]
    fn missing_double_and_strange_ids_are_told() {
        let tests = Tests::from([(Id('A', 4, 12), vec![(String::new(), "a4_12".to_owned())])]);
        let double = table("open: later") + "| A9 | what | how | open: later |\n";
        let (_, faults) = fill(&double.replace("| A1.1 |", "| A1.0 |"), &tests);
        let told = faults.join("\n");
        for fault in ["A1.1 has no row", "A4.12 is no id", "A9 has two rows"] {
            assert!(told.contains(fault), "{told}");
        }
    }
}
