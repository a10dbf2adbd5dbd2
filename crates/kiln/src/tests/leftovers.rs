//! What nobody owns, and what is told of what happens.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use super::stage::{Stage, within};
use crate::{EventKind, LeftoverKind, SandboxState};

const GHOST: &str = "ghostghostgh";

/// A control group of a machine that nobody knows, with a process in it, and one of somebody else.
pub(super) struct Groups {
    pub(super) dirs: Vec<PathBuf>,
    inside: Child,
    foreign: PathBuf,
}

impl Groups {
    /// `None`, said loudly, where there can be none.
    fn plant(parent: &str, test: &str) -> Option<Self> {
        Self::plant_as(parent, GHOST, test)
    }

    /// Under a name.
    pub(super) fn plant_as(parent: &str, name: &str, test: &str) -> Option<Self> {
        let mount = Path::new("/sys/fs/cgroup");
        let trees: Vec<PathBuf> = match mount.join("cgroup.controllers").exists() {
            true => vec![mount.to_owned()],
            false => ["memory", "cpu", "pids"].map(|it| mount.join(it)).to_vec(),
        };
        let dirs: Vec<PathBuf> = trees.iter().map(|it| it.join(parent).join(name)).collect();
        if let Some(error) = dirs.iter().find_map(|dir| fs::create_dir_all(dir).err()) {
            eprintln!("SKIPPED: {test}: control groups cannot be made here: {error}");
            return None;
        }
        let foreign = trees[0].join(format!("{parent}-others")).join(name);
        fs::create_dir_all(&foreign).unwrap();
        let inside = Command::new("sleep").arg("10000").spawn().unwrap();
        for dir in &dirs {
            fs::write(dir.join("cgroup.procs"), inside.id().to_string()).unwrap();
        }
        Some(Self {
            dirs,
            inside,
            foreign,
        })
    }

    pub(super) fn assert_gone(&mut self) {
        assert!(self.dirs.iter().all(|dir| !dir.exists()), "{:?}", self.dirs);
        assert!(
            !self.inside.wait().unwrap().success(),
            "what ran in it is ended"
        );
        assert!(self.foreign.exists(), "somebody else's stays");
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let _ = self.inside.kill();
        let _ = self.inside.wait();
        let foreign = [Some(self.foreign.as_path()), self.foreign.parent()];
        let ours = self
            .dirs
            .iter()
            .flat_map(|dir| [Some(dir.as_path()), dir.parent()]);
        for dir in foreign.into_iter().chain(ours).flatten() {
            let _ = fs::remove_dir(dir);
        }
    }
}

fn cgroup_parent(stage: &Stage) -> String {
    crate::sandbox::confine::cgroup_parent(&stage.data())
}

fn make_old(path: &Path) {
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    fs::File::open(path)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
}

#[tokio::test]
async fn leftovers_of_every_kind_are_told_first_and_removed_then() {
    let stage = Stage::new().await;
    let id = stage.started(stage.spec()).await;
    let data = stage.data();
    // A sandbox's files with its scratch disk, stale sockets, a jail.
    fs::create_dir_all(data.join("sandboxes").join(GHOST)).unwrap();
    let scratch = data.join("sandboxes").join(GHOST).join("scratch.ext4");
    fs::write(scratch, vec![1; 100_000]).unwrap();
    let machine = stage.dir().join("run/vm").join(GHOST);
    fs::create_dir_all(&machine).unwrap();
    drop(std::os::unix::net::UnixListener::bind(machine.join("api.sock")).unwrap());
    let jail = data.join("jails/firecracker").join(GHOST);
    fs::create_dir_all(jail.join("root")).unwrap();
    let mut groups = Groups::plant(&cgroup_parent(&stage), "leftovers of control groups");
    // Half-made things, in every store; what is fresh may be in the making.
    let stores = ["images", "kernels", "cache", "base-images", "firecracker"];
    for store in stores {
        fs::create_dir_all(data.join(store)).unwrap();
        fs::write(data.join(store).join(".partial-abc"), "x").unwrap();
    }
    // Somebody else's, or of no kind that is known.
    fs::write(data.join("images/notes"), "x").unwrap();
    fs::write(data.join("notes"), "x").unwrap();
    make_old(&data.join("images/notes"));
    let fresh = within(stage.host().collect_garbage(true)).await.unwrap();
    assert!(fresh.iter().all(|it| it.kind != LeftoverKind::HalfMade));
    for store in stores {
        make_old(&data.join(store).join(".partial-abc"));
    }

    let told = within(stage.host().collect_garbage(true)).await.unwrap();
    let kinds: Vec<_> = told.iter().map(|it| it.kind).collect();
    use LeftoverKind::{Cgroup, HalfMade, Jail, Machine, Sandbox};
    let mut expected = vec![Sandbox, Machine];
    expected.extend(groups.as_ref().map(|_| Cgroup));
    expected.extend([Jail, HalfMade, HalfMade, HalfMade, HalfMade, HalfMade]);
    assert_eq!(kinds, expected);
    assert!(told[0].bytes >= 100_000);
    assert!(told.iter().all(|it| !it.removed && it.path.exists()));
    let removed = within(stage.host().collect_garbage(false)).await.unwrap();
    assert!(
        removed.iter().all(|it| it.removed && !it.path.exists()),
        "{removed:?}"
    );
    if let Some(groups) = &mut groups {
        groups.assert_gone();
    }
    let again = within(stage.host().collect_garbage(false)).await.unwrap();
    assert_eq!(again, []);
    assert!(data.join("images/notes").exists() && data.join("notes").exists());
    assert_eq!(
        stage.state(&id).await,
        SandboxState::Running,
        "what is owned stays"
    );
}

#[tokio::test]
async fn a_host_that_opens_removes_what_is_left_of_machines() {
    let stage = Stage::new().await;
    let id = stage.started(stage.spec()).await;
    let jail = stage.data().join("jails/qemu").join(GHOST);
    let mut groups = None;
    let parent = cgroup_parent(&stage);
    let stage = stage
        .reopened_when(|| {
            fs::create_dir_all(&jail).unwrap();
            groups = Groups::plant(&parent, "control groups at the start of a host");
        })
        .await;
    assert!(!jail.exists());
    if let Some(groups) = &mut groups {
        groups.assert_gone();
    }
    assert_eq!(stage.state(&id).await, SandboxState::Running);
}

#[tokio::test]
async fn every_step_of_a_life_is_an_event() {
    let stage = Stage::new().await;
    let id = stage.started(stage.spec()).await;
    within(stage.host().pause(&id)).await.unwrap();
    stage.stop(&id).await;
    within(stage.host().remove(&id, false)).await.unwrap();
    let (events, _) = stage.host().events_since(0);
    let kinds: Vec<_> = events.iter().map(|it| it.kind).collect();
    use EventKind::{Created, Paused, Removed, Running, Starting, Stopped, Stopping};
    assert_eq!(
        kinds,
        [
            Created, Starting, Running, Paused, Stopping, Stopped, Removed
        ]
    );
    assert!(events.iter().all(|it| it.sandbox == id));
    let metrics = stage.host().metrics();
    assert_eq!((metrics.starts, metrics.failed_starts), (1, 0));
}
