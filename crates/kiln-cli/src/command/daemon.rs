//! `kiln daemon`.

use std::{
    ffi::OsString,
    io::{self, Write},
    time::Duration,
};

use clap::{ArgMatches, Args, parser::ValueSource};
use kiln_daemon::{
    Daemon as Server, DaemonConfig, DaemonLock, FirecrackerRelease, HostConfig, OpenError,
    RemoteConfig,
};
use rustix::{fs::Mode, process};
use tokio::runtime::{Builder, Runtime};

use super::shared::is_not_running;
use crate::{
    Failure, Output,
    place::{Paths, Place, PlaceError, absolute},
    start::{Daemon, Readiness, Setting, error_line},
};

/// A daemon that a command started ends after this long without clients and machines.
const IDLE_EXIT_S: u64 = 300;
/// What requests under way are given when the daemon ends.
const DRAIN: Duration = Duration::from_secs(10);
/// What tasks that nobody waits for any more are given to stop where they are.
const LAST_TASKS: Duration = Duration::from_secs(2);
/// How long a daemon that was asked to end may take.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// Threads that serve clients; what blocks has threads of its own.
const WORKERS: usize = 2;

/// Be the daemon, or start or stop it
///
/// Every command that needs the daemon starts it in the background by itself. Machines run on when
/// it ends, and the next one finds them.
#[derive(Debug, Args)]
pub(crate) struct DaemonArgs {
    /// Start it in the background and return when it serves
    #[arg(long, conflicts_with = "stop")]
    background: bool,
    /// End the one that runs
    #[arg(long)]
    stop: bool,
    /// End by itself after this long without clients and machines; 0 for never [default: 0, in the
    /// background 300]
    #[arg(long, value_name = "SECONDS", env = "KILN_IDLE_EXIT")]
    idle_exit: Option<u64>,
    /// Give a guest this long from power-on to its agent's first word [default: 30 with KVM, 180
    /// emulated]
    #[arg(long, value_name = "SECONDS", env = "KILN_BOOT_TIMEOUT",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    boot_timeout: Option<u64>,
    /// Listen beyond this host too, with TLS and tokens: whoever has a token can do what this user can
    #[arg(long, value_name = "ADDRESS:PORT", requires_all = ["tls_cert", "tls_key", "tokens"],
          conflicts_with_all = ["background", "stop"])]
    listen: Option<std::net::SocketAddr>,
    /// PEM file of the certificate for --listen
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_cert: Option<std::path::PathBuf>,
    /// PEM file of its key; nobody else may read it
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_key: Option<std::path::PathBuf>,
    /// File of tokens for --listen, one on a line; nobody else may read it
    #[arg(long, value_name = "FILE", requires = "listen")]
    tokens: Option<std::path::PathBuf>,
    /// Fetch this release of Firecracker where KVM runs guests and no binary is found: known-good,
    /// latest, never, or one such as v1.16.1 [default: known-good]
    #[arg(
        long,
        value_name = "RELEASE",
        env = "KILN_FIRECRACKER_VERSION",
        hide_env_values = true
    )]
    firecracker_version: Option<FirecrackerRelease>,
    /// Fetch releases from here [default: Firecracker's page of releases]
    #[arg(
        long,
        value_name = "URL",
        env = "KILN_FIRECRACKER_RELEASES",
        hide_env_values = true
    )]
    firecracker_releases: Option<String>,
    /// Run Firecracker under these system call filters (JSON) instead of its own; seccompiler-bin
    /// beside it, or KILN_SECCOMPILER, compiles them
    #[arg(
        long,
        value_name = "FILE",
        env = "KILN_SECCOMP_FILTERS",
        hide_env_values = true
    )]
    seccomp_filters: Option<std::path::PathBuf>,
    /// Give each executable hook so long [default: 10]
    #[arg(long, value_name = "SECONDS", env = "KILN_HOOK_TIMEOUT", hide_env_values = true,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    hook_timeout: Option<u64>,
    /// Keep base images here [default: base-images in the data directory]
    #[arg(
        long,
        value_name = "DIR",
        env = "KILN_BASE_IMAGES",
        hide_env_values = true
    )]
    base_images: Option<std::path::PathBuf>,
    /// Keep so many base images; the one used longest ago goes first [default: 2]
    #[arg(
        long,
        value_name = "N",
        env = "KILN_MAX_BASE_IMAGES",
        hide_env_values = true
    )]
    max_base_images: Option<usize>,
    /// What the base image `hosted` means: a manifest by its URL or path
    #[arg(
        long,
        value_name = "URL|FILE",
        env = "KILN_BASE_IMAGE_MANIFEST",
        hide_env_values = true
    )]
    base_image_manifest: Option<String>,
    /// Be what --background starts
    #[arg(long, hide = true, conflicts_with_all = ["background", "stop"])]
    detached: bool,
    /// Whether the command line itself says how it is to be.
    #[arg(skip)]
    is_set_up: bool,
}

/// What says how a daemon is to be.
const SETTINGS: [&str; 9] = [
    "idle_exit",
    "boot_timeout",
    "firecracker_version",
    "firecracker_releases",
    "seccomp_filters",
    "hook_timeout",
    "base_images",
    "max_base_images",
    "base_image_manifest",
];

impl DaemonArgs {
    /// Refuses to set up a daemon that is to end.
    pub(crate) fn settle(&mut self, matches: &ArgMatches) -> Result<(), &'static str> {
        // What the environment says is for whatever daemon comes up.
        let typed = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
        self.is_set_up = SETTINGS.iter().any(typed);
        if self.stop && self.is_set_up {
            return Err("'--stop' cannot be used with what sets a daemon up");
        }
        Ok(())
    }

    /// For a daemon in the background, which reads the environment.
    fn settings(&self) -> Result<Vec<Setting>, Failure> {
        let seconds = |value: Option<u64>| value.map(|it| it.to_string().into());
        let filters = self.seccomp_filters.as_deref();
        let filters = filters.map(|it| Paths::Here.named(it)).transpose()?;
        let base_images = self.base_images.as_deref().map(absolute).transpose()?;
        let base_image_manifest = self.base_image_manifest.as_deref().map(manifest);
        let all: [(&'static str, Option<OsString>); 9] = [
            ("KILN_IDLE_EXIT", seconds(self.idle_exit)),
            ("KILN_BOOT_TIMEOUT", seconds(self.boot_timeout)),
            (
                "KILN_FIRECRACKER_VERSION",
                self.firecracker_version.as_ref().map(word),
            ),
            (
                "KILN_FIRECRACKER_RELEASES",
                self.firecracker_releases.as_ref().map(Into::into),
            ),
            ("KILN_SECCOMP_FILTERS", filters.map(Into::into)),
            ("KILN_HOOK_TIMEOUT", seconds(self.hook_timeout)),
            ("KILN_BASE_IMAGES", base_images.map(Into::into)),
            (
                "KILN_MAX_BASE_IMAGES",
                self.max_base_images.map(|it| it.to_string().into()),
            ),
            (
                "KILN_BASE_IMAGE_MANIFEST",
                base_image_manifest.transpose()?.map(Into::into),
            ),
        ];
        let set = all.into_iter();
        Ok(set
            .filter_map(|(name, value)| Some((name, value?)))
            .collect())
    }
}

/// As it is typed.
fn word(release: &FirecrackerRelease) -> OsString {
    match release {
        FirecrackerRelease::KnownGood => "known-good".into(),
        FirecrackerRelease::Latest => "latest".into(),
        FirecrackerRelease::Never => "never".into(),
        FirecrackerRelease::Pinned(tag) => tag.to_string().into(),
    }
}

pub(crate) fn run(args: &DaemonArgs, place: &Place, output: &Output) -> Result<u8, Failure> {
    let client = Daemon::at(place);
    if args.stop {
        return one_thread()?.block_on(stop(&client, output));
    }
    if args.background {
        let settings = args.settings()?;
        let is_new = one_thread()?.block_on(client.start_with(place, &settings))?;
        if !is_new && args.is_set_up {
            output.warning("a daemon runs already, and goes on as it was started");
        }
        return Ok(0);
    }
    let result = be_the_daemon(args, place);
    if args.detached
        && let Err(failure) = &result
    {
        // Whoever started us reads it, unless we were ready before; then nobody does.
        drop(writeln!(io::stdout(), "{}", error_line(&failure.report())));
    }
    result
}

fn be_the_daemon(args: &DaemonArgs, place: &Place) -> Result<u8, Failure> {
    if args.detached {
        detach(place)?;
    } else {
        kiln_daemon::log::to_stderr();
    }
    kiln_daemon::memory::keep_little();
    kiln_daemon::descriptors::allow_all();
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(Failure::io("start a runtime"))?;
    let lock = runtime.block_on(DaemonLock::take(&place.socket))?;
    let result = runtime.block_on(serve(args, place, &lock));
    // Whatever a task still holds of the host is given up before the place is.
    runtime.shutdown_timeout(LAST_TASKS);
    drop(lock);
    result
}

fn one_thread() -> Result<Runtime, Failure> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::io("start a runtime"))
}

async fn stop(daemon: &Daemon<'_>, output: &Output) -> Result<u8, Failure> {
    match daemon.client.shutdown().await {
        Ok(()) => {}
        Err(error) if is_not_running(&error) => output.detail("no daemon runs"),
        Err(error) => return Err(error.into()),
    }
    // Also when it does not answer: one that is about to end is waited for.
    let ended = kiln_daemon::wait_for_end(daemon.client.socket(), STOP_DEADLINE).await;
    ended.map_err(OpenError::from)?;
    Ok(0)
}

/// Becomes the daemon that a command has started: of a session of its own, so that the command's
/// terminal does not matter to it.
fn detach(place: &Place) -> Result<(), Failure> {
    // Fails only for one that leads a group already, and that is then as good.
    let _ = process::setsid();
    process::umask(Mode::from_raw_mode(0o077));
    kiln_daemon::log::to_file(&place.log()).map_err(Failure::io("open the daemon's log"))
}

async fn serve(args: &DaemonArgs, place: &Place, lock: &DaemonLock) -> Result<u8, Failure> {
    let default = if args.detached { IDLE_EXIT_S } else { 0 };
    let idle_exit = Some(args.idle_exit.unwrap_or(default)).filter(|seconds| *seconds > 0);
    let mut host = HostConfig::new(&place.data_dir, &place.runtime_dir);
    host.hooks_dir = Some(hooks_dir(place));
    host.hook_timeout = args.hook_timeout.map(Duration::from_secs);
    host.firecracker_release = args.firecracker_version.clone().unwrap_or_default();
    host.firecracker_releases = args.firecracker_releases.clone();
    host.seccomp_filters = args.seccomp_filters.clone();
    host.base_images_dir = args.base_images.as_deref().map(absolute).transpose()?;
    host.max_base_images = args.max_base_images;
    host.base_image_manifest = args
        .base_image_manifest
        .as_deref()
        .map(manifest)
        .transpose()?;
    host.boot_deadline = args.boot_timeout.map(Duration::from_secs);
    let config = DaemonConfig {
        host,
        remote: remote(args),
        idle_exit: idle_exit.map(Duration::from_secs),
        drain: DRAIN,
    };
    let server = Server::open(config, lock).await?;
    if args.detached {
        tell_ready().map_err(Failure::io("tell that the daemon is ready"))?;
    }
    server.serve().await?;
    Ok(0)
}

/// A URL, or a path that means the same to a daemon with another working directory.
fn manifest(place: &str) -> Result<String, PlaceError> {
    if place.contains("://") {
        return Ok(place.to_owned());
    }
    Ok(absolute(place.as_ref())?.to_string_lossy().into_owned())
}

/// All of it or nothing: the arguments require each other.
fn remote(args: &DaemonArgs) -> Option<RemoteConfig> {
    Some(RemoteConfig {
        address: args.listen?,
        certificate: args.tls_cert.clone()?,
        key: args.tls_key.clone()?,
        tokens: args.tokens.clone()?,
    })
}

/// `KILN_HOOKS_DIR`, or `hooks` in the data directory.
fn hooks_dir(place: &Place) -> std::path::PathBuf {
    match std::env::var_os("KILN_HOOKS_DIR").filter(|it| !it.is_empty()) {
        Some(dir) => dir.into(),
        None => place.data_dir.join("hooks"),
    }
}

/// Tells whoever started us, and lets go of the pipe to it.
fn tell_ready() -> io::Result<()> {
    let line = serde_json::to_string(&Readiness::Ready {
        pid: std::process::id(),
    })?;
    let mut stdout = io::stdout();
    writeln!(stdout, "{line}")?;
    stdout.flush()?;
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}
