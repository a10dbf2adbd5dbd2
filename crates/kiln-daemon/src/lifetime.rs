//! How long the daemon lives: who is connected, and whether it is about to end.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time};

/// Shared by everything that keeps the daemon alive or must know that it ends.
#[derive(Clone, Debug)]
pub(crate) struct Lifetime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    busy: watch::Sender<usize>,
    stopping: watch::Sender<bool>,
}

/// Keeps the daemon from ending while it exists: a connection, a clean-up under way.
#[derive(Debug)]
pub(crate) struct Busy {
    inner: Arc<Inner>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.inner
            .busy
            .send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Lifetime {
    pub(crate) fn new() -> Self {
        let inner = Inner {
            busy: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    pub(crate) fn busy(&self) -> Busy {
        self.inner.busy.send_modify(|count| *count += 1);
        Busy {
            inner: Arc::clone(&self.inner),
        }
    }

    /// Says to all that the daemon ends.
    pub(crate) fn stop(&self) {
        self.inner.stopping.send_replace(true);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.inner.stopping.borrow()
    }

    /// Waits until the daemon is about to end. Cancel-safe.
    pub(crate) async fn stopping(&self) {
        wait_for(&self.inner.stopping, |stopping| *stopping).await;
    }

    /// Waits until nothing is busy, at most until the deadline; whether it came to that.
    pub(crate) async fn drained(&self, deadline: Duration) -> bool {
        time::timeout(deadline, wait_for(&self.inner.busy, |count| *count == 0))
            .await
            .is_ok()
    }

    /// Waits until something is busy. Cancel-safe.
    pub(crate) async fn visited(&self) {
        wait_for(&self.inner.busy, |count| *count > 0).await;
    }

    /// Waits until nothing was busy for `span` and `lives` says that nothing else lives either.
    /// Cancel-safe.
    pub(crate) async fn idle(&self, span: Duration, lives: impl Fn() -> bool) {
        loop {
            wait_for(&self.inner.busy, |count| *count == 0).await;
            let mut arrivals = self.inner.busy.subscribe();
            if *arrivals.borrow_and_update() != 0 {
                continue;
            }
            let quiet = time::timeout(span, arrivals.changed()).await.is_err();
            // Machines end without telling anyone here, so ask again after the same span.
            if quiet && !lives() {
                return;
            }
        }
    }
}

/// Waits for a value; the sender lives as long as `self`, so the wait cannot fail.
async fn wait_for<T>(sender: &watch::Sender<T>, is: impl FnMut(&T) -> bool) {
    if sender.subscribe().wait_for(is).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const SPAN: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn idle_is_a_whole_span_without_anyone() {
        let lifetime = Lifetime::new();
        let guest = lifetime.busy();
        let start = time::Instant::now();
        let idle = tokio::spawn({
            let lifetime = lifetime.clone();
            async move { lifetime.idle(SPAN, || false).await }
        });
        time::sleep(SPAN * 3).await;
        assert!(!idle.is_finished(), "somebody is connected");
        drop(guest);
        time::sleep(SPAN / 2).await;
        drop(lifetime.busy());
        idle.await.unwrap();
        assert!(
            start.elapsed() >= SPAN * 3 + SPAN / 2 + SPAN,
            "the visit began the span anew"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn idle_waits_for_what_lives() {
        let lifetime = Lifetime::new();
        let lives = Arc::new(AtomicBool::new(true));
        let idle = tokio::spawn({
            let (lifetime, lives) = (lifetime.clone(), Arc::clone(&lives));
            async move { lifetime.idle(SPAN, || lives.load(Ordering::Relaxed)).await }
        });
        time::sleep(SPAN * 5).await;
        assert!(!idle.is_finished());
        lives.store(false, Ordering::Relaxed);
        idle.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn draining_has_a_deadline() {
        let lifetime = Lifetime::new();
        let guest = lifetime.busy();
        assert!(!lifetime.drained(SPAN).await);
        drop(guest);
        assert!(lifetime.drained(SPAN).await);
    }
}
