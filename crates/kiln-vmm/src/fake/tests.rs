use super::*;
use crate::error::MachineError;
use crate::machine::{Boot, Exit};

fn spec(dir: &Path) -> MachineSpec {
    let kernel = dir.join("kernel");
    std::fs::write(&kernel, b"\x7fELF\x02").unwrap();
    MachineSpec {
        id: "m".into(),
        runtime_dir: dir.to_owned(),
        vcpus: 1,
        mem_mib: 1,
        boot: Boot {
            kernel,
            initramfs: None,
            args: vec![],
        },
        disks: vec![],
        agent: false,
        restore: None,
        nics: vec![],
        netns: None,
        jail: None,
        allow_insecure: true,
        options: crate::MachineOptions::default(),
        console_log: dir.join("console"),
    }
}

#[tokio::test]
async fn every_step_can_fail_stall_or_die() {
    let dir = tempfile::tempdir().unwrap();
    let engine = FakeEngine::new();
    engine.plan(Step::Spawn, Plan::Fail);
    assert!(engine.spawn(&spec(dir.path())).await.is_err());

    let machine: Arc<dyn Machine> = engine.spawn(&spec(dir.path())).await.unwrap().into();
    let gate = Gate::new();
    engine.plan(Step::Boot, Plan::Stall(gate.clone()));
    let boot = tokio::spawn({
        let machine = Arc::clone(&machine);
        async move { machine.boot().await }
    });
    gate.reached().await;
    assert_eq!(machine.state(), MachineState::Spawned);
    gate.release();
    boot.await.unwrap().unwrap();

    engine.plan(Step::Pause, Plan::Fail);
    assert!(matches!(
        machine.pause().await,
        Err(MachineError::Refused { .. })
    ));
    assert_eq!(machine.state(), MachineState::Running);
    engine.plan(Step::Pause, Plan::Die);
    assert!(matches!(
        machine.pause().await,
        Err(MachineError::Exited {
            exit: Exit::Signal(9),
            ..
        })
    ));
    machine.close(Duration::ZERO).await.unwrap();
    let steps: Vec<Step> = engine.calls().into_iter().map(|call| call.step).collect();
    use Step::{Boot, Close, Pause, Spawn};
    assert_eq!(steps, [Spawn, Spawn, Boot, Pause, Pause, Close]);
    assert!(!dir.path().join(CONSOLE_FIFO).exists());
}

#[tokio::test]
async fn a_program_prints_on_the_console_and_is_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program {
        path: "/bin/sh".into(),
        args: vec!["-c".into(), "echo in {runtime_dir}; exec sleep 600".into()],
    };
    let engine = FakeEngine::new().with_program(program, AgentSide::Host);
    let machine = engine.spawn(&spec(dir.path())).await.unwrap();
    machine.boot().await.unwrap();
    let console = machine.console();
    let mut follower = console.follow();
    let wanted = format!("in {}\n", dir.path().display());
    follower
        .wait_for(|end| end.offset == wanted.len() as u64)
        .await
        .unwrap();
    assert_eq!(console.tail(), wanted.as_bytes());

    let record = machine.record().clone();
    drop(machine);
    let machine = engine.adopt(&record).await.unwrap();
    assert_eq!(machine.state(), MachineState::Running);
    machine.close(Duration::ZERO).await.unwrap();
}
