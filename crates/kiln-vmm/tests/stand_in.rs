//! A stand-in for Firecracker: a real process on a real socket, for faults that the real one
//! cannot be made to show.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking; the configured exception covers test functions only"
)]

mod support;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kiln_vmm::firecracker::FirecrackerEngine;
use kiln_vmm::{Code, Engine, Exit, MachineError, MachineState};
use support::stub::Then;
use support::{Owned, Place, alive};

/// Tells the stand-in its socket, the call at which it goes wrong, and how.
const VARIABLE: &str = "KILN_STAND_IN";

/// What runs as Firecracker in the tests below.
#[test]
#[ignore = "runs inside the tests of the stand-in"]
fn stand_in() {
    let Ok(text) = std::env::var(VARIABLE) else {
        return;
    };
    let mut words = text.split('|');
    let socket = words.next().unwrap();
    let at: usize = words.next().unwrap().parse().unwrap();
    let fault = words.next().unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    for call in 0.. {
        if !read_request(&mut stream) {
            break;
        }
        if call == at {
            go_wrong(&mut stream, fault);
        } else {
            // As a later version might: with headers and words of its own.
            let answer = "HTTP/1.1 204 \r\nDeprecation: true\r\nX-Later: 1\r\n\r\n";
            stream.write_all(answer.as_bytes()).unwrap();
        }
    }
    // Lives on until it is killed, as the real one does.
    loop {
        std::thread::park();
    }
}

fn go_wrong(stream: &mut UnixStream, fault: &str) {
    let body = |status: &str, body: &str| {
        format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let answer = match fault {
        "dies" => std::process::exit(3),
        "refuses" => body("400 Bad Request", r#"{"fault_message":"not today"}"#),
        "mistakes" => body("400 Bad Request", r#"{"error":"bad header"}"#),
        "mumbles" => body("503 Service Unavailable", "plain words"),
        "babbles" => "\u{1}\u{2} this is no HTTP\r\n\r\n".to_owned(),
        "tears" => "HTTP/1.1 400 No\r\nContent-Length: 100\r\n\r\n{\"fault".to_owned(),
        "floods" => format!(
            "HTTP/1.1 400 No\r\nContent-Length: 9000000\r\n\r\n{}",
            "x".repeat(9_000_000)
        ),
        "stalls" => loop {
            std::thread::park();
        },
        other => panic!("no such fault: {other}"),
    };
    let _ = stream.write_all(answer.as_bytes());
    if fault == "tears" {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

fn read_request(stream: &mut UnixStream) -> bool {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return false,
            Ok(count) => request.extend_from_slice(&buffer[..count]),
        }
        let text = String::from_utf8_lossy(&request).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
                .unwrap_or(0);
            if body.len() >= length {
                return true;
            }
        }
    }
}

/// A machine whose Firecracker goes wrong at a call.
async fn machine(place: &Place, at: usize, fault: &str) -> Owned {
    let program: PathBuf = place.path().join("firecracker");
    let this = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\n\
         case $1 in --version) echo Firecracker v1.16.1; exit;; \
         --snapshot-version) echo v10.0.0; exit;; esac\n\
         while [ $# -gt 0 ]; do [ $1 = --api-sock ] && socket=$2; shift; done\n\
         {VARIABLE}=\"$socket|{at}|{fault}\" exec {} --ignored --exact stand_in --nocapture\n",
        this.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let engine = FirecrackerEngine::open(&program).await.unwrap();
    Owned::new(engine.spawn(&place.spec(Then::Stay)).await.unwrap())
}

async fn close(machine: &Owned, place: &Place) {
    machine.close(Duration::ZERO).await.unwrap();
    assert!(!alive(machine.record().process.pid));
    assert_eq!(place.left(), Vec::<String>::new());
}

#[tokio::test]
async fn a_stand_in_that_does_well_boots() {
    let place = Place::new();
    let machine = machine(&place, 99, "dies").await;
    machine.boot().await.unwrap();
    assert_eq!(machine.state(), MachineState::Running);
    close(&machine, &place).await;
}

/// A4.11: at each call of a boot, a death is told as such, at once.
#[tokio::test]
async fn a4_11_a_death_at_any_call_is_told_at_once() {
    for at in 0..5 {
        let place = Place::new();
        let machine = machine(&place, at, "dies").await;
        let begin = Instant::now();
        let error = machine.boot().await.unwrap_err();
        assert!(
            matches!(
                error,
                MachineError::Exited {
                    exit: Exit::Code(3),
                    ..
                }
            ),
            "call {at}: {error:?}"
        );
        assert_eq!(error.code(), Code::StartFailed);
        assert!(begin.elapsed() < Duration::from_secs(15));
        close(&machine, &place).await;
    }
}

#[tokio::test]
async fn a9_refusals_are_told_in_the_words_they_came_in() {
    for (fault, status, words) in [
        ("refuses", 400, "not today"),
        ("mistakes", 400, "bad header"),
        ("mumbles", 503, "plain words"),
    ] {
        let place = Place::new();
        let machine = machine(&place, 2, fault).await;
        let error = machine.boot().await.unwrap_err();
        assert_eq!(error.code(), Code::ApiError);
        let MachineError::Refused {
            status: Some(found),
            message,
            ..
        } = error
        else {
            panic!("{fault}: {error:?}");
        };
        assert_eq!((found, message.as_str()), (status, words));
        close(&machine, &place).await;
    }
}

#[tokio::test]
async fn a9_what_is_no_answer_breaks_the_call_and_nothing_else() {
    for fault in ["babbles", "tears", "floods"] {
        let place = Place::new();
        let machine = machine(&place, 1, fault).await;
        let error = machine.boot().await.unwrap_err();
        assert!(
            matches!(error, MachineError::Control { .. }),
            "{fault}: {error:?}"
        );
        assert_eq!(error.code(), Code::SocketRequestFailed);
        // What it did is unknown: nothing more is asked of it.
        assert!(machine.pause().await.is_err());
        close(&machine, &place).await;
    }
}

#[tokio::test]
async fn one_that_stalls_can_be_given_up_and_closed() {
    for at in [0, 3] {
        let place = Place::new();
        let machine = machine(&place, at, "stalls").await;
        let boot = tokio::time::timeout(Duration::from_millis(500), machine.boot()).await;
        assert!(boot.is_err(), "it answered");
        assert!(matches!(
            machine.boot().await,
            Err(MachineError::State { .. })
        ));
        let begin = Instant::now();
        close(&machine, &place).await;
        assert!(begin.elapsed() < Duration::from_secs(15));
    }
}

/// Takes as long as the deadline: what a call did that was not answered is unknown, so the VMM is
/// killed and not asked again.
#[tokio::test]
async fn a9_a_missed_deadline_kills() {
    let place = Place::new();
    let machine = machine(&place, 1, "stalls").await;
    let error = machine.boot().await.unwrap_err();
    assert!(matches!(error, MachineError::Deadline { .. }), "{error:?}");
    assert_eq!(error.code(), Code::ApiTimeout);
    assert_eq!(machine.state(), MachineState::Exited);
    close(&machine, &place).await;
}
