//! Clients that break the contract: each is refused in the contract's words, and the daemon goes
//! on for the others.

#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail by panic"
)]

use std::{path::PathBuf, time::Duration};

use futures_util::{SinkExt, StreamExt};
use kiln_api::{Client, ClientError, CreateSandbox, ErrorBody, stream::ServerControl};
use kiln_daemon::{Daemon, DaemonConfig, DaemonLock, HostConfig};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

/// Nothing here takes long, however it ends.
const SOON: Duration = Duration::from_secs(30);

/// A daemon in this process.
struct Served {
    client: Client,
    socket: PathBuf,
    task: JoinHandle<()>,
    _lock: DaemonLock,
    _dir: TempDir,
}

impl Served {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("run/kiln.sock");
        let config = DaemonConfig {
            remote: None,
            host: HostConfig::new(dir.path().join("data"), dir.path().join("run")),
            idle_exit: None,
            drain: Duration::from_secs(5),
        };
        let lock = DaemonLock::take(&socket).await.unwrap();
        let daemon = Daemon::open(config, &lock).await.unwrap();
        let task = tokio::spawn(async move { daemon.serve().await.unwrap() });
        Self {
            client: Client::new(&socket),
            socket,
            task,
            _lock: lock,
            _dir: dir,
        }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// What is answered to a request.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        // The daemon may close before it has read all.
        let _ = stream.write_all(request).await;
        rest(&mut stream).await
    }

    /// What is answered to bytes that nothing follows.
    async fn cut_off(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        rest(&mut stream).await
    }

    async fn stream(&self, path: &str) -> WebSocketStream<UnixStream> {
        let url = format!("ws://kiln{path}");
        tokio_tungstenite::client_async(url, self.connect().await)
            .await
            .unwrap()
            .0
    }

    async fn is_well(&self) {
        assert_eq!(self.client.version().await.unwrap().api, 1);
    }

    /// Ends it; fails when one of its requests does not end.
    async fn end(self) {
        self.is_well().await;
        self.client.shutdown().await.unwrap();
        timeout(SOON, self.task).await.unwrap().unwrap();
    }
}

/// All that comes until the daemon closes.
async fn rest(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut answer))
        .await
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(line: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{line} HTTP/1.1\r\nhost: kiln\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// Status and code of a refusal.
fn refusal(answer: &str) -> (u16, String) {
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body: ErrorBody = serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"));
    assert!(!body.error.message.is_empty());
    (status, body.error.code)
}

#[tokio::test]
async fn requests_outside_the_contract_are_refused_in_its_words() {
    let served = Served::new().await;
    let deep = "[".repeat(100_000);
    let cases = [
        ("GET /", "", 404, "NO_SUCH_PATH"),
        ("GET /v2/sandboxes", "", 404, "NO_SUCH_PATH"),
        ("PUT /v1/sandboxes", "", 405, "METHOD_NOT_ALLOWED"),
        ("GET /v1/shutdown", "", 405, "METHOD_NOT_ALLOWED"),
        ("GET /v1/sandboxes/nobody", "", 404, "NOT_FOUND"),
        ("GET /v1/sandboxes/%ff", "", 400, "INVALID_REQUEST"),
        ("GET /v1/sandboxes/..%2f..%2fetc", "", 404, "NOT_FOUND"),
        (
            "DELETE /v1/sandboxes/x?force=maybe",
            "",
            400,
            "INVALID_REQUEST",
        ),
        (
            "DELETE /v1/sandboxes/x?farce=true",
            "",
            400,
            "INVALID_REQUEST",
        ),
        (
            "GET /v1/sandboxes/x/logs?tail=-1",
            "",
            400,
            "INVALID_REQUEST",
        ),
        (
            "GET /v1/sandboxes/x/logs?tail=99999999",
            "",
            400,
            "INVALID_REQUEST",
        ),
        ("POST /v1/sandboxes", "{", 400, "INVALID_REQUEST"),
        ("POST /v1/sandboxes", "[]", 400, "INVALID_REQUEST"),
        (
            "POST /v1/sandboxes",
            r#"{"mem_mb":1}"#,
            400,
            "INVALID_REQUEST",
        ),
        (
            "POST /v1/sandboxes",
            r#"{"vcpus":300}"#,
            400,
            "INVALID_REQUEST",
        ),
        ("POST /v1/sandboxes", r#"{"vcpus":0}"#, 400, "INVALID_SPEC"),
        ("POST /v1/sandboxes", &deep, 400, "INVALID_REQUEST"),
        (
            "POST /v1/sandboxes/x/stop",
            r#"{"grace_ms":-1}"#,
            400,
            "INVALID_REQUEST",
        ),
        ("GET /v1/run", "", 400, "INVALID_REQUEST"),
        (
            "GET /v1/sandboxes/x/sessions/notanumber/attach",
            "",
            400,
            "INVALID_REQUEST",
        ),
    ];
    for (line, body, status, code) in cases {
        let answer = served.raw(request(line, body).as_bytes()).await;
        assert_eq!(
            refusal(&answer),
            (status, code.to_owned()),
            "{line} {body:.40}"
        );
    }
    assert!(
        served.client.list(&[]).await.unwrap().is_empty(),
        "nothing of it had an effect"
    );
    served.end().await;
}

#[tokio::test]
async fn a_body_has_a_limit() {
    let served = Served::new().await;
    let large = request("POST /v1/sandboxes", &" ".repeat(1024 * 1024 + 1));
    let answer = served.raw(large.as_bytes()).await;
    assert_eq!(refusal(&answer), (413, "REQUEST_TOO_LARGE".to_owned()));
    served.end().await;
}

#[tokio::test]
async fn bytes_that_are_no_http_cost_a_connection_and_no_more() {
    let served = Served::new().await;
    let endless_header = format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(1024 * 1024));
    let many_headers = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(10_000));
    let cases: [&[u8]; 6] = [
        b"",
        b"\0\0\0\0",
        b"GET",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        endless_header.as_bytes(),
        many_headers.as_bytes(),
    ];
    for bytes in cases {
        let answer = served.cut_off(bytes).await;
        assert!(!answer.contains(" 200 "), "{answer}");
        served.is_well().await;
    }
    served.end().await;
}

#[tokio::test]
async fn no_bytes_upset_it() {
    let served = Served::new().await;
    // Collected first: a property test's closure cannot wait.
    let mut runner = TestRunner::deterministic();
    let requests = proptest::collection::vec(any::<u8>(), 0..300);
    let paths = "GET /v1/[a-z/%.?=&]{0,40} HTTP/1.1\r\n[a-zA-Z-]{1,12}: [ -~]{0,40}\r\n\r\n";
    for _ in 0..200 {
        let bytes = requests.new_tree(&mut runner).unwrap().current();
        served.cut_off(&bytes).await;
        let text = paths.new_tree(&mut runner).unwrap().current();
        served.cut_off(text.as_bytes()).await;
    }
    served.end().await;
}

#[tokio::test]
async fn a_client_that_says_nothing_is_let_go() {
    let served = Served::new().await;
    let mut silent = served.connect().await;
    let mut slow = served.connect().await;
    slow.write_all(b"GET /v1/version HTTP/1.1\r\nhost: ")
        .await
        .unwrap();
    for stream in [&mut silent, &mut slow] {
        let mut answer = Vec::new();
        timeout(SOON, stream.read_to_end(&mut answer))
            .await
            .unwrap()
            .unwrap();
    }
    served.end().await;
}

/// The error that a stream ends with.
async fn stream_error(stream: &mut WebSocketStream<UnixStream>) -> String {
    loop {
        match timeout(SOON, stream.next()).await.unwrap() {
            Some(Ok(Message::Text(text))) => match ServerControl::parse(&text).unwrap() {
                ServerControl::Error(report) => return report.code,
                other => panic!("{other:?}"),
            },
            Some(Ok(_)) => {}
            other => panic!("no error: {other:?}"),
        }
    }
}

#[tokio::test]
async fn streams_outside_the_contract_are_refused_in_its_words() {
    let served = Served::new().await;
    let run = "/v1/run";
    let cases = [
        (run, Message::text("")),
        (run, Message::text("{")),
        (run, Message::text(r#"{"image":"x"}"#)),
        (run, Message::text(r#"{"exec":{"argv":"ls"}}"#)),
        (run, Message::binary(vec![0, 1, 2])),
        ("/v1/sandboxes/x/exec", Message::text(r#"{"args":[]}"#)),
        (
            "/v1/sandboxes/x/sessions/1/attach",
            Message::text(r#"{"x":1}"#),
        ),
    ];
    for (path, message) in cases {
        let mut stream = served.stream(path).await;
        stream.send(message.clone()).await.unwrap();
        assert_eq!(
            stream_error(&mut stream).await,
            "INVALID_REQUEST",
            "{path} {message:?}"
        );
        while let Some(Ok(_)) = timeout(SOON, stream.next()).await.unwrap() {}
    }
    let mut stream = served.stream("/v1/sandboxes/x/exec").await;
    stream
        .send(Message::text(r#"{"argv":["true"]}"#))
        .await
        .unwrap();
    assert_eq!(stream_error(&mut stream).await, "NOT_FOUND");
    served.end().await;
}

#[tokio::test]
async fn streams_that_break_off_leave_nothing() {
    let served = Served::new().await;
    for bytes in [
        // A frame larger than any, not masked, of a kind that does not exist, cut off.
        &[0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff][..],
        &[0x81, 0x02, b'{', b'}'],
        &[0x8f, 0x80, 0, 0, 0, 0],
        &[0x81],
        &[],
    ] {
        let mut stream = served.stream("/v1/run").await;
        let raw = stream.get_mut();
        raw.write_all(bytes).await.unwrap();
        raw.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let _ = timeout(SOON, raw.read_to_end(&mut rest)).await.unwrap();
    }
    // A first message with more than any honest one.
    let mut stream = served.stream("/v1/run").await;
    let _ = stream
        .send(Message::text(" ".repeat(2 * 1024 * 1024)))
        .await;
    while let Some(Ok(_)) = timeout(SOON, stream.next()).await.unwrap() {}
    assert!(served.client.list(&[]).await.unwrap().is_empty());
    served.end().await;
}

#[tokio::test]
async fn a_refused_stream_carries_the_same_error_as_a_request() {
    let served = Served::new().await;
    let stale = Client::new(&served.socket).with_version("0.0.1");
    let request = kiln_api::RunRequest::default();
    let Err(ClientError::Refused { report, .. }) = stale.run(&request).await else {
        panic!("not refused")
    };
    assert_eq!(report.code, "VERSION_MISMATCH");
    served.end().await;
}

#[tokio::test]
async fn a_run_that_cannot_start_leaves_no_sandbox() {
    let served = Served::new().await;
    let request = kiln_api::RunRequest {
        sandbox: CreateSandbox {
            kernel: Some("/nonexistent".into()),
            ..CreateSandbox::default()
        },
        ..kiln_api::RunRequest::default()
    };
    let mut stream = served.client.run(&request).await.unwrap();
    let mut failed = false;
    while let Some(message) = timeout(SOON, stream.receiver.next())
        .await
        .unwrap()
        .unwrap()
    {
        failed |= matches!(
            message,
            kiln_api::client::ServerMessage::Control(ServerControl::Error(_))
        );
    }
    assert!(failed);
    assert!(served.client.list(&[]).await.unwrap().is_empty());
    served.end().await;
}
