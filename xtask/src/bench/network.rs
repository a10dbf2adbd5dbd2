//! `cargo xtask bench network`: what a sandbox's network costs, against the usual commands and among
//! 500 others.
//!
//! The samples come from `crates/kiln-net/examples/figures.rs`, which does the work in namespaces of
//! its own: xtask builds without the library (decision 0001).

use std::collections::BTreeMap;
use std::process::{Command, ExitCode, Stdio};

use clap::Args;

use super::BenchError;
use super::report::Report;
use super::stats::Samples;
use crate::step;
use crate::workspace;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Print one flat JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

const PRIVILEGED: &str = "network namespaces need root";

pub(crate) fn run(options: &Options) -> Result<ExitCode, BenchError> {
    let mut report = Report::default();
    if rustix::process::geteuid().is_root() {
        Figures(samples()?).report(&mut report);
    } else {
        KEYS.iter().for_each(|key| report.missing(key, PRIVILEGED));
    }
    report.show(options.json);
    Ok(ExitCode::SUCCESS)
}

const KEYS: [&str; 6] = [
    "setup_ms",
    "setup_speedup",
    "teardown_ms",
    "scale_ratio",
    "throughput_ratio",
    "update_ms",
];

fn samples() -> Result<BTreeMap<String, Vec<f64>>, BenchError> {
    const BUILD: [&str; 7] = [
        "build",
        "--release",
        "--locked",
        "-p",
        "kiln-net",
        "--example",
        "figures",
    ];
    step::run(&mut step::cargo(BUILD))?;
    let mut command = Command::new(workspace::target().join("release/examples/figures"));
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| BenchError::Spawn {
            command: step::shown(&command),
            source,
        })?;
    if !output.status.success() {
        let (command, status) = (step::shown(&command), output.status);
        return Err(BenchError::Failed {
            command,
            status,
            output: String::new(),
        });
    }
    serde_json::from_slice(&output.stdout).map_err(BenchError::Samples)
}

struct Figures(BTreeMap<String, Vec<f64>>);

impl Figures {
    fn of(&self, key: &str) -> Samples {
        self.0.get(key).into_iter().flatten().copied().collect()
    }

    fn report(&self, report: &mut Report) {
        report.median(
            "setup_ms",
            "one sandbox's network up, with policy",
            &self.of("setup_ms"),
        );
        self.ratio(
            report,
            "setup_speedup",
            "than by ip, iptables and tc",
            ["commands_ms", "setup_ms"],
        );
        report.median(
            "teardown_ms",
            "our part of taking it down",
            &self.of("teardown_ms"),
        );
        self.ratio(
            report,
            "scale_ratio",
            "set-up among 500 with names of their own over alone",
            ["setup_500_ms", "setup_ms"],
        );
        self.ratio(
            report,
            "scale_unlike_ratio",
            "the same, where no two of the 500 have the same rules",
            ["setup_500_unlike_ms", "setup_ms"],
        );
        self.throughput(report);
        report.median(
            "update_ms",
            "a policy exchanged, among 500",
            &self.of("update_ms"),
        );
        report.median(
            "commands_ms",
            "the same by ip, iptables and tc",
            &self.of("commands_ms"),
        );
        report.median(
            "setup_500_ms",
            "one more among 500",
            &self.of("setup_500_ms"),
        );
        report.median(
            "mbit_500",
            "namespace to outside, among 500",
            &self.of("throughput_500_mbit"),
        );
    }

    fn ratio(&self, report: &mut Report, key: &'static str, what: &'static str, of: [&str; 2]) {
        match of.map(|key| self.of(key).median()) {
            [Some(over), Some(under)] => report.single(key, what, over / under),
            _ => report.missing(key, format!("no {}: is iptables installed?", of[0])),
        }
    }

    /// Of each pair of transfers, which follow each other, the ratio; of these, the median.
    fn throughput(&self, report: &mut Report) {
        let [Some(among), Some(alone)] =
            ["throughput_500_mbit", "throughput_one_mbit"].map(|key| self.0.get(key))
        else {
            return report.missing("throughput_ratio", "no transfer was made");
        };
        let ratios: Samples = among
            .iter()
            .zip(alone)
            .map(|(among, alone)| among / alone)
            .collect();
        report.median(
            "throughput_ratio",
            "throughput among 500 over alone",
            &ratios,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_of_medians_and_of_pairs() {
        let samples = [
            ("setup_ms", vec![2.0, 3.0, 9.0]),
            ("commands_ms", vec![90.0]),
            ("setup_500_ms", vec![3.0]),
            ("teardown_ms", vec![0.1]),
            ("update_ms", vec![4.0]),
            ("throughput_one_mbit", vec![100.0, 50.0, 80.0]),
            ("throughput_500_mbit", vec![99.0, 49.0, 40.0]),
        ];
        let samples = samples
            .into_iter()
            .map(|(key, all)| (key.to_owned(), all))
            .collect();
        let mut report = Report::default();
        Figures(samples).report(&mut report);
        let figures: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(figures["setup_speedup"], 30.0);
        assert_eq!(figures["scale_ratio"], 1.0);
        assert_eq!(figures["throughput_ratio"], 0.98);
        for key in KEYS {
            assert!(figures[key].is_number(), "{key}");
        }
    }
}
