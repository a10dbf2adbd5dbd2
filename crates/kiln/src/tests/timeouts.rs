//! Sandboxes that end by the clock.

use std::time::Duration;

use super::stage::{Stage, within};
use crate::exec::{ExecSpec, TerminalSize};
use crate::{ErrorCode, SandboxSpec, SandboxState, WaitFor};

fn sleeping() -> ExecSpec {
    ExecSpec {
        argv: ["/bin/sleep", "1000"].map(str::to_owned).to_vec(),
        kill_on_detach: true,
        ..ExecSpec::default()
    }
}

#[tokio::test]
async fn b1_8_a_sandbox_is_stopped_at_its_time_out_and_may_start_again() {
    let stage = Stage::new().await;
    let spec = SandboxSpec {
        timeout_ms: Some(300),
        ..stage.spec()
    };
    let id = stage.started(spec).await;
    for _ in 0..2 {
        let info = stage.until(&id, SandboxState::Stopped).await;
        assert_eq!(info.reason.as_deref(), Some("stopped at its time-out"));
        assert_eq!((info.pid, info.expires_at_ms), (None, None));
        assert!(stage.start(&id).await.unwrap().expires_at_ms.is_some());
    }
}

#[tokio::test]
async fn b1_8_a_time_out_that_passed_while_no_daemon_ran_is_due_at_once() {
    let stage = Stage::new().await;
    let spec = SandboxSpec {
        timeout_ms: Some(1500),
        ..stage.spec()
    };
    let id = stage.started(spec).await;
    let expires = stage.host().get(&id).await.unwrap().expires_at_ms.unwrap();
    let stage = stage.reopened_after(Duration::from_millis(1600)).await;
    assert!(crate::clock::now_ms() >= expires);
    let info = stage.until(&id, SandboxState::Stopped).await;
    assert_eq!(info.reason.as_deref(), Some("stopped at its time-out"));
}

#[tokio::test]
async fn b2_5_interactive_use_extends_the_time_out_unless_told_otherwise() {
    let stage = Stage::new().await;
    let spec = SandboxSpec {
        timeout_ms: Some(500),
        ..stage.spec()
    };
    let interactive = ExecSpec {
        tty: Some(TerminalSize { rows: 24, cols: 80 }),
        ..sleeping()
    };
    let id = stage.started(spec.clone()).await;
    let first = stage.host().get(&id).await.unwrap().expires_at_ms;
    let session = within(stage.host().exec(&id, &interactive)).await.unwrap();
    let extended = within(async {
        loop {
            let info = stage.host().get(&id).await.unwrap();
            assert_eq!(info.state, SandboxState::Running);
            if info.expires_at_ms > first {
                return info;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    extended.await;
    drop(session);
    stage.until(&id, SandboxState::Stopped).await;

    let id = stage.started(spec).await;
    let told_otherwise = ExecSpec {
        keep_timeout: true,
        ..interactive
    };
    let first = stage.host().get(&id).await.unwrap().expires_at_ms;
    let _session = within(stage.host().exec(&id, &told_otherwise))
        .await
        .unwrap();
    let mut events = stage.host().events();
    while stage.state(&id).await == SandboxState::Running {
        assert_eq!(stage.host().get(&id).await.unwrap().expires_at_ms, first);
        let _ = within(events.recv()).await;
    }
}

#[tokio::test]
async fn an_idle_sandbox_is_stopped_but_not_while_a_command_runs() {
    let stage = Stage::new().await;
    let spec = SandboxSpec {
        idle_timeout_ms: Some(300),
        ..stage.spec()
    };
    let id = stage.started(spec).await;
    let detached = ExecSpec {
        kill_on_detach: false,
        argv: ["/bin/sleep", "1.5"].map(str::to_owned).to_vec(),
        ..ExecSpec::default()
    };
    let begun = std::time::Instant::now();
    drop(within(stage.host().exec(&id, &detached)).await.unwrap());
    let info = stage.until(&id, SandboxState::Stopped).await;
    assert!(
        begun.elapsed() >= Duration::from_millis(1500),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        info.reason.as_deref(),
        Some("stopped after its idle time-out")
    );
}

#[tokio::test]
async fn one_that_goes_when_it_stops_goes_however_it_stops() {
    let stage = Stage::new().await;
    let spec = SandboxSpec {
        remove_on_stop: true,
        ..stage.spec()
    };
    let asked = stage.started(spec.clone()).await;
    stage.stop(&asked).await;
    let timed = SandboxSpec {
        timeout_ms: Some(200),
        ..spec.clone()
    };
    let timed = stage.started(timed).await;
    let gone = within(stage.host().wait(&timed, WaitFor::Removed)).await;
    assert!(gone.is_ok() || gone.is_err_and(|it| it.code() == ErrorCode::NotFound));
    let died = stage.started(spec).await;
    let waiting = stage.host().wait(&died, WaitFor::Removed);
    stage.kill_machine(&died).await;
    within(waiting).await.unwrap();
    assert!(stage.host().list(&[]).await.unwrap().is_empty());
    assert_eq!(stage.left(), Vec::<String>::new());
}
