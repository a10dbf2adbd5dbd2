//! The bytes of the contract: whoever changes one of these breaks other people's clients.

#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail by panic"
)]

use bytes::Bytes;
use kiln_api::{
    BasePreset, ChangeKind, CreateSandbox, CreateVolume, ErrorBody, ErrorReport, ExecLimits,
    ExecRequest, ExitStatus, FileChange, InitSystem, PruneImages, PullBaseImage, PullImage,
    PullPolicy, RunRequest, Sandbox, SandboxState, StopSandbox, TerminalSize, Timings,
    UpdateSandbox,
    stream::{
        BytesDone, Channel, ClientControl, MAX_CHUNK, MAX_MESSAGE, ProgressStep, ServerControl,
        StreamError, decode, encode,
    },
};
use proptest::prelude::*;
use serde_json::json;

#[test]
fn client_control_is_these_bytes() {
    let pairs = [
        (
            ClientControl::resize(TerminalSize { rows: 24, cols: 80 }),
            r#"{"type":"resize","rows":24,"cols":80}"#,
        ),
        (
            ClientControl::Signal { signal: 2 },
            r#"{"type":"signal","signal":2}"#,
        ),
        (ClientControl::Eof {}, r#"{"type":"eof"}"#),
        (ClientControl::Detach {}, r#"{"type":"detach"}"#),
    ];
    for (message, text) in pairs {
        assert_eq!(serde_json::to_string(&message).unwrap(), text);
        assert_eq!(ClientControl::parse(text).unwrap(), message);
    }
}

#[test]
fn client_control_refuses_what_it_does_not_know() {
    for text in [
        r#"{"type":"resize","rows":24,"cols":80,"x":1}"#,
        r#"{"type":"eof","x":1}"#,
        r#"{"type":"reboot"}"#,
        r#"{"rows":1,"cols":1}"#,
        r#"{"type":"resize","rows":70000,"cols":1}"#,
        r#"{"type":"signal","signal":"INT"}"#,
        "[]",
        "",
    ] {
        assert!(
            matches!(ClientControl::parse(text), Err(StreamError::Control(_))),
            "{text}"
        );
    }
}

#[test]
fn server_control_is_these_bytes() {
    let step = |step| ServerControl::Progress(step);
    let pairs = [
        (
            step(ProgressStep {
                step: Some("Building".into()),
                ..ProgressStep::default()
            }),
            r#"{"type":"progress","step":"Building"}"#,
        ),
        (
            step(ProgressStep {
                bytes: Some(BytesDone {
                    done: 1,
                    total: Some(2),
                }),
                ..ProgressStep::default()
            }),
            r#"{"type":"progress","bytes":{"done":1,"total":2}}"#,
        ),
        (
            ServerControl::Warning {
                message: "slow".into(),
            },
            r#"{"type":"warning","message":"slow"}"#,
        ),
        (
            ServerControl::Created {
                id: "a1".into(),
                name: None,
            },
            r#"{"type":"created","id":"a1","name":null}"#,
        ),
        (
            ServerControl::Started {
                session: 1,
                pid: Some(7),
            },
            r#"{"type":"started","session":1,"pid":7}"#,
        ),
        (
            ServerControl::Lost { bytes: 9 },
            r#"{"type":"lost","bytes":9}"#,
        ),
        (
            ServerControl::Exited(ExitStatus::Code(3)),
            r#"{"type":"exited","code":3}"#,
        ),
        (
            ServerControl::Exited(ExitStatus::Signal(9)),
            r#"{"type":"exited","signal":9}"#,
        ),
        (
            ServerControl::Exited(ExitStatus::TimedOut(9)),
            r#"{"type":"exited","timed_out":9}"#,
        ),
        (
            ServerControl::Timings(Timings {
                exec_us: Some(5),
                ..Timings::default()
            }),
            r#"{"type":"timings","exec_us":5}"#,
        ),
        (
            ServerControl::Error(ErrorReport::new("NO_IMAGE", "no").with_hint("do")),
            r#"{"type":"error","code":"NO_IMAGE","message":"no","hint":"do"}"#,
        ),
    ];
    for (message, text) in pairs {
        assert_eq!(serde_json::to_string(&message).unwrap(), text);
        assert_eq!(ServerControl::parse(text).unwrap(), message);
    }
}

#[test]
fn answers_tolerate_what_a_newer_daemon_adds() {
    assert_eq!(
        ServerControl::parse(r#"{"type":"frobnicated","x":[1]}"#).unwrap(),
        ServerControl::Unknown
    );
    let sandbox: Sandbox = serde_json::from_value(json!({
        "id": "a1", "name": null, "image": "default", "state": "hibernating", "engine": "warp",
        "vcpus": 1, "mem_mib": 512, "disk_mib": 1, "created_at_ms": 0, "new": {"x": 1},
    }))
    .unwrap();
    assert_eq!(sandbox.state, SandboxState::Unknown);
}

#[test]
fn requests_refuse_a_misspelt_field() {
    assert!(serde_json::from_value::<CreateSandbox>(json!({"mem_mb": 64})).is_err());
    assert!(serde_json::from_value::<StopSandbox>(json!({"grace": 1})).is_err());
    assert!(serde_json::from_value::<ExecRequest>(json!({"args": ["x"]})).is_err());
    assert!(serde_json::from_value::<RunRequest>(json!({"sandbox": {"cpus": 1}})).is_err());
    assert!(serde_json::from_value::<RunRequest>(json!({"image": "x"})).is_err());
}

#[test]
fn a_change_tells_what_is_left_out_from_what_is_taken_away() {
    let pairs = [
        (UpdateSandbox::default(), "{}"),
        (
            UpdateSandbox {
                timeout_ms: Some(None),
                project: Some(Some("shop".into())),
                labels: [("a".to_owned(), None)].into(),
                ..UpdateSandbox::default()
            },
            r#"{"labels":{"a":null},"project":"shop","timeout_ms":null}"#,
        ),
    ];
    for (update, text) in pairs {
        assert_eq!(serde_json::to_string(&update).unwrap(), text);
        assert_eq!(serde_json::from_str::<UpdateSandbox>(text).unwrap(), update);
    }
    assert!(serde_json::from_str::<UpdateSandbox>(r#"{"timeout":1}"#).is_err());
}

#[test]
fn an_error_is_this_object() {
    let body = ErrorBody {
        error: ErrorReport::new("SANDBOX_NOT_FOUND", "no sandbox x")
            .with_details(json!({"key": "x"})),
    };
    assert_eq!(
        serde_json::to_value(&body).unwrap(),
        json!({"error": {
            "code": "SANDBOX_NOT_FOUND", "message": "no sandbox x", "details": {"key": "x"},
        }})
    );
}

#[test]
fn a_signal_counts_as_a_shell_counts_it() {
    assert_eq!(ExitStatus::Code(7).shell_code(), 7);
    assert_eq!(ExitStatus::Signal(15).shell_code(), 143);
    assert_eq!(ExitStatus::TimedOut(9).shell_code(), 124);
    assert_eq!(ExitStatus::Signal(i32::MAX).shell_code(), i32::MAX);
}

#[test]
fn messages_have_limits() {
    assert_eq!(
        encode(Channel::Stderr, b"x").unwrap(),
        Bytes::from_static(&[2, b'x'])
    );
    assert_eq!(
        encode(Channel::Stdin, &vec![0; MAX_CHUNK]).unwrap().len(),
        MAX_MESSAGE
    );
    assert!(matches!(
        encode(Channel::Stdin, &vec![0; MAX_MESSAGE]),
        Err(StreamError::TooLarge(_))
    ));
    assert!(matches!(decode(Bytes::new()), Err(StreamError::Empty)));
    assert!(matches!(
        decode(Bytes::from_static(&[3])),
        Err(StreamError::UnknownChannel(3))
    ));
    assert!(matches!(
        decode(vec![0; MAX_MESSAGE + 1].into()),
        Err(StreamError::TooLarge(_))
    ));
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(number in 0u8..3, bytes: Vec<u8>) {
        let channel = [Channel::Stdin, Channel::Stdout, Channel::Stderr][usize::from(number)];
        let (got, rest) = decode(encode(channel, &bytes).unwrap()).unwrap();
        prop_assert_eq!(got, channel);
        prop_assert_eq!(&rest[..], &bytes[..]);
    }

    #[test]
    fn no_bytes_upset_the_decoder(bytes: Vec<u8>) {
        let whole = bytes.clone();
        if let Ok((channel, rest)) = decode(bytes.into()) {
            prop_assert_eq!(&encode(channel, &rest).unwrap()[..], &whole[..]);
        }
    }

    #[test]
    fn no_text_upsets_the_control_parsers(text: String) {
        let _ = ClientControl::parse(&text);
        let _ = ServerControl::parse(&text);
    }
}

#[test]
fn requests_of_images_and_volumes_are_these_bytes_and_refuse_others() {
    let request: RunRequest = serde_json::from_value(json!({
        "sandbox": {
            "runtime": "base",
            "pull": "never",
            "volumes": [{"volume": "data", "path": "/srv"}],
        },
        "entrypoint": ["/bin/x"],
    }))
    .unwrap();
    assert_eq!(request.sandbox.pull, Some(PullPolicy::Never));
    assert!(!request.sandbox.volumes[0].read_only);
    assert_eq!(request.entrypoint, Some(vec!["/bin/x".to_owned()]));
    let pull = PullImage {
        image: "alpine".into(),
        policy: None,
        platform: None,
    };
    assert_eq!(
        serde_json::to_string(&pull).unwrap(),
        r#"{"image":"alpine"}"#
    );
    assert!(serde_json::from_str::<PullImage>(r#"{"image":"a","polcy":"never"}"#).is_err());
    let foreign = r#"{"image":"a","platform":"linux/arm64"}"#;
    let foreign: PullImage = serde_json::from_str(foreign).unwrap();
    assert_eq!(foreign.platform.as_deref(), Some("linux/arm64"));
    assert!(serde_json::from_str::<PruneImages>(r#"{"al":true}"#).is_err());
    assert!(serde_json::from_str::<CreateVolume>(r#"{"name":"a","size":1}"#).is_err());
    let text = r#"{"type":"images","images":[]}"#;
    let images = ServerControl::Images { images: Vec::new() };
    assert_eq!(serde_json::to_string(&images).unwrap(), text);
    assert_eq!(ServerControl::parse(text).unwrap(), images);
}

#[test]
fn base_images_are_these_bytes() {
    let request = r#"{"preset":"hosted","manifest":"/m.json","force_download":true}"#;
    let pull = PullBaseImage {
        preset: BasePreset::Hosted,
        manifest: Some("/m.json".into()),
        force_download: true,
    };
    assert_eq!(serde_json::to_string(&pull).unwrap(), request);
    assert_eq!(
        serde_json::from_str::<PullBaseImage>(r#"{"preset":"lts"}"#).unwrap(),
        PullBaseImage {
            preset: BasePreset::Lts,
            manifest: None,
            force_download: false,
        }
    );
    assert!(serde_json::from_str::<PullBaseImage>(r#"{"preset":"newest"}"#).is_err());
    let file = |name: &str| json!({"path": name, "sha256": "00", "size_bytes": 1});
    let answer = json!({
        "type": "base_image",
        "image": {
            "id": "a", "preset": "lts", "arch": "x86_64", "train": "v1.7",
            "firecracker_version": "v1.7.0", "directory": "/d", "kernel": file("/d/k"),
            "rootfs": file("/d/r"), "rootfs_type": "squashfs", "rootfs_is_read_only": true,
            "boot_args": "ro", "source": "s", "created_at_ms": 1, "last_accessed_at_ms": 2,
        },
        "was_cached": true,
        "evicted": ["b"],
    });
    let told = ServerControl::parse(&answer.to_string()).unwrap();
    assert_eq!(serde_json::to_value(&told).unwrap(), answer);
    let sandbox: CreateSandbox = serde_json::from_value(json!({
        "bundle": "lts", "platform": "linux/amd64", "init": "systemd",
    }))
    .unwrap();
    assert_eq!(sandbox.init, Some(InitSystem::Systemd));
}

#[test]
fn limits_of_a_command_are_these_bytes_and_none_are_nothing() {
    let limits = ExecLimits {
        mem_mib: Some(64),
        processes: Some(32),
        cpu_milli: Some(500),
    };
    let text = r#"{"mem_mib":64,"processes":32,"cpu_milli":500}"#;
    assert_eq!(serde_json::to_string(&limits).unwrap(), text);
    assert_eq!(serde_json::from_str::<ExecLimits>(text).unwrap(), limits);
    // A misspelt limit would be one that is not applied.
    for wrong in [
        r#"{"memory":64}"#,
        r#"{"mem_mib":-1}"#,
        r#"{"mem_mib":"64M"}"#,
    ] {
        assert!(
            serde_json::from_str::<ExecLimits>(wrong).is_err(),
            "{wrong}"
        );
    }
    let bare = serde_json::to_value(ExecRequest::default()).unwrap();
    assert!(bare.get("limits").is_none());
}

#[test]
fn a_change_of_a_file_is_this_object_and_one_of_the_future_is_one_that_was_not_seen() {
    let change = FileChange {
        kind: ChangeKind::MovedTo,
        path: "/a".into(),
        directory: true,
    };
    let text = r#"{"kind":"moved_to","path":"/a","directory":true}"#;
    assert_eq!(serde_json::to_string(&change).unwrap(), text);
    assert_eq!(serde_json::from_str::<FileChange>(text).unwrap(), change);
    let future = r#"{"kind":"swapped","path":"/a"}"#;
    let future: FileChange = serde_json::from_str(future).unwrap();
    assert_eq!(future.kind, ChangeKind::Lost);
}
