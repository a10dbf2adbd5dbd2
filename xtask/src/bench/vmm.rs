//! `cargo xtask bench vmm`: what Kiln's engines cost beside the bare programs, with guests of a
//! few bytes.
//!
//! The samples are taken by an example of `kiln-vmm`, which is the only place that can drive
//! engines without the product around them; here is what they mean.

use std::collections::BTreeMap;
use std::process::{Command, ExitCode, Stdio};

use clap::Args;
use serde::Deserialize;

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
    /// How often each thing is measured.
    #[arg(long, default_value_t = 50, value_name = "N")]
    runs: u32,
}

/// What the example prints.
#[derive(Debug, Default, Deserialize)]
struct Taken {
    times: BTreeMap<String, Vec<f64>>,
    counts: BTreeMap<String, f64>,
    skipped: BTreeMap<String, String>,
}

const KEYS: [&str; 6] = [
    "spawn_extra_ms",
    "jail_extra_ms",
    "load_ratio",
    "qemu_restore_ms",
    "leaks",
    "rss_growth_mib",
];

pub(crate) fn run(options: &Options) -> Result<ExitCode, BenchError> {
    step::run(&mut step::cargo([
        "build",
        "--release",
        "--locked",
        "-p",
        "kiln-vmm",
        "--example",
        "bench",
    ]))?;
    let report = figures(&take(options.runs)?);
    report.show(options.json);
    Ok(ExitCode::SUCCESS)
}

fn take(runs: u32) -> Result<Taken, BenchError> {
    let mut command = Command::new(workspace::target().join("release/examples/bench"));
    command
        .arg(runs.to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = command.output().map_err(|source| BenchError::Spawn {
        command: step::shown(&command),
        source,
    })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match serde_json::from_str(&text) {
        Ok(taken) if output.status.success() => Ok(taken),
        _ => Err(BenchError::Failed {
            command: step::shown(&command),
            status: output.status,
            output: text,
        }),
    }
}

/// What the samples say.
fn figures(taken: &Taken) -> Report {
    let mut report = Report::default();
    let samples = |name: &str| -> Samples {
        let times = taken.times.get(name).into_iter().flatten();
        times.copied().collect()
    };
    let median = |name: &str| samples(name).median();
    let extra = |ours, bare| Some(median(ours)? - median(bare)?);
    let ratio = |ours, bare| Some(median(ours)? / median(bare)?);
    report.median(
        "bare_spawn_ms",
        "Firecracker by a bare client",
        &samples("bare_spawn"),
    );
    if let Some(extra) = extra("spawn", "bare_spawn") {
        report.single(
            "spawn_extra_ms",
            "of Kiln on top, to a running guest",
            extra,
        );
    }
    report.median(
        "bare_jail_ms",
        "the same through the jailer",
        &samples("bare_jail"),
    );
    if let Some(extra) = extra("jail", "bare_jail") {
        report.single("jail_extra_ms", "of Kiln on top, with all limits", extra);
    }
    report.median(
        "restore_ms",
        "jailed restore of 512 MiB, from nothing",
        &samples("restore_512"),
    );
    // The worse of both sizes: memory is mapped, so it should not matter.
    let ratios = [
        ratio("load_128", "bare_load_128"),
        ratio("load_512", "bare_load_512"),
    ];
    if let Some(worst) = ratios.into_iter().flatten().reduce(f64::max) {
        report.single(
            "load_ratio",
            "load and resume by Kiln over bare ones",
            worst,
        );
    }
    report.median(
        "qemu_restore_ms",
        "QEMU template to the guest's next output",
        &samples("qemu_restore"),
    );
    for (key, what) in [
        ("leaks", "things left by 100 machines"),
        ("rss_growth_mib", "memory left by them"),
    ] {
        if let Some(count) = taken.counts.get(key) {
            report.single(key, what, *count);
        }
    }
    for key in KEYS {
        if let Some(why) = taken.skipped.get(key) {
            report.missing(key, why.clone());
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_differences_and_ratios_of_medians() {
        let text = r#"{"times": {"bare_spawn": [10, 11, 90], "spawn": [12, 13, 14],
            "bare_load_128": [10], "load_128": [11], "bare_load_512": [10], "load_512": [15]},
            "counts": {"leaks": 0}, "skipped": {"qemu_restore_ms": "no QEMU"}}"#;
        let report = figures(&serde_json::from_str(text).unwrap());
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["spawn_extra_ms"], 2.0);
        assert_eq!(json["load_ratio"], 1.5);
        assert_eq!(json["leaks"], 0.0);
        assert!(json.get("jail_extra_ms").is_none());
        assert!(report.gaps().any(|gap| gap.contains("no QEMU")));
    }
}
