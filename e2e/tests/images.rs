//! Images of a registry: pulled, run as they want to be run, kept while a sandbox needs them.
//!
//! The registry is Debian's `docker-registry` on loopback, filled by `skopeo` with an image that is
//! made here of one static busybox.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a scenario fails by panicking, its helpers too"
)]

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use e2e::{Stage, eventually, signal, skip};
use rustix::process::Signal;
use serde_json::{Value, json};

const BUSYBOX: &str = "/bin/busybox";
/// Prints what it was started as; its last word is its exit code.
const ENTRY: &str = "#!/bin/sh\necho \"$@\"; id -un; id -gn; pwd; echo \"$COLOR $SIZE\"; cat /release\n\
                     for last; do :; done; exit \"$last\"\n";

/// Why the scenarios cannot run here, if they cannot.
fn missing() -> Option<String> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let there = |tool: &str| std::env::split_paths(&paths).any(|dir| dir.join(tool).is_file());
    if let Some(tool) = ["docker-registry", "skopeo", "tar"]
        .into_iter()
        .find(|tool| !there(tool))
    {
        return Some(format!("{tool} is not installed"));
    }
    // Dynamically linked it would not run in an image that holds nothing else.
    let linked = Command::new("ldd").arg(BUSYBOX).output();
    match linked {
        Ok(output) if !output.status.success() && Path::new(BUSYBOX).is_file() => None,
        _ => Some(format!("there is no static {BUSYBOX}")),
    }
}

/// A registry on loopback, until dropped.
struct Registry {
    address: String,
    child: Child,
}

impl Registry {
    fn start(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let config = dir.join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  \
             filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            dir.join("data").display()
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the registry answers", || {
            TcpStream::connect(&address).is_ok()
        });
        Self { address, child }
    }

    /// Puts an archive of `docker save` there.
    fn push(&self, archive: &Path, name: &str) -> String {
        let name = format!("{}/{name}", self.address);
        run(Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--insecure-policy",
                "--dest-tls-verify=false",
            ])
            .arg(format!("docker-archive:{}", archive.display()))
            .arg(format!("docker://{name}")));
        name
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// An image as `docker save` would write it, which tells its release.
fn archive(dir: &Path, release: &str) -> PathBuf {
    let root = dir.join("root");
    for name in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    for tool in ["sh", "id", "cat", "echo", "env", "sleep", "true", "touch"] {
        symlink("busybox", root.join("bin").join(tool)).unwrap();
    }
    let app = "app:x:1234:4321::/srv:/bin/sh\n";
    fs::write(
        root.join("etc/passwd"),
        format!("root:x:0:0::/:/bin/sh\n{app}"),
    )
    .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nstaff:x:4321:\n").unwrap();
    fs::write(root.join("release"), format!("{release}\n")).unwrap();
    fs::write(root.join("entry"), ENTRY).unwrap();
    fs::set_permissions(root.join("entry"), fs::Permissions::from_mode(0o755)).unwrap();

    let layer = dir.join("layer.tar");
    run(Command::new("tar")
        .args(["--owner=0", "--group=0", "-C"])
        .arg(&root)
        .arg("-cf")
        .arg(&layer)
        .arg("."));
    let digest = run(Command::new("sha256sum").arg(&layer));
    let diff_id = format!("sha256:{}", digest.split(' ').next().unwrap());
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": ["/entry", "from"],
            "Cmd": ["image", "7"],
            "Env": ["PATH=/bin", "COLOR=red", "SIZE=small"],
            "User": "app",
            // It has no such directory.
            "WorkingDir": "/srv",
            "StopSignal": "SIGUSR1",
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let manifest = json!([{
        "Config": "config.json", "RepoTags": ["team/app:1"], "Layers": ["layer.tar"],
    }]);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = dir.join("image.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(dir)
        .arg("-cf")
        .arg(&archive)
        .args(["manifest.json", "config.json", "layer.tar"]));
    archive
}

fn images(stage: &Stage) -> Vec<Value> {
    let list = stage.kiln(&["image", "ls", "--json"]).expect_code(0).json();
    list.as_array().unwrap().clone()
}

#[test]
fn b1_3_an_image_is_pulled_and_runs_as_it_wants_to_be_run() {
    if let Some(why) = missing() {
        return skip(
            "b1_3_an_image_is_pulled_and_runs_as_it_wants_to_be_run",
            &why,
        );
    }
    let stage = Stage::new();
    let registry = Registry::start(&stage.path("registry"));
    let name = registry.push(&archive(&stage.path("one"), "one"), "team/app:1");
    let settings = json!({"runtimes": {"app": name}});
    fs::write(stage.data().join("images.json"), settings.to_string()).unwrap();

    // Not here, and not to be fetched.
    let never = stage
        .kiln(&["run", "--json", "--pull", "never", &name])
        .expect_code(125);
    assert_eq!(never.error()["code"], "IMAGE_NOT_FOUND", "{never:?}");
    assert_eq!(images(&stage), Vec::<Value>::new());

    // All of it from the image; its exit code too.
    let ran = stage.kiln(&["run", "--tmpfs", &name]).expect_code(7);
    assert_eq!(
        ran.text(),
        "from image 7\napp\nstaff\n/srv\nred small\none\n"
    );
    let [image] = &images(&stage)[..] else {
        panic!("not one image")
    };
    assert_eq!(image["names"], json!([name]));
    assert_eq!(image["used_by"], json!([]), "the run is over");
    assert_eq!(image["config"]["user"], "app");

    // All of it otherwise, by the name of a runtime.
    let ran = stage
        .kiln(&[
            "run",
            "--tmpfs",
            "--pull",
            "never",
            "--runtime",
            "app",
            "--entrypoint",
            "/entry",
            "-u",
            "0:0",
            "-w",
            "/tmp",
            "-e",
            "COLOR=blue",
            "--",
            "mine",
            "9",
        ])
        .expect_code(9);
    assert_eq!(ran.text(), "mine 9\nroot\nroot\n/tmp\nblue small\none\n");
    drop(registry);
    stage.assert_nothing_left();
}

#[test]
fn an_image_stays_as_long_as_a_sandbox_needs_it() {
    if let Some(why) = missing() {
        return skip("an_image_stays_as_long_as_a_sandbox_needs_it", &why);
    }
    let stage = Stage::new();
    let registry = Registry::start(&stage.path("registry"));
    let name = registry.push(&archive(&stage.path("one"), "one"), "team/app:1");
    let pulled = stage.kiln(&["pull", "--json", &name]).expect_code(0).json();
    assert_eq!(pulled[0]["names"], json!([name]));

    let args = [
        "run",
        "--json",
        "-d",
        "--entrypoint",
        "/bin/sleep",
        &name,
        "100000",
    ];
    let id = stage.kiln(&args).expect_code(0).json()["id"].clone();
    let sandbox = id.as_str().unwrap();
    let told = "id -un; pwd; echo $COLOR; cat /release; cat written";
    let exec = || stage.kiln(&["exec", sandbox, "--", "sh", "-c", told]);
    let write = [
        "exec",
        "-u",
        "0",
        sandbox,
        "--",
        "sh",
        "-c",
        "echo mine >written",
    ];
    stage.kiln(&write).expect_code(0);
    assert_eq!(exec().expect_code(0).text(), "app\n/srv\nred\none\nmine\n");

    // A daemon that died forgets none of it.
    let daemon = stage.daemon_pid();
    signal(daemon, Signal::KILL);
    eventually("the daemon is gone", || {
        !Path::new(&format!("/proc/{daemon}/exe")).exists()
    });
    assert_eq!(exec().expect_code(0).text(), "app\n/srv\nred\none\nmine\n");

    let refused = stage
        .kiln(&["image", "rm", "--json", &name])
        .expect_code(125);
    assert_eq!(refused.error()["code"], "IMAGE_IN_USE", "{refused:?}");
    assert!(refused.error()["message"].to_string().contains(sandbox));
    let pruned = stage
        .kiln(&["image", "prune", "--all", "--json"])
        .expect_code(0);
    assert_eq!(pruned.json()["images"], json!([]), "{pruned:?}");

    // The name moves on; the sandbox does not: its disk holds changes to the old image.
    registry.push(&archive(&stage.path("two"), "two"), "team/app:1");
    stage.kiln(&["pull", &name]).expect_code(0);
    stage.kiln(&["stop", sandbox]).expect_code(0);
    stage.kiln(&["start", sandbox]).expect_code(0);
    assert_eq!(exec().expect_code(0).text(), "app\n/srv\nred\none\nmine\n");
    let pruned = stage.kiln(&["image", "prune", "--json"]).expect_code(0);
    assert_eq!(
        pruned.json()["images"],
        json!([]),
        "the nameless one is held"
    );

    stage.kiln(&["rm", "--force", sandbox]).expect_code(0);
    let pruned = stage.kiln(&["image", "prune", "--json"]).expect_code(0);
    assert_eq!(pruned.json()["images"].as_array().unwrap().len(), 1);
    let removed = stage.kiln(&["image", "rm", "--json", &name]).expect_code(0);
    assert_eq!(removed.json()[0]["untagged"], json!([name]));
    assert_eq!(images(&stage), Vec::<Value>::new());
    drop(registry);
    stage.assert_nothing_left();
}

#[test]
fn a_stop_asks_the_main_process_by_the_images_signal() {
    const TEST: &str = "a_stop_asks_the_main_process_by_the_images_signal";
    if let Some(why) = missing() {
        return skip(TEST, &why);
    }
    let stage = Stage::new();
    let file = archive(&stage.path("one"), "one");
    let import = ["image", "import", file.to_str().unwrap()];
    stage.kiln(&import).expect_code(0);
    let run = |options: &[&str], script: &str| {
        let image = ["--entrypoint", "/bin/sh", "team/app:1", "--", "-c", script];
        let common = ["run", "--json", "--pull", "never", "--tmpfs", "-u", "0"];
        stage.kiln(&[&common, options, &image].concat())
    };
    let volume = ["volume", "create", "data", "--size", "16M"];
    stage.kiln(&volume).expect_code(0);
    let mounted = ["--volume", "data:/data"];
    let script = "trap '' TERM; trap 'echo asked >/data/told; exit 0' USR1; echo >/data/ready; \
                  while :; do sleep 0.1; done";
    let started = run(&[&["-d"][..], &mounted].concat(), script).expect_code(0);
    let id = started.json()["id"].as_str().unwrap().to_owned();
    let ready = [
        "exec",
        &id,
        "sh",
        "-c",
        "until [ -e /data/ready ]; do sleep 0.1; done",
    ];
    stage.kiln(&ready).expect_code(0);
    stage.kiln(&["stop", "--time", "60", &id]).expect_code(0);
    stage.kiln(&["rm", &id]).expect_code(0);
    let told = run(&mounted, "cat /data/told").expect_code(0);
    assert_eq!(told.text(), "asked\n");

    let foreign = run(&["--platform", "linux/s390x"], "true").expect_code(125);
    assert_eq!(foreign.error()["code"], "INVALID_SPEC");
    let message = foreign.error()["message"].to_string();
    assert!(message.contains("this host runs linux/"), "{message}");
    stage.assert_nothing_left();
}

#[test]
fn archives_come_in_and_go_out_whole() {
    if let Some(why) = missing() {
        return skip("archives_come_in_and_go_out_whole", &why);
    }
    let stage = Stage::new();
    let file = archive(&stage.path("one"), "one");
    let file = file.to_str().unwrap();
    stage.kiln(&["image", "import", file]).expect_code(0);
    stage
        .kiln(&["image", "tag", "team/app:1", "mine:2"])
        .expect_code(0);
    let (saved, tar) = (stage.path("saved.tar"), stage.path("root.tar"));
    let save = ["image", "save", "mine:2", "-o", saved.to_str().unwrap()];
    stage.kiln(&save).expect_code(0);
    let export = ["image", "export", "mine:2", "-o", tar.to_str().unwrap()];
    stage.kiln(&export).expect_code(0);
    let entry = run(Command::new("tar").arg("-xOf").arg(&tar).arg("entry"));
    assert_eq!(entry, ENTRY);
    let skopeo = format!("oci-archive:{}:2", saved.display());
    let inspected = run(Command::new("skopeo").args(["inspect", "--config", &skopeo]));
    assert!(inspected.contains("COLOR=red"), "{inspected}");

    let unknown = stage
        .kiln(&["image", "inspect", "--json", "nosuch"])
        .expect_code(125);
    assert_eq!(unknown.error()["code"], "IMAGE_NOT_FOUND");
    let save = ["image", "save", "--json", "nosuch", "-o", "/nonexistent/x"];
    let unsaved = stage.kiln(&save).expect_code(125);
    assert_eq!(unsaved.error()["code"], "IMAGE_NOT_FOUND");
    for line in [&["image", "rm", "mine:2"], &["image", "rm", "team/app:1"]] {
        stage.kiln(line).expect_code(0);
    }
    assert_eq!(images(&stage), Vec::<Value>::new());
}
