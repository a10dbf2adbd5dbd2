//! What can be typed.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{
    Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum, error::ErrorKind,
};
use kiln_api::{EnginePreference, ErrorReport};

use crate::{
    command,
    contradictions::{self, TypedGlobals},
    failure::FAILED,
    output::Output,
    remote::Address,
};

/// Run untrusted code in microVMs.
#[derive(Debug, Parser)]
#[command(
    name = "kiln",
    version,
    disable_help_subcommand = true,
    after_help = "Exit codes of run, exec and attach: the command's own; 125 when Kiln fails; 126 \
                  when the command cannot be executed; 127 when it is not found; 128 + n when \
                  signal n ends it. All other commands: 0 or 125; doctor 1 \
                  when a check fails."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Understands what was typed.
    pub(crate) fn parse_words(typed: Vec<OsString>) -> Result<Self, clap::Error> {
        // Only the subcommand that was typed is put together. What a refusal or a help says may be
        // about all of them.
        let matches = Self::command()
            .try_get_matches_from(&typed)
            .or_else(|_| Self::whole_command().try_get_matches_from(&typed))?;
        let leaf = contradictions::leaf(&matches);
        contradictions::refuse(leaf)?;
        let mut cli = Self::from_arg_matches(&matches)
            .map_err(|error| error.format(&mut Self::whole_command()))?;
        let typed_globals = TypedGlobals::of(&matches);
        typed_globals.refuse_unasked(&cli.command)?;
        typed_globals.settle(&mut cli.global)?;
        match &mut cli.command {
            Command::Run(args) => args.tell_image_from_command(&typed),
            Command::Create(args) => args.tell_image_from_command(&typed),
            Command::Daemon(args) => args.settle(leaf).map_err(contradictions::told)?,
            _ => {}
        }
        Ok(cli)
    }

    /// With the arguments of all subcommands.
    pub(crate) fn whole_command() -> clap::Command {
        let mut command = Self::command();
        command.build();
        command
    }
}

/// What every command takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Where images, disks and state are kept [default: /var/lib/kiln, or ~/.local/share/kiln]
    #[arg(
        long,
        global = true,
        env = "KILN_DATA_DIR",
        value_name = "DIR",
        hide_env_values = true
    )]
    pub(crate) data_dir: Option<PathBuf>,
    /// The daemon's socket [default: kiln.sock in the runtime directory]
    #[arg(
        long,
        global = true,
        env = "KILN_SOCKET",
        value_name = "PATH",
        hide_env_values = true
    )]
    pub(crate) socket: Option<PathBuf>,
    /// Another host's daemon, https://HOST:PORT, or unix:///PATH for a socket here. None is started
    #[arg(
        long,
        global = true,
        env = "KILN_HOST",
        value_name = "ADDRESS",
        hide_env_values = true
    )]
    pub(crate) host: Option<Address>,
    /// For --host: PEM file of the daemon's certificate, or of who vouches for it; nobody else is
    /// believed then [default: whom this system trusts]
    #[arg(
        long,
        global = true,
        env = "KILN_TLS_CA",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(crate) tls_ca: Option<PathBuf>,
    /// For --host: file with the token, which nobody else may read [default: what KILN_TOKEN holds]
    #[arg(
        long,
        global = true,
        env = "KILN_TOKEN_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// Print JSON; errors, warnings and timings too, one object per line on standard error
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Tell what happens on the way
    #[arg(long, short, global = true)]
    pub(crate) verbose: bool,
}

/// Which engine to use.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Engine {
    /// The best that works here.
    Auto,
    /// Firecracker or nothing.
    Firecracker,
    /// QEMU or nothing.
    Qemu,
}

impl From<Engine> for EnginePreference {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Auto => Self::Auto,
            Engine::Firecracker => Self::Firecracker,
            Engine::Qemu => Self::Qemu,
        }
    }
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    Run(Box<command::run::RunArgs>),
    Create(Box<command::create::CreateArgs>),
    #[command(visible_alias = "ls", alias = "list")]
    Ps(command::ps::PsArgs),
    Exec(command::exec::ExecArgs),
    #[command(visible_alias = "shell")]
    Connect(command::connect::ConnectArgs),
    Attach(command::attach::AttachArgs),
    Forward(command::forward::ForwardArgs),
    Start(command::start::StartArgs),
    Stop(command::stop::StopArgs),
    Restart(command::restart::RestartArgs),
    Pause(command::pause::PauseArgs),
    #[command(alias = "unpause")]
    Resume(command::pause::ResumeArgs),
    Wait(command::wait::WaitArgs),
    Inspect(command::inspect::InspectArgs),
    Update(command::update::UpdateArgs),
    Rename(command::update::RenameArgs),
    #[command(visible_alias = "remove")]
    Rm(command::rm::RmArgs),
    Cp(command::cp::CpArgs),
    Upload(command::cp::UploadArgs),
    Download(command::cp::DownloadArgs),
    #[command(visible_alias = "files")]
    Fs(command::fs::FsArgs),
    Watch(command::fs::WatchArgs),
    Logs(command::logs::LogsArgs),
    Sessions(command::sessions::SessionsArgs),
    #[command(visible_alias = "top")]
    Stats(command::stats::StatsArgs),
    Pull(command::image::PullArgs),
    Image(command::image::ImageArgs),
    Volume(command::volume::VolumeArgs),
    Snapshot(command::snapshot::SnapshotArgs),
    Network(command::network::NetworkArgs),
    Kernel(command::kernel::KernelArgs),
    Port(command::port::PortArgs),
    Events(command::events::EventsArgs),
    Gc(command::gc::GcArgs),
    Doctor(command::doctor::DoctorArgs),
    Man(command::man::ManArgs),
    Completion(command::completion::CompletionArgs),
    #[command(name = "__complete", hide = true)]
    Complete(command::completion::CompleteArgs),
    Info(command::info::InfoArgs),
    Version(command::version::VersionArgs),
    Daemon(command::daemon::DaemonArgs),
}

/// Says why the arguments are not understood, or the help that they ask for.
pub(crate) fn refuse(error: &clap::Error, typed: &[OsString]) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        // Nobody reads it: then nobody misses it.
        drop(error.print());
        return ExitCode::SUCCESS;
    }
    // What was understood of the arguments is lost with the error, so look at them again. What
    // follows `--` is not ours.
    let json = typed
        .iter()
        .take_while(|word| *word != "--")
        .any(|word| word == "--json");
    if json {
        let text = error.render().to_string();
        let message = text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("error: ");
        let report = ErrorReport::new("USAGE", message).with_hint("see `kiln --help`");
        Output::new(true, false).failure(&report);
    } else {
        drop(error.print());
    }
    ExitCode::from(FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
