//! `kiln stats`.

use std::time::Duration;

use clap::Args;
use kiln_api::{Sandbox, SandboxState, Stats};
use serde::{Deserialize, Serialize};

use crate::{
    Failure, Output,
    output::{
        format::{Fields, Listed, Show, fields_of},
        size, table,
    },
    start::Daemon,
};

/// What rates are measured over.
const SAMPLE: Duration = Duration::from_secs(1);

/// Show what running sandboxes use: processors, memory, disk, network
///
/// MEM and DISK are the guest's own figures. HOST MEM is what its VMM takes of this host, with pages
/// that several share counted in parts, so that it adds up.
#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Go on until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    show: Show<Shown>,
    /// Ids, unique prefixes of ids, or names; all that run when none is named
    #[arg(value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

/// Figures of one sandbox, with rates.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    rates: Rates,
    #[serde(flatten)]
    stats: Stats,
}

/// Whose figures they are, and what is reckoned of two samples.
#[derive(Debug, Serialize, Deserialize)]
struct Rates {
    sandbox: String,
    name: Option<String>,
    /// Of one processor: two that are busy are 200.
    cpu_percent: f64,
    host_cpu_percent: Option<f64>,
}

impl Listed for Shown {
    fn fields() -> Fields {
        fields_of::<Rates>().and(Stats::fields())
    }
}

pub(crate) async fn run(
    args: &StatsArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    loop {
        let before = sample(args, daemon).await?;
        tokio::time::sleep(SAMPLE).await;
        let after = sample(args, daemon).await?;
        let shown = rates(before, after);
        args.show.list(&shown, output, || render(&shown));
        if !args.follow {
            return Ok(0);
        }
    }
}

/// The figures of each; one that ends meanwhile is left out, unless it was named.
async fn sample(args: &StatsArgs, daemon: &Daemon<'_>) -> Result<Vec<(Sandbox, Stats)>, Failure> {
    let mut figures = Vec::new();
    for sandbox in sandboxes(args, daemon).await? {
        let asked = daemon
            .ask(async |client| client.stats(&sandbox.id).await)
            .await;
        match asked {
            Ok(stats) => figures.push((sandbox, stats)),
            Err(failure) if !args.sandboxes.is_empty() => return Err(failure),
            Err(_) => {}
        }
    }
    Ok(figures)
}

async fn sandboxes(args: &StatsArgs, daemon: &Daemon<'_>) -> Result<Vec<Sandbox>, Failure> {
    if args.sandboxes.is_empty() {
        let mut all = daemon.ask(async |client| client.list(&[]).await).await?;
        all.retain(|it| it.state == SandboxState::Running);
        return Ok(all);
    }
    let mut named = Vec::new();
    for key in &args.sandboxes {
        named.push(daemon.ask(async |client| client.get(key).await).await?);
    }
    Ok(named)
}

fn rates(before: Vec<(Sandbox, Stats)>, after: Vec<(Sandbox, Stats)>) -> Vec<Shown> {
    let rated = after.into_iter().map(|(sandbox, stats)| {
        let first = before.iter().find(|(it, _)| it.id == sandbox.id);
        let first = first.map_or(&stats, |(_, stats)| stats);
        let span = stats.at_ms.saturating_sub(first.at_ms);
        let host = stats.host_cpu_ms.zip(first.host_cpu_ms);
        let rates = Rates {
            cpu_percent: percent(stats.cpu_busy_ms, first.cpu_busy_ms, span),
            host_cpu_percent: host.map(|(now, then)| percent(now, then, span)),
            sandbox: sandbox.id,
            name: sandbox.name,
        };
        Shown {
            rates,
            stats: stats.clone(),
        }
    });
    rated.collect()
}

fn percent(now: u64, then: u64, span: u64) -> f64 {
    if span == 0 {
        return 0.0;
    }
    let tenths = now.saturating_sub(then).saturating_mul(1000) / span;
    tenths as f64 / 10.0
}

fn render(shown: &[Shown]) -> String {
    let heads = [
        "ID", "NAME", "CPU", "MEM", "HOST MEM", "DISK", "RX", "TX", "PROCS",
    ];
    let mut rows = vec![heads.map(str::to_owned)];
    rows.extend(shown.iter().map(|it| {
        let (stats, rates) = (&it.stats, &it.rates);
        let used = stats.mem_total_kib.saturating_sub(stats.mem_available_kib);
        let pair = |used: u64, of: u64| {
            format!(
                "{} / {}",
                size::bytes(used.saturating_mul(1024)),
                size::bytes(of.saturating_mul(1024))
            )
        };
        [
            rates.sandbox.clone(),
            rates.name.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{:.1}%", rates.cpu_percent),
            pair(used, stats.mem_total_kib),
            stats.host_mem_kib.map_or_else(
                || "-".to_owned(),
                |kib| size::bytes(kib.saturating_mul(1024)),
            ),
            pair(stats.disk_used_kib, stats.disk_total_kib),
            size::bytes(stats.net_rx_bytes),
            size::bytes(stats.net_tx_bytes),
            stats.processes.to_string(),
        ]
    }));
    table::align(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_one_processor() {
        assert!((percent(3000, 1000, 1000) - 200.0).abs() < f64::EPSILON);
        assert!((percent(1050, 1000, 1000) - 5.0).abs() < f64::EPSILON);
        assert!(percent(1, 5, 1000).abs() < f64::EPSILON);
        assert!(percent(5, 1, 0).abs() < f64::EPSILON);
    }
}
