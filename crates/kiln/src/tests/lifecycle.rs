//! The verbs of a sandbox's life.

use std::sync::Arc;
use std::time::Duration;

use kiln_image::Silent;
use kiln_vmm::fake::{Gate, Plan, Step};

use super::stage::{Stage, within};
use crate::exec::{ExecOutput, ExecSpec};
use crate::{
    ErrorCode, Filter, MainCommand, Protection, SandboxSpec, SandboxState, SandboxUpdate, WaitFor,
};

fn shell(script: &str) -> ExecSpec {
    ExecSpec {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        ..ExecSpec::default()
    }
}

/// What a command prints in a running sandbox.
async fn output(stage: &Stage, key: &str, script: &str) -> String {
    let mut session = within(stage.host().exec(key, &shell(script)))
        .await
        .unwrap();
    let mut text = Vec::new();
    while let Ok(Some(part)) = within(session.output.next()).await {
        match part {
            ExecOutput::Stdout(bytes) => text.extend_from_slice(&bytes),
            ExecOutput::Exited(_) => break,
            _ => {}
        }
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn b2_3_verbs_may_be_repeated() {
    let stage = Stage::new().await;
    let id = stage.started(stage.spec()).await;
    let pid = stage.host().get(&id).await.unwrap().pid;
    assert!(pid.is_some());
    assert_eq!(stage.start(&id).await.unwrap().pid, pid, "it runs already");
    for _ in 0..2 {
        let paused = within(stage.host().pause(&id)).await.unwrap();
        assert_eq!(paused.state, SandboxState::Paused);
    }
    for _ in 0..2 {
        let resumed = within(stage.host().resume(&id)).await.unwrap();
        assert_eq!((resumed.state, resumed.pid), (SandboxState::Running, pid));
    }
    assert_eq!(output(&stage, &id, "echo up").await, "up\n");
    for _ in 0..2 {
        assert_eq!(stage.stop(&id).await.state, SandboxState::Stopped);
    }
    within(stage.host().remove(&id, false)).await.unwrap();
    assert_eq!(stage.left(), Vec::<String>::new());
}

#[tokio::test]
async fn a4_2_a_call_outside_of_its_states_changes_nothing() {
    let stage = Stage::new().await;
    let id = within(stage.host().create(stage.spec())).await.unwrap().id;
    for refused in [
        within(stage.host().pause(&id)).await.map(drop),
        within(stage.host().resume(&id)).await.map(drop),
        within(stage.host().exec(&id, &shell("true")))
            .await
            .map(drop),
    ] {
        assert_eq!(refused.unwrap_err().code(), ErrorCode::InvalidState);
    }
    assert_eq!(stage.state(&id).await, SandboxState::Created);
    stage.start(&id).await.unwrap();
    within(stage.host().pause(&id)).await.unwrap();
    let started = stage.start(&id).await.unwrap_err();
    assert_eq!(
        started.code(),
        ErrorCode::InvalidState,
        "it is paused, not stopped"
    );
    let exec = within(stage.host().exec(&id, &shell("true"))).await;
    assert_eq!(exec.map(drop).unwrap_err().code(), ErrorCode::InvalidState);
    assert_eq!(stage.state(&id).await, SandboxState::Paused);
    let removed = within(stage.host().remove(&id, false)).await.unwrap_err();
    assert_eq!(removed.code(), ErrorCode::InvalidState, "it has a machine");
    let stopped = within(stage.host().stop(&id, Duration::from_secs(20))).await;
    assert_eq!(stopped.unwrap().state, SandboxState::Stopped);
    within(stage.host().remove(&id, false)).await.unwrap();
}

#[tokio::test]
async fn a_machine_that_will_not_pause_runs_on() {
    let stage = Stage::new().await;
    let id = stage.started(stage.spec()).await;
    stage.engine.plan(Step::Pause, Plan::Fail);
    within(stage.host().pause(&id)).await.unwrap_err();
    assert_eq!(stage.state(&id).await, SandboxState::Running);
    assert_eq!(output(&stage, &id, "echo up").await, "up\n");
}

#[tokio::test]
async fn a_restart_is_another_machine_of_the_same_sandbox() {
    let stage = Stage::new().await;
    let id = stage.started(stage.spec()).await;
    let before = stage.host().get(&id).await.unwrap();
    let restart = stage.host().restart(&id, Duration::ZERO, Arc::new(Silent));
    let after = within(restart).await.unwrap();
    assert_eq!(
        (&after.id, after.state),
        (&before.id, SandboxState::Running)
    );
    assert_ne!(after.pid, before.pid);
    stage.stop(&id).await;
    let restart = stage.host().restart(&id, Duration::ZERO, Arc::new(Silent));
    assert_eq!(within(restart).await.unwrap().state, SandboxState::Running);
    stage.stop(&id).await;
}

#[tokio::test]
async fn b2_2_a_start_that_broke_once_is_tried_once_more() {
    let stage = Stage::new().await;
    let id = within(stage.host().create(stage.spec())).await.unwrap().id;
    stage.engine.plan(Step::Spawn, Plan::Fail);
    assert_eq!(stage.start(&id).await.unwrap().state, SandboxState::Running);
    stage.stop(&id).await;
    stage.engine.plan(Step::Spawn, Plan::Fail);
    stage.engine.plan(Step::Spawn, Plan::Fail);
    let failed = stage.start(&id).await.unwrap_err();
    assert_eq!(failed.code(), ErrorCode::StartFailed);
    assert_eq!(stage.state(&id).await, SandboxState::Error);
    assert!(stage.host().get(&id).await.unwrap().reason.is_some());
}

#[tokio::test]
async fn the_main_command_runs_from_every_start_on() {
    let stage = Stage::new().await;
    let spec = SandboxSpec {
        command: Some(MainCommand {
            entrypoint: Some(Vec::new()),
            exec: shell("echo main; exec sleep 1000"),
        }),
        ..stage.spec()
    };
    let id = stage.started(spec).await;
    for _ in 0..2 {
        let session = stage.host().get(&id).await.unwrap().main_session.unwrap();
        let mut attached = within(stage.host().attach(&id, session)).await.unwrap();
        let first = within(attached.output.next()).await.unwrap();
        assert_eq!(first, Some(ExecOutput::Stdout("main\n".into())));
        let restart = stage.host().restart(&id, Duration::ZERO, Arc::new(Silent));
        within(restart).await.unwrap();
    }
    stage.stop(&id).await;
    assert_eq!(stage.host().get(&id).await.unwrap().main_session, None);
}

#[tokio::test]
async fn a_start_whose_main_command_does_not_exist_fails_and_leaves_no_machine() {
    let stage = Stage::new().await;
    let spec = SandboxSpec {
        command: Some(MainCommand {
            entrypoint: Some(Vec::new()),
            exec: ExecSpec {
                argv: vec!["/no/such/program".to_owned()],
                ..ExecSpec::default()
            },
        }),
        ..stage.spec()
    };
    let id = within(stage.host().create(spec)).await.unwrap().id;
    let failed = stage.start(&id).await.unwrap_err();
    assert_eq!(failed.code(), ErrorCode::CommandNotFound);
    let info = stage.host().get(&id).await.unwrap();
    assert_eq!((info.state, info.pid), (SandboxState::Error, None));
}

#[tokio::test]
async fn b2_1_the_list_is_newest_first_and_filtered() {
    let stage = Stage::new().await;
    let mut ids = Vec::new();
    for (name, role) in [("web-1", "web"), ("web-2", "web"), ("db", "store")] {
        let spec = SandboxSpec {
            name: Some(name.to_owned()),
            labels: [("role".to_owned(), role.to_owned())].into(),
            project: Some("shop".to_owned()),
            ..stage.spec()
        };
        ids.push(within(stage.host().create(spec)).await.unwrap().id);
        // Ages are told in milliseconds.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let names = async |filters: &[&str]| {
        let filters: Vec<Filter> = filters.iter().map(|it| it.parse().unwrap()).collect();
        let list = stage.host().list(&filters).await.unwrap();
        list.into_iter()
            .map(|it| it.name.unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&[]).await, ["db", "web-2", "web-1"]);
    assert_eq!(names(&["label=role=web"]).await, ["web-2", "web-1"]);
    assert_eq!(
        names(&["label=role", "name=1", "project=shop"]).await,
        ["web-1"]
    );
    assert!(names(&["state=running"]).await.is_empty());
    let by_prefix = stage.host().get(&ids[0][..8]).await.unwrap();
    assert_eq!(by_prefix.name.as_deref(), Some("web-1"));
}

#[tokio::test]
async fn an_update_is_whole_or_not_at_all() {
    let stage = Stage::new().await;
    let id = stage.started(stage.spec()).await;
    let other = SandboxSpec {
        name: Some("taken".to_owned()),
        ..stage.spec()
    };
    within(stage.host().create(other)).await.unwrap();
    let update = |json: &str| serde_json::from_str::<SandboxUpdate>(json).unwrap();
    let refused = |json: &'static str| {
        let update = update(json);
        async {
            within(stage.host().update(&id, update))
                .await
                .unwrap_err()
                .code()
        }
    };
    let before = stage.host().get(&id).await.unwrap();
    assert_eq!(
        refused(r#"{"name": "taken", "labels": {"a": "1"}}"#).await,
        ErrorCode::NameTaken
    );
    assert_eq!(
        refused(r#"{"name": "No Good"}"#).await,
        ErrorCode::InvalidSpec
    );
    assert_eq!(
        refused(r#"{"mem_mib": 1024}"#).await,
        ErrorCode::InvalidState
    );
    assert_eq!(stage.host().get(&id).await.unwrap(), before);
    let json = r#"{"name": "web", "labels": {"a": "1"}, "timeout_ms": 3600000}"#;
    within(stage.host().update(&id, update(json)))
        .await
        .unwrap();
    let stage = stage.reopened().await;
    let after = stage.host().get("web").await.unwrap();
    assert_eq!(after.labels["a"], "1");
    assert!(after.expires_at_ms.is_some(), "counted from the update on");
    stage.stop("web").await;
    let grown = within(stage.host().update("web", update(r#"{"mem_mib": 1024}"#))).await;
    assert_eq!(grown.unwrap().mem_mib, 1024);
}

#[tokio::test]
async fn waiting_ends_with_the_state_and_with_the_sandbox() {
    let stage = Stage::new().await;
    let id = stage.started(stage.spec()).await;
    assert_eq!(
        within(stage.host().wait(&id, WaitFor::Running))
            .await
            .unwrap()
            .state,
        SandboxState::Running
    );
    let waiting = |what| {
        let (host, id) = (stage.host().clone(), id.clone());
        tokio::spawn(async move { host.wait(&id, what).await })
    };
    let (stopped, removed) = (waiting(WaitFor::Stopped), waiting(WaitFor::Removed));
    stage.stop(&id).await;
    let info = within(stopped).await.unwrap().unwrap();
    assert_eq!(info.state, SandboxState::Stopped);
    assert!(!removed.is_finished());
    within(stage.host().remove(&id, false)).await.unwrap();
    assert_eq!(within(removed).await.unwrap().unwrap().id, id);
    let gone = within(stage.host().wait(&id, WaitFor::Removed)).await;
    assert_eq!(gone.unwrap_err().code(), ErrorCode::NotFound);
}

#[tokio::test]
async fn b2_4_a_forced_removal_cancels_a_launch_and_leaves_nothing() {
    let stage = Stage::new().await;
    let id = within(stage.host().create(stage.spec())).await.unwrap().id;
    let gate = Gate::new();
    stage.engine.plan(Step::Boot, Plan::Stall(gate.clone()));
    let starting = {
        let (host, id) = (stage.host().clone(), id.clone());
        tokio::spawn(async move { host.start(&id, Arc::new(Silent)).await })
    };
    within(gate.reached()).await;
    let removing = {
        let (host, id) = (stage.host().clone(), id.clone());
        tokio::spawn(async move { host.remove(&id, true).await })
    };
    gate.release();
    within(removing).await.unwrap().unwrap();
    drop(within(starting).await.unwrap());
    assert!(stage.host().list(&[]).await.unwrap().is_empty());
    assert_eq!(stage.left(), Vec::<String>::new());
}

#[tokio::test]
async fn b2_6_a_running_sandbox_is_adopted() {
    let stage = Stage::new().await;
    let id = stage.started(stage.spec()).await;
    let pid = stage.host().get(&id).await.unwrap().pid;
    let stage = stage.reopened().await;
    let info = stage.host().get(&id).await.unwrap();
    assert_eq!((info.state, info.pid), (SandboxState::Running, pid));
    assert_eq!(output(&stage, &id, "echo up").await, "up\n");
    stage.stop(&id).await;
}

#[tokio::test]
async fn b1_10_what_is_done_without_is_told_and_holds_at_every_later_start() {
    let stage = Stage::new().await;
    let without = vec![Protection::Seccomp, Protection::Cgroup];
    let spec = SandboxSpec {
        without: without.clone(),
        ..stage.spec()
    };
    let id = stage.started(spec).await;
    let asked_of_the_engine = |stage: &Stage| {
        let views = stage.host().shared.views();
        let machine = views.iter().find_map(|view| view.row.machine.clone());
        machine.unwrap().shape.without
    };
    assert_eq!(asked_of_the_engine(&stage), without);
    stage.stop(&id).await;
    let stage = stage.reopened().await;
    assert_eq!(stage.host().get(&id).await.unwrap().without, without);
    stage.start(&id).await.unwrap();
    assert_eq!(asked_of_the_engine(&stage), without);
    let other = stage.host().create(stage.spec()).await.unwrap();
    assert_eq!(other.without, [], "unless asked for, all hold");
}
