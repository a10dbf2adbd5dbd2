//! Which steps are next: what the world allows, by chance.

use std::fmt;

use super::dice::Dice;
use super::world::{Sandbox, State, World};

/// Guests that run or are paused at the same time.
const LIVE: usize = 2;
/// Sandboxes in all.
const SANDBOXES: usize = 4;
const VOLUMES: usize = 2;
/// Largest file that is copied.
const LARGEST: u64 = 256 << 10;
/// Longest wait before the daemon is killed within a step, in ms.
const LATEST_KILL: u64 = 2500;

/// Something that is asked of Kiln, or done to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Create {
        name: String,
        volume: Option<String>,
    },
    Start(String),
    Read(String),
    Write {
        name: String,
        mark: u64,
    },
    Copy {
        name: String,
        bytes: u64,
    },
    Pause(String),
    Resume(String),
    Stop(String),
    Restart(String),
    Remove(String),
    CreateVolume(String),
    RemoveVolume(String),
    KillVmm(String),
    KillDaemon,
    KillDaemonDuring {
        step: Box<Step>,
        after_ms: u64,
    },
}

impl Step {
    /// Whom it is about; steps of one round are about different ones.
    pub(super) fn subject(&self) -> &str {
        match self {
            Self::Create { name, .. } | Self::Write { name, .. } | Self::Copy { name, .. } => name,
            Self::Start(name)
            | Self::Read(name)
            | Self::Pause(name)
            | Self::Resume(name)
            | Self::Stop(name)
            | Self::Restart(name)
            | Self::Remove(name)
            | Self::CreateVolume(name)
            | Self::RemoveVolume(name)
            | Self::KillVmm(name) => name,
            Self::KillDaemon => "",
            Self::KillDaemonDuring { step, .. } => step.subject(),
        }
    }

    /// Whether other steps would fail by it.
    fn is_alone(&self) -> bool {
        matches!(self, Self::KillDaemon | Self::KillDaemonDuring { .. })
    }

    /// Whether a volume or a place among the running is taken or given by it: two such steps at
    /// once could ask for what only one may have.
    fn changes_budget(&self) -> bool {
        matches!(
            self,
            Self::Create { .. } | Self::Start(_) | Self::CreateVolume(_) | Self::RemoveVolume(_)
        )
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { name, volume: None } => write!(f, "create {name}"),
            Self::Create {
                name,
                volume: Some(volume),
            } => write!(f, "create {name} with {volume}"),
            Self::Start(name) => write!(f, "start {name}"),
            Self::Read(name) => write!(f, "read in {name}"),
            Self::Write { name, mark } => write!(f, "write {mark} in {name}"),
            Self::Copy { name, bytes } => write!(f, "copy {bytes} bytes to {name} and back"),
            Self::Pause(name) => write!(f, "pause {name}"),
            Self::Resume(name) => write!(f, "resume {name}"),
            Self::Stop(name) => write!(f, "stop {name}"),
            Self::Restart(name) => write!(f, "restart {name}"),
            Self::Remove(name) => write!(f, "remove {name}"),
            Self::CreateVolume(name) => write!(f, "create volume {name}"),
            Self::RemoveVolume(name) => write!(f, "remove volume {name}"),
            Self::KillVmm(name) => write!(f, "kill the VMM of {name}"),
            Self::KillDaemon => write!(f, "kill the daemon"),
            Self::KillDaemonDuring { step, after_ms } => {
                write!(f, "kill the daemon {after_ms} ms into: {step}")
            }
        }
    }
}

/// Steps that are done at once.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) steps: Vec<Step>,
}

impl Round {
    fn of(step: Step) -> Self {
        Self { steps: vec![step] }
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.steps.iter().map(Step::to_string).collect();
        f.write_str(&words.join("; and at once: "))
    }
}

/// The next round: a step, and often another one beside it.
pub(super) fn next(dice: &mut Dice, world: &mut World) -> Round {
    let first = choose(dice, world).unwrap_or(Step::KillDaemon);
    let mut round = Round::of(first.clone());
    if first.is_alone() || dice.below(2) == 0 {
        return round;
    }
    if let Some(second) = choose(dice, world) {
        let collide = first.changes_budget() && second.changes_budget();
        let same = first.subject() == second.subject() || share_volume(world, &first, &second);
        if !second.is_alone() && !collide && !same {
            round.steps.push(second);
        }
    }
    round
}

/// Whether both are about sandboxes with the same volume: only one of them may have it at a time.
fn share_volume(world: &World, first: &Step, second: &Step) -> bool {
    let volume = |step: &Step| {
        world
            .sandbox(step.subject())
            .and_then(|it| it.volume.clone())
    };
    volume(first).is_some_and(|name| volume(second).as_ref() == Some(&name))
}

fn choose(dice: &mut Dice, world: &mut World) -> Option<Step> {
    let mut all = vec![(3, Step::KillDaemon)];
    if world.sandboxes.len() < SANDBOXES {
        let free: Vec<_> = world
            .volumes
            .iter()
            .filter(|it| !world.is_used(&it.name))
            .collect();
        let volume = free.first().map(|it| it.name.clone());
        let name = world.new_name("s");
        all.push((12, Step::Create { name, volume }));
    }
    if world.volumes.len() < VOLUMES {
        all.push((4, Step::CreateVolume(world.new_name("v"))));
    }
    let unused = world.volumes.iter().filter(|it| !world.is_used(&it.name));
    all.extend(unused.map(|it| (2, Step::RemoveVolume(it.name.clone()))));
    let room = world.live() < LIVE;
    for sandbox in &world.sandboxes {
        all.extend(of_sandbox(dice, sandbox, room));
    }
    dice.one_of(&all)
}

/// What can be done with a sandbox as it is.
fn of_sandbox(dice: &mut Dice, sandbox: &Sandbox, room: bool) -> Vec<(u64, Step)> {
    let name = || sandbox.name.clone();
    let mut killed = |step: Step| Step::KillDaemonDuring {
        step: Box::new(step),
        after_ms: dice.below(LATEST_KILL),
    };
    let mut all = match sandbox.state {
        State::Created | State::Stopped if room => {
            vec![(10, Step::Start(name())), (2, killed(Step::Start(name())))]
        }
        State::Created | State::Stopped => Vec::new(),
        State::Running => vec![
            (6, Step::Read(name())),
            (4, Step::Pause(name())),
            (4, Step::Stop(name())),
            (2, Step::Restart(name())),
            (2, Step::KillVmm(name())),
            (1, killed(Step::Stop(name()))),
            (1, killed(Step::Restart(name()))),
        ],
        State::Paused => vec![(8, Step::Resume(name())), (1, Step::Stop(name()))],
    };
    all.push((2, Step::Remove(name())));
    all.push((1, killed(Step::Remove(name()))));
    if sandbox.state == State::Running {
        let (mark, bytes) = (dice.below(1 << 32), 1 + dice.below(LARGEST));
        all.push((6, Step::Write { name: name(), mark }));
        all.push((
            4,
            Step::Copy {
                name: name(),
                bytes,
            },
        ));
    }
    all
}

/// Removes all that there is.
pub(super) fn remove_all(world: &World) -> Vec<Round> {
    let sandboxes = world
        .sandboxes
        .iter()
        .map(|it| Step::Remove(it.name.clone()));
    let volumes = world
        .volumes
        .iter()
        .map(|it| Step::RemoveVolume(it.name.clone()));
    sandboxes.chain(volumes).map(Round::of).collect()
}

/// The same work each time it is asked for, in which nothing is killed.
pub(super) fn same_work(world: &mut World) -> Vec<Round> {
    let (name, volume) = (world.new_name("s"), world.new_name("v"));
    let bytes = LARGEST;
    let steps = [
        Step::CreateVolume(volume.clone()),
        Step::Create {
            name: name.clone(),
            volume: Some(volume),
        },
        Step::Start(name.clone()),
        Step::Write {
            name: name.clone(),
            mark: 1,
        },
        Step::Copy {
            name: name.clone(),
            bytes,
        },
        Step::Stop(name),
    ];
    steps.into_iter().map(Round::of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds as they come when every step is done as it was asked.
    fn rounds(seed: u64, count: usize) -> Vec<String> {
        let (mut dice, mut world) = (Dice::new(seed), World::default());
        let mut told = Vec::new();
        for _ in 0..count {
            let round = next(&mut dice, &mut world);
            told.push(round.to_string());
            round.steps.iter().for_each(|step| world.apply(step));
            assert!(world.live() <= LIVE, "{told:?}");
            assert!(world.sandboxes.len() <= SANDBOXES && world.volumes.len() <= VOLUMES);
            let used = world.sandboxes.iter().filter_map(|it| it.volume.as_ref());
            assert!(
                used.into_iter().all(|name| world.volume(name).is_some()),
                "{told:?}"
            );
        }
        told
    }

    #[test]
    fn a_seed_asks_for_the_same_and_the_budget_is_kept() {
        assert_eq!(rounds(5, 300), rounds(5, 300));
        assert_ne!(rounds(5, 300), rounds(6, 300));
    }

    #[test]
    fn everything_comes_up_sooner_or_later() {
        let told = rounds(1, 2000).join("\n");
        for word in [
            "create s-",
            "start",
            "read",
            "write",
            "copy",
            "pause",
            "resume",
            "stop",
            "restart",
            "remove s-",
            "create volume",
            "remove volume",
            "kill the VMM",
            "kill the daemon",
            "ms into: start",
            "ms into: stop",
            "ms into: remove",
            "at once",
            "with v-",
        ] {
            assert!(told.contains(word), "{word}");
        }
    }
}
