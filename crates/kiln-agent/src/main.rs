//! Kiln's agent: process 1 of every guest.
//!
//! It brings the guest up ([`init`]), dials the host ([`transport`], [`serve`]), runs commands
//! as [`session`]s for it, reaps whatever ends ([`reaper`]), and takes the guest down
//! ([`power`]). It has one thread. It must not end, and must not panic: the guest's kernel ends
//! with it.
//!
//! Where the image's own init is to be process 1, it steps aside ([`init::handover`]) and does the
//! rest beside it.
//!
//! Asked `--ask QUESTION…` it tells what can be reached from there ([`ask`]). Else, away from
//! process 1, it is for tests only, and leaves the machine alone:
//! `kiln-agent --connect-unix PATH [--cgroup DIR] [--linger-ms N]`.

mod arguments;
mod ask;
mod cgroup;
mod console;
mod fd;
mod files;
mod forward;
mod identity;
mod init;
mod limits;
mod marks;
mod power;
mod process;
mod procfs;
mod reaper;
mod serve;
mod session;
mod stats;
mod sys;
mod transport;
mod watch;

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use arguments::Arguments;
use cgroup::Cgroups;
use init::cmdline::SwitchOff;
use marks::Marks;
use power::{Power, PowerRequest};
use reaper::Reaper;
use serve::Service;
use session::Sessions;
use transport::Transport;

/// How long a session whose connection broke waits for its client, holding its output.
const LINGER: Duration = Duration::from_secs(10);

fn main() {
    if rustix::process::getpid().is_init() {
        run_as_init();
    } else {
        std::process::exit(run_as_other());
    }
}

/// Never returns while the kernel obeys.
fn run_as_init() {
    std::panic::set_hook(Box::new(|panic| {
        console::fatal(panic);
        init::shutdown::switch_off(init::switch_off_mode());
    }));
    let mut marks = Marks::default();
    marks.set("start");
    let switch_off = match bring_up_and_serve(marks) {
        Ok(switch_off) => switch_off,
        Err(text) => {
            console::fatal(text);
            init::switch_off_mode()
        }
    };
    init::shutdown::switch_off(switch_off);
}

fn bring_up_and_serve(mut marks: Marks) -> Result<SwitchOff, String> {
    let cmdline = init::bring_up(&mut marks).map_err(|error| error.to_string())?;
    if cmdline.image_init {
        return Err(init::handover::hand_over().to_string());
    }
    let setup = Setup {
        role: Role::Init,
        transport: Transport::Virtio,
        cgroups: Cgroups::open(Path::new(init::CGROUPS)),
        linger: LINGER,
        owns_identity: true,
        marks,
    };
    run(setup).map_err(|error| format!("cannot start serving: {error}"))?;
    Ok(cmdline.switch_off)
}

/// Serves beside the image's init, and has that take the guest down at the end.
fn run_beside_init() -> i32 {
    let mut marks = Marks::default();
    marks.set("start");
    init::handover::settle_beside();
    let setup = Setup {
        role: Role::BesideInit,
        transport: Transport::Virtio,
        cgroups: Cgroups::open(Path::new(init::CGROUPS)),
        linger: LINGER,
        owns_identity: true,
        marks,
    };
    match run(setup) {
        Ok(request) => {
            init::handover::take_down(init::switch_off_mode(), request.grace);
            0
        }
        Err(error) => {
            console::fatal(error);
            1
        }
    }
}

fn run_as_other() -> i32 {
    let mut words = std::env::args().skip(1);
    match words.next().as_deref() {
        Some(init::handover::BESIDE) => return run_beside_init(),
        Some("--ask") => return answer(&words.collect::<Vec<_>>()),
        _ => {}
    }
    run_in_test()
}

fn answer(question: &[String]) -> i32 {
    match ask::run(question) {
        Ok(()) => 0,
        Err(error) => {
            console::fatal(error);
            2
        }
    }
}

fn run_in_test() -> i32 {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(usage) => {
            console::fatal(usage);
            return 2;
        }
    };
    // As process 1 would begin.
    sys::signal::ignore_none();
    // Orphans come to us, as they come to process 1.
    let own = Some(rustix::process::getpid());
    let adopted = rustix::process::set_child_subreaper(own).map_err(io::Error::from);
    let setup = Setup {
        role: Role::Test,
        transport: Transport::ConnectUnix(arguments.connect_unix),
        cgroups: arguments.cgroup.as_deref().and_then(Cgroups::open),
        linger: arguments.linger.unwrap_or(LINGER),
        owns_identity: false,
        marks: Marks::default(),
    };
    match adopted.and_then(|()| run(setup)) {
        Ok(_) => 0,
        Err(error) => {
            console::fatal(error);
            1
        }
    }
}

/// What this process is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Process 1: all is its own.
    Init,
    /// An ordinary process that the image's init is not to notice.
    BesideInit,
    /// A process of a machine that is no guest.
    Test,
}

/// What differs between process 1, its neighbour and a test.
struct Setup {
    role: Role,
    transport: Transport,
    cgroups: Option<Cgroups>,
    linger: Duration,
    owns_identity: bool,
    marks: Marks,
}

/// Serves until somebody wants the guest to end, then ends what runs in it.
fn run(setup: Setup) -> io::Result<PowerRequest> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, serve_until_power_off(setup))
}

async fn serve_until_power_off(mut setup: Setup) -> io::Result<PowerRequest> {
    let role = setup.role;
    let sessions = Rc::new(Sessions::new(setup.cgroups, setup.linger, role));
    let power = Rc::new(Power::default());
    let reaper = Rc::new(Reaper::new(Rc::clone(&sessions)));
    setup.marks.set("serving");
    let service = Service {
        sessions: Rc::clone(&sessions),
        power: Rc::clone(&power),
        instance: random(),
        owns_identity: setup.owns_identity,
        marks: setup.marks.into_vec(),
        watched: watch::Directories::default(),
    };
    let reaping = {
        let reaper = Rc::clone(&reaper);
        tokio::task::spawn_local(async move { reaper.run().await })
    };
    let watching = tokio::task::spawn_local(power::watch_signals(Rc::clone(&power), role));
    tokio::task::spawn_local(serve::serve(Rc::new(service), setup.transport));
    let failed = |result| match result {
        Ok(Err(error)) => error,
        Ok(Ok(never)) => match never {},
        Err(ended) => io::Error::other(ended),
    };
    tokio::select! {
        request = power.requested() => {
            power::wind_down(request, role, &power, &sessions, &reaper).await;
            Ok(request)
        }
        ended = reaping => Err(failed(ended)),
        ended = watching => Err(failed(ended)),
    }
}

/// Never waits: at this point the kernel may have no good random numbers yet, and this only has
/// to differ between lives of an agent.
fn random() -> u64 {
    let mut bytes = [0; 8];
    let flags = rustix::rand::GetRandomFlags::INSECURE;
    match rustix::rand::getrandom(&mut bytes[..], flags) {
        Ok(_) => u64::from_ne_bytes(bytes),
        Err(_) => stats::uptime().as_nanos() as u64,
    }
}
