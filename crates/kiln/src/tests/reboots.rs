//! A host that was rebooted, and numbers of processes that strangers have now.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};

use kiln_vmm::ProcessIdentity;
use kiln_vmm::jail::JailRecord;
use kiln_vmm::process::identify;

use super::leftovers::Groups;
use super::stage::{Stage, within};
use crate::store::{SandboxRow, Sandboxes, Store};
use crate::{RestartPolicy, SandboxSpec, SandboxState};

/// Somebody who has nothing to do with us.
struct Stranger(Child);

impl Stranger {
    fn new() -> Self {
        Self(Command::new("sleep").arg("10000").spawn().unwrap())
    }

    fn identity(&self) -> ProcessIdentity {
        let pid = i32::try_from(self.0.id()).unwrap();
        identify(rustix::process::Pid::from_raw(pid).unwrap()).unwrap()
    }

    #[track_caller]
    fn assert_unharmed(&mut self) {
        assert!(
            self.0.try_wait().unwrap().is_none(),
            "a stranger was killed"
        );
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Changes what is stored while nobody owns the host.
async fn rewrite(stage: &Stage, change: impl Fn(&mut SandboxRow) + Send + 'static) {
    let store = Store::open(&stage.data().join("kiln.db")).unwrap();
    store
        .write(move |tx| {
            for mut row in Sandboxes(tx).all()? {
                change(&mut row);
                Sandboxes(tx).update(&row)?;
            }
            Ok(())
        })
        .await
        .unwrap();
}

async fn started(stage: &Stage, restart: RestartPolicy) -> String {
    let spec = SandboxSpec {
        restart,
        ..stage.spec()
    };
    stage.started(spec).await
}

#[tokio::test]
async fn b2_6_after_a_reboot_states_are_true_and_nothing_stale_is_left() {
    let stage = Stage::new().await;
    let never = started(&stage, RestartPolicy::No).await;
    let always = started(&stage, RestartPolicy::Always).await;
    let machines = [&never, &always].map(|id| stage.pid(id));
    // What the machines had: a jail with files, and control groups, which a new boot does not have.
    let jail = stage.data().join("jails/firecracker").join(&never);
    fs::create_dir_all(jail.join("root")).unwrap();
    fs::write(jail.join("root/firecracker.pid"), "1").unwrap();
    let gone = PathBuf::from("/sys/fs/cgroup/memory/kiln.vm-of-another-boot").join(&never);
    let mut stranger = Stranger::new();
    // The worst of luck: the same number, started at the same time of its boot.
    let identity = ProcessIdentity {
        boot_id: "00000000-0000-0000-0000-000000000000".to_owned(),
        ..stranger.identity()
    };
    let record = JailRecord {
        uid: 0x7fff_fff0,
        gid: 0x7fff_fff0,
        dir: Some(jail.clone()),
        cgroups: vec![gone],
    };
    let with_jail = never.clone();
    let stage = stage
        .reopened_when_async(async |stage| {
            machines.into_iter().for_each(Stage::kill);
            // It was a tmpfs.
            fs::remove_dir_all(stage.dir().join("run")).unwrap();
            rewrite(stage, move |row| {
                let machine = row.machine.as_mut().unwrap();
                machine.process = identity.clone();
                if row.id == with_jail {
                    machine.jail = Some(record.clone());
                }
            })
            .await;
        })
        .await;
    stranger.assert_unharmed();
    let info = stage.host().get(&never).await.unwrap();
    assert_eq!((info.state, info.pid), (SandboxState::Stopped, None));
    assert!(info.reason.unwrap().contains("no daemon"));
    assert!(!jail.exists(), "a jail without a machine");
    let vm = stage.dir().join("run/vm");
    assert!(!vm.join(&never).exists());
    let again = stage.until(&always, SandboxState::Running).await;
    assert!(again.pid.is_some_and(|pid| !machines.contains(&pid)));
    // What was stopped starts as ever, and what was started stops.
    stage.start(&never).await.unwrap();
    for id in [&never, &always] {
        within(stage.host().remove(id, true)).await.unwrap();
    }
    stranger.assert_unharmed();
    assert_eq!(stage.left(), Vec::<String>::new());
}

/// In this boot: the machine's number is a stranger's by now.
#[tokio::test]
async fn b2_6_a_stranger_with_a_machines_number_is_never_signalled() {
    let stage = Stage::new().await;
    let id = stage.started(stage.spec()).await;
    let machine = stage.pid(&id);
    let mut stranger = Stranger::new();
    let reused = ProcessIdentity {
        // The machine was started before.
        start_time: stranger.identity().start_time - 1,
        ..stranger.identity()
    };
    let stage = stage
        .reopened_when_async(async |stage| {
            Stage::kill(machine);
            rewrite(stage, move |row| {
                row.machine.as_mut().unwrap().process = reused.clone();
            })
            .await;
        })
        .await;
    stranger.assert_unharmed();
    assert_eq!(stage.state(&id).await, SandboxState::Stopped);
    within(stage.host().remove(&id, true)).await.unwrap();
    stranger.assert_unharmed();
}

/// A control group of this data directory's that the last boot's store tells of and that is here again:
/// whoever sits in it under a sandbox's id is that sandbox's, also without a process on record.
#[tokio::test]
async fn b2_6_a_group_on_record_is_ended_with_what_runs_in_it_and_no_other() {
    let stage = Stage::new().await;
    let id = stage.started(stage.spec()).await;
    let machine = stage.pid(&id);
    let parent = crate::sandbox::confine::cgroup_parent(&stage.data());
    let Some(mut groups) = Groups::plant_as(&parent, &id, "control groups on record") else {
        return;
    };
    let record = JailRecord {
        uid: 0x7fff_fff0,
        gid: 0x7fff_fff0,
        dir: None,
        cgroups: groups.dirs.clone(),
    };
    let stage = stage
        .reopened_when_async(async |stage| {
            Stage::kill(machine);
            rewrite(stage, move |row| {
                row.machine.as_mut().unwrap().jail = Some(record.clone());
            })
            .await;
        })
        .await;
    groups.assert_gone();
    assert_eq!(stage.state(&id).await, SandboxState::Stopped);
}
