//! What has to be taken back when a launch fails, in reverse order.

use futures_util::future::BoxFuture;

use crate::error::Error;

/// Steps that undo what was done. Push the undo before the effect is visible.
#[must_use = "a launch either unwinds or disarms its undo stack"]
#[derive(Default)]
pub(crate) struct UndoStack {
    steps: Vec<BoxFuture<'static, Result<(), Error>>>,
}

impl UndoStack {
    /// Adds the undo of the step that comes next. It must hold when that step did nothing.
    pub(crate) fn push(&mut self, step: impl Future<Output = Result<(), Error>> + Send + 'static) {
        self.steps.push(Box::pin(step));
    }

    /// Everything went well: nothing is undone.
    pub(crate) fn disarm(self) {}

    /// Undoes everything, newest first, and never stops at a failure; returns the failures.
    pub(crate) async fn unwind(self) -> Vec<Error> {
        let mut failures = Vec::new();
        for step in self.steps.into_iter().rev() {
            if let Err(failure) = step.await {
                failures.push(failure);
            }
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::error::ErrorCode;

    #[tokio::test]
    async fn unwinds_in_reverse_and_past_failures() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut undo = UndoStack::default();
        for number in 1..=3 {
            let order = Arc::clone(&order);
            undo.push(async move {
                order.lock().expect("order").push(number);
                if number == 2 {
                    Err(Error::new(ErrorCode::Host, "two"))
                } else {
                    Ok(())
                }
            });
        }
        let failures = undo.unwind().await;
        assert_eq!(*order.lock().expect("order"), [3, 2, 1]);
        assert_eq!(failures.len(), 1);
    }
}
