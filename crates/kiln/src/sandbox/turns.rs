//! Whose turn it is to boot: a bounded number at once, and no project waits for all of another's.
//!
//! Those who wait are served round robin over their projects, in the order of arrival within one:
//! who starts one sandbox does not wait behind somebody else's fifty.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The turns of a host. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    /// Those that wait, by project; a project without any is not here.
    waiting: BTreeMap<String, VecDeque<oneshot::Sender<Turn>>>,
    /// The project that was served last.
    last: String,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Option<Turns>);

impl Turns {
    /// `at_once` turns, at least one.
    pub(crate) fn new(at_once: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: at_once.max(1),
            waiting: BTreeMap::new(),
            last: String::new(),
        })))
    }

    /// Waits for a turn. Cancel-safe: who leaves loses nothing but its place.
    pub(crate) async fn take(&self, project: &str) -> Turn {
        loop {
            let (sender, receiver) = oneshot::channel();
            self.enqueue(project, sender);
            self.serve();
            // A sender is never dropped unserved while the queue lives; should it be, queue anew.
            if let Ok(turn) = receiver.await {
                return turn;
            }
        }
    }

    fn enqueue(&self, project: &str, sender: oneshot::Sender<Turn>) {
        let mut state = self.lock();
        state
            .waiting
            .entry(project.to_owned())
            .or_default()
            .push_back(sender);
    }

    /// Gives free turns to those that wait. Not under the lock: a turn that nobody takes is dropped
    /// here, and its drop takes the lock.
    fn serve(&self) {
        loop {
            let next = self.lock().next();
            let Some(sender) = next else { return };
            drop(sender.send(Turn(Some(self.clone()))));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Who is next, if there is a turn and somebody waits for it.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        if self.free == 0 {
            return None;
        }
        loop {
            let project = self.next_project()?;
            let queue = self.waiting.get_mut(&project)?;
            let sender = queue.pop_front();
            if queue.is_empty() {
                self.waiting.remove(&project);
            }
            self.last = project;
            match sender {
                // It left meanwhile.
                Some(sender) if sender.is_closed() => {}
                found => {
                    self.free -= usize::from(found.is_some());
                    return found;
                }
            }
        }
    }

    /// The project behind the one that was served last, and from the end again the first.
    fn next_project(&self) -> Option<String> {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut behind = self
            .waiting
            .range::<str, _>((Excluded(self.last.as_str()), Unbounded));
        behind
            .next()
            .or_else(|| self.waiting.iter().next())
            .map(|(project, _)| project.clone())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.lock().free += 1;
            turns.serve();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets spawned tasks come to their next wait.
    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn one_of_another_project_does_not_wait_behind_fifty() {
        let turns = Turns::new(1);
        let first = turns.take("a").await;
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for name in std::iter::repeat_n("a", 50).chain(["b"]) {
            let (turns, served) = (turns.clone(), Arc::clone(&served));
            tasks.push(tokio::spawn(async move {
                let _turn = turns.take(name).await;
                served.lock().unwrap().push(name);
            }));
            settle().await;
        }
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        let served = served.lock().unwrap();
        assert_eq!(served.len(), 51);
        assert!(
            served.iter().position(|name| *name == "b").unwrap() <= 1,
            "{served:?}"
        );
    }

    #[tokio::test]
    async fn no_more_at_once_than_there_are_turns_and_who_leaves_takes_none() {
        let turns = Turns::new(2);
        let (one, two) = (turns.take("").await, turns.take("").await);
        let (waiting, left) = (turns.clone(), turns.clone());
        let left = tokio::spawn(async move { left.take("").await });
        settle().await;
        let third = tokio::spawn(async move { waiting.take("").await });
        settle().await;
        assert!(!third.is_finished());
        left.abort();
        settle().await;
        drop(one);
        let third = third.await.unwrap();
        assert_eq!(turns.lock().free, 0);
        drop((two, third));
        assert_eq!(turns.lock().free, 2);
    }
}
