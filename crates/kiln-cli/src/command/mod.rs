//! The commands, one file each, and what several of them share.

pub(crate) mod attach;
pub(crate) mod completion;
pub(crate) mod connect;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod daemon;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod exec_limits;
pub(crate) mod forward;
pub(crate) mod fs;
pub(crate) mod gc;
pub(crate) mod image;
pub(crate) mod info;
pub(crate) mod inspect;
pub(crate) mod kernel;
pub(crate) mod lifetime;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod network;
pub(crate) mod pause;
pub(crate) mod port;
pub(crate) mod ps;
pub(crate) mod restart;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod sandbox_args;
pub(crate) mod sessions;
pub(crate) mod snapshot;
pub(crate) mod start;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod update;
pub(crate) mod version;
pub(crate) mod volume;
pub(crate) mod wait;

mod shared;

use tokio::runtime::Builder;

use crate::{
    Failure, Output,
    cli::{Cli, Command},
    place::Place,
    remote,
    start::Daemon,
};

/// Runs a command; its exit code.
pub(crate) fn run(cli: Cli, output: &Output) -> Result<u8, Failure> {
    let place = Place::of(&cli.global)?;
    if matches!(cli.command, Command::Daemon(_) | Command::Doctor(_)) {
        remote::refuse_elsewhere(&cli.global)?;
    }
    if let Command::Daemon(args) = cli.command {
        return daemon::run(&args, &place, output);
    }
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::io("start a runtime"))?;
    let code = match &cli.command {
        // Needs no daemon: it tells why none comes up.
        Command::Doctor(args) => runtime.block_on(doctor::run(args, &place, output)),
        _ => {
            let daemon = match remote::client(&cli.global)? {
                Some(client) => Daemon::elsewhere(client),
                None => Daemon::at(&place),
            };
            runtime.block_on(dispatch(cli.command, &daemon, output))
        }
    };
    // Not dropped: that would wait for what blocks on standard input.
    runtime.shutdown_background();
    code
}

async fn dispatch(command: Command, daemon: &Daemon<'_>, output: &Output) -> Result<u8, Failure> {
    match command {
        Command::Run(args) => run::run(*args, daemon, output).await,
        Command::Create(args) => create::run(*args, daemon, output).await,
        Command::Exec(args) => exec::run(args, daemon, output).await,
        Command::Forward(args) => forward::run(args, daemon, output).await,
        Command::Connect(args) => connect::run(args, daemon, output).await,
        Command::Attach(args) => attach::run(args, daemon, output).await,
        Command::Ps(args) => ps::run(&args, daemon, output).await,
        Command::Start(args) => start::run(&args, daemon, output).await,
        Command::Stop(args) => stop::run(&args, daemon, output).await,
        Command::Restart(args) => restart::run(&args, daemon, output).await,
        Command::Pause(args) => pause::pause(&args, daemon, output).await,
        Command::Resume(args) => pause::resume(&args, daemon, output).await,
        Command::Wait(args) => wait::run(&args, daemon, output).await,
        Command::Inspect(args) => inspect::run(&args, daemon, output).await,
        Command::Update(args) => update::run(&args, daemon, output).await,
        Command::Rename(args) => update::rename(&args, daemon, output).await,
        Command::Rm(args) => rm::run(&args, daemon, output).await,
        Command::Pull(args) => image::pull(args, daemon, output).await,
        Command::Image(args) => image::run(args, daemon, output).await,
        Command::Volume(args) => volume::run(args, daemon, output).await,
        Command::Fs(args) => fs::run(args, daemon, output).await,
        Command::Watch(args) => fs::watch(args, daemon, output).await,
        Command::Snapshot(args) => snapshot::run(args, daemon, output).await,
        Command::Cp(args) => cp::run(args, daemon, output).await,
        Command::Upload(args) => cp::upload(args, daemon, output).await,
        Command::Download(args) => cp::download(args, daemon, output).await,
        Command::Sessions(args) => sessions::run(&args, daemon, output).await,
        Command::Stats(args) => stats::run(&args, daemon, output).await,
        Command::Logs(args) => logs::run(&args, daemon).await,
        Command::Network(args) => network::run(args, daemon, output).await,
        Command::Kernel(args) => kernel::run(&args, daemon, output).await,
        Command::Port(args) => port::run(&args, daemon, output).await,
        Command::Events(args) => events::run(&args, daemon, output).await,
        Command::Gc(args) => gc::run(&args, daemon, output).await,
        Command::Man(args) => man::run(&args, output),
        Command::Completion(args) => Ok(completion::run(&args, output)),
        Command::Complete(args) => Ok(completion::complete(&args, daemon, output).await),
        Command::Info(args) => info::run(&args, daemon, output).await,
        Command::Version(args) => version::run(&args, daemon, output).await,
        // One has a runtime of its own, the other no daemon.
        Command::Daemon(_) | Command::Doctor(_) => Ok(0),
    }
}
