//! `kiln info`.

use clap::Args;
use kiln_api::{Acceleration, EngineKind, HostInfo};

use crate::{
    Failure, Output,
    output::{format::Show, table},
    start::Daemon,
};

/// Tell what the daemon can do here, and why
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    show: Show<HostInfo>,
}

pub(crate) async fn run(
    args: &InfoArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let info = daemon.ask(async |client| client.info().await).await?;
    args.show.one(&info, output, || render(&info));
    Ok(0)
}

fn render(info: &HostInfo) -> String {
    let mut rows = vec![
        ["version", info.version.as_str()].map(str::to_owned),
        ["daemon".to_owned(), format!("process {}", info.daemon_pid)],
        ["data".to_owned(), info.data_dir.clone()],
        ["runtime".to_owned(), info.runtime_dir.clone()],
        ["engine".to_owned(), engine(info)],
        ["reason".to_owned(), info.engine_reason.clone()],
        [
            "sandboxes".to_owned(),
            format!("{}, {} running", info.sandboxes, info.running),
        ],
    ];
    rows.extend(
        info.findings
            .iter()
            .map(|it| ["finding".to_owned(), it.clone()]),
    );
    rows.extend(
        info.warnings
            .iter()
            .map(|it| ["warning".to_owned(), it.clone()]),
    );
    table::align(&rows)
}

fn engine(info: &HostInfo) -> String {
    let mut words = vec![info.engine.map_or("none", EngineKind::as_str)];
    words.extend(info.engine_version.as_deref());
    words.extend(info.acceleration.map(|acceleration| match acceleration {
        Acceleration::Kvm => "with KVM",
        Acceleration::Tcg => "emulated",
        Acceleration::Unknown => "accelerated in a way this kiln does not know",
    }));
    words.join(" ")
}
