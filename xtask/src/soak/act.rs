//! Doing a step, by the command line, and seeing that it did what it should.

use std::io;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use super::dice::Dice;
use super::mix::{Round, Step};
use super::world::{State, World};
use crate::deadline::wait_readable;
use crate::kiln::Kiln;
use crate::step;

/// No command takes longer on a machine that is in use: the daemon has deadlines of its own.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long something that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(30);
const SANDBOX: [&str; 4] = ["--memory", "128M", "--disk", "64M"];

/// Plays a round, and changes the world accordingly.
pub(super) fn play(
    kiln: &Kiln,
    round: &Round,
    world: &mut World,
    dice: &mut Dice,
) -> Result<(), String> {
    let fill = dice.roll();
    let outcomes: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let world = &*world;
        let played: Vec<_> = round
            .steps
            .iter()
            .map(|step| scope.spawn(move || act(kiln, step, world, fill)))
            .collect();
        let died = |_| Err("a step's thread died".to_owned());
        played
            .into_iter()
            .map(|it| it.join().unwrap_or_else(died))
            .collect()
    });
    for (step, outcome) in round.steps.iter().zip(outcomes) {
        outcome.map_err(|how| format!("{step}: {how}"))?;
        world.apply(step);
        if let Step::KillDaemonDuring { step, .. } = step {
            take_over(kiln, step, world)?;
        }
    }
    Ok(())
}

fn act(kiln: &Kiln, step: &Step, world: &World, fill: u64) -> Result<(), String> {
    match step {
        Step::Read(name) => read(kiln, name, world),
        Step::Write { name, mark } => write(kiln, name, *mark, world),
        Step::Copy { name, bytes } => copy(kiln, name, *bytes, fill),
        Step::KillVmm(name) => kill_vmm(kiln, name),
        Step::KillDaemon => kill_daemon(kiln),
        Step::KillDaemonDuring { step, after_ms } => {
            let command = kiln.command(words(step));
            killed_during(kiln, command, Duration::from_millis(*after_ms))
        }
        plain => done(kiln, &words(plain)).map(drop),
    }
}

/// The command line of a step that is one.
fn words(step: &Step) -> Vec<String> {
    let words: Vec<&str> = match step {
        Step::Create { name, volume: None } => vec!["create", "--name", name],
        Step::Create {
            name,
            volume: Some(volume),
        } => {
            let mount = format!("{volume}:/data");
            let create = ["create", "--volume", &mount, "--name", name];
            return create
                .iter()
                .chain(&SANDBOX)
                .map(ToString::to_string)
                .collect();
        }
        Step::Start(name) => vec!["start", name],
        Step::Pause(name) => vec!["pause", name],
        Step::Resume(name) => vec!["resume", name],
        Step::Stop(name) => vec!["stop", name],
        Step::Restart(name) => vec!["restart", name],
        Step::Remove(name) => vec!["rm", "--force", name],
        Step::CreateVolume(name) => vec!["volume", "create", "--size", "16M", name],
        Step::RemoveVolume(name) => vec!["volume", "rm", name],
        _ => Vec::new(),
    };
    let own: &[&str] = if matches!(step, Step::Create { .. }) {
        &SANDBOX
    } else {
        &[]
    };
    words.iter().chain(own).map(ToString::to_string).collect()
}

/// Writes to its disk and to its volume, and has both kept.
fn write(kiln: &Kiln, name: &str, mark: u64, world: &World) -> Result<(), String> {
    let has_volume = world.sandbox(name).is_some_and(|it| it.volume.is_some());
    let volume = if has_volume {
        format!("echo {mark} > /data/mark;")
    } else {
        String::new()
    };
    let script = format!("set -e; echo {mark} > /mark; {volume} sync");
    done(kiln, &["exec", name, "--", "sh", "-c", &script]).map(drop)
}

/// What was written must be there, whatever has happened since.
fn read(kiln: &Kiln, name: &str, world: &World) -> Result<(), String> {
    let Some(sandbox) = world.sandbox(name) else {
        return Err("it is not in the world".to_owned());
    };
    let volume = sandbox
        .volume
        .as_ref()
        .and_then(|volume| world.volume(volume));
    let kept = [
        ("/mark", sandbox.mark),
        ("/data/mark", volume.and_then(|volume| volume.mark)),
    ];
    for (path, mark) in kept
        .into_iter()
        .filter_map(|(path, mark)| Some((path, mark?)))
    {
        let told = done(kiln, &["exec", name, "--", "cat", path])?;
        if told.trim() != mark.to_string() {
            return Err(format!("{path} should hold {mark} and holds {told:?}"));
        }
    }
    done(kiln, &["exec", name, "--", "true"]).map(drop)
}

/// A file in and out again.
fn copy(kiln: &Kiln, name: &str, bytes: u64, fill: u64) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (there, back, inside) = (path("there"), path("back"), format!("{name}:/copied"));
    let mut dice = Dice::new(fill);
    let content: Vec<u8> = (0..bytes).map(|_| dice.roll().to_le_bytes()[0]).collect();
    std::fs::write(&there, &content).map_err(|error| error.to_string())?;
    done(kiln, &["cp", &there, &inside])?;
    done(kiln, &["cp", &inside, &back])?;
    let same = std::fs::read(&back).is_ok_and(|came| came == content);
    if same {
        Ok(())
    } else {
        Err("another file came back".to_owned())
    }
}

/// Has the VMM die and waits until that is known.
fn kill_vmm(kiln: &Kiln, name: &str) -> Result<(), String> {
    let all = sandboxes(kiln)?;
    let ours = all.iter().find(|it| it["name"] == name);
    let pid = ours
        .and_then(|it| it["pid"].as_i64())
        .and_then(|pid| i32::try_from(pid).ok());
    kill(pid.ok_or("its VMM has no process number")?)?;
    done(kiln, &["wait", "--for", "stopped", name]).map(drop)
}

fn kill_daemon(kiln: &Kiln) -> Result<(), String> {
    kill(kiln.info().map_err(|error| error.to_string())?.daemon_pid)
}

fn kill(pid: i32) -> Result<(), String> {
    let pid = Pid::from_raw(pid)
        .filter(|pid| !pid.is_init())
        .ok_or("no process has that number")?;
    let die = || -> io::Result<bool> {
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        pidfd_send_signal(&process, Signal::KILL)?;
        wait_readable(&process, DYING)
    };
    match die() {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("process {pid:?} does not die")),
        Err(error) => Err(format!("process {pid:?} cannot be killed: {error}")),
    }
}

/// The daemon dies while it does something. How the command ends is its own affair.
fn killed_during(kiln: &Kiln, mut command: Command, after: Duration) -> Result<(), String> {
    let daemon = kiln.info().map_err(|error| error.to_string())?.daemon_pid;
    let shown = step::shown(&command);
    let failed = |error: io::Error| format!("{shown}: {error}");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    std::thread::sleep(after);
    let killed = kill(daemon);
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
    let ended = process
        .map_err(io::Error::from)
        .and_then(|it| wait_readable(it, PATIENCE));
    if !matches!(ended, Ok(true)) {
        let _ = child.kill();
    }
    child.wait().map_err(failed)?;
    killed?;
    match ended {
        Ok(true) => Ok(()),
        _ => Err(format!("`{shown}` hung when its daemon died")),
    }
}

/// After a step that was cut short, its sandbox is what it is now; but settled, or gone.
fn take_over(kiln: &Kiln, cut: &Step, world: &mut World) -> Result<(), String> {
    let name = cut.subject();
    let all = sandboxes(kiln)?;
    let Some(found) = all.iter().find(|it| it["name"] == name) else {
        return match cut {
            Step::Remove(_) => {
                world.apply(cut);
                Ok(())
            }
            _ => Err(format!("{name} is gone, and nobody removed it")),
        };
    };
    let word = found["state"].as_str().unwrap_or_default();
    let state = match (word, cut) {
        // It is told that its start was cut off, and can be started again.
        ("error", Step::Start(_) | Step::Restart(_)) => {
            done(kiln, &["rm", "--force", name])?;
            world.apply(&Step::Remove(name.to_owned()));
            return Ok(());
        }
        _ => State::of_word(word),
    };
    let state = state.ok_or_else(|| format!("{name} is {word:?} after the daemon died"))?;
    world.become_state(name, state);
    Ok(())
}

/// Everything that `kiln ps` lists.
pub(super) fn sandboxes(kiln: &Kiln) -> Result<Vec<Value>, String> {
    let told = done(kiln, &["ps", "--all", "--json"])?;
    serde_json::from_str(told.trim()).map_err(|error| format!("kiln ps answers no list: {error}"))
}

/// Removes whatever is there; for the beginning and the end, when nothing is held to anything.
pub(super) fn clear(kiln: &Kiln) {
    for (list, remove) in [
        (
            ["ps", "--all", "--quiet"].as_slice(),
            ["rm", "--force"].as_slice(),
        ),
        (&["volume", "ls", "--quiet"], &["volume", "rm"]),
    ] {
        for name in done(kiln, list).unwrap_or_default().lines() {
            if let Err(error) = done(kiln, &[remove, &[name]].concat()) {
                eprintln!("{error}");
            }
        }
    }
}

/// Standard output of a command that succeeds.
fn done<S: AsRef<str>>(kiln: &Kiln, words: &[S]) -> Result<String, String> {
    let mut command = kiln.command(words.iter().map(AsRef::as_ref));
    let shown = step::shown(&command);
    let output = finished(&mut command).map_err(|error| format!("`{shown}`: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "`{shown}` ended with {}: {}",
        output.status,
        said.trim_end()
    ))
}

/// What it prints is short: it does not wait for a reader.
fn finished(command: &mut Command) -> io::Result<Output> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    if !wait_readable(&process, PATIENCE)? {
        child.kill()?;
        child.wait()?;
        return Err(io::ErrorKind::TimedOut.into());
    }
    child.wait_with_output()
}
