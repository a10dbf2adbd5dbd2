//! Between the contract's shapes and the library's, so that each can change without the other.

use std::time::SystemTime;

use kiln::{EngineKind, EnginePreference, ExecExit, ExecSpec, SandboxSpec, SandboxState};

pub(super) fn spec(request: kiln_api::CreateSandbox) -> SandboxSpec {
    let default = SandboxSpec::default();
    SandboxSpec {
        name: request.name,
        image: request.image,
        runtime: request.runtime,
        bundle: request.bundle,
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
        network: request
            .network
            .map_or(default.network, super::networks::spec),
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
        timings: info.timings.map(timings),
    }
}

fn state(state: SandboxState) -> kiln_api::SandboxState {
    match state {
        SandboxState::Created => kiln_api::SandboxState::Created,
        SandboxState::Starting => kiln_api::SandboxState::Starting,
        SandboxState::Running => kiln_api::SandboxState::Running,
        SandboxState::Stopping => kiln_api::SandboxState::Stopping,
        SandboxState::Stopped => kiln_api::SandboxState::Stopped,
        SandboxState::Error => kiln_api::SandboxState::Error,
    }
}

fn engine(kind: EngineKind) -> kiln_api::EngineKind {
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

pub(super) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
