//! What the scripted engine does at each step, and what it was asked.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// A call that can be scripted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// [`Engine::spawn`](crate::Engine::spawn), behind the validation of the spec.
    Spawn,
    /// [`Engine::adopt`](crate::Engine::adopt).
    Adopt,
    /// [`Machine::boot`](crate::Machine::boot).
    Boot,
    /// [`Machine::pause`](crate::Machine::pause).
    Pause,
    /// [`Machine::resume`](crate::Machine::resume).
    Resume,
    /// [`Machine::snapshot`](crate::Machine::snapshot): a file of memory with nothing in it but the
    /// machine's name.
    Snapshot,
    /// [`Machine::press_ctrl_alt_del`](crate::Machine::press_ctrl_alt_del): a press that
    /// succeeds ends the machine, as a guest would.
    CtrlAltDel,
    /// [`Machine::close`](crate::Machine::close).
    Close,
}

/// What one call does.
#[derive(Clone, Debug)]
pub enum Plan {
    /// What it should.
    Succeed,
    /// Refuses; nothing changed. A close ends the machine all the same and reports a file that
    /// it could not remove.
    Fail,
    /// Waits until the gate is released, then succeeds.
    Stall(Gate),
    /// The process dies instead of answering.
    Die,
}

/// Holds calls up. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate(watch::Sender<GateState>);

#[derive(Clone, Copy, Debug, Default)]
struct GateState {
    waiting: usize,
    open: bool,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// A closed gate.
    #[must_use]
    pub fn new() -> Self {
        Self(watch::channel(GateState::default()).0)
    }

    /// Lets through whoever waits and whoever comes.
    pub fn release(&self) {
        self.0.send_modify(|state| state.open = true);
    }

    /// Waits until a call has arrived at the gate.
    pub async fn reached(&self) {
        self.until(|state| state.waiting > 0).await;
    }

    async fn pass(&self) {
        self.0.send_modify(|state| state.waiting += 1);
        self.until(|state| state.open).await;
    }

    async fn until(&self, condition: impl FnMut(&GateState) -> bool) {
        // The sender is `self`: it cannot go away meanwhile.
        let _ = self.0.subscribe().wait_for(condition).await;
    }
}

/// One call that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Id of the machine.
    pub machine: String,
    /// What was asked.
    pub step: Step,
}

/// What a call has to do once nothing holds it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Succeed,
    Fail,
    Die,
}

#[derive(Debug, Default)]
pub(super) struct Script {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    plans: HashMap<Step, VecDeque<Plan>>,
    calls: Vec<Call>,
}

impl Script {
    pub(super) fn plan(&self, step: Step, plan: Plan) {
        self.state().plans.entry(step).or_default().push_back(plan);
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Notes the call and waits where the plan says so.
    pub(super) async fn act(&self, machine: &str, step: Step) -> Outcome {
        let plan = {
            let mut state = self.state();
            state.calls.push(Call {
                machine: machine.to_owned(),
                step,
            });
            state.plans.get_mut(&step).and_then(VecDeque::pop_front)
        };
        match plan {
            None | Some(Plan::Succeed) => Outcome::Succeed,
            Some(Plan::Fail) => Outcome::Fail,
            Some(Plan::Die) => Outcome::Die,
            Some(Plan::Stall(gate)) => {
                gate.pass().await;
                Outcome::Succeed
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
