//! From a stored sandbox to a guest that answers: prepared → booted → ready.
//!
//! Each phase pushes its undo before its effect is visible; a failure unwinds in reverse and
//! keeps what could not be undone beside the cause.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_image::Progress;
use kiln_image::oci::ImageConfig;
use kiln_vmm::jail::JailSpec;
use kiln_vmm::{
    Boot, BootTimings, Disk, Engine, EngineKind, Machine, MachineError, MachineSpec, SpawnError,
};
use tokio_util::sync::CancellationToken;

use super::driver::Live;
use super::undo::UndoStack;
use super::{InitSystem, Timings, confine, stop};
use crate::config::create_private;
use crate::engines::Chosen;
use crate::error::{Error, ErrorCode};
use crate::failpoint;
use crate::guest::{GuestIdentity, GuestLink};
use crate::host::Shared;
use crate::material::Material;
use crate::network::{self, Attached};
use crate::snapshot::{MainGoesOn, Restoring};
use crate::store::{SandboxRow, Sandboxes};
use crate::volumes::{self, VolumeClaims};

/// A guest that is up, and how it came there.
pub(crate) struct Launched {
    pub(crate) live: Live,
    pub(crate) engine: EngineKind,
    pub(crate) image_id: String,
    pub(crate) image_config: Option<ImageConfig>,
    pub(crate) warnings: Vec<String>,
    pub(crate) timings: Timings,
    /// The main command goes on from a snapshot and must not be started.
    pub(crate) main: Option<MainGoesOn>,
}

/// Launches the sandbox of `row`. On failure, or when `cancel` fires, nothing of it is left.
///
/// Only waits that leave nothing behind when they are dropped are cut short; a VMM that is being
/// spawned is spawned to the end and then undone.
pub(crate) async fn launch(
    shared: &Arc<Shared>,
    row: &SandboxRow,
    progress: Arc<dyn Progress>,
    cancel: CancellationToken,
) -> Result<Launched, Error> {
    let mut undo = UndoStack::default();
    match run_phases(shared, row, progress, &cancel, &mut undo).await {
        Ok(launched) => {
            undo.disarm();
            Ok(launched)
        }
        Err(cause) => Err(with_failures(cause, undo.unwind().await)),
    }
}

async fn run_phases(
    shared: &Arc<Shared>,
    row: &SandboxRow,
    progress: Arc<dyn Progress>,
    cancel: &CancellationToken,
    undo: &mut UndoStack,
) -> Result<Launched, Error> {
    let began = Instant::now();
    // May fetch one.
    let choosing = shared
        .engines
        .choose(row.spec.engine, Some(progress.as_ref()));
    let chosen = unless(cancel, row, choosing).await??;
    let restoring = Restoring::of(shared, row)?;
    if let Some(restoring) = &restoring {
        restoring.check(&chosen.engine).await?;
    }
    // Last to be undone: nobody else may have them while the machine is there.
    let volumes = claim_volumes(shared, row, undo)?;
    let material = match &restoring {
        None => unless(cancel, row, shared.materials.gather(row, progress)).await??,
        Some(_) => shared.materials.gather_image(row).await?,
    };
    let mut disks = make_disks(shared, row, (&material, restoring.as_ref()), undo).await?;
    disks.extend(shared.volumes.disks(&row.spec).await?);
    let prepared = began.elapsed();
    failpoint::reach("start.prepared");

    let turn = unless(cancel, row, shared.boot_turn(row)).await?;
    let spawning = Instant::now();
    let jail = confine::jail(shared, &row.id).await?;
    let owner = tap_owner(jail.as_ref());
    let occupant = network::Occupant {
        owner,
        engine: chosen.engine.kind(),
        runtime_dir: &shared.directories.machine(&row.id),
    };
    let network = network::attach(&shared.networks, row, occupant, undo).await?;
    failpoint::reach("start.networked");
    let spec = MachineSpec {
        jail,
        restore: restoring.as_ref().map(Restoring::restore),
        ..machine_spec(
            shared,
            row,
            chosen.engine.as_ref(),
            &material,
            disks,
            &network,
        )
    };
    let machine = spawn(&chosen, &spec, undo).await?;
    let spawned = spawning.elapsed();
    failpoint::reach("start.spawned");
    record(shared, row, &machine, &chosen, &material).await?;
    failpoint::reach("start.recorded");
    // Before the guest runs: it dials as soon as it can.
    let link = meet_agent(row, &machine, undo)?;
    let booted = machine.boot().await.map_err(start_failed)?;
    failpoint::reach("start.booted");
    let (kernel, agent) = unless(cancel, row, ready(shared, &chosen, &machine, &link)).await??;
    // No kernel was started.
    let (kernel, agent) = match &restoring {
        None => (kernel, agent),
        Some(_) => (Duration::ZERO, kernel + agent),
    };
    drop(turn);
    failpoint::reach("start.ready");

    Ok(Launched {
        main: restoring.and_then(|it| it.main_goes_on(row)),
        engine: chosen.engine.kind(),
        image_id: material.image_id,
        image_config: material.image_config,
        warnings: chosen.warning.into_iter().chain(network.warning).collect(),
        timings: timings(prepared, spawned, booted, kernel, agent),
        live: Live::new(machine, link, network.attachment, volumes),
    })
}

/// Takes the sandbox's volumes. The undo stack holds them too: what is pushed first goes last, after
/// the machine.
fn claim_volumes(
    shared: &Shared,
    row: &SandboxRow,
    undo: &mut UndoStack,
) -> Result<VolumeClaims, Error> {
    let claims = shared.volumes.claim(row)?;
    let held = claims.clone();
    undo.push(async move {
        drop(held);
        Ok(())
    });
    Ok(claims)
}

/// Waits for `work` unless the launch is cancelled first; `work` is then dropped.
async fn unless<T>(
    cancel: &CancellationToken,
    row: &SandboxRow,
    work: impl Future<Output = T>,
) -> Result<T, Error> {
    cancel
        .run_until_cancelled(work)
        .await
        .ok_or_else(|| cancelled(&row.id))
}

/// The sandbox's own files: its directories and, at its first start or to go with the memory of a
/// snapshot, its scratch disk.
async fn make_disks(
    shared: &Shared,
    row: &SandboxRow,
    (material, restoring): (&Material, Option<&Restoring>),
    undo: &mut UndoStack,
) -> Result<Vec<Disk>, Error> {
    let directories = &shared.directories;
    let (files, runtime) = (directories.sandbox(&row.id), directories.machine(&row.id));
    undo.push(remove_tree(runtime.clone()));
    if !files.exists() {
        undo.push(remove_tree(files.clone()));
    }
    for dir in [files, runtime] {
        create_private(&dir).map_err(|source| {
            let message = format!("cannot create {}", dir.display());
            Error::new(ErrorCode::Host, message).with_source(source)
        })?;
    }
    let root = Disk {
        id: "root".to_owned(),
        path: material.rootfs.clone(),
        read_only: true,
        options: kiln_vmm::DiskOptions::default(),
    };
    if row.spec.tmpfs {
        return Ok(vec![root]);
    }
    let scratch = directories.scratch(&row.id);
    if let Some(restoring) = restoring {
        undo.push(remove_file(scratch.clone()));
        restoring.place_disk(&scratch).await?;
    } else if !scratch.exists() {
        undo.push(remove_file(scratch.clone()));
        shared
            .materials
            .make_scratch(&scratch, row.spec.disk_mib)
            .await?;
    }
    Ok(vec![
        root,
        Disk {
            id: "scratch".to_owned(),
            path: scratch,
            read_only: false,
            options: kiln_vmm::DiskOptions::default(),
        },
    ])
}

async fn spawn(
    chosen: &Chosen,
    spec: &MachineSpec,
    undo: &mut UndoStack,
) -> Result<Arc<dyn Machine>, Error> {
    let machine: Arc<dyn Machine> =
        Arc::from(chosen.engine.spawn(spec).await.map_err(spawn_failed)?);
    let ended = Arc::clone(&machine);
    undo.push(async move {
        ended
            .close(Duration::ZERO)
            .await
            .map(drop)
            .map_err(|source| Error::new(ErrorCode::Host, "cannot end the VMM").with_source(source))
    });
    Ok(machine)
}

fn machine_spec(
    shared: &Shared,
    row: &SandboxRow,
    engine: &dyn Engine,
    material: &Material,
    disks: Vec<Disk>,
    network: &Attached,
) -> MachineSpec {
    MachineSpec {
        id: row.id.clone(),
        runtime_dir: shared.directories.machine(&row.id),
        vcpus: row.spec.vcpus,
        mem_mib: row.spec.mem_mib,
        boot: boot(row, engine.kind(), material, network),
        disks,
        agent: true,
        restore: None,
        nics: network.nics.clone(),
        netns: network.namespace.clone(),
        jail: None,
        allow_insecure: row.spec.allow_insecure_vmm,
        options: kiln_vmm::MachineOptions {
            user_network: network.user.clone(),
            without: row.spec.without.clone(),
            shared_memory: engine.kind() == EngineKind::Qemu,
            ..kiln_vmm::MachineOptions::default()
        },
        console_log: shared.directories.console(&row.id),
    }
}

fn boot(row: &SandboxRow, engine: EngineKind, material: &Material, network: &Attached) -> Boot {
    // Of what a snapshot's machine once booted nothing is needed any more.
    if row.snapshot.is_some() {
        return Boot {
            kernel: std::path::PathBuf::new(),
            initramfs: None,
            args: Vec::new(),
        };
    }
    let mut boot = material.boot(engine, row.spec.tmpfs, &network.kernel_args);
    boot.args.extend(volumes::boot_args(&row.spec));
    boot.args.extend(init_args(row));
    boot
}

/// What the agent and the image's own init are told. Disks and name are ours to give: tables and
/// names in an image are of the machine that it was made on.
fn init_args(row: &SandboxRow) -> Vec<String> {
    match row.spec.init {
        InitSystem::Kiln => Vec::new(),
        InitSystem::Systemd => vec![
            "kiln.init=image".to_owned(),
            "fstab=no".to_owned(),
            format!("systemd.hostname={}", hostname(row)),
        ],
    }
}

fn hostname(row: &SandboxRow) -> String {
    let spec = &row.spec;
    let chosen = spec.hostname.as_ref().or(spec.name.as_ref());
    chosen.unwrap_or(&row.id).clone()
}

/// Who opens the TAP: the VMM's user, which is this process's without a jail.
fn tap_owner(jail: Option<&JailSpec>) -> kiln_net::TapOwner {
    match jail {
        Some(jail) => kiln_net::TapOwner {
            uid: jail.uid,
            gid: jail.gid,
        },
        None => kiln_net::TapOwner {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        },
    }
}

/// Before the guest runs it is written down whose process it is: a daemon that dies from here on
/// is followed by one that adopts or ends it. And of which image it is: what the guest writes to its
/// scratch disk fits no other.
async fn record(
    shared: &Shared,
    row: &SandboxRow,
    machine: &Arc<dyn Machine>,
    chosen: &Chosen,
    material: &Material,
) -> Result<(), Error> {
    let mut row = row.clone();
    row.image_id = Some(material.image_id.clone());
    row.image_config.clone_from(&material.image_config);
    row.machine = Some(machine.record().clone());
    row.engine = Some(chosen.engine.kind());
    shared
        .store
        .write(move |tx| Sandboxes(tx).update(&row))
        .await?;
    Ok(())
}

fn meet_agent(
    row: &SandboxRow,
    machine: &Arc<dyn Machine>,
    undo: &mut UndoStack,
) -> Result<GuestLink, Error> {
    let link = open_link(row, machine.as_ref())?;
    let closing = link.clone();
    undo.push(async move {
        closing.close().await;
        Ok(())
    });
    Ok(link)
}

/// Starts to meet the agent of a machine.
pub(crate) fn open_link(row: &SandboxRow, machine: &dyn Machine) -> Result<GuestLink, Error> {
    let endpoint = machine.agent_endpoint().ok_or_else(|| {
        Error::new(
            ErrorCode::AgentUnreachable,
            "the machine has no agent channel",
        )
    })?;
    let identity = GuestIdentity {
        hostname: hostname(row),
    };
    Ok(GuestLink::open(endpoint, identity))
}

/// Waits for the agent's session, or for the machine to die, whichever is first.
async fn ready(
    shared: &Shared,
    chosen: &Chosen,
    machine: &Arc<dyn Machine>,
    link: &GuestLink,
) -> Result<(Duration, Duration), Error> {
    let began = Instant::now();
    let deadline = shared.boot_deadline(chosen);
    let up = tokio::select! {
        up = tokio::time::timeout(deadline, link.ready()) => up,
        exit = machine.wait() => {
            return Err(died_while_booting(machine.as_ref(), exit));
        }
    };
    match up {
        Ok(Ok(ready)) => {
            let all = began.elapsed();
            let kernel = ready.init_started.min(all);
            Ok((kernel, all - kernel))
        }
        Ok(Err(source)) => Err(Error::new(
            ErrorCode::AgentUnreachable,
            "the guest's agent is no use",
        )
        .with_source(source)
        .with_details(machine.diagnostics().console)),
        Err(_) => Err(never_dialled(machine.as_ref(), deadline)),
    }
}

fn died_while_booting(machine: &dyn Machine, exit: kiln_vmm::Exit) -> Error {
    let diagnostics = machine.diagnostics();
    let message = match stop::last_words(&diagnostics.console) {
        Some(words) => format!("the guest died while it booted: {words}"),
        None => format!("the VMM ended while the guest booted ({exit:?})"),
    };
    let failure = Error::new(ErrorCode::StartFailed, message).with_details(output(&diagnostics));
    match stop::last_words(&diagnostics.console) {
        // A guest that said why it died would die of that again.
        Some(_) => failure,
        None => failure.that_may_pass(),
    }
}

fn never_dialled(machine: &dyn Machine, deadline: Duration) -> Error {
    let diagnostics = machine.diagnostics();
    let seconds = deadline.as_secs_f32();
    let message = match stop::last_words(&diagnostics.console) {
        Some(words) => format!("the guest hangs: {words}"),
        None => format!("the guest's agent did not answer within {seconds} s"),
    };
    Error::new(ErrorCode::AgentTimeout, message)
        .with_hint("the end of the guest's console is below; is this kernel fit for the engine?")
        .with_details(output(&diagnostics))
}

fn output(diagnostics: &kiln_vmm::Diagnostics) -> String {
    let parts = [
        ("VMM", &diagnostics.vmm_output),
        ("console", &diagnostics.console),
    ];
    let told = parts.iter().filter(|(_, text)| !text.trim().is_empty());
    told.map(|(name, text)| format!("--- {name}\n{}\n", text.trim_end()))
        .collect()
}

fn spawn_failed(error: SpawnError) -> Error {
    let error = match error {
        SpawnError::Snapshot(unfit) => return unfit.into(),
        other => other,
    };
    match &error {
        SpawnError::Invalid(_) => Error::new(ErrorCode::StartFailed, error.to_string()),
        SpawnError::Program { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Error::new(ErrorCode::BinaryNotFound, "the engine's program is gone").with_source(error)
        }
        _ if error.code() == kiln_vmm::Code::CgroupsHidden => {
            let message = "the VMM cannot be limited: control groups are hidden from Kiln";
            Error::new(ErrorCode::CgroupsHidden, message).with_source(error)
        }
        _ => Error::new(ErrorCode::StartFailed, "cannot start a VMM")
            .with_source(error)
            .that_may_pass(),
    }
}

fn start_failed(error: MachineError) -> Error {
    let details = match &error {
        MachineError::Exited { diagnostics, .. } | MachineError::Deadline { diagnostics, .. } => {
            output(diagnostics)
        }
        _ => String::new(),
    };
    Error::new(ErrorCode::StartFailed, "cannot boot the machine")
        .with_source(error)
        .with_details(details)
}

fn cancelled(id: &str) -> Error {
    Error::new(
        ErrorCode::StartFailed,
        format!("the start of sandbox {id} was cancelled"),
    )
}

fn with_failures(cause: Error, failures: Vec<Error>) -> Error {
    if failures.is_empty() {
        return cause;
    }
    let left: Vec<String> = failures.iter().map(Error::message).collect();
    let details = [
        cause.details().unwrap_or_default(),
        "--- not undone",
        &left.join("\n"),
    ]
    .join("\n");
    cause.with_details(details)
}

fn timings(
    prepare: Duration,
    spawn: Duration,
    booted: BootTimings,
    kernel: Duration,
    agent: Duration,
) -> Timings {
    let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    Timings {
        prepare_us: us(prepare),
        vmm_spawn_us: us(spawn),
        configure_us: us(booted.control + booted.configure),
        kernel_us: us(kernel),
        agent_us: us(agent),
    }
}

async fn remove_tree(path: std::path::PathBuf) -> Result<(), Error> {
    removed(tokio::fs::remove_dir_all(&path).await, &path)
}

async fn remove_file(path: std::path::PathBuf) -> Result<(), Error> {
    removed(tokio::fs::remove_file(&path).await, &path)
}

fn removed(outcome: std::io::Result<()>, path: &std::path::Path) -> Result<(), Error> {
    match outcome {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let message = format!("cannot remove {}", path.display());
            Err(Error::new(ErrorCode::Host, message).with_source(error))
        }
        _ => Ok(()),
    }
}
