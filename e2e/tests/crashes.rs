//! The daemon is killed at every step of a sandbox's life: the next one finishes or undoes what was
//! begun, nothing is left over, and what ran runs on.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a scenario fails by panicking, its helpers too"
)]

use std::fs;

use e2e::Stage;
use serde_json::Value;

const START: &[&str] = &[
    "create.stored",
    "start.intended",
    "start.prepared",
    "start.networked",
    "start.spawned",
    "start.recorded",
    "start.booted",
    "start.ready",
    "start.published",
];
const STOP: &[&str] = &["stop.intended", "stop.ended"];
const REMOVE: &[&str] = &[
    "remove.intended",
    "remove.ended",
    "remove.deleted",
    "remove.forgotten",
];

const SNAPSHOT: &[&str] = &[
    "snapshot.intended",
    "snapshot.paused",
    "snapshot.memory",
    "snapshot.disk",
    "snapshot.resumed",
    "snapshot.sealed",
    "snapshot.published",
];
const REMOVE_SNAPSHOT: &[&str] = &["snapshot.removing", "snapshot.deleted"];

/// A stage whose daemons die at a step, and a sandbox that has to survive all of it.
struct Scene {
    stage: Stage,
    witness: String,
    pid: Value,
}

impl Scene {
    /// `None` where the program has no such steps, as a release build.
    fn new(test: &str) -> Option<Self> {
        e2e::with_fail_points();
        let stage = Stage::new();
        let point = stage.path("failpoint");
        let stage = stage.with_env("KILN_FAILPOINT", &point);
        fs::write(&point, "create.stored").unwrap();
        let died = stage.kiln(&["create", "--name", "probe", "--", "true"]);
        if died.code == Some(0) {
            e2e::skip(test, "this kiln was built without fail points");
            return None;
        }
        wait_until_gone(&stage);
        stage.kiln(&["rm", "-f", "probe"]).expect_code(0);
        let witness = stage.sandbox(&["--name", "witness"]);
        let pid = row(&stage, "witness").unwrap()["pid"].clone();
        Some(Self {
            stage,
            witness,
            pid,
        })
    }

    /// Has the daemon die at this step of a command.
    fn die_at(&self, point: &str, args: &[&str]) {
        let file = self.stage.path("failpoint");
        fs::write(&file, point).unwrap();
        let ran = self.stage.kiln(args);
        assert_ne!(ran.code, Some(0), "{point} was not reached by {args:?}");
        assert!(
            !file.exists(),
            "{point} was not reached by {args:?}: {ran:?}"
        );
        wait_until_gone(&self.stage);
    }

    /// The witness is the machine that it was and answers; every machine has a sandbox that runs.
    fn check(&self, point: &str) {
        let witness = row(&self.stage, "witness").unwrap();
        assert_eq!(witness["pid"], self.pid, "{point}: {witness}");
        self.stage
            .kiln(&["exec", &self.witness, "--", "true"])
            .expect_code(0);
        let running = self
            .stage
            .sandboxes()
            .iter()
            .filter(|it| it["state"] == "running")
            .count();
        let machines = self
            .stage
            .processes()
            .into_iter()
            .filter(|(_, line)| line.contains("qemu-system") || line.contains("firecracker"))
            .count();
        assert_eq!(machines, running, "{point}: {:?}", self.stage.processes());
        let left = self
            .stage
            .kiln(&["gc", "--dry-run", "--json"])
            .expect_code(0);
        assert_eq!(left.json(), serde_json::json!([]), "{point}");
    }

    fn end(self) {
        self.stage.kiln(&["rm", "-f", "witness"]).expect_code(0);
        self.stage.assert_nothing_left();
    }
}

/// Waits until the daemon that died has let go of its place: its socket still takes connections for a
/// moment, and resets them.
fn wait_until_gone(stage: &Stage) {
    let lock = fs::File::open(stage.runtime().join("kiln.sock.lock")).unwrap();
    lock.lock().unwrap();
}

fn row(stage: &Stage, name: &str) -> Option<Value> {
    let all = stage.sandboxes();
    all.into_iter().find(|it| it["name"] == name)
}

#[test]
fn b2_6_a_daemon_that_dies_at_any_step_of_a_start_leaves_nothing() {
    let Some(scene) = Scene::new("b2_6_start") else {
        return;
    };
    for point in START {
        let args = ["run", "-d", "--name", "victim", "--", "sleep", "1000"];
        scene.die_at(point, &args);
        if let Some(victim) = row(&scene.stage, "victim") {
            let state = victim["state"].as_str().unwrap();
            let expected: &[&str] = match *point {
                "create.stored" => &["created"],
                "start.published" => &["running"],
                _ => &["error"],
            };
            assert!(expected.contains(&state), "{point}: {victim}");
            assert_eq!(
                victim["pid"].is_null(),
                state != "running",
                "{point}: {victim}"
            );
        }
        scene.check(point);
        // What is left of it can be started or removed as any other.
        scene.stage.kiln(&["rm", "-f", "victim"]);
        scene.check(point);
    }
    scene.end();
}

#[test]
fn b2_6_a_daemon_that_dies_at_any_step_of_an_end_finishes_it() {
    let Some(scene) = Scene::new("b2_6_end") else {
        return;
    };
    for point in STOP {
        let victim = scene.stage.sandbox(&["--name", "victim"]);
        scene.die_at(point, &["stop", "-t", "5", &victim]);
        assert_eq!(
            row(&scene.stage, "victim").unwrap()["state"],
            "stopped",
            "{point}"
        );
        scene.check(point);
        scene.stage.kiln(&["rm", &victim]).expect_code(0);
    }
    for point in ["policy.stored", "policy.applied"] {
        let args = [
            "create",
            "--name",
            "victim",
            "--network",
            "default",
            "--",
            "true",
        ];
        let created = scene.stage.kiln(&args);
        created.expect_code(0);
        scene.die_at(
            point,
            &[
                "network",
                "update",
                "victim",
                "--network-policy",
                "deny-all",
            ],
        );
        let told = scene
            .stage
            .kiln(&["network", "inspect", "victim", "--json"])
            .expect_code(0);
        assert_eq!(
            told.json()["policy"]["mode"],
            "deny-all",
            "{point}: it was stored first"
        );
        scene.check(point);
        scene.stage.kiln(&["rm", "victim"]).expect_code(0);
    }
    for point in REMOVE {
        let victim = scene.stage.sandbox(&["--name", "victim"]);
        scene.die_at(point, &["rm", "-f", &victim]);
        assert!(row(&scene.stage, "victim").is_none(), "{point}");
        scene.check(point);
    }
    scene.end();
}

#[test]
fn b6_1_a_daemon_that_dies_at_any_step_of_a_snapshot_leaves_none_and_its_source_goes_on() {
    let Some(scene) = Scene::new("b6_1_snapshot") else {
        return;
    };
    let snapshots = |point: &str| {
        let told = scene.stage.kiln(&["snapshot", "ls", "--json"]);
        let listed = told.expect_code(0).json().as_array().unwrap().len();
        let files = fs::read_dir(scene.stage.data().join("snapshots")).unwrap();
        assert_eq!(files.count(), listed, "{point}");
        listed
    };
    for point in SNAPSHOT {
        let create = ["snapshot", "create", "witness", "--name", "victim"];
        scene.die_at(point, &create);
        // Only what was whole is one, and nothing is in the way of another.
        let whole = usize::from(*point == "snapshot.published");
        assert_eq!(snapshots(point), whole, "{point}");
        assert_eq!(
            row(&scene.stage, "witness").unwrap()["state"],
            "running",
            "{point}"
        );
        scene.check(point);
    }
    for point in REMOVE_SNAPSHOT {
        if snapshots(point) == 0 {
            let create = ["snapshot", "create", "witness", "--name", "victim"];
            scene.stage.kiln(&create).expect_code(0);
        }
        scene.die_at(point, &["snapshot", "rm", "victim"]);
        assert_eq!(snapshots(point), 0, "{point}");
        scene.check(point);
    }
    // One that was on its way up begins from it again.
    scene
        .stage
        .kiln(&["snapshot", "create", "witness", "--name", "golden"])
        .expect_code(0);
    let create = ["create", "--snapshot", "golden", "--name", "victim"];
    scene.stage.kiln(&create).expect_code(0);
    for point in [
        "start.prepared",
        "start.recorded",
        "start.booted",
        "start.ready",
    ] {
        scene.die_at(point, &["start", "victim"]);
        assert_eq!(
            row(&scene.stage, "victim").unwrap()["state"],
            "error",
            "{point}"
        );
        scene.check(point);
    }
    scene.stage.kiln(&["start", "victim"]).expect_code(0);
    scene
        .stage
        .kiln(&["exec", "victim", "--", "true"])
        .expect_code(0);
    scene.stage.kiln(&["rm", "-f", "victim"]).expect_code(0);
    scene
        .stage
        .kiln(&["snapshot", "rm", "golden"])
        .expect_code(0);
    scene.end();
}
