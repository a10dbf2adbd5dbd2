//! The bytes of every message, frozen. A change here breaks agents in snapshots: add fields and
//! variants with new numbers, and new lines; never change a line.

use kiln_agent_proto::message::{
    Attach, Attached, ChangeKind, Connect, Done, Download, EnvVar, Error, ErrorCode, Event, Exec,
    ExecLimits, Exited, FileChange, FileEntry, FileKind, FileList, GetStats, Hello, HelloReply,
    InputAck, Kill, ListFiles, ListSessions, MakeDirectory, Mark, MoveFile, PortData, Power,
    PowerIntent, PowerMode, PowerSource, RemoveFile, Reply, Request, RequestPart, SessionEntry,
    SessionInput, SessionList, SessionOutput, Started, StatFile, Stats, Subscribe, TreeBytes,
    Upload, Wait, Waited, Watch, WindowSize, event, reply, request, session_input, session_output,
};
use proptest::prelude::*;
use prost::Message;

/// Encodes as frozen, decodes back, and does so in spite of a field of the future.
fn golden<M: Message + Default + PartialEq + std::fmt::Debug>(message: &M, frozen: &str) {
    let bytes = message.encode_to_vec();
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, frozen, "{message:?}");
    assert_eq!(M::decode(bytes.as_slice()).as_ref(), Ok(message));
    // Field 1000, three bytes long.
    let future = [bytes.as_slice(), &[0xc2, 0x3e, 0x03, 1, 2, 3]].concat();
    assert_eq!(M::decode(future.as_slice()).as_ref(), Ok(message));
}

#[test]
fn requests() {
    use request::Kind;
    let of = |kind| Request::of(kind);
    golden(
        &of(Kind::Hello(Hello {
            min_version: 1,
            max_version: 2,
            clock_unix_ns: 1_700_000_000_000_000_000,
            entropy: vec![1, 2, 3],
            hostname: "box".into(),
        })),
        "0a1808011002188080a8b1e39fe7cb1722030102032a03626f78",
    );
    golden(
        &of(Kind::Exec(Exec {
            argv: vec![b"sh".to_vec(), vec![0xff]],
            env: vec![EnvVar {
                name: b"A".to_vec(),
                value: b"b".to_vec(),
            }],
            cwd: b"/".to_vec(),
            user: "u:g".into(),
            tty: Some(WindowSize { rows: 24, cols: 80 }),
            stdin: true,
            kill_on_detach: true,
            ..Exec::default()
        })),
        "12210a0273680a01ff12060a01411201621a012f2203753a672a040818105030013801",
    );
    golden(
        &of(Kind::Exec(Exec {
            make_cwd: true,
            stop_signal: 3,
            ..Exec::default()
        })),
        "1206a00101a80103",
    );
    golden(
        &of(Kind::Attach(Attach {
            session: 7,
            from_offset: 300,
        })),
        "1a05080710ac02",
    );
    golden(&of(Kind::Sessions(ListSessions {})), "2200");
    golden(&of(Kind::Kill(Kill { session: 7 })), "2a020807");
    golden(&of(Kind::Wait(Wait { session: 7 })), "9a01020807");
    golden(
        &of(Kind::Power(Power {
            mode: PowerMode::Reboot as i32,
            grace_ms: 5000,
        })),
        "32050802108827",
    );
    golden(&of(Kind::Stats(GetStats {})), "3a00");
    golden(&of(Kind::Events(Subscribe {})), "4200");
    golden(&of(Kind::Connect(Connect { port: 8080 })), "8a010308903f");
    golden(
        &of(Kind::Part(RequestPart {
            data: vec![9],
            last: true,
        })),
        "7a050a01091001",
    );
    golden(
        &of(Kind::Exec(Exec {
            timeout_ms: 300,
            ..Exec::default()
        })),
        "120340ac02",
    );
    golden(
        &of(Kind::Exec(Exec {
            limits: Some(ExecLimits {
                memory_bytes: 300,
                processes: 32,
                cpu_milli: 500,
            }),
            ..Exec::default()
        })),
        "120bb2010808ac02102018f403",
    );
}

#[test]
fn changes_of_files() {
    let watch = Watch {
        path: b"/a".to_vec(),
        recursive: true,
    };
    golden(
        &Request::of(request::Kind::Watch(watch)),
        "9201060a022f611001",
    );
    golden(
        &FileChange {
            kind: ChangeKind::MovedTo as i32,
            path: b"/a".to_vec(),
            directory: true,
        },
        "080612022f611801",
    );
    let kinds = [
        ChangeKind::Unspecified,
        ChangeKind::Created,
        ChangeKind::Modified,
        ChangeKind::Attributes,
        ChangeKind::Removed,
        ChangeKind::MovedFrom,
        ChangeKind::MovedTo,
        ChangeKind::Lost,
        ChangeKind::Ended,
    ];
    for (number, kind) in kinds.into_iter().enumerate() {
        assert_eq!(kind as usize, number);
    }
}

#[test]
fn requests_for_files() {
    use request::Kind;
    let of = |kind| Request::of(kind);
    golden(
        &of(Kind::StatFile(StatFile {
            path: b"/a".to_vec(),
            follow: true,
        })),
        "4a060a022f611001",
    );
    golden(
        &of(Kind::ListFiles(ListFiles {
            path: b"/a".to_vec(),
        })),
        "52040a022f61",
    );
    golden(
        &of(Kind::MakeDirectory(MakeDirectory {
            path: b"/a".to_vec(),
            mode: 0o755,
            parents: true,
            user: "u".into(),
        })),
        "5a0c0a022f6110ed031801220175",
    );
    golden(
        &of(Kind::MoveFile(MoveFile {
            from: b"/a".to_vec(),
            to: b"/b".to_vec(),
        })),
        "62080a022f6112022f62",
    );
    golden(
        &of(Kind::RemoveFile(RemoveFile {
            path: b"/a".to_vec(),
            recursive: true,
        })),
        "6a060a022f611001",
    );
    golden(
        &of(Kind::Upload(Upload {
            path: b"/a".to_vec(),
            user: "u".into(),
            keep_owner: true,
        })),
        "72090a022f611201751801",
    );
    golden(
        &of(Kind::Download(Download {
            path: b"/a".to_vec(),
            follow: true,
        })),
        "8201060a022f611001",
    );
    golden(&TreeBytes { data: vec![7, 8] }, "0a020708");
}

#[test]
fn replies_about_files() {
    use reply::Kind;
    let file = FileEntry {
        name: b"f".to_vec(),
        kind: FileKind::Symlink as i32,
        mode: 0o777,
        uid: 1,
        gid: 2,
        size: 3,
        mtime_ns: -1,
        link: b"t".to_vec(),
    };
    golden(
        &Reply::of(Kind::File(file.clone())),
        "42130a0166100318ff032001280230033801420174",
    );
    golden(
        &Reply::of(Kind::Files(FileList {
            files: vec![FileEntry::default()],
            last: true,
        })),
        "4a040a001001",
    );
    golden(
        &Reply::of(Kind::Stats(Stats {
            cpu_busy_ms: 1,
            cpus: 2,
            disk_total_kib: 3,
            disk_used_kib: 4,
            net_rx_bytes: 5,
            net_tx_bytes: 6,
            ..Stats::default()
        })),
        "3a0c480150025803600468057006",
    );
    assert_eq!(ErrorCode::NoSuchFile as i32, 14);
    assert_eq!(ErrorCode::FileRefused as i32, 15);
}

#[test]
fn replies() {
    use reply::Kind;
    let of = |kind| Reply::of(kind);
    golden(
        &of(Kind::Error(Error::new(ErrorCode::NotFound, "no"))),
        "0a06080412026e6f",
    );
    golden(
        &of(Kind::Hello(HelloReply {
            version: 1,
            agent: "0.1".into(),
            instance: 0x0102_0304_0506_0708,
            marks: vec![Mark {
                name: "start".into(),
                uptime_us: 1000,
            }],
        })),
        "121c08011203302e31190807060504030201220a0a05737461727410e807",
    );
    golden(
        &of(Kind::Started(Started {
            session: 7,
            pid: 300,
        })),
        "1a05080710ac02",
    );
    golden(
        &of(Kind::Attached(Attached {
            session: 1,
            pid: 2,
            output_offset: 3,
            input_frames: 4,
            stdin_received: 5,
            stdin_taken: 6,
            tty: true,
        })),
        "220e0801100218032004280530063801",
    );
    golden(
        &of(Kind::Sessions(SessionList {
            sessions: vec![SessionEntry {
                session: 1,
                argv: vec![b"a".to_vec()],
                pid: 2,
                tty: true,
                attached: true,
                exit: Some(Exited {
                    code: 3,
                    signal: 0,
                    timed_out: false,
                }),
                age_ms: 4,
                main: false,
            }],
            last: true,
        })),
        "2a150a1108011201611802200128013202080338041001",
    );
    golden(&of(Kind::Done(Done {})), "3200");
    golden(
        &of(Kind::Sessions(SessionList {
            sessions: vec![SessionEntry {
                main: true,
                ..SessionEntry::default()
            }],
            last: false,
        })),
        "2a040a024001",
    );
    golden(
        &of(Kind::Waited(Waited {
            exit: Exited {
                code: 3,
                signal: 0,
                timed_out: false,
            },
            age_ms: 5,
        })),
        "52060a0208031005",
    );
    golden(
        &of(Kind::Stats(Stats {
            agent_rss_kib: 1,
            uptime_ms: 2,
            mem_total_kib: 3,
            mem_available_kib: 4,
            sessions_running: 5,
            sessions_ended: 6,
            processes: 7,
            load1_centi: 8,
            ..Stats::default()
        })),
        "3a1008011002180320042805300638074008",
    );
}

#[test]
fn session_inputs() {
    use session_input::Kind;
    let of = |kind| SessionInput::of(kind);
    golden(&of(Kind::Stdin(vec![0, 255])), "0a0200ff");
    golden(&of(Kind::StdinEof(Done {})), "1200");
    golden(
        &of(Kind::Resize(WindowSize { rows: 1, cols: 2 })),
        "1a0408011002",
    );
    golden(&of(Kind::Signal(15)), "200f");
    golden(&of(Kind::OutputAck(300)), "28ac02");
    golden(&of(Kind::Detach(Done {})), "3200");
}

#[test]
fn session_outputs() {
    use session_output::Kind;
    let of = |kind| SessionOutput::of(kind);
    golden(&of(Kind::Stdout(vec![0, 255])), "0a0200ff");
    golden(&of(Kind::Stderr(vec![1])), "120101");
    golden(&of(Kind::Lost(300)), "18ac02");
    golden(
        &of(Kind::Exited(Exited {
            code: -1,
            signal: 9,
            timed_out: false,
        })),
        "220d08ffffffffffffffffff011009",
    );
    golden(
        &of(Kind::Exited(Exited {
            code: 0,
            signal: 9,
            timed_out: true,
        })),
        "220410091801",
    );
    golden(
        &of(Kind::InputAck(InputAck {
            frames: 1,
            stdin_taken: 2,
        })),
        "2a0408011002",
    );
    golden(
        &of(Kind::Error(Error::new(ErrorCode::Replaced, ""))),
        "3202080c",
    );
}

#[test]
fn port_data() {
    golden(&PortData { data: vec![0, 255] }, "0a0200ff");
}

#[test]
fn events() {
    let kind = Some(event::Kind::PowerIntent(PowerIntent {
        mode: PowerMode::PowerOff as i32,
        source: PowerSource::CtrlAltDel as i32,
    }));
    golden(&Event { kind }, "0a0408011003");
}

#[test]
fn error_codes() {
    use ErrorCode::*;
    let frozen = [
        Unspecified,
        BadRequest,
        Version,
        NoHello,
        NotFound,
        NotExecutable,
        NoSuchUser,
        BadCwd,
        NoSuchSession,
        Busy,
        PoweringOff,
        Internal,
        Replaced,
        Flooded,
        NoSuchFile,
        FileRefused,
        PortClosed,
        NoLimits,
    ];
    for (number, code) in frozen.into_iter().enumerate() {
        assert_eq!(code as usize, number);
    }
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..100)
}

proptest! {
    #[test]
    fn execs_round_trip(
        argv in prop::collection::vec(bytes(), 0..5),
        env in prop::collection::vec((bytes(), bytes()), 0..5),
        cwd in bytes(),
        user: String,
        tty: Option<(u32, u32)>,
        flags: (bool, bool),
    ) {
        let exec = Request::of(request::Kind::Exec(Exec {
            argv,
            env: env.into_iter().map(|(name, value)| EnvVar { name, value }).collect(),
            cwd,
            user,
            tty: tty.map(|(rows, cols)| WindowSize { rows, cols }),
            stdin: flags.0,
            kill_on_detach: flags.1,
            ..Exec::default()
        }));
        prop_assert_eq!(Request::decode(exec.encode_to_vec().as_slice()).unwrap(), exec);
    }

    #[test]
    fn session_messages_round_trip(data in bytes(), number: u64, code: i32, signal: u32) {
        for kind in [
            session_input::Kind::Stdin(data.clone()),
            session_input::Kind::Signal(signal),
            session_input::Kind::OutputAck(number),
        ] {
            let input = SessionInput::of(kind);
            prop_assert_eq!(SessionInput::decode(input.encode_to_vec().as_slice()).unwrap(), input);
        }
        for kind in [
            session_output::Kind::Stdout(data.clone()),
            session_output::Kind::Lost(number),
            session_output::Kind::Exited(Exited {
                code,
                signal,
                timed_out: false,
            }),
            session_output::Kind::InputAck(InputAck { frames: number, stdin_taken: number }),
        ] {
            let output = SessionOutput::of(kind);
            prop_assert_eq!(SessionOutput::decode(output.encode_to_vec().as_slice()).unwrap(), output);
        }
    }

    #[test]
    fn garbage_is_refused_or_understood(data in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Request::decode(data.as_slice());
        let _ = Reply::decode(data.as_slice());
        let _ = SessionInput::decode(data.as_slice());
        let _ = SessionOutput::decode(data.as_slice());
        let _ = Event::decode(data.as_slice());
    }
}
