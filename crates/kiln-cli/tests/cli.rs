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

#[test]
fn help_and_version_succeed_and_start_nothing() {
    let kiln = Kiln::new();
    for command in [
        "run", "create", "exec", "connect", "attach", "forward", "ps", "start", "stop", "restart",
        "pause", "resume", "wait", "inspect", "update", "rename", "rm", "logs", "network", "info",
        "version", "daemon",
    ] {
        assert!(
            kiln.ok(&[command, "--help"]).contains("Usage: kiln"),
            "{command}"
        );
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
