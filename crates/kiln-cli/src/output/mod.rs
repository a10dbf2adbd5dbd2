//! What is printed, and where: results to standard output, all else to standard error.

pub(crate) mod format;
pub(crate) mod progress;
pub(crate) mod size;
pub(crate) mod span;
pub(crate) mod table;
pub(crate) mod timings;

use std::io::{self, Write};

use kiln_api::{ErrorBody, ErrorReport, Timings};
use serde::Serialize;
use serde_json::json;

/// Lines of a guest's console or a program's output that are shown with a failure.
const MAX_OUTPUT_LINES: usize = 30;

/// How results, warnings and failures are printed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    verbose: bool,
}

impl Output {
    pub(crate) fn new(json: bool, verbose: bool) -> Self {
        Self { json, verbose }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// A result for people.
    pub(crate) fn line(&self, text: &str) {
        if !self.json {
            print_out(text);
        }
    }

    /// A result for programs.
    pub(crate) fn object(&self, value: &impl Serialize) {
        if self.json {
            print_out(&to_json(value));
        }
    }

    /// A result for programs that people read too: one line of JSON with `--json`, else indented.
    pub(crate) fn pretty(&self, value: &impl Serialize) {
        if self.json {
            print_out(&to_json(value));
        } else {
            print_out(&serde_json::to_string_pretty(value).unwrap_or_default());
        }
    }

    /// Something on the way that is good to know.
    pub(crate) fn note(&self, text: &str) {
        if self.json {
            print_err(&to_json(&json!({ "note": text })));
        } else {
            print_err(&format!("kiln: {text}"));
        }
    }

    /// Something on the way that only the curious want to know.
    pub(crate) fn detail(&self, text: &str) {
        if self.verbose {
            self.note(text);
        }
    }

    pub(crate) fn warning(&self, text: &str) {
        if self.json {
            print_err(&to_json(&json!({ "warning": text })));
        } else {
            print_err(&format!("kiln: warning: {text}"));
        }
    }

    /// How long it took; to standard error, since standard output is the command's.
    pub(crate) fn timings(&self, timings: &Timings) {
        if self.json {
            print_err(&to_json(&json!({ "timings": timings })));
        } else {
            print_err(&timings::render(timings));
        }
    }

    pub(crate) fn failure(&self, report: &ErrorReport) {
        if self.json {
            print_err(&to_json(&ErrorBody {
                error: report.clone(),
            }));
        } else {
            print_err(&in_words(report));
        }
    }
}

fn in_words(report: &ErrorReport) -> String {
    let mut text = format!("kiln: error[{}]: {}", report.code, report.message);
    let output = report
        .details
        .as_ref()
        .and_then(|details| details.get("output"));
    if let Some(output) = output.and_then(serde_json::Value::as_str) {
        let lines: Vec<_> = output.lines().collect();
        for line in lines
            .iter()
            .skip(lines.len().saturating_sub(MAX_OUTPUT_LINES))
        {
            text.push_str("\n  | ");
            text.push_str(&printable(line));
        }
    }
    if let Some(hint) = &report.hint {
        text.push_str("\n  hint: ");
        text.push_str(hint);
    }
    text
}

/// A guest's console can hold sequences that a terminal obeys.
pub(crate) fn printable(line: &str) -> String {
    line.chars()
        .filter(|it| *it == '\t' || !it.is_control())
        .collect()
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Whoever does not read misses nothing: a closed pipe is no failure.
fn print_out(text: &str) {
    drop(writeln!(io::stdout(), "{text}"));
}

fn print_err(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_with_code_output_and_hint() {
        let report = ErrorReport::new("START_FAILED", "the machine did not start")
            .with_hint("look at it")
            .with_details(json!({ "output": "one\n\u{1b}[2Jtwo" }));
        assert_eq!(
            in_words(&report),
            "kiln: error[START_FAILED]: the machine did not start\n  | one\n  | [2Jtwo\n  hint: look at it"
        );
    }
}
