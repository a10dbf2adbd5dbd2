//! A host with many sandboxes whose machines are scripted: what each verb costs among a hundred and
//! among a thousand.
//!
//! The samples come from `crates/kiln-daemon/examples/records.rs`: xtask builds without the library
//! (decision 0001).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use super::LoadError;
use crate::bench::report::Report;
use crate::bench::stats::Samples;
use crate::namespace::Namespace;
use crate::step;
use crate::workspace;

pub(super) const BUILD: [&str; 7] = [
    "build",
    "--release",
    "--locked",
    "-p",
    "kiln-daemon",
    "--example",
    "records",
];
/// Ten times the records may take ten times the time: that is linear.
const LINEAR: f64 = 10.0;
/// So much more is noise.
const TOLERANCE: f64 = 1.25;

/// A verb: its samples' name, the figure among all, how it grew, and what it is.
type Verb = (&'static str, &'static str, &'static str, &'static str);

macro_rules! verbs {
    ($($verb:literal: $what:literal,)*) => {
        &[$(($verb, concat!($verb, "_ms"), concat!($verb, "_growth"), $what)),*]
    };
}

/// First what the whole host is asked, which may take time with its size; then verbs on one sandbox.
const VERBS: &[Verb] = verbs! {
    "ls": "kiln ls with all of them",
    "ls_one": "kiln ls with a filter that one meets",
    "events": "all events that are kept",
    "gc": "kiln gc --dry-run",
    "info": "kiln info",
    "metrics": "figures for Prometheus",
    "create": "one more created",
    "start": "started",
    "stop": "stopped",
    "rm": "removed",
    "inspect": "found by its id",
    "by_name": "found by its name",
    "by_prefix": "found by a prefix of its id",
    "label": "given a label",
    "pause": "paused",
    "resume": "resumed",
    "stats": "kiln stats of it",
    "network": "its network told",
    "policy": "its network's policy exchanged",
};

pub(super) fn run(records: usize, report: &mut Report) -> Result<(), LoadError> {
    let namespace = match Namespace::new("records") {
        Ok(namespace) => Some(namespace),
        Err(error) => {
            report.missing("networks", error.to_string());
            None
        }
    };
    let dir = tempfile::Builder::new()
        .prefix("kiln-")
        .tempdir()
        .map_err(LoadError::Directory)?;
    let samples = samples(dir.path(), records, namespace.as_ref())?;
    if namespace.is_some() {
        report.single(
            "networks",
            "real networks of sandboxes without guests",
            records as f64,
        );
    }
    Figures(samples).report(report);
    Ok(())
}

/// In a PID namespace, so that no scripted machine outlives a stand that failed.
fn samples(
    dir: &Path,
    records: usize,
    namespace: Option<&Namespace>,
) -> Result<BTreeMap<String, Vec<f64>>, LoadError> {
    let program = workspace::target().join("release/examples/records");
    let mut command = match namespace {
        Some(namespace) => {
            let mut command = namespace.command("unshare");
            command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
            command.arg(program);
            command
        }
        None => Command::new(program),
    };
    command
        .arg(dir)
        .args([records.to_string(), namespace.is_some().to_string()]);
    let output = step::capture(command.stderr(Stdio::inherit()))?;
    serde_json::from_slice(&output).map_err(LoadError::Samples)
}

struct Figures(BTreeMap<String, Vec<f64>>);

impl Figures {
    fn of(&self, verb: &str, when: &str) -> Samples {
        let all = self.0.get(&format!("{verb}_{when}"));
        all.into_iter().flatten().copied().collect()
    }

    fn report(&self, report: &mut Report) {
        let mut above = 0.0;
        for (verb, figure, growth, what) in VERBS {
            let (few, many) = (self.of(verb, "few"), self.of(verb, "many"));
            report.median(figure, what, &many);
            // The quickest of each: what else the machine does only ever adds.
            if let (Some(few), Some(many)) = (few.min(), many.min()) {
                let ratio = many / few;
                report.bounded(
                    growth,
                    "… over the same among a tenth of them",
                    ratio,
                    LINEAR,
                );
                above += f64::from(ratio > LINEAR * TOLERANCE);
            }
        }
        report.single(
            "above_linear",
            "verbs whose cost grows faster than their number",
            above,
        );
        let left: f64 = self.0.get("left").into_iter().flatten().sum();
        report.bounded("records_left", "things left of all that", left, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(samples: &[(&str, f64)]) -> serde_json::Value {
        let samples = samples
            .iter()
            .map(|(key, value)| ((*key).to_owned(), vec![*value]));
        let mut report = Report::default();
        Figures(samples.collect()).report(&mut report);
        serde_json::from_str(&report.json()).unwrap()
    }

    #[test]
    fn growth_is_what_ten_times_as_many_cost_over_a_tenth() {
        let figures = figures(&[
            ("ls_few", 1.0),
            ("ls_many", 9.0),
            ("create_few", 1.0),
            ("create_many", 13.0),
            ("left", 2.0),
        ]);
        assert_eq!(figures["ls_ms"], 9.0);
        assert_eq!(figures["ls_growth"], 9.0);
        assert_eq!(figures["above_linear"], 1.0, "create is");
        assert_eq!(figures["records_left"], 2.0);
    }
}
