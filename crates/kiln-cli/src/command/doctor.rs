//! `kiln doctor`.

use clap::Args;
use kiln_daemon::{Check, HostConfig, Level};

use crate::{
    Failure, Output,
    output::{format::Show, table},
    place::Place,
};

/// Exit code when a check fails.
const UNFIT: u8 = 1;

/// Check whether this host is fit for sandboxes, and safe
///
/// Needs no daemon. Tells what was found, why it matters and what to do; the exit code is 1 when a
/// check fails, and warnings are none.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Do what is safe: make directories, take others' rights to write there, load modules
    #[arg(long)]
    fix: bool,
    #[command(flatten)]
    show: Show<Check>,
}

pub(crate) async fn run(args: &DoctorArgs, place: &Place, output: &Output) -> Result<u8, Failure> {
    let config = HostConfig::new(&place.data_dir, &place.runtime_dir);
    let checks = kiln_daemon::doctor(&config, args.fix).await;
    args.show.list(&checks, output, || render(&checks));
    let fails = checks.iter().any(|check| check.level == Level::Failure);
    Ok(if fails { UNFIT } else { 0 })
}

fn render(checks: &[Check]) -> String {
    let rows: Vec<_> = checks
        .iter()
        .map(|check| {
            [
                word(check).to_owned(),
                check.name.clone(),
                check.finding.clone(),
            ]
        })
        .collect();
    let mut text = String::new();
    for (line, check) in table::align(&rows).lines().zip(checks) {
        text.push_str(line);
        text.push('\n');
        if let Some(reason) = &check.reason {
            text.push_str(&format!("         why: {reason}\n"));
        }
        if let Some(remedy) = &check.remedy {
            let fixable = if check.fixable {
                " (--fix does it)"
            } else {
                ""
            };
            text.push_str(&format!("         do:  {remedy}{fixable}\n"));
        }
    }
    let count = |level| checks.iter().filter(|check| check.level == level).count();
    let (failures, warnings) = (count(Level::Failure), count(Level::Warning));
    text + &format!("{failures} failures, {warnings} warnings")
}

fn word(check: &Check) -> &'static str {
    match check.level {
        _ if check.fixed => "fixed",
        Level::Ok => "ok",
        Level::Info => "info",
        Level::Warning => "WARNING",
        Level::Failure => "FAILURE",
    }
}
