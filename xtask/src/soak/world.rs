//! What there should be, by what was asked for so far.

use super::mix::Step;

/// What a sandbox should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Created,
    Running,
    Paused,
    Stopped,
}

impl State {
    /// The word that `kiln ps` has for it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }

    /// `None` for one in which nothing stays, or that nobody asked for.
    pub(super) fn of_word(word: &str) -> Option<Self> {
        [Self::Created, Self::Running, Self::Paused, Self::Stopped]
            .into_iter()
            .find(|state| state.word() == word)
    }

    pub(super) fn is_live(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// A sandbox that should be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sandbox {
    pub(super) name: String,
    pub(super) state: State,
    /// What was last written to its disk.
    pub(super) mark: Option<u64>,
    pub(super) volume: Option<String>,
}

/// A volume that should be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) name: String,
    /// What was last written to it.
    pub(super) mark: Option<u64>,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) sandboxes: Vec<Sandbox>,
    pub(super) volumes: Vec<Volume>,
    made: u64,
}

impl World {
    /// A name that nothing had yet.
    pub(super) fn new_name(&mut self, kind: &str) -> String {
        self.made += 1;
        format!("{kind}-{}", self.made)
    }

    pub(super) fn sandbox(&self, name: &str) -> Option<&Sandbox> {
        self.sandboxes.iter().find(|it| it.name == name)
    }

    fn sandbox_mut(&mut self, name: &str) -> Option<&mut Sandbox> {
        self.sandboxes.iter_mut().find(|it| it.name == name)
    }

    pub(super) fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|it| it.name == name)
    }

    pub(super) fn live(&self) -> usize {
        self.sandboxes
            .iter()
            .filter(|it| it.state.is_live())
            .count()
    }

    pub(super) fn is_used(&self, volume: &str) -> bool {
        self.sandboxes
            .iter()
            .any(|it| it.volume.as_deref() == Some(volume))
    }

    /// What a step that was done has changed.
    pub(super) fn apply(&mut self, step: &Step) {
        match step {
            Step::Create { name, volume } => self.sandboxes.push(Sandbox {
                name: name.clone(),
                state: State::Created,
                mark: None,
                volume: volume.clone(),
            }),
            Step::Start(name) | Step::Restart(name) | Step::Resume(name) => {
                self.become_state(name, State::Running);
            }
            Step::Pause(name) => self.become_state(name, State::Paused),
            Step::Stop(name) | Step::KillVmm(name) => self.become_state(name, State::Stopped),
            Step::Remove(name) => self.sandboxes.retain(|it| it.name != *name),
            Step::Write { name, mark } => self.written(name, *mark),
            Step::CreateVolume(name) => self.volumes.push(Volume {
                name: name.clone(),
                mark: None,
            }),
            Step::RemoveVolume(name) => self.volumes.retain(|it| it.name != *name),
            Step::Read(_)
            | Step::Copy { .. }
            | Step::KillDaemon
            | Step::KillDaemonDuring { .. } => {}
        }
    }

    pub(super) fn become_state(&mut self, name: &str, state: State) {
        if let Some(sandbox) = self.sandbox_mut(name) {
            sandbox.state = state;
        }
    }

    fn written(&mut self, name: &str, mark: u64) {
        let volume = self.sandbox_mut(name).and_then(|sandbox| {
            sandbox.mark = Some(mark);
            sandbox.volume.clone()
        });
        let volume = self
            .volumes
            .iter_mut()
            .find(|it| Some(&it.name) == volume.as_ref());
        if let Some(volume) = volume {
            volume.mark = Some(mark);
        }
    }
}
