//! What the command line prints and returns, where no guest is needed.

#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail by panic"
)]

mod support;

use support::{Kiln, error};

#[test]
fn usage_errors_are_125_and_name_what_is_wrong() {
    let kiln = Kiln::new();
    for args in [
        &["run", "--bogus"][..],
        &["run", "img", "--bogus"],
        &["--bogus"],
        &["frobnicate"],
        &["exec"],
        &["stop"],
        &["rm"],
        &[],
    ] {
        let output = kiln.run(args);
        assert_eq!(output.status.code(), Some(125), "{args:?}: {output:?}");
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{args:?}: {output:?}"
        );
    }
    let usage = error(&kiln.run(&["ps", "--json", "--bogus"]));
    assert_eq!(usage["code"], "USAGE");
    assert!(usage["message"].as_str().unwrap().contains("--bogus"));
    assert!(!kiln.data_dir().exists(), "a usage error starts nothing");
}

/// What the engine starts beside a machine; by hand it has nothing to serve.
#[test]
fn the_page_server_is_no_command_for_people() {
    let kiln = Kiln::new();
    let output = kiln.run(&["serve-pages"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("KILN_UFFD"), "{said}");
    assert!(!kiln.ok(&["--help"]).contains("serve-pages"));
    assert!(!kiln.data_dir().exists(), "it starts nothing");
}

#[test]
fn json_after_the_dashes_is_the_commands() {
    let output = Kiln::new().run(&["exec", "--bogus", "--", "x", "--json"]);
    assert!(
        String::from_utf8_lossy(&output.stderr).starts_with("error: "),
        "{output:?}"
    );
}

/// Every verb that users of Docker or of the tools before expect, under each of its names.
#[test]
fn b8_1_every_verb_is_there_and_its_help_starts_nothing() {
    let kiln = Kiln::new();
    let verbs = "create run start stop restart pause resume unpause rm remove ls ps list inspect exec \
                 connect shell attach cp upload download logs wait top stats port events rename \
                 update network image volume kernel snapshot doctor gc info version completion daemon \
                 sessions forward pull fs files watch man";
    for verb in verbs.split_whitespace() {
        let help = kiln.ok(&[verb, "--help"]);
        assert!(help.contains("Usage: kiln"), "{verb}");
    }
    assert!(kiln.ok(&["--version"]).starts_with("kiln 0."));
    assert!(kiln.ok(&["version"]).contains("daemon not running"));
    assert!(kiln.ok_json(&["version", "--json"])["daemon"].is_null());
    assert!(!kiln.data_dir().exists());
}

#[test]
fn an_empty_list_is_a_header_or_an_empty_array() {
    let kiln = Kiln::new();
    assert_eq!(
        kiln.ok(&["ps"]),
        "ID  NAME  IMAGE  STATE  ENGINE  CPUS  MEM  AGE\n"
    );
    assert_eq!(kiln.ok_json(&["ls", "--json"]), serde_json::json!([]));
    assert_eq!(kiln.ok(&["ps", "-q"]), "");
}

#[test]
fn info_tells_the_engine_and_the_places() {
    let kiln = Kiln::new();
    let info = kiln.ok_json(&["info", "--json"]);
    assert_eq!(info["data_dir"], kiln.data_dir().to_str().unwrap());
    assert!(!info["engine_reason"].as_str().unwrap().is_empty());
    assert_eq!(
        info["daemon_pid"].as_i64(),
        kiln.daemon_pid().map(i64::from)
    );
}

#[test]
fn b8_4_failures_have_a_code_a_message_and_a_hint() {
    let kiln = Kiln::new();
    for args in [
        &["--json", "exec", "nobody", "true"][..],
        &["--json", "logs", "nobody"],
        &["--json", "stop", "nobody"],
        &["--json", "start", "nobody"],
        &["--json", "rm", "../../etc"],
        &["--json", "attach", "nobody"],
        &["--json", "exec", "", "true"],
    ] {
        let failure = error(&kiln.run(args));
        assert!(
            ["NOT_FOUND", "INVALID_REQUEST", "NO_SUCH_PATH"]
                .contains(&failure["code"].as_str().unwrap()),
            "{args:?}: {failure}"
        );
        assert!(!failure["message"].as_str().unwrap().is_empty());
    }
    let output = kiln.run(&["exec", "nobody", "true"]);
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "kiln: error[NOT_FOUND]: no sandbox has the id or name \"nobody\"\n  hint: `kiln ps` lists them\n"
    );
    let failure = error(&kiln.run(&["--json", "run", "--name", "No Good", "--", "true"]));
    assert_eq!(failure["code"], "INVALID_SPEC");
    assert_eq!(kiln.ok(&["ps", "-q"]), "", "a refused run leaves nothing");
}

#[test]
fn b8_2_several_are_tried_all_and_each_failure_is_told() {
    let kiln = Kiln::new();
    let output = kiln.run(&["--json", "rm", "one", "two"]);
    assert_eq!(error(&output)["code"], "SEVERAL_FAILED");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "[{\"sandbox\":\"one\",\"ok\":false},{\"sandbox\":\"two\",\"ok\":false}]\n"
    );
    let told = String::from_utf8_lossy(&output.stderr)
        .matches("NOT_FOUND")
        .count();
    assert_eq!(told, 2, "{output:?}");
}

#[test]
fn b8_3_doctor_needs_no_daemon_and_changes_nothing_unless_asked() {
    let kiln = Kiln::new();
    let output = kiln.run(&["doctor", "--json"]);
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let fails = checks
        .as_array()
        .unwrap()
        .iter()
        .any(|it| it["level"] == "failure");
    assert_eq!(output.status.code(), Some(i32::from(fails)), "{checks}");
    assert!(!kiln.data_dir().exists());
    let fixed = kiln.run(&["doctor", "--json", "--fix"]);
    let checks: serde_json::Value = serde_json::from_slice(&fixed.stdout).unwrap();
    let data = checks
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["name"] == "data-dir");
    assert_eq!(data.unwrap()["fixed"], true, "{checks}");
    assert!(kiln.data_dir().exists());
    assert!(kiln.ok(&["version"]).contains("not running"));
}

#[test]
fn events_figures_kernels_and_leftovers_are_told() {
    let kiln = Kiln::new();
    assert_eq!(kiln.ok(&["events"]), "");
    assert_eq!(
        kiln.ok_json(&["gc", "--dry-run", "--json"]),
        serde_json::json!([])
    );
    assert_eq!(
        kiln.ok_json(&["kernel", "ls", "--json"]),
        serde_json::json!([])
    );
    assert_eq!(kiln.ok_json(&["stats", "--json"]), serde_json::json!([]));
    let metrics = kiln.raw("GET /v1/metrics HTTP/1.1\r\nhost: kiln\r\nconnection: close\r\n\r\n");
    assert!(
        metrics.contains("kiln_sandboxes{state=\"running\"} 0"),
        "{metrics}"
    );
    let empty = kiln.run(&["--json", "create", "--", "true"]);
    assert!(empty.status.success(), "{empty:?}");
    let id = serde_json::from_slice::<serde_json::Value>(&empty.stdout).unwrap()["id"].clone();
    let id = id.as_str().unwrap();
    assert!(kiln.ok(&["events"]).contains("created"));
    assert!(kiln.ok(&["__complete", "--", "rm", &id[..4]]).contains(id));
    assert!(
        kiln.ok(&["completion", "bash"])
            .contains("complete -o default")
    );
    kiln.ok(&["rename", id, "web"]);
    kiln.ok(&["update", "--label", "a=b", "web"]);
    assert_eq!(kiln.ok(&["ps", "-a", "-q", "-f", "label=a"]).trim(), id);
    let refused = error(&kiln.run(&["--json", "ps", "-f", "colour=red"]));
    assert_eq!(refused["code"], "INVALID_SPEC");
    kiln.ok(&["rm", "web"]);
    assert!(kiln.log().contains("kiln::audit"), "{}", kiln.log());
    assert!(kiln.log().contains("/v1/sandboxes"), "{}", kiln.log());
}

#[test]
fn b8_2_templates_say_how_results_are_printed() {
    let kiln = Kiln::new();
    let id = kiln.ok(&["create", "--name", "web", "--label", "a=b", "--", "true"]);
    let id = id.trim();
    let line = |args: &[&str]| kiln.ok(args);
    assert_eq!(
        line(&["ps", "-a", "--format", "{{.ID}}\\t{{.Name}}"]),
        format!("{id}\tweb\n")
    );
    assert_eq!(
        line(&[
            "ps",
            "-a",
            "--format",
            "table {{.Name}}\\t{{.State}}\\t{{.MemMiB}}"
        ]),
        "NAME  STATE    MEM MIB\nweb   created  512\n"
    );
    assert_eq!(
        line(&["ls", "-a", "--format", "json"]),
        line(&["ls", "-a", "--json"])
    );
    assert_eq!(
        line(&["ls", "-a", "--format", "table"]).lines().count(),
        line(&["ls", "-a"]).lines().count()
    );
    assert_eq!(
        line(&["inspect", "web", "--format", "{{.Labels.a}}"]),
        "b\n"
    );
    assert_eq!(
        line(&["inspect", "web", "--format", "json"]),
        line(&["inspect", "web", "--json"])
    );
    let version = line(&["version", "--format", "{{.Version}} {{.Daemon.Version}}"]);
    let (own, its) = version.trim().split_once(' ').unwrap();
    assert_eq!(own, its);
    assert_eq!(
        line(&["info", "--format", "{{.DataDir}}"]).trim(),
        kiln.data_dir().to_str().unwrap()
    );
    assert_eq!(
        line(&["events", "--format", "{{upper .Kind}} {{.Name}}"]),
        "CREATED web\n"
    );
    assert_eq!(
        line(&[
            "network",
            "inspect",
            "web",
            "--format",
            "{{.Mode}}{{.Subnet}}"
        ])
        .lines()
        .count(),
        1
    );
    let tables = [
        &["stats"][..],
        &["image", "ls"],
        &["image", "bundle", "ls"],
        &["volume", "ls"],
        &["network", "ls"],
        &["kernel", "ls"],
        &["snapshot", "ls"],
        &["gc", "--dry-run"],
    ];
    for words in tables {
        assert_eq!(
            line(&[words, &["--format", "{{json .}}"]].concat()),
            "",
            "{words:?}"
        );
        assert_eq!(
            line(&[words, &["--format", "json"]].concat()),
            "[]\n",
            "{words:?}"
        );
    }
    let checks = kiln.run(&["doctor", "--format", "{{.Name}}"]);
    assert!(String::from_utf8_lossy(&checks.stdout).contains("data-dir"));
}

#[test]
fn b8_4_a_field_that_is_none_is_refused_with_all_there_are_before_anything_is_asked() {
    let kiln = Kiln::new();
    for (words, field) in [
        (&["ps"][..], "mem_mib"),
        (&["inspect", "x"], "mem_mib"),
        (&["image", "ls"], "size_bytes"),
        (&["volume", "inspect", "x"], "size_bytes"),
        (&["network", "inspect", "x"], "subnet"),
        (&["stats"], "cpu_percent"),
        (&["info"], "engine_reason"),
        (&["version"], "daemon"),
        (&["events"], "kind"),
        (&["sessions", "x"], "argv"),
        (&["fs", "ls", "x"], "mtime_ms"),
        (&["watch", "x", "/"], "kind"),
    ] {
        let output = kiln.run(&[words, &["--format", "{{.Bogus}}"]].concat());
        assert_eq!(output.status.code(), Some(125), "{words:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains(".Bogus") && said.contains(field),
            "{words:?}: {said}"
        );
        let usage = error(&kiln.run(&[&["--json"][..], words, &["--format", "{{.X"]].concat()));
        assert_eq!(usage["code"], "USAGE", "{words:?}");
    }
    assert!(!kiln.data_dir().exists());
}

/// What has no meaning where it stands is refused, before a daemon is asked.
#[test]
fn b8_4_no_option_is_silently_ignored() {
    let kiln = Kiln::new();
    for line in [
        "ps --json --format json",
        "--json ps --format json",
        "ps -q --format json",
        "ps -q --json",
        "image ls -q --json",
        "image ls -q --format json",
        "image bundle ls -q --json",
        "volume ls -q --json",
        "network ls -q --format json",
        "kernel ls -q --json",
        "snapshot ls -q --format json",
        "snapshot create --stop --no-resume x",
        "run --snapshot s --cpus 2",
        "run --snapshot s --runtime base",
        "fs ls -q --json x",
        "inspect x --json --format json",
        "info --json --format json",
        "version --json --format json",
        "events --json --format json",
        "stats --json --format json",
        "create -q --json",
        "create -i -- true",
        "run -d -t",
        "run -d -i",
        "run --tmpfs --disk 1G",
        "run --modules /m",
        "run --bundle lts --runtime base",
        "run --rm --restart always",
        "exec -d -t x true",
        "exec -d -i x true",
        "exec --memory 0 x true",
        "exec --pids 0 x true",
        "exec --cpus 0 x true",
        "connect --session 1 --user root x",
        "connect --session 1 --no-extend-timeout x",
        "sessions --kill 1 --format json x",
        "cp --archive --user root a x:/b",
        "download --user root x /a",
        "update x",
        "daemon --background --stop",
        "daemon --stop --idle-exit 5",
        "daemon --stop --boot-timeout 5",
        "daemon --stop --firecracker-version latest",
        "daemon --tokens /t",
        "daemon --background --listen 127.0.0.1:1 --tls-cert a --tls-key b --tokens c",
        "doctor --socket /s",
        "doctor --host unix:///s",
        "completion bash --data-dir /d",
        "completion bash --host https://h:1",
        "man --all /d ps",
        "man --socket /s",
        "ps --tls-ca /c",
        "ps --host https://h:1 --data-dir /d",
        "ps --host https://h:1 --socket /s",
    ] {
        let words: Vec<_> = line.split(' ').collect();
        let words = match words.contains(&"--json") {
            true => words,
            false => [&["--json"][..], &words].concat(),
        };
        // With --json twice where it is one of the two.
        let output = kiln.run(&words);
        assert_eq!(error(&output)["code"], "USAGE", "{line}: {output:?}");
    }
    assert!(!kiln.data_dir().exists(), "none of it asks a daemon");
}

#[test]
fn a_daemon_in_the_background_is_as_it_was_asked_to_be() {
    let kiln = Kiln::new();
    kiln.ok(&["daemon", "--background", "--idle-exit", "1"]);
    kiln.wait_for_daemons_end();
    assert!(kiln.log().contains("idle"), "{}", kiln.log());
    kiln.ok(&["daemon", "--background"]);
    let again = kiln.run(&["daemon", "--background", "--idle-exit", "1"]);
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(
        again.status.success() && said.contains("runs already"),
        "{said}"
    );
}

#[test]
fn sandboxes_commands_and_options_are_completed() {
    let kiln = Kiln::new();
    assert_eq!(
        kiln.ok(&["__complete", "--", "stop", ""]),
        "",
        "no daemon runs"
    );
    assert!(!kiln.data_dir().exists(), "and none is started for that");
    let id = kiln.ok(&["create", "--name", "web", "--", "true"]);
    kiln.ok(&["create", "--name", "worker", "--", "true"]);
    let bare = kiln.ok(&["create", "--", "true"]);
    let found = |words: &[&str]| -> Vec<String> {
        let found = kiln.ok(&[&["__complete", "--"][..], words].concat());
        found.lines().map(str::to_owned).collect()
    };
    assert_eq!(found(&["stop", "w"]), ["web", "worker"]);
    assert_eq!(found(&["rm", "-f", "web", "wo"]), ["worker"]);
    assert_eq!(found(&["fs", "ls", "we"]), ["web"]);
    assert_eq!(found(&["inspect", "--format", "json", "we"]), ["web"]);
    assert_eq!(found(&["--verbose", "stop", "we"]), ["web"]);
    assert_eq!(found(&["stop", bare.trim()]), [bare.trim()]);
    assert_eq!(
        found(&["stop", id.trim()]),
        Vec::<String>::new(),
        "it has a name"
    );
    assert_eq!(found(&["image", "bun"]), ["bundle"]);
    assert!(found(&["exec", "--mem"]).contains(&"--memory".to_owned()));
    assert!(found(&["watch", "--re"]).contains(&"--recursive".to_owned()));
    assert_eq!(found(&["run", "we"]), Vec::<String>::new());
}

#[test]
fn the_manual_has_a_page_for_every_command() {
    let kiln = Kiln::new();
    let dir = kiln.runtime_dir().join("man1");
    let written = kiln.ok(&["man", "--all", dir.to_str().unwrap()]);
    for page in [
        "kiln.1",
        "kiln-run.1",
        "kiln-network-create.1",
        "kiln-fs-watch.1",
    ] {
        assert!(written.contains(&format!("/{page}\n")), "{page}: {written}");
    }
    assert!(
        kiln.ok(&["man", "network", "create"])
            .contains(".TH kiln-network-create 1")
    );
    let none = error(&kiln.run(&["--json", "man", "nonsense"]));
    assert_eq!(none["code"], "USAGE");
    assert!(!kiln.data_dir().exists());
}
