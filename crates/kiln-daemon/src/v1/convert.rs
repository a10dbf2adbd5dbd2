//! Between the contract's shapes and the library's, so that each can change without the other.

use std::time::SystemTime;

use kiln::{
    EngineKind, EnginePreference, ExecExit, ExecSpec, RestartPolicy, SandboxSpec, SandboxState,
};

use crate::http::error::ApiError;

pub(super) fn spec(request: kiln_api::CreateSandbox) -> Result<SandboxSpec, ApiError> {
    let default = SandboxSpec::default();
    Ok(SandboxSpec {
        name: request.name,
        image: request.image,
        runtime: request.runtime,
        bundle: request.bundle,
        snapshot: request.snapshot,
        pull: request.pull.map_or(default.pull, pull_policy),
        platform: request.platform,
        init: request.init.map_or(default.init, init_system),
        engine: request.engine.map_or(default.engine, engine_preference),
        vcpus: request.vcpus.unwrap_or(default.vcpus),
        mem_mib: request.mem_mib.unwrap_or(default.mem_mib),
        disk_mib: request.disk_mib.unwrap_or(default.disk_mib),
        tmpfs: request.tmpfs,
        kernel: request.kernel.map(Into::into),
        modules: request.modules.map(Into::into),
        hostname: request.hostname,
        volumes: request.volumes.into_iter().map(volume_mount).collect(),
        ephemeral: false,
        allow_insecure_vmm: request.allow_insecure_vmm,
        without: request.without.into_iter().map(protection).collect(),
        network: request
            .network
            .map_or(default.network, super::networks::spec),
        labels: request.labels,
        project: request.project,
        timeout_ms: request.timeout_ms,
        idle_timeout_ms: request.idle_timeout_ms,
        remove_on_stop: request.remove_on_stop,
        restart: restart_policy(request.restart)?.unwrap_or(default.restart),
        command: request.command.map(main_command),
    })
}

pub(super) fn main_command(command: kiln_api::MainCommand) -> kiln::MainCommand {
    let words = command.exec.argv.clone();
    kiln::MainCommand {
        entrypoint: command.entrypoint,
        exec: ExecSpec {
            // Not a shell where nothing is said: the image's own command.
            argv: words,
            ..exec_spec(command.exec)
        },
    }
}

pub(super) fn update(request: kiln_api::UpdateSandbox) -> Result<kiln::SandboxUpdate, ApiError> {
    Ok(kiln::SandboxUpdate {
        name: request.name,
        labels: request.labels,
        project: request.project,
        timeout_ms: request.timeout_ms,
        idle_timeout_ms: request.idle_timeout_ms,
        restart: restart_policy(request.restart)?,
        remove_on_stop: request.remove_on_stop,
        vcpus: request.vcpus,
        mem_mib: request.mem_mib,
    })
}

fn restart_policy(text: Option<String>) -> Result<Option<RestartPolicy>, ApiError> {
    let parsed = text.map(|text| text.parse()).transpose();
    parsed.map_err(|error: kiln::NoRestartPolicy| ApiError::invalid(error.to_string()))
}

pub(super) fn wait_for(what: kiln_api::WaitFor) -> kiln::WaitFor {
    match what {
        kiln_api::WaitFor::Stopped => kiln::WaitFor::Stopped,
        kiln_api::WaitFor::Running => kiln::WaitFor::Running,
        kiln_api::WaitFor::Removed => kiln::WaitFor::Removed,
    }
}

fn protection(protection: kiln_api::Protection) -> kiln::Protection {
    match protection {
        kiln_api::Protection::Seccomp => kiln::Protection::Seccomp,
        kiln_api::Protection::PidNamespace => kiln::Protection::PidNamespace,
        kiln_api::Protection::Cgroup => kiln::Protection::Cgroup,
    }
}

fn waived(protection: kiln::Protection) -> kiln_api::Protection {
    match protection {
        kiln::Protection::Seccomp => kiln_api::Protection::Seccomp,
        kiln::Protection::PidNamespace => kiln_api::Protection::PidNamespace,
        kiln::Protection::Cgroup => kiln_api::Protection::Cgroup,
    }
}

fn init_system(init: kiln_api::InitSystem) -> kiln::InitSystem {
    match init {
        kiln_api::InitSystem::Kiln => kiln::InitSystem::Kiln,
        kiln_api::InitSystem::Systemd => kiln::InitSystem::Systemd,
    }
}

pub(super) fn pull_policy(policy: kiln_api::PullPolicy) -> kiln::PullPolicy {
    match policy {
        kiln_api::PullPolicy::Always => kiln::PullPolicy::Always,
        kiln_api::PullPolicy::Missing => kiln::PullPolicy::Missing,
        kiln_api::PullPolicy::Never => kiln::PullPolicy::Never,
    }
}

fn volume_mount(mount: kiln_api::VolumeMount) -> kiln::VolumeMount {
    kiln::VolumeMount {
        volume: mount.volume,
        path: mount.path,
        read_only: mount.read_only,
    }
}

pub(super) fn volume(volume: kiln::Volume) -> kiln_api::Volume {
    kiln_api::Volume {
        name: volume.name.to_string(),
        path: volume.path.display().to_string(),
        size_bytes: volume.size_bytes,
        allocated_bytes: volume.allocated_bytes,
        created_at_ms: unix_ms(volume.created),
    }
}

fn engine_preference(preference: kiln_api::EnginePreference) -> EnginePreference {
    match preference {
        kiln_api::EnginePreference::Auto => EnginePreference::Auto,
        kiln_api::EnginePreference::Firecracker => EnginePreference::Firecracker,
        kiln_api::EnginePreference::Qemu => EnginePreference::Qemu,
    }
}

/// What runs when nothing is named: a login shell, the better one where there is one.
const SHELL: [&str; 3] = [
    "/bin/sh",
    "-c",
    "if [ -x /bin/bash ]; then exec /bin/bash -l; else exec /bin/sh -l; fi",
];

pub(super) fn exec_spec(request: kiln_api::ExecRequest) -> ExecSpec {
    let argv = if request.argv.is_empty() {
        SHELL.map(str::to_owned).to_vec()
    } else {
        request.argv
    };
    ExecSpec {
        argv,
        env: request.env,
        cwd: request.cwd,
        user: request.user,
        tty: request.tty.map(|size| kiln::TerminalSize {
            rows: size.rows,
            cols: size.cols,
        }),
        stdin: request.stdin,
        kill_on_detach: request.kill_on_detach,
        main: false,
        keep_timeout: request.keep_timeout,
        timeout_ms: request.timeout_ms,
        limits: request.limits.map(exec_limits).unwrap_or_default(),
    }
}

fn exec_limits(limits: kiln_api::ExecLimits) -> kiln::ExecLimits {
    kiln::ExecLimits {
        mem_mib: limits.mem_mib,
        processes: limits.processes,
        cpu_milli: limits.cpu_milli,
    }
}

pub(super) fn sandbox(info: kiln::SandboxInfo) -> kiln_api::Sandbox {
    kiln_api::Sandbox {
        id: info.id,
        name: info.name,
        image: info.image,
        state: state(info.state),
        engine: info.engine.map(engine),
        vcpus: info.vcpus,
        mem_mib: info.mem_mib,
        disk_mib: info.disk_mib,
        tmpfs: info.tmpfs,
        created_at_ms: info.created_at_ms,
        started_at_ms: info.started_at_ms,
        reason: info.reason,
        pid: info.pid,
        warnings: info.warnings,
        unprotected: info.unprotected,
        without: info.without.into_iter().map(waived).collect(),
        timings: info.timings.map(timings),
        labels: info.labels,
        project: info.project,
        expires_at_ms: info.expires_at_ms,
        timeout_ms: info.timeout_ms,
        idle_timeout_ms: info.idle_timeout_ms,
        remove_on_stop: info.remove_on_stop,
        restart: info.restart.to_string(),
        restarts: info.restarts,
        main_session: info.main_session,
        main_exit: info.main_exit.map(exit_status),
        snapshot: info.snapshot,
    }
}

fn state(state: SandboxState) -> kiln_api::SandboxState {
    match state {
        SandboxState::Created => kiln_api::SandboxState::Created,
        SandboxState::Starting => kiln_api::SandboxState::Starting,
        SandboxState::Running => kiln_api::SandboxState::Running,
        SandboxState::Paused => kiln_api::SandboxState::Paused,
        SandboxState::Stopping => kiln_api::SandboxState::Stopping,
        SandboxState::Stopped => kiln_api::SandboxState::Stopped,
        SandboxState::Error => kiln_api::SandboxState::Error,
    }
}

pub(super) fn engine(kind: EngineKind) -> kiln_api::EngineKind {
    match kind {
        EngineKind::Firecracker => kiln_api::EngineKind::Firecracker,
        EngineKind::Qemu => kiln_api::EngineKind::Qemu,
        EngineKind::Fake => kiln_api::EngineKind::Fake,
    }
}

pub(super) fn timings(timings: kiln::Timings) -> kiln_api::Timings {
    kiln_api::Timings {
        prepare_us: Some(timings.prepare_us),
        vmm_spawn_us: Some(timings.vmm_spawn_us),
        configure_us: Some(timings.configure_us),
        kernel_us: Some(timings.kernel_us),
        agent_us: Some(timings.agent_us),
        ..kiln_api::Timings::default()
    }
}

pub(super) fn session(info: kiln::SessionInfo) -> kiln_api::Session {
    kiln_api::Session {
        id: info.id,
        argv: info.argv,
        pid: info.pid,
        tty: info.tty,
        attached: info.attached,
        exit: info.exit.map(exit_status),
        age_ms: u64::try_from(info.age.as_millis()).unwrap_or(u64::MAX),
    }
}

pub(crate) fn exit_status(exit: ExecExit) -> kiln_api::ExitStatus {
    match exit {
        ExecExit::Code(code) => kiln_api::ExitStatus::Code(code),
        ExecExit::Signal(signal) => kiln_api::ExitStatus::Signal(signal),
        ExecExit::TimedOut(signal) => kiln_api::ExitStatus::TimedOut(signal),
    }
}

pub(super) fn host_info(info: kiln::HostInfo) -> kiln_api::HostInfo {
    kiln_api::HostInfo {
        version: info.version,
        data_dir: info.data_dir,
        runtime_dir: info.runtime_dir,
        engine: info.engine.map(engine),
        engine_version: info.engine_version,
        acceleration: info.acceleration.map(acceleration),
        engine_reason: info.engine_reason,
        warnings: info.warnings,
        findings: info.findings,
        sandboxes: info.sandboxes,
        running: info.running,
        daemon_pid: info.pid,
    }
}

fn acceleration(acceleration: kiln::Acceleration) -> kiln_api::Acceleration {
    match acceleration {
        kiln::Acceleration::Kvm => kiln_api::Acceleration::Kvm,
        kiln::Acceleration::Tcg => kiln_api::Acceleration::Tcg,
    }
}

pub(super) fn image(info: kiln::ImageInfo) -> kiln_api::Image {
    kiln_api::Image {
        unique_bytes: info.unique_bytes(),
        id: info.id.to_string(),
        names: info.names,
        manifest: info.manifest.map(|digest| digest.to_string()),
        platform: info.platform.to_string(),
        size_bytes: info.size_bytes,
        added_at_ms: unix_ms(info.added),
        last_used_at_ms: unix_ms(info.last_used),
        used_by: info.pinned_by,
        layers: info.layers.iter().map(ToString::to_string).collect(),
        config: image_config(info.config),
    }
}

fn image_config(config: kiln::ImageConfig) -> kiln_api::ImageConfig {
    kiln_api::ImageConfig {
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        env: config.env,
        user: config.user,
        working_dir: config.working_dir,
        stop_signal: config.stop_signal,
        exposed_ports: config.exposed_ports,
        labels: config.labels,
    }
}

pub(super) fn file(info: kiln::FileInfo) -> kiln_api::FileInfo {
    kiln_api::FileInfo {
        name: info.name,
        kind: match info.kind {
            kiln::FileKind::File => kiln_api::FileKind::File,
            kiln::FileKind::Directory => kiln_api::FileKind::Directory,
            kiln::FileKind::Symlink => kiln_api::FileKind::Symlink,
            kiln::FileKind::Other => kiln_api::FileKind::Other,
        },
        mode: info.mode,
        uid: info.uid,
        gid: info.gid,
        size: info.size,
        mtime_ms: info.mtime_ms,
        link: info.link,
    }
}

pub(super) fn file_change(change: kiln::FileChange) -> kiln_api::FileChange {
    kiln_api::FileChange {
        kind: match change.kind {
            kiln::ChangeKind::Created => kiln_api::ChangeKind::Created,
            kiln::ChangeKind::Modified => kiln_api::ChangeKind::Modified,
            kiln::ChangeKind::Attributes => kiln_api::ChangeKind::Attributes,
            kiln::ChangeKind::Removed => kiln_api::ChangeKind::Removed,
            kiln::ChangeKind::MovedFrom => kiln_api::ChangeKind::MovedFrom,
            kiln::ChangeKind::MovedTo => kiln_api::ChangeKind::MovedTo,
            kiln::ChangeKind::Lost => kiln_api::ChangeKind::Lost,
        },
        path: change.path,
        directory: change.directory,
    }
}

pub(super) fn stats(stats: kiln::SandboxStats) -> kiln_api::Stats {
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let kiln::SandboxStats { guest, vmm } = stats;
    kiln_api::Stats {
        at_ms: unix_ms(SystemTime::now()),
        uptime_ms: ms(guest.uptime),
        cpus: guest.cpus,
        cpu_busy_ms: ms(guest.cpu_busy),
        load1: guest.load1,
        mem_total_kib: guest.mem_total_kib,
        mem_available_kib: guest.mem_available_kib,
        disk_total_kib: guest.disk_total_kib,
        disk_used_kib: guest.disk_used_kib,
        net_rx_bytes: guest.net_rx_bytes,
        net_tx_bytes: guest.net_tx_bytes,
        processes: guest.processes,
        sessions: guest.sessions_running,
        host_mem_kib: vmm.map(|vmm| vmm.memory_kib),
        host_cpu_ms: vmm.map(|vmm| ms(vmm.cpu)),
    }
}

pub(super) fn kernel(kernel: kiln::KernelBundle) -> kiln_api::Kernel {
    kiln_api::Kernel {
        id: kernel.id,
        release: kernel.release,
        source: kernel.source,
        path: kernel.vmlinux.display().to_string(),
        modules: kernel.modules.len(),
    }
}

pub(super) fn leftover(leftover: kiln::Leftover) -> kiln_api::Leftover {
    kiln_api::Leftover {
        kind: leftover.kind.as_str().to_owned(),
        path: leftover.path.display().to_string(),
        bytes: leftover.bytes,
        removed: leftover.removed,
    }
}

pub(super) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
