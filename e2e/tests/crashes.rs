//! The daemon is killed at every step of a sandbox's life: the next one finishes or undoes what was
//! begun, nothing is left over, and what ran runs on.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a scenario fails by panicking, its helpers too"
)]

mod lab;
mod registry;

use std::fs;

use e2e::{Stage, eventually, names_in};
use lab::{Lab, output};
use registry::Registry;
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

const PULL: &[&str] = &[
    "pull.resolved",
    "pull.documents",
    "pull.unpacking",
    "pull.layer",
    "image.built",
    "image.described",
    "image.published",
    "pull.recorded",
    "pull.entered",
];
const VOLUME_CREATE: &[&str] = &["volume.made", "volume.recorded", "volume.published"];
const VOLUME_REMOVE: &[&str] = &["volume.condemned", "volume.moved"];
const NETWORK_CREATE: &[&str] = &["network.stored", "network.raised"];
const NETWORK_REMOVE: &[&str] = &["network.forgotten", "network.closed"];
/// With what the sandbox is afterwards.
const RESTART: &[(&str, &str)] = &[
    ("stop.intended", "stopped"),
    ("stop.ended", "stopped"),
    ("start.intended", "error"),
    ("start.spawned", "error"),
    ("start.booted", "error"),
    ("start.published", "running"),
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
        Self::on(Stage::new(), test)
    }

    fn on(stage: Stage, test: &str) -> Option<Self> {
        let point = stage.path("failpoint");
        let stage = stage.with_env("KILN_FAILPOINT", &point);
        fs::write(&point, "create.stored").unwrap();
        let died = stage.kiln(&["create", "--name", "probe", "--", "true"]);
        if died.code == Some(0) {
            e2e::skip(test, "this kiln was built without fail points");
            return None;
        }
        stage.wait_until_gone();
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
        self.stage.wait_until_gone();
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
fn b2_6_a_daemon_that_dies_at_any_step_of_a_restart_leaves_one_that_can_be_started() {
    let Some(scene) = Scene::new("b2_6_restart") else {
        return;
    };
    let victim = scene.stage.sandbox(&["--name", "victim"]);
    for (point, state) in RESTART {
        scene.die_at(point, &["restart", "-t", "5", &victim]);
        let row = row(&scene.stage, "victim").unwrap();
        assert_eq!(row["state"], *state, "{point}: {row}");
        scene.check(point);
        scene.stage.kiln(&["start", &victim]).expect_code(0);
        scene.check(point);
    }
    scene.stage.kiln(&["rm", "-f", &victim]).expect_code(0);
    scene.end();
}

/// It dies when it has started the command again and has not written that down.
#[test]
fn a_main_command_is_not_started_twice_by_a_daemon_that_dies() {
    let Some(scene) = Scene::new("a_main_command_is_not_started_twice") else {
        return;
    };
    let stage = &scene.stage;
    let script = "echo run >> /root/runs; test $(wc -l < /root/runs) -gt 1 || exit 1; sleep 10000";
    let point = stage.path("failpoint");
    fs::write(&point, "command.started").unwrap();
    let args = ["run", "-d", "--name", "victim", "--restart", "always"];
    let main = ["--", "sh", "-c", script];
    stage.kiln(&[&args[..], &main].concat()).expect_code(0);
    eventually("the daemon dies", || !point.exists());
    stage.wait_until_gone();
    let count = ["exec", "victim", "--", "sh", "-c", "wc -l < /root/runs"];
    for _ in 0..3 {
        assert_eq!(stage.kiln(&count).expect_code(0).text().trim(), "2");
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    // The one that runs is known: its end is heard of.
    let kill = ["exec", "victim", "--", "pkill", "-f", "sleep 10000"];
    let killed = stage.kiln(&kill);
    if killed.code == Some(0) {
        eventually("it runs again", || stage.kiln(&count).text().trim() == "3");
    }
    stage.kiln(&["rm", "-f", "victim"]).expect_code(0);
    scene.check("command.started");
    scene.end();
}

#[test]
fn b2_6_a_daemon_that_dies_at_any_step_of_a_pull_leaves_a_whole_library() {
    const TEST: &str = "b2_6_pull";
    e2e::with_fail_points();
    let stage = Stage::new();
    let registry = Registry::start(&stage.path(""));
    let settings = format!(
        r#"{{"registries":{{"{}":{{"insecure":true}}}}}}"#,
        registry.address
    );
    fs::write(stage.data().join("images.json"), settings).unwrap();
    let Some(scene) = Scene::on(stage, TEST) else {
        return;
    };
    let (stage, image) = (&scene.stage, registry.image());
    let images = stage.data().join("images");
    let block_images = || names_in(&images.join("images")).len();
    let before = block_images();
    let is_listed = || {
        let list = stage.kiln(&["image", "ls", "--json"]).expect_code(0).text();
        list.contains(&image)
    };
    for point in PULL {
        scene.die_at(point, &["image", "pull", &image]);
        assert_eq!(is_listed(), *point == "pull.entered", "{point}");
        let working = names_in(&images.join("tmp"));
        assert_eq!(working, Vec::<String>::new(), "{point}");
        scene.check(point);
        // What was begun is gone on with, and is whole then.
        stage.kiln(&["image", "pull", &image]).expect_code(0);
        let inspect = ["image", "inspect", "--json", &image];
        stage.kiln(&inspect).expect_code(0);
        assert_eq!(block_images(), before + 1, "{point}");
        stage.kiln(&["image", "rm", &image]).expect_code(0);
        stage.kiln(&["image", "prune"]).expect_code(0);
        assert_eq!(block_images(), before, "{point}");
        let blobs = files_below(&images.join("blobs"));
        assert_eq!(blobs, 0, "{point}: blobs that nobody needs");
    }
    scene.end();
}

fn files_below(dir: &std::path::Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let count = |path: std::path::PathBuf| match path.is_dir() {
        true => files_below(&path),
        false => 1,
    };
    entries.map(|entry| count(entry.path())).sum()
}

#[test]
fn b2_6_a_daemon_that_dies_at_any_step_of_a_volumes_life_leaves_it_whole_or_gone() {
    let Some(scene) = Scene::new("b2_6_volumes") else {
        return;
    };
    let stage = &scene.stage;
    let volumes = || {
        let list = stage.kiln(&["volume", "ls", "--json"]).expect_code(0);
        list.json().as_array().unwrap().len()
    };
    let create = ["volume", "create", "data", "--size", "64M"];
    for point in VOLUME_CREATE {
        scene.die_at(point, &create);
        let made = usize::from(*point == "volume.published");
        assert_eq!(volumes(), made, "{point}");
        let working = names_in(&stage.data().join("volumes/tmp"));
        assert_eq!(working, Vec::<String>::new(), "{point}");
        if made == 0 {
            stage.kiln(&create).expect_code(0);
        }
        stage.kiln(&["volume", "rm", "data"]).expect_code(0);
        scene.check(point);
    }
    stage.kiln(&create).expect_code(0);
    for point in VOLUME_REMOVE {
        scene.die_at(point, &["volume", "rm", "data"]);
        assert_eq!(
            volumes(),
            usize::from(*point == "volume.condemned"),
            "{point}"
        );
        let working = names_in(&stage.data().join("volumes/tmp"));
        assert_eq!(working, Vec::<String>::new(), "{point}");
        scene.check(point);
    }
    scene.end();
}

#[test]
fn b2_6_a_daemon_that_dies_at_any_step_of_a_networks_life_leaves_it_whole_or_gone() {
    const TEST: &str = "b2_6_networks";
    e2e::with_fail_points();
    let Some(lab) = Lab::new(TEST) else {
        return;
    };
    let Some(scene) = Scene::on(lab.stage(), TEST) else {
        return;
    };
    let stage = &scene.stage;
    let networks = || {
        let list = stage.kiln(&["network", "ls", "--json"]).expect_code(0);
        list.json().as_array().unwrap().len()
    };
    let bridges = || {
        let links = [
            "ip", "-n", &lab.host, "-o", "link", "show", "type", "bridge",
        ];
        output(&links).lines().count()
    };
    let create = ["network", "create", "lan"];
    let remove = ["network", "rm", "lan"];
    for point in NETWORK_CREATE {
        scene.die_at(point, &create);
        // It was stored first: it is there, and comes up when somebody needs it.
        assert_eq!(networks(), 1, "{point}");
        assert!(bridges() <= 1, "{point}");
        let again = stage.kiln(&create);
        assert_ne!(again.code, Some(0), "{point}: the name is taken");
        stage.kiln(&remove).expect_code(0);
        assert_eq!((networks(), bridges()), (0, 0), "{point}");
        scene.check(point);
    }
    for point in NETWORK_REMOVE {
        stage.kiln(&create).expect_code(0);
        scene.die_at(point, &remove);
        assert_eq!((networks(), bridges()), (0, 0), "{point}");
        scene.check(point);
    }
    stage.kiln(&["rm", "-f", "witness"]).expect_code(0);
    lab.assert_host_is_clean(stage);
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
