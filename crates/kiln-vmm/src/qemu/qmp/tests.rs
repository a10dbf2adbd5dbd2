//! The client against a server of the test's own.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::*;

const SOON: Duration = Duration::from_secs(20);
const GREETING: &str = r#"{"QMP":{"version":{"qemu":{"micro":0,"minor":2,"major":7},"package":""},"capabilities":[]}}"#;

/// QEMU's side of a connection.
struct Server(BufReader<UnixStream>);

impl Server {
    async fn say(&mut self, line: &str) {
        self.0
            .write_all(format!("{line}\r\n").as_bytes())
            .await
            .unwrap();
    }

    /// The next command and its number.
    async fn hear(&mut self) -> (String, u64) {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        let command: Value = serde_json::from_str(&line).unwrap();
        let name = command["execute"].as_str().unwrap().to_owned();
        (name, command["id"].as_u64().unwrap())
    }
}

/// A client that has been greeted.
async fn started() -> (Arc<Qmp>, Server) {
    let (near, far) = UnixStream::pair().unwrap();
    let mut server = Server(BufReader::new(far));
    let start = tokio::spawn(Qmp::start(near, SOON));
    server.say(GREETING).await;
    let (name, id) = server.hear().await;
    assert_eq!(name, "qmp_capabilities");
    server.say(&format!(r#"{{"return":{{}},"id":{id}}}"#)).await;
    (Arc::new(start.await.unwrap().unwrap()), server)
}

fn command(qmp: &Arc<Qmp>, name: &'static str) -> tokio::task::JoinHandle<Result<Value, QmpError>> {
    let qmp = Arc::clone(qmp);
    tokio::spawn(async move { qmp.command(name, Value::Null, SOON).await })
}

#[tokio::test]
async fn replies_find_their_commands_and_events_go_their_own_way() {
    let (qmp, mut server) = started().await;
    assert_eq!(qmp.version(), "7.2.0");
    let mut events = qmp.events();
    let first = command(&qmp, "stop");
    let (_, first_id) = server.hear().await;
    let second = command(&qmp, "cont");
    let (_, second_id) = server.hear().await;
    server.say(r#"{"event":"STOP","data":{"n":1}}"#).await;
    server
        .say(&format!(r#"{{"return":2,"id":{second_id}}}"#))
        .await;
    server.say(r#"{"return":0,"id":4711}"#).await;
    server
        .say(&format!(
            r#"{{"error":{{"class":"X","desc":"no"}},"id":{first_id}}}"#
        ))
        .await;
    assert_eq!(second.await.unwrap().unwrap(), json!(2));
    assert!(matches!(first.await.unwrap(), Err(QmpError::Refused(words)) if words == "no"));
    let event = events.recv().await.unwrap();
    assert_eq!((event.name.as_str(), &event.data["n"]), ("STOP", &json!(1)));
}

#[tokio::test]
async fn a_connection_that_ends_is_told_to_all_who_wait_and_all_who_come() {
    let (qmp, mut server) = started().await;
    let waiting = command(&qmp, "stop");
    server.hear().await;
    drop(server);
    assert!(matches!(waiting.await.unwrap(), Err(QmpError::Broken(_))));
    assert!(matches!(
        command(&qmp, "cont").await.unwrap(),
        Err(QmpError::Broken(_))
    ));
}

#[tokio::test]
async fn nonsense_ends_the_connection_instead_of_being_guessed_at() {
    for line in ["{}", "not json", GREETING, r#"{"return":"#] {
        let (qmp, mut server) = started().await;
        let waiting = command(&qmp, "stop");
        server.hear().await;
        server.say(line).await;
        assert!(
            matches!(waiting.await.unwrap(), Err(QmpError::Broken(_))),
            "{line}"
        );
    }
}

#[tokio::test]
async fn silence_costs_the_deadline_only() {
    let (qmp, mut server) = started().await;
    let deadline = Duration::from_millis(30);
    assert!(matches!(
        qmp.command("stop", Value::Null, deadline).await,
        Err(QmpError::Deadline(_))
    ));
    let (_, late) = server.hear().await;
    // The late answer finds nobody and disturbs nobody.
    let next = command(&qmp, "cont");
    let (_, id) = server.hear().await;
    server
        .say(&format!(r#"{{"return":{{}},"id":{late}}}"#))
        .await;
    server.say(&format!(r#"{{"return":7,"id":{id}}}"#)).await;
    assert_eq!(next.await.unwrap().unwrap(), json!(7));
}

#[tokio::test]
async fn a_stranger_on_the_socket_is_no_qemu() {
    for line in ["HTTP/1.1 400\r\n", "{\"return\":{}}\r\n", ""] {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(line.as_bytes()).await.unwrap();
        drop(far);
        assert!(Qmp::start(near, SOON).await.is_err(), "{line:?}");
    }
}

#[tokio::test]
async fn a_descriptor_travels_with_its_command() {
    let (qmp, server) = started().await;
    let (mut reader, writer) = std::io::pipe().unwrap();
    let given = {
        let qmp = Arc::clone(&qmp);
        tokio::spawn(async move { qmp.give_fd("snap", writer.as_fd(), SOON).await })
    };
    // Received by hand: the descriptor comes beside the bytes.
    let mut stream = server.0.into_inner();
    stream.readable().await.unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 1024];
    let received = rustix::net::recvmsg(
        &stream,
        &mut [std::io::IoSliceMut::new(&mut bytes)],
        &mut control,
        rustix::net::RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    let fd = control
        .drain()
        .find_map(|message| match message {
            rustix::net::RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .unwrap();
    let line: Value = serde_json::from_slice(&bytes[..received.bytes]).unwrap();
    assert_eq!(line["execute"], "getfd");
    assert_eq!(line["arguments"]["fdname"], "snap");
    let answer = format!("{}\n", json!({"return": {}, "id": line["id"]}));
    stream.write_all(answer.as_bytes()).await.unwrap();
    given.await.unwrap().unwrap();
    std::fs::File::from(fd).write_all(b"same pipe").unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "same pipe");
}
