use std::fs::File;

use super::*;

fn null() -> OwnedFd {
    File::options()
        .write(true)
        .open("/dev/null")
        .unwrap()
        .into()
}

fn shell(script: &str) -> VmmCommand {
    let mut command = VmmCommand::new("/bin/sh".into(), null(), null());
    command.args(["-c", script]);
    command
}

#[tokio::test]
async fn the_exit_of_a_child_is_known() {
    let process = VmmProcess::spawn(shell("exit 7")).await.unwrap();
    assert_eq!(process.wait().await, Exit::Code(7));
    assert_eq!(process.exited(), Some(Exit::Code(7)));
    let process = VmmProcess::spawn(shell("kill -6 $$")).await.unwrap();
    assert_eq!(process.wait().await, Exit::Signal(6));
}

#[tokio::test]
async fn a_child_is_reaped_even_when_nobody_holds_it() {
    let process = VmmProcess::spawn(shell("exit 0")).await.unwrap();
    let identity = process.identity().clone();
    let mut exit = process.exit.clone();
    drop(process);
    exit.wait_for(Option::is_some).await.unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{}", identity.pid)).exists());
}

#[tokio::test]
async fn a_program_that_is_missing_is_an_error_of_the_spawn() {
    let command = VmmCommand::new("/nonexistent/vmm".into(), null(), null());
    let error = VmmProcess::spawn(command).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}

#[tokio::test]
async fn grace_lets_a_process_end_by_itself_and_its_lack_does_not() {
    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done";
    let (mut ready, output) = std::io::pipe().unwrap();
    let mut command = VmmCommand::new("/bin/sh".into(), output.into(), null());
    command.args(["-c", script]);
    let process = VmmProcess::spawn(command).await.unwrap();
    tokio::task::spawn_blocking(move || std::io::Read::read_exact(&mut ready, &mut [0; 6]))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        process.end(Duration::from_secs(20)).await.unwrap(),
        Exit::Code(3)
    );

    let process = VmmProcess::spawn(shell("trap '' TERM; sleep 600"))
        .await
        .unwrap();
    assert_eq!(process.end(Duration::ZERO).await.unwrap(), Exit::Signal(9));
}

#[tokio::test]
async fn a_process_of_another_parent_is_taken_over_by_its_whole_identity() {
    let mut child = std::process::Command::new("sleep")
        .arg("600")
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let identity = identify(pid).unwrap();
    for wrong in [
        ProcessIdentity {
            start_time: identity.start_time + 1,
            ..identity.clone()
        },
        ProcessIdentity {
            boot_id: "another".into(),
            ..identity.clone()
        },
        ProcessIdentity {
            pid: 0,
            ..identity.clone()
        },
    ] {
        assert!(matches!(
            VmmProcess::take_over(&wrong),
            Err(TakeOverError::Gone)
        ));
    }
    let process = VmmProcess::take_over(&identity).unwrap();
    assert_eq!(process.end(Duration::ZERO).await.unwrap(), Exit::Unknown);
    // Dead but not reaped by its parent yet: gone all the same.
    assert!(matches!(
        VmmProcess::take_over(&identity),
        Err(TakeOverError::Gone)
    ));
    child.wait().unwrap();
}

#[tokio::test]
async fn a_spawn_that_is_given_up_leaves_no_process() {
    let newborn = tokio::task::spawn_blocking(|| shell("sleep 600").start())
        .await
        .unwrap()
        .unwrap();
    let watcher = readable_fd(newborn.pidfd().try_clone().unwrap()).unwrap();
    drop(newborn);
    let _ready = watcher.readable().await.unwrap();
}
