//! QEMU's side of snapshots: everything but the memory goes through a migration to a file.
//!
//! The memory is a file that the source maps shared, and that the migration leaves out.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use super::ANSWER;
use super::devices::run;
use super::qmp::{Event, Qmp, QmpError};

/// The state without the memory is less than a MiB.
const MIGRATION: Duration = Duration::from_secs(60);
const DESCRIPTOR: &str = "snapshot";

/// Writes the state of a paused machine into `state`.
pub(super) async fn save(qmp: &Qmp, state: &File) -> Result<(), QmpError> {
    let events = prepare(qmp, state).await?;
    let uri = json!({ "uri": format!("fd:{DESCRIPTOR}") });
    run(qmp, "migrate", uri).await?;
    finished(qmp, events).await
}

/// Reads the state of a machine that waits for it.
pub(super) async fn load(qmp: &Qmp, state: &File) -> Result<(), QmpError> {
    let events = prepare(qmp, state).await?;
    let uri = json!({ "uri": format!("fd:{DESCRIPTOR}") });
    run(qmp, "migrate-incoming", uri).await?;
    finished(qmp, events).await
}

async fn prepare(qmp: &Qmp, state: &File) -> Result<Receiver<Event>, QmpError> {
    let capabilities = json!({ "capabilities": [
        { "capability": "x-ignore-shared", "state": true },
        { "capability": "events", "state": true },
    ]});
    run(qmp, "migrate-set-capabilities", capabilities).await?;
    qmp.give_fd(DESCRIPTOR, state.as_fd(), ANSWER).await?;
    Ok(qmp.events())
}

/// Waits until the migration says how it ended.
async fn finished(qmp: &Qmp, mut events: Receiver<Event>) -> Result<(), QmpError> {
    let wait = async {
        loop {
            match events.recv().await {
                Ok(event) if event.name == "MIGRATION" => {
                    match event.data.get("status").and_then(Value::as_str) {
                        Some("completed") => return Ok(()),
                        Some("failed" | "cancelled") => return Err(failure(qmp).await),
                        _ => {}
                    }
                }
                Ok(_) => {}
                // Some were lost: the state is asked for.
                Err(RecvError::Lagged(_)) => {
                    let state = run(qmp, "query-migrate", Value::Null).await?;
                    if state["status"] == "completed" {
                        return Ok(());
                    }
                }
                Err(RecvError::Closed) => {
                    let ended = std::io::ErrorKind::ConnectionAborted.into();
                    return Err(QmpError::Broken(ended));
                }
            }
        }
    };
    timeout(MIGRATION, wait)
        .await
        .unwrap_or(Err(QmpError::Deadline(MIGRATION)))
}

async fn failure(qmp: &Qmp) -> QmpError {
    match run(qmp, "query-migrate", Value::Null).await {
        Ok(state) => {
            let words = state["error-desc"].as_str();
            QmpError::Refused(words.unwrap_or("the migration failed").to_owned())
        }
        Err(error) => error,
    }
}
