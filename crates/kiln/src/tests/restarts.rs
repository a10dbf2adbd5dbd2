//! Restart policies, over crashes of machines and of the daemon.

use std::time::Duration;

use kiln_vmm::fake::{Plan, Step};

use super::stage::{Stage, within};
use crate::exec::{ExecExit, ExecSpec};
use crate::{MainCommand, RestartPolicy, SandboxInfo, SandboxSpec, SandboxState};

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

const FAILURE: RestartPolicy = RestartPolicy::OnFailure { max: None };

/// What the main commands here say of themselves: a line of `runs` each time, and its exit status
/// from `status`, for which it waits.
const MAIN: &str = "echo $$ >> HERE/runs
while ! [ -s HERE/status ]; do sleep 0.05; done; read s < HERE/status; rm HERE/status; exit $s";

async fn with_command(stage: &Stage, restart: RestartPolicy) -> String {
    let script = MAIN.replace("HERE", &stage.dir().display().to_string());
    let spec = SandboxSpec {
        restart,
        command: Some(MainCommand {
            entrypoint: None,
            exec: shell(&script),
        }),
        ..stage.spec()
    };
    stage.started(spec).await
}

fn shell(script: &str) -> ExecSpec {
    ExecSpec {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        ..ExecSpec::default()
    }
}

/// Has the command that runs, or the next one, end so.
fn end_with(stage: &Stage, status: u8) {
    let made = stage.dir().join("status.new");
    std::fs::write(&made, format!("{status}\n")).unwrap();
    std::fs::rename(made, stage.dir().join("status")).unwrap();
}

fn runs(stage: &Stage) -> usize {
    let text = std::fs::read_to_string(stage.dir().join("runs")).unwrap_or_default();
    text.lines().count()
}

/// Waits until what is seen of a sandbox is so.
async fn until(stage: &Stage, id: &str, is_so: impl Fn(&SandboxInfo) -> bool) -> SandboxInfo {
    let mut view = stage.host().shared.driver(id).unwrap().view;
    within(async {
        loop {
            let info = SandboxInfo::from(view.borrow_and_update().row.as_ref());
            if is_so(&info) {
                return info;
            }
            view.changed().await.unwrap();
        }
    })
    .await
}

/// Waits until the main command has written its line so often.
async fn until_runs(stage: &Stage, count: usize) {
    within(async {
        while runs(stage) < count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_main_command_that_fails_is_started_again_and_one_that_succeeds_is_not() {
    let stage = Stage::new().await;
    let id = with_command(&stage, FAILURE).await;
    let machine = stage.pid(&id);
    let first = until(&stage, &id, |it| it.main_session.is_some()).await;
    end_with(&stage, 3);
    let again = until(&stage, &id, |it| it.main_session != first.main_session).await;
    assert_eq!(again.main_exit, Some(ExecExit::Code(3)));
    assert_eq!((again.restarts, again.state), (1, SandboxState::Running));
    until_runs(&stage, 2).await;
    end_with(&stage, 0);
    let done = until(&stage, &id, |it| it.main_exit == Some(ExecExit::Code(0))).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(runs(&stage), 2, "it has done what it was to do");
    assert_eq!((done.restarts, stage.pid(&id)), (1, machine));
    stage.stop(&id).await;
}

#[tokio::test]
async fn a_main_command_that_always_runs_ends_by_a_stop_alone() {
    let stage = Stage::new().await;
    let id = with_command(&stage, RestartPolicy::Always).await;
    for restarts in 1..=2 {
        until_runs(&stage, restarts).await;
        end_with(&stage, 0);
        until(&stage, &id, |it| it.restarts as usize == restarts).await;
    }
    until_runs(&stage, 3).await;
    // Also one that was about to be started again.
    end_with(&stage, 0);
    until(&stage, &id, |it| it.main_exit.is_some()).await;
    let stopped = stage.stop(&id).await;
    assert_eq!(stopped.state, SandboxState::Stopped);
    let ran = runs(&stage);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(
        (runs(&stage), stage.state(&id).await),
        (ran, SandboxState::Stopped)
    );
}

#[tokio::test]
async fn a_main_command_that_keeps_failing_is_given_up_also_over_restarts_of_the_host() {
    let stage = Stage::new().await;
    let id = with_command(&stage, RestartPolicy::OnFailure { max: Some(2) }).await;
    until_runs(&stage, 1).await;
    end_with(&stage, 7);
    until(&stage, &id, |it| it.restarts == 1).await;
    until_runs(&stage, 2).await;
    // It fails while nobody owns the host, and has one try left.
    let stage = stage
        .reopened_when_async(async |stage| {
            end_with(stage, 7);
            within(async {
                while stage.dir().join("status").exists() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        })
        .await;
    let info = until(&stage, &id, |it| it.restarts == 2).await;
    assert_eq!(info.main_exit, Some(ExecExit::Code(7)));
    until_runs(&stage, 3).await;
    end_with(&stage, 7);
    let session = stage.host().get(&id).await.unwrap().main_session.unwrap();
    let link = stage.host().link(&id, "wait in").unwrap();
    within(link.session_ended(session)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(runs(&stage), 3, "given up");
    let stage = stage.reopened().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(runs(&stage), 3, "for good");
    // Whoever starts it again means it.
    stage.stop(&id).await;
    stage.start(&id).await.unwrap();
    until_runs(&stage, 4).await;
    end_with(&stage, 7);
    until(&stage, &id, |it| it.restarts == 3).await;
    stage.stop(&id).await;
}

/// An owner started it again, and died before that was written down.
#[tokio::test]
async fn a_main_command_that_was_started_again_is_not_started_twice() {
    let stage = Stage::new().await;
    let id = with_command(&stage, RestartPolicy::Always).await;
    until_runs(&stage, 1).await;
    let first = stage.host().get(&id).await.unwrap().main_session.unwrap();
    let second = ExecSpec {
        main: true,
        ..shell("sleep 10000")
    };
    let second = within(stage.host().exec(&id, &second)).await.unwrap().id;
    let stage = stage.reopened_when_async(async |_| ()).await;
    within(stage.host().kill(&id, first)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(runs(&stage), 1, "the later one runs in its place");
    within(stage.host().kill(&id, second)).await.unwrap();
    until_runs(&stage, 2).await;
    assert_eq!(
        stage.host().get(&id).await.unwrap().main_exit,
        Some(ExecExit::Signal(9))
    );
    stage.stop(&id).await;
}
