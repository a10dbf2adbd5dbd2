//! `cargo xtask soak`: a long random life of a `kiln` with real guests, in which VMMs and the daemon
//! are killed, and what must hold throughout.
//!
//! The mix follows from a seed: the same seed asks for the same steps, as long as all of them hold.
//! Owns nothing of how a step is done (`act`), which is next (`mix`), or what must hold (`hold`).

mod act;
mod dice;
mod hold;
mod mix;
mod world;

use std::collections::VecDeque;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;

use crate::kiln::{self, Kiln, KilnError};
use crate::namespace::Namespace;
use crate::setup::{self, Purpose, SetupError};
use crate::step::StepError;
use crate::traces::TracesError;
use crate::workspace;
use dice::Dice;
use hold::Watch;
use mix::Round;
use world::World;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How long: 90s, 2m, 1h.
    #[arg(long = "for", default_value = "1h", value_name = "SPAN", value_parser = span)]
    span: Duration,
    /// Where the mix begins; another one each time when unset.
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

/// Why nothing could be tried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SoakError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Build(#[from] StepError),
    #[error(transparent)]
    Kiln(#[from] KilnError),
    #[error(transparent)]
    Traces(#[from] TracesError),
    #[error("cannot work in the target directory")]
    Directory(#[source] std::io::Error),
}

/// How it went.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// But for what could not be tried here.
    Held {
        untried: Option<String>,
    },
    Skipped(String),
    Failed(String),
}

/// Steps that are told when one fails.
const TOLD: usize = 30;
/// Rounds between two rests, at which nothing may be left.
const UNTIL_REST: u32 = 12;
/// Lines of the daemon's log that are told.
const LOG_LINES: usize = 40;

pub(crate) fn run(options: &Options) -> Result<ExitCode, SoakError> {
    setup::ensure(Purpose::Test)?;
    kiln::build()?;
    let seed = options.seed.unwrap_or_else(new_seed);
    Ok(match soak(options.span, seed)? {
        Verdict::Held { untried } => {
            untried.iter().for_each(|what| eprintln!("SKIPPED: {what}"));
            ExitCode::SUCCESS
        }
        Verdict::Skipped(why) => {
            eprintln!("SKIPPED: soak: {why}");
            ExitCode::SUCCESS
        }
        Verdict::Failed(_) => ExitCode::FAILURE,
    })
}

/// Soaks the release build that is there.
pub(crate) fn soak(span: Duration, seed: u64) -> Result<Verdict, SoakError> {
    let data = workspace::target().join("soak");
    seed_material(&data).map_err(SoakError::Directory)?;
    let mut kiln = Kiln::with_data_dir(data)?;
    let mut untried = None;
    match Namespace::new("soak") {
        Ok(namespace) => kiln = kiln.networked(namespace),
        Err(error) => untried = Some(format!("soak of networks: {error}")),
    }
    let info = kiln.info()?;
    if info.engine.is_none() {
        kiln.close()?;
        return Ok(Verdict::Skipped(info.engine_reason));
    }
    eprintln!("soak: {} s with --seed {seed}", span.as_secs());
    let mut soak = Soak::new(&kiln, seed)?;
    let outcome = soak.live(Instant::now() + span);
    let verdict = soak.verdict(outcome, untried, seed);
    act::clear(&kiln);
    kiln.close()?;
    Ok(verdict)
}

struct Soak<'k> {
    kiln: &'k Kiln,
    dice: Dice,
    world: World,
    watch: Watch<'k>,
    done: u64,
    last: VecDeque<String>,
}

impl<'k> Soak<'k> {
    /// What an earlier one left is removed first.
    fn new(kiln: &'k Kiln, seed: u64) -> Result<Self, SoakError> {
        act::clear(kiln);
        kiln.output(&mut kiln.command(["run", "--", "true"]))?;
        Ok(Self {
            kiln,
            dice: Dice::new(seed),
            world: World::default(),
            watch: Watch::new(kiln)?,
            done: 0,
            last: VecDeque::new(),
        })
    }

    /// Rounds until the time is over, and at the end the proof that nothing has grown.
    fn live(&mut self, until: Instant) -> Result<(), String> {
        while Instant::now() < until {
            for _ in 0..UNTIL_REST {
                if Instant::now() >= until {
                    break;
                }
                let round = mix::next(&mut self.dice, &mut self.world);
                self.play(&round)?;
            }
            self.rest()?;
        }
        // Two rests of one daemon, with the same work before each.
        for _ in 0..2 {
            for round in mix::same_work(&mut self.world) {
                self.play(&round)?;
            }
            self.rest()?;
        }
        Ok(())
    }

    fn play(&mut self, round: &Round) -> Result<(), String> {
        self.note(round.to_string());
        act::play(self.kiln, round, &mut self.world, &mut self.dice)?;
        self.done += round.steps.len() as u64;
        self.watch.after_round(&self.world)
    }

    /// Removes everything and looks at what is left.
    fn rest(&mut self) -> Result<(), String> {
        for round in mix::remove_all(&self.world) {
            self.play(&round)?;
        }
        self.note("rest".to_owned());
        self.watch.at_rest()
    }

    fn note(&mut self, what: String) {
        if self.last.len() == TOLD {
            self.last.pop_front();
        }
        self.last.push_back(what);
    }

    fn verdict(&self, outcome: Result<(), String>, untried: Option<String>, seed: u64) -> Verdict {
        let Err(how) = outcome else {
            eprintln!("soak: {} steps held; {}", self.done, self.watch);
            return Verdict::Held { untried };
        };
        eprintln!("soak: FAILED after {} steps: {how}", self.done);
        eprintln!("soak: again with: cargo xtask soak --seed {seed}; the last steps were:");
        self.last.iter().for_each(|step| eprintln!("  {step}"));
        eprintln!("soak: the daemon said last:");
        for line in log_end(&self.kiln.data_dir().join("daemon.log")) {
            eprintln!("  {line}");
        }
        Verdict::Failed(format!("seed {seed}: {how}"))
    }
}

fn log_end(path: &Path) -> Vec<String> {
    let log = std::fs::read(path).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let mut lines: Vec<String> = log
        .lines()
        .rev()
        .take(LOG_LINES)
        .map(str::to_owned)
        .collect();
    lines.reverse();
    lines
}

fn new_seed() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(1, |since| since.as_secs())
}

/// Kernel and image that another chore has made already; linked, since they are never changed.
fn seed_material(data: &Path) -> std::io::Result<()> {
    let target = workspace::target();
    let others = ["e2e/data", "demo", "bench"].map(|place| target.join(place));
    for part in ["kernels", "images", "cache"] {
        let made = others.iter().map(|other| other.join(part));
        if let Some(from) = made
            .into_iter()
            .find(|it| it.is_dir() && !data.join(part).exists())
        {
            link_tree(&from, &data.join(part))?;
        }
    }
    Ok(())
}

fn link_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            link_tree(&source, &target)?;
        } else {
            std::fs::hard_link(source, target)?;
        }
    }
    Ok(())
}

fn span(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.trim_end_matches(char::is_alphabetic).len());
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} begins with no number"))?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("{text:?} does not end in s, m or h")),
    };
    Ok(Duration::from_secs(number.saturating_mul(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_unit() {
        assert_eq!(span("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(span("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["", "h", "10", "-1s", "1d", "1.5h"] {
            assert!(span(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_end_of_a_log_is_told_in_its_order() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        std::fs::write(file.path(), lines.join("\n")).unwrap();
        assert_eq!(log_end(file.path()), lines[60..]);
        assert_eq!(log_end(Path::new("/nowhere")), [""; 0]);
    }
}
