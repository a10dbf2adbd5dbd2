//! Executables that take part in a sandbox's life.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::stage::{Stage, within};
use crate::{ErrorCode, HostConfig, SandboxState};

fn install(dir: &Path, name: &str, script: &str) {
    fs::create_dir_all(dir).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn b7_1_an_executable_is_told_of_every_point_in_order() {
    let stage = Stage::new().await;
    let log = stage.dir().join("log");
    let script = format!("read line; echo \"$1 $line\" >> {}", log.display());
    install(&stage.dir().join("hooks"), "10-log", &script);
    let stage = stage.reopened().await;
    let id = stage.started(stage.spec()).await;
    stage.stop(&id).await;
    within(stage.host().remove(&id, false)).await.unwrap();
    let text = fs::read_to_string(&log).unwrap();
    let points: Vec<_> = text
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(
        points,
        [
            "before_create",
            "after_create",
            "before_start",
            "after_start",
            "before_stop",
            "after_stop",
            "before_remove",
            "after_remove",
        ]
    );
    for line in text.lines() {
        let (point, json) = line.split_once(' ').unwrap();
        let call: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(call["point"], point);
        assert_eq!(call["sandbox"]["id"], id.as_str());
    }
}

#[tokio::test]
async fn b7_1_a_required_hook_can_refuse_and_others_cannot() {
    let stage = Stage::new().await;
    let hooks = stage.dir().join("hooks");
    install(
        &hooks,
        "required-no-stop",
        "test $1 != before_stop || { echo not now >&2; exit 3; }",
    );
    install(&hooks, "weak", "exit 1");
    let stage = stage.reopened().await;
    let id = stage.started(stage.spec()).await;
    let refused = within(stage.host().stop(&id, Duration::ZERO))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), ErrorCode::HookRefused);
    assert!(
        refused.message().contains("not now"),
        "{}",
        refused.message()
    );
    assert_eq!(stage.state(&id).await, SandboxState::Running);
    within(stage.host().remove(&id, true)).await.unwrap();
}

#[tokio::test]
async fn b7_1_a_failure_is_told_with_its_phase() {
    let stage = Stage::new().await;
    let log = stage.dir().join("log");
    let script = format!("test $1 != on_error || cat > {}", log.display());
    install(&stage.dir().join("hooks"), "errors", &script);
    let stage = stage.reopened().await;
    let id = within(stage.host().create(stage.spec())).await.unwrap().id;
    use kiln_vmm::fake::{Plan, Step};
    stage.engine.plan(Step::Spawn, Plan::Fail);
    stage.engine.plan(Step::Spawn, Plan::Fail);
    stage.start(&id).await.unwrap_err();
    let call: serde_json::Value = serde_json::from_str(&fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!(
        (&call["phase"], &call["error"][0]),
        (&"start".into(), &"START_FAILED".into())
    );
}

#[tokio::test]
async fn b7_2_hooks_that_others_could_replace_are_refused() {
    let stage = Stage::new().await;
    let hooks = stage.dir().join("other-hooks");
    install(&hooks, "a", "true");
    fs::set_permissions(hooks.join("a"), fs::Permissions::from_mode(0o777)).unwrap();
    let config = HostConfig {
        hooks_dir: Some(hooks),
        ..HostConfig::new(stage.dir().join("data2"), stage.dir().join("run2"))
    };
    let refused = crate::Host::open(config).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::InvalidConfig);
}
