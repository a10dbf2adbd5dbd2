//! Who uses a sandbox, and since when nobody does: what idle time-outs go by.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// The use of one sandbox. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    in_use: usize,
    extending: usize,
    last_use: Instant,
}

/// Somebody uses the sandbox as long as this lives.
#[derive(Debug)]
pub(crate) struct Use {
    activity: Activity,
    extends: bool,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            in_use: 0,
            extending: 0,
            last_use: Instant::now(),
        })))
    }

    /// A use begins; one that `extends` also keeps the time-out away while it lasts.
    pub(crate) fn begin(&self, extends: bool) -> Use {
        let mut state = self.lock();
        state.in_use += 1;
        state.extending += usize::from(extends);
        Use {
            activity: self.clone(),
            extends,
        }
    }

    /// Counts from now, as when a machine comes up.
    pub(crate) fn reset(&self) {
        self.lock().last_use = Instant::now();
    }

    /// Since when nobody uses it; `None` while somebody does.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.in_use == 0).then_some(state.last_use)
    }

    /// Whether somebody uses it in a way that keeps its time-out away.
    pub(crate) fn extends_timeout(&self) -> bool {
        self.lock().extending > 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut state = self.activity.lock();
        state.in_use -= 1;
        state.extending -= usize::from(self.extends);
        state.last_use = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_begins_when_the_last_use_ends() {
        let activity = Activity::new();
        let (shell, command) = (activity.begin(true), activity.begin(false));
        assert!(activity.idle_since().is_none() && activity.extends_timeout());
        drop(shell);
        assert!(activity.idle_since().is_none() && !activity.extends_timeout());
        let before = Instant::now();
        drop(command);
        assert!(activity.idle_since().is_some_and(|since| since >= before));
    }
}
