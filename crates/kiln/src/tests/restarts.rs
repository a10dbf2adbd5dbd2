//! Restart policies, over crashes of machines and of the daemon.

use std::time::Duration;

use kiln_vmm::fake::{Plan, Step};

use super::stage::{Stage, within};
use crate::{RestartPolicy, SandboxSpec, SandboxState};

async fn started(stage: &Stage, restart: RestartPolicy) -> String {
    let spec = SandboxSpec {
        restart,
        ..stage.spec()
    };
    stage.started(spec).await
}

/// Waits until another machine of it runs than the one with this process.
async fn until_another(stage: &Stage, id: &str, pid: Option<u32>) {
    let mut events = stage.host().events();
    within(async {
        loop {
            let info = stage.host().get(id).await.unwrap();
            if info.state == SandboxState::Running && info.pid != pid {
                return;
            }
            let _ = events.recv().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_machine_that_died_is_started_again() {
    let stage = Stage::new().await;
    let id = started(&stage, RestartPolicy::OnFailure { max: None }).await;
    for restarts in 1..=2 {
        let pid = stage.host().get(&id).await.unwrap().pid;
        stage.kill_machine(&id).await;
        until_another(&stage, &id, pid).await;
        assert_eq!(stage.host().get(&id).await.unwrap().restarts, restarts);
    }
    stage.stop(&id).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(
        stage.state(&id).await,
        SandboxState::Stopped,
        "a stop is a stop"
    );
}

#[tokio::test]
async fn a_policy_that_gives_up_gives_up() {
    let stage = Stage::new().await;
    let id = started(&stage, RestartPolicy::OnFailure { max: Some(1) }).await;
    let pid = stage.host().get(&id).await.unwrap().pid;
    stage.kill_machine(&id).await;
    until_another(&stage, &id, pid).await;
    stage.kill_machine(&id).await;
    stage.until(&id, SandboxState::Stopped).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(stage.state(&id).await, SandboxState::Stopped);

    let never = started(&stage, RestartPolicy::No).await;
    stage.kill_machine(&never).await;
    stage.until(&never, SandboxState::Stopped).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(stage.state(&never).await, SandboxState::Stopped);
}

#[tokio::test]
async fn a_restart_that_fails_is_tried_again() {
    let stage = Stage::new().await;
    let id = started(&stage, RestartPolicy::Always).await;
    let pid = stage.host().get(&id).await.unwrap().pid;
    // A start tries twice, so this is one that fails.
    stage.engine.plan(Step::Spawn, Plan::Fail);
    stage.engine.plan(Step::Spawn, Plan::Fail);
    stage.kill_machine(&id).await;
    until_another(&stage, &id, pid).await;
    assert_eq!(stage.host().get(&id).await.unwrap().restarts, 2);
    stage.stop(&id).await;
}

#[tokio::test]
async fn b2_6_what_should_run_runs_again_after_the_host_was_down() {
    let stage = Stage::new().await;
    let always = started(&stage, RestartPolicy::Always).await;
    let never = started(&stage, RestartPolicy::No).await;
    let stopped = started(&stage, RestartPolicy::Always).await;
    stage.stop(&stopped).await;
    let pids = [&always, &never].map(|id| stage.pid(id));
    let stage = stage
        .reopened_when(|| {
            for pid in pids {
                Stage::kill(pid);
            }
        })
        .await;
    until_another(&stage, &always, Some(pids[0])).await;
    assert_eq!(stage.state(&never).await, SandboxState::Stopped);
    let reason = stage.host().get(&never).await.unwrap().reason.unwrap();
    assert!(reason.contains("no daemon"), "{reason}");
    assert_eq!(stage.state(&stopped).await, SandboxState::Stopped);
    stage.stop(&always).await;
}
