//! What may be asked of a sandbox that begins from a snapshot: its name and what surrounds it. Of
//! what it is made is the snapshot's. Pure.

use std::fmt::Debug;

use kiln_net::policy::PolicySpec;
use kiln_vmm::{EngineKind, EnginePreference};

use crate::error::{Error, ErrorCode};
use crate::network::{NetworkMode, NetworkSpec};
use crate::sandbox::{MainCommand, SandboxSpec, is_label};
use crate::store::SnapshotRow;

/// The whole spec of a sandbox that was asked for with a snapshot.
pub(crate) fn resolved(row: &SnapshotRow, asked: SandboxSpec) -> Result<SandboxSpec, Error> {
    let mut faults = Faults::default();
    let spec = SandboxSpec {
        snapshot: Some(row.id.clone()),
        network: network(row, &asked.network, &mut faults),
        command: command(row, &asked),
        ..of_snapshot(row, asked, &mut faults)
    };
    if faults.0.is_empty() {
        return Ok(spec);
    }
    Err(Error::new(ErrorCode::InvalidSpec, faults.0.join("; "))
        .with_hint("of what a snapshot was made cannot be changed: leave that out"))
}

/// 1 to 63 of `[a-z0-9-]`, as of sandboxes.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    if is_label(name) {
        return Ok(());
    }
    let message = format!("name {name:?} is not 1 to 63 of a-z, 0-9 and inner dashes");
    Err(Error::new(ErrorCode::InvalidSpec, message))
}

#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    /// What the snapshot has, unless something else was asked for.
    fn take<T: PartialEq + Clone + Debug>(
        &mut self,
        name: &str,
        (asked, default): (T, T),
        theirs: &T,
    ) -> T {
        if asked != default && asked != *theirs {
            self.0.push(format!(
                "{name} is {asked:?}, and the snapshot's {theirs:?}"
            ));
        }
        theirs.clone()
    }
}

fn of_snapshot(row: &SnapshotRow, asked: SandboxSpec, faults: &mut Faults) -> SandboxSpec {
    let (theirs, default) = (&row.record.spec, SandboxSpec::default());
    if !asked.volumes.is_empty() {
        let fault = "volumes cannot be given to a guest that goes on";
        faults.0.push(fault.to_owned());
    }
    SandboxSpec {
        image: faults.take("image", (asked.image, default.image), &theirs.image),
        runtime: faults.take("runtime", (asked.runtime, default.runtime), &theirs.runtime),
        bundle: faults.take("bundle", (asked.bundle, default.bundle), &theirs.bundle),
        pull: faults.take("pull", (asked.pull, default.pull), &theirs.pull),
        platform: faults.take(
            "platform",
            (asked.platform, default.platform),
            &theirs.platform,
        ),
        init: faults.take("init", (asked.init, default.init), &theirs.init),
        engine: faults.take(
            "engine",
            (asked.engine, default.engine),
            &preference(row.record.engine),
        ),
        vcpus: faults.take("vcpus", (asked.vcpus, default.vcpus), &theirs.vcpus),
        mem_mib: faults.take("mem_mib", (asked.mem_mib, default.mem_mib), &theirs.mem_mib),
        disk_mib: faults.take(
            "disk_mib",
            (asked.disk_mib, default.disk_mib),
            &theirs.disk_mib,
        ),
        tmpfs: faults.take("tmpfs", (asked.tmpfs, default.tmpfs), &theirs.tmpfs),
        kernel: faults.take("kernel", (asked.kernel, default.kernel), &theirs.kernel),
        modules: faults.take("modules", (asked.modules, default.modules), &theirs.modules),
        volumes: Vec::new(),
        name: asked.name,
        hostname: asked.hostname,
        ephemeral: asked.ephemeral,
        allow_insecure_vmm: asked.allow_insecure_vmm,
        without: asked.without,
        labels: asked.labels,
        project: asked.project,
        timeout_ms: asked.timeout_ms,
        idle_timeout_ms: asked.idle_timeout_ms,
        remove_on_stop: asked.remove_on_stop,
        restart: asked.restart,
        // These are told apart by the caller.
        snapshot: None,
        network: NetworkSpec::default(),
        command: None,
    }
}

/// The same card in a network of the sandbox's own, with the snapshot's policy if none was asked
/// for. Ports of the host that were published are its source's.
fn network(row: &SnapshotRow, asked: &NetworkSpec, faults: &mut Faults) -> NetworkSpec {
    let theirs = &row.record.spec.network;
    let mode = match theirs.mode {
        NetworkMode::User => NetworkMode::User,
        _ if row.record.has_card => NetworkMode::Default,
        _ => NetworkMode::None,
    };
    if asked.name.is_some() {
        let fault =
            "network.name is given, and what is restored keeps its address: it cannot share";
        faults.0.push(fault.to_owned());
    }
    let fits = asked.mode == NetworkMode::Auto || asked.mode == mode;
    if !fits {
        let modes = format!(
            "network.mode is {:?}, and the snapshot's {mode:?}",
            asked.mode
        );
        faults.0.push(modes);
    }
    let policy = if asked.policy == PolicySpec::default() {
        PolicySpec {
            publish: Vec::new(),
            ..theirs.policy.clone()
        }
    } else {
        asked.policy.clone()
    };
    NetworkSpec {
        mode,
        policy,
        ..NetworkSpec::default()
    }
}

/// What runs from the next start on: what the snapshot ran, unless something else was asked for.
fn command(row: &SnapshotRow, asked: &SandboxSpec) -> Option<MainCommand> {
    let says_something = |it: &&MainCommand| it.entrypoint.is_some() || !it.exec.argv.is_empty();
    match asked.command.as_ref() {
        None => None,
        Some(asked) if says_something(&asked) => Some(asked.clone()),
        Some(_) => row.record.spec.command.clone(),
    }
}

fn preference(engine: EngineKind) -> EnginePreference {
    match engine {
        EngineKind::Firecracker => EnginePreference::Firecracker,
        EngineKind::Qemu => EnginePreference::Qemu,
        EngineKind::Fake => EnginePreference::Auto,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::snapshot_row;

    fn asked(change: impl FnOnce(&mut SandboxSpec)) -> SandboxSpec {
        let mut spec = SandboxSpec::default();
        change(&mut spec);
        spec
    }

    fn row() -> SnapshotRow {
        let mut row = snapshot_row("abcdefghijkl", Some("golden"));
        row.record.spec.vcpus = 2;
        row.record.spec.image = Some("alpine:3".into());
        row.record.spec.network.policy.publish = vec!["80:80".into()];
        row.record.spec.network.policy.allowed_domains = vec!["a.b".into()];
        row.record.has_card = true;
        row
    }

    #[test]
    fn b1_7_of_what_it_is_made_is_the_snapshots() {
        let spec = resolved(&row(), asked(|it| it.name = Some("web".into()))).expect("fits");
        assert_eq!((spec.vcpus, spec.name.as_deref()), (2, Some("web")));
        assert_eq!(spec.image.as_deref(), Some("alpine:3"));
        assert_eq!(spec.snapshot.as_deref(), Some("abcdefghijkl"));
        // Its source still has the host's port.
        assert_eq!(spec.network.policy.publish, Vec::<String>::new());
        assert_eq!(spec.network.policy.allowed_domains, ["a.b"]);
        assert_eq!(spec.network.mode, NetworkMode::Default);
        let same = resolved(&row(), asked(|it| it.vcpus = 2)).expect("the same is no change");
        assert_eq!(same.vcpus, 2);
    }

    #[test]
    fn b1_7_what_would_change_it_is_refused_all_at_once() {
        let spec = asked(|it| {
            it.vcpus = 4;
            it.image = Some("debian:12".into());
            it.engine = EnginePreference::Firecracker;
            it.network.mode = NetworkMode::None;
            it.network.name = Some("lan".into());
            it.volumes = vec![crate::VolumeMount {
                volume: "data".into(),
                path: "/srv".into(),
                read_only: false,
            }];
        });
        let error = resolved(&row(), spec).expect_err("refused");
        assert_eq!(error.code(), ErrorCode::InvalidSpec);
        for word in [
            "vcpus",
            "image",
            "engine",
            "network.mode",
            "network.name",
            "volumes",
        ] {
            assert!(error.message().contains(word), "{word}: {error}");
        }
    }
}
