//! Guests that lie. Whatever they send, the link ends with an error and goes on.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::io::{AsyncReadExt as _, AsyncWriteExt as _};
use kiln_agent_proto::frame::{FrameReader, FrameWriter, encode};
use kiln_agent_proto::handshake::{HelloScanner, Step, ack};
use kiln_agent_proto::limits::CHUNK;
use kiln_agent_proto::message::{
    Attached, Done, Event, Exited, HelloReply, InputAck, PowerIntent, PowerMode, PowerSource,
    Reply, Request, SessionEntry, SessionList, SessionOutput, Started, event, reply, request,
    session_output,
};
use kiln_agent_proto::prefixed::Prefixed;
use kiln_vmm::AgentEndpoint;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio_util::compat::TokioAsyncReadCompatExt as _;
use tokio_util::task::AbortOnDropHandle;

use super::support::{spec, within};
use crate::exec::ExecInput;
use crate::guest::link::LinkState;
use crate::guest::{GuestError, GuestIdentity, GuestLink};

type Writer = FrameWriter<futures_util::io::WriteHalf<yamux::Stream>>;

/// How a guest lies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    Version,
    GarbageInsteadOfMux,
    StreamFlood,
    LongFrame,
    NoMessage,
    WrongReply,
    OutputFlood,
    TinyOutputFlood,
    LostFlood,
    FalseInputAck,
    EndlessList,
    ListOfNothing,
    /// None: it says what it wants and is gone.
    LastWords,
}

struct Liar {
    link: GuestLink,
    _guest: AbortOnDropHandle<()>,
    _dir: tempfile::TempDir,
}

fn lied_to(lie: Lie) -> Liar {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let endpoint = AgentEndpoint::Listen(socket.clone());
    let link = GuestLink::open(endpoint, GuestIdentity::default());
    let guest = tokio::spawn(async move {
        loop {
            guest(&socket, lie).await;
            if lie == Lie::LastWords {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    Liar {
        link,
        _guest: AbortOnDropHandle::new(guest),
        _dir: dir,
    }
}

async fn guest(socket: &PathBuf, lie: Lie) {
    let Ok(mut stream) = UnixStream::connect(socket).await else {
        return;
    };
    let mut scanner = HelloScanner::default();
    let mut buffer = [0; 4096];
    let rest = loop {
        let Ok(n @ 1..) = stream.read(&mut buffer).await else {
            return;
        };
        match scanner.push(&buffer[..n]) {
            Step::Wait => {}
            Step::Acknowledge(nonce) => stream.write_all(&ack(nonce)).await.unwrap(),
            Step::Session => break scanner.into_session(),
        }
    };
    if lie == Lie::GarbageInsteadOfMux {
        let _ = stream.write_all(&[0x5a; 100_000]).await;
        return;
    }
    let stream = Prefixed::new(rest, stream.compat());
    let mut mux = yamux::Connection::new(stream, yamux::Config::default(), yamux::Mode::Server);
    let mut opened = Vec::new();
    let mut wanted = if lie == Lie::StreamFlood { 100 } else { 0 };
    let ends = Arc::new(AtomicBool::new(false));
    std::future::poll_fn(|cx| {
        loop {
            if ends.load(Ordering::Relaxed) {
                // With all that is not sent yet.
                return mux.poll_close(cx).map(drop);
            }
            match mux.poll_next_inbound(cx) {
                std::task::Poll::Ready(Some(Ok(stream))) => {
                    tokio::spawn(operation(stream, lie, Arc::clone(&ends)));
                    continue;
                }
                std::task::Poll::Ready(_) => return std::task::Poll::Ready(()),
                std::task::Poll::Pending => {}
            }
            if wanted == 0 {
                return std::task::Poll::Pending;
            }
            match mux.poll_new_outbound(cx) {
                std::task::Poll::Ready(Ok(mut stream)) => {
                    wanted -= 1;
                    use futures_util::io::AsyncWrite as _;
                    let _ = std::pin::Pin::new(&mut stream).poll_write(cx, b"x");
                    opened.push(stream);
                }
                std::task::Poll::Ready(Err(_)) => return std::task::Poll::Ready(()),
                std::task::Poll::Pending => return std::task::Poll::Pending,
            }
        }
    })
    .await;
}

async fn operation(stream: yamux::Stream, lie: Lie, ends: Arc<AtomicBool>) {
    let (read, mut write) = stream.split();
    let mut reader = FrameReader::new(read);
    let Ok(Some(request)) = reader.next::<Request>().await else {
        return;
    };
    let kind = request.kind.unwrap();
    if lie == Lie::LastWords && matches!(kind, request::Kind::Events(_)) {
        ends.store(true, Ordering::Relaxed);
        return write.write_all(&last_words()).await.unwrap_or_default();
    }
    let reply = match kind {
        request::Kind::Hello(_) => reply::Kind::Hello(HelloReply {
            version: if lie == Lie::Version { 77 } else { 1 },
            agent: "x".repeat(1000),
            ..HelloReply::default()
        }),
        request::Kind::Events(_) => reply::Kind::Done(Done {}),
        request::Kind::Exec(_) if lie == Lie::WrongReply => {
            reply::Kind::Attached(Attached::default())
        }
        request::Kind::Exec(_) => reply::Kind::Started(Started { session: 1, pid: 1 }),
        request::Kind::Sessions(_) => return list(&mut FrameWriter::new(write), lie).await,
        _ => reply::Kind::Done(Done {}),
    };
    let started = matches!(reply, reply::Kind::Started(_));
    let mut raw = Vec::new();
    encode(&Reply::of(reply), &mut raw).unwrap();
    if started {
        raw.extend_from_slice(match lie {
            Lie::LongFrame => &[0xff; 4],
            Lie::NoMessage => &[4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
            _ => &[],
        });
    }
    write.write_all(&raw).await.unwrap_or_default();
    let mut writer = FrameWriter::new(write);
    if started {
        lie_about_output(&mut writer, lie).await;
    }
    while let Ok(Some(_)) = reader.next::<Request>().await {}
}

/// The answer to a subscription, and the only event.
fn last_words() -> Vec<u8> {
    let mut raw = Vec::new();
    let intent = PowerIntent {
        mode: PowerMode::PowerOff as i32,
        source: PowerSource::Guest as i32,
    };
    let kind = Some(event::Kind::PowerIntent(intent));
    encode(&Reply::of(reply::Kind::Done(Done {})), &mut raw).unwrap();
    encode(&Event { kind }, &mut raw).unwrap();
    raw
}

async fn lie_about_output(writer: &mut Writer, lie: Lie) {
    use session_output::Kind;
    let flood = |n: u64| match lie {
        Lie::OutputFlood => Some(Kind::Stdout(vec![0; CHUNK])),
        Lie::TinyOutputFlood if n.is_multiple_of(2) => Some(Kind::Stdout(vec![0])),
        Lie::TinyOutputFlood => Some(Kind::Stderr(vec![0])),
        Lie::LostFlood => Some(Kind::Lost(u64::MAX / 4)),
        Lie::FalseInputAck => Some(Kind::InputAck(InputAck {
            frames: 9,
            stdin_taken: 9,
        })),
        Lie::NoMessage => None,
        _ => Some(Kind::Exited(Exited {
            code: 0,
            signal: 4_000_000_000,
            timed_out: false,
        })),
    };
    for n in 0.. {
        let Some(kind) = flood(n) else { return };
        if writer.send(&SessionOutput::of(kind)).await.is_err() {
            return;
        }
    }
}

async fn list(writer: &mut Writer, lie: Lie) {
    let entry = SessionEntry {
        argv: vec![vec![b'a'; 10_000]; 4],
        ..SessionEntry::default()
    };
    let sessions = if lie == Lie::ListOfNothing {
        vec![]
    } else {
        vec![entry]
    };
    let list = SessionList {
        sessions,
        last: false,
    };
    let reply = Reply::of(reply::Kind::Sessions(list));
    while writer.send(&reply).await.is_ok() {}
}

/// The error of a session's output.
async fn output_error(lie: Lie) -> GuestError {
    let liar = lied_to(lie);
    let mut session = within(liar.link.exec(&spec(&["true"]))).await.unwrap();
    // Nobody reads until the end: what the guest sends has to be held, within bounds. Input is
    // taken until its window is full, and then refused when the session has failed.
    within(async { while session.input.send(ExecInput::Signal(1)).await.is_ok() {} }).await;
    within(async {
        loop {
            match session.output.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended well"),
                Err(error) => return error,
            }
        }
    })
    .await
}

#[tokio::test]
async fn output_beyond_the_rules_ends_the_session() {
    for lie in [
        Lie::OutputFlood,
        Lie::TinyOutputFlood,
        Lie::LostFlood,
        Lie::FalseInputAck,
        Lie::LongFrame,
        Lie::NoMessage,
    ] {
        let error = output_error(lie).await;
        assert!(
            matches!(error, GuestError::Protocol(_)),
            "{lie:?}: {error:?}"
        );
    }
}

#[tokio::test]
async fn answers_that_make_no_sense_are_errors() {
    let liar = lied_to(Lie::WrongReply);
    let error = within(liar.link.exec(&spec(&["true"]))).await.unwrap_err();
    assert!(matches!(error, GuestError::Protocol(_)), "{error:?}");
    for lie in [Lie::EndlessList, Lie::ListOfNothing] {
        let liar = lied_to(lie);
        let error = within(liar.link.sessions()).await.unwrap_err();
        assert!(
            matches!(error, GuestError::Protocol(_)),
            "{lie:?}: {error:?}"
        );
    }
}

#[tokio::test]
async fn a_guest_that_opens_streams_is_cut_off() {
    let liar = lied_to(Lie::StreamFlood);
    let mut state = liar.link.shared.state.subscribe();
    let cut_off = state.wait_for(|state| match state {
        LinkState::Down(reason) => reason.contains("opens streams"),
        _ => false,
    });
    within(cut_off).await.unwrap();
}

#[tokio::test]
async fn a_guest_without_session_never_becomes_ready() {
    for lie in [Lie::Version, Lie::GarbageInsteadOfMux] {
        let liar = lied_to(lie);
        let ready = tokio::time::timeout(std::time::Duration::from_millis(300), liar.link.ready());
        assert!(ready.await.is_err(), "{lie:?}");
    }
}

/// As when the host was too busy to listen until the guest was gone.
#[tokio::test]
async fn what_a_guest_says_last_is_heard() {
    for _ in 0..30 {
        let liar = lied_to(Lie::LastWords);
        let mut intent = liar.link.shared.intent.subscribe();
        within(intent.wait_for(Option::is_some)).await.unwrap();
    }
}

#[tokio::test]
async fn impossible_exit_codes_are_tamed() {
    let liar = lied_to(Lie::EndlessList);
    let mut session = within(liar.link.exec(&spec(&["true"]))).await.unwrap();
    let exit = within(session.output.next()).await.unwrap();
    assert_eq!(
        exit,
        Some(crate::exec::ExecOutput::Exited(
            crate::exec::ExecExit::Code(255)
        ))
    );
    assert_eq!(within(session.output.next()).await.unwrap(), None);
}

/// The agents here speak the first version of the protocol.
#[tokio::test]
async fn an_agent_of_an_older_kiln_is_not_asked_for_what_it_cannot_do() {
    let liar = lied_to(Lie::EndlessList);
    let refused = within(liar.link.connect(80)).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(crate::guest::Refusal::TooOld));
    let refused = within(liar.link.session_ended(1)).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(crate::guest::Refusal::TooOld));
    let held = crate::sandbox::activity::Activity::new().begin(false);
    let watch = kiln_agent_proto::message::Watch::default();
    let refused = within(liar.link.watch(watch, held)).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(crate::guest::Refusal::TooOld));
    // It would run the command without them.
    let limited = crate::exec::ExecSpec {
        limits: crate::exec::ExecLimits {
            processes: Some(1),
            ..Default::default()
        },
        ..spec(&["true"])
    };
    let refused = within(liar.link.exec(&limited)).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(crate::guest::Refusal::TooOld));
}
