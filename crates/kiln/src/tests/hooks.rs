//! Executables that take part in a sandbox's life.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::stage::{Stage, within};
use crate::guest::tests::support::gone;
use crate::hooks::{HookCall, HookPoint, Hooks, in_directory};
use crate::network::NetworkInfo;
use crate::store::SandboxRow;
use crate::{ErrorCode, HOOK_TIMEOUT, HostConfig, SandboxInfo, SandboxSpec, SandboxState};

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

/// Goes on for ever, and so does what it started.
const ENDLESS: &str = "test $1 = before_start || exit 0
sleep 10000 & echo $! > HERE/child; echo $$ > HERE/self; wait";

#[tokio::test]
async fn b7_1_a_hook_that_takes_too_long_is_killed_with_all_that_it_started() {
    assert_eq!(
        HOOK_TIMEOUT,
        Duration::from_secs(10),
        "docs/hooks.md says so"
    );
    for (name, refuses) in [("required-endless", true), ("endless", false)] {
        let stage = Stage::new().await;
        let script = ENDLESS.replace("HERE", &stage.dir().display().to_string());
        install(&stage.dir().join("hooks"), name, &script);
        // Long enough for a shell to write two files.
        let time = Duration::from_secs(3);
        let stage = stage
            .reopened_as(|config| config.hook_timeout = Some(time))
            .await;
        let id = within(stage.host().create(stage.spec())).await.unwrap().id;
        let started = stage.start(&id).await;
        match refuses {
            true => {
                let refused = started.unwrap_err();
                assert_eq!(refused.code(), ErrorCode::HookRefused);
                assert!(refused.message().contains("longer than 3s"), "{refused}");
                assert_eq!(stage.state(&id).await, SandboxState::Created);
            }
            false => assert_eq!(started.unwrap().state, SandboxState::Running),
        }
        for file in ["self", "child"] {
            let pid = fs::read_to_string(stage.dir().join(file)).unwrap();
            gone(pid.trim().parse().unwrap()).await;
        }
        within(stage.host().remove(&id, true)).await.unwrap();
    }
}

/// One that has ended and left somebody behind who keeps its standard error open.
#[tokio::test]
async fn b7_1_what_a_hook_leaves_behind_is_not_waited_for_for_ever() {
    let stage = Stage::new().await;
    let script = format!(
        "test $1 = before_start || exit 0; sleep 10000 & echo $! > {}",
        stage.dir().join("child").display()
    );
    install(&stage.dir().join("hooks"), "required-leaves", &script);
    let stage = stage
        .reopened_as(|config| config.hook_timeout = Some(Duration::from_secs(3)))
        .await;
    let id = within(stage.host().create(stage.spec())).await.unwrap().id;
    let refused = stage.start(&id).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::HookRefused);
    let pid = fs::read_to_string(stage.dir().join("child")).unwrap();
    gone(pid.trim().parse().unwrap()).await;
}

/// The example of docs/hooks, as an owner installs it, told of a network with two published ports.
#[tokio::test]
async fn b7_3_the_tunnel_example_gives_each_published_port_a_public_name() {
    let dir = tempfile::tempdir().unwrap();
    let hooks = dir.path().join("hooks");
    let example = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/hooks/tunnel-example.sh"
    );
    install(&hooks, "tunnel", "");
    fs::copy(example, hooks.join("tunnel")).unwrap();
    let log = dir.path().join("log");
    let conf = format!(
        "domain=example.net
         announce() {{ echo \"announce $1 $2\" >> {log}; }}
         withdraw() {{ echo \"withdraw $1\" >> {log}; }}",
        log = log.display()
    );
    fs::write(hooks.join("tunnel.conf"), conf).unwrap();

    let spec = SandboxSpec {
        name: Some("web".to_owned()),
        network: serde_json::from_str(
            r#"{"policy":{"publish":["8080:80","127.0.0.1:5353:53/udp"]}}"#,
        )
        .unwrap(),
        // Words of a stranger's that look like the list of ports.
        labels: [("a".to_owned(), r#""publish":["1:1"]"#.to_owned())].into(),
        ..SandboxSpec::default()
    };
    let row = SandboxRow::new("abcdefghijkl".to_owned(), spec, "debian".to_owned());
    let hooks = Hooks::new(in_directory(&hooks, HOOK_TIMEOUT).unwrap());
    let told = async |point| {
        let mut call = HookCall::new(point, SandboxInfo::from(&row));
        if point != HookPoint::NetworkDown {
            call.network = NetworkInfo::of(&row, None).await.ok();
        }
        // As `required-` ones are called: a failure would be told.
        hooks.tell(&call).await;
        let text = fs::read_to_string(&log).unwrap_or_default();
        fs::remove_file(&log).ok();
        text
    };
    let both = "withdraw abcdefghijkl\n\
                announce 80-abcdefghijkl.example.net 8080:80\n\
                announce 53-abcdefghijkl.example.net 127.0.0.1:5353:53/udp\n";
    assert_eq!(told(HookPoint::NetworkUp).await, both);
    assert_eq!(told(HookPoint::PolicyChanged).await, both);
    let withdrawn = told(HookPoint::NetworkDown).await;
    assert_eq!(withdrawn, "withdraw abcdefghijkl\n");
    assert_eq!(told(HookPoint::AfterStart).await, "");
}
