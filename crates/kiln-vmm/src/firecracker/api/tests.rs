//! The client against a server that does what the real one cannot be made to do.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::super::config::{InstanceInfo, InstanceState};
use super::*;

const SOON: Duration = Duration::from_secs(20);
const AT_ONCE: Duration = Duration::from_millis(50);

/// What the server does with one request.
enum Answer {
    /// Sends these bytes.
    Send(String),
    /// Sends these bytes and closes.
    SendAndClose(String),
    /// Never answers.
    Nothing,
}

/// A client whose server answers its requests in this order; the requests come back.
async fn client(answers: Vec<Answer>) -> (Client, mpsc::UnboundedReceiver<String>) {
    let (near, far) = UnixStream::pair().unwrap();
    let (seen, requests) = mpsc::unbounded_channel();
    tokio::spawn(serve(far, answers, seen));
    (Client::over(near).await.unwrap(), requests)
}

async fn serve(mut stream: UnixStream, answers: Vec<Answer>, seen: mpsc::UnboundedSender<String>) {
    for answer in answers {
        let Some(request) = read_request(&mut stream).await else {
            return;
        };
        let _ = seen.send(request);
        match answer {
            Answer::Send(bytes) => stream.write_all(bytes.as_bytes()).await.unwrap(),
            Answer::SendAndClose(bytes) => {
                stream.write_all(bytes.as_bytes()).await.unwrap();
                return;
            }
            Answer::Nothing => {}
        }
    }
    // Keeps the connection: who asked for nothing more is not told that the server is gone.
    let _ = stream.read_u8().await;
}

async fn read_request(stream: &mut UnixStream) -> Option<String> {
    let mut request = String::new();
    loop {
        let mut buffer = [0; 4096];
        let count = stream
            .read(&mut buffer)
            .await
            .ok()
            .filter(|count| *count > 0)?;
        request.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        if let Some((head, body)) = request.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| {
                    line.to_lowercase()
                        .strip_prefix("content-length: ")?
                        .parse()
                        .ok()
                })
                .unwrap_or(0);
            if body.len() >= length {
                return Some(request);
            }
        }
    }
}

fn answer(status: &str, body: &str) -> Answer {
    Answer::Send(format!(
        "HTTP/1.1 {status}\r\nServer: Firecracker API\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

async fn put(client: &Client, deadline: Duration) -> Result<(), ApiError> {
    client
        .send_body(Method::PUT, "/vsock", &json!({"guest_cid": 3}), deadline)
        .await
}

#[tokio::test]
async fn a_request_is_what_firecracker_understands() {
    let (client, mut requests) = client(vec![answer("204 No Content", "")]).await;
    put(&client, SOON).await.unwrap();
    let request = requests.recv().await.unwrap().to_lowercase();
    assert!(request.starts_with("put /vsock http/1.1\r\n"), "{request}");
    assert!(request.contains("\r\ncontent-length: 15\r\n"));
    assert!(request.contains("\r\naccept: application/json\r\n"));
    assert!(!request.contains("transfer-encoding"));
    assert!(request.ends_with("\r\n\r\n{\"guest_cid\":3}"));
}

#[tokio::test]
async fn many_requests_share_the_connection() {
    let (client, _requests) = client((0..20).map(|_| answer("204", "")).collect()).await;
    for _ in 0..20 {
        put(&client, SOON).await.unwrap();
    }
}

#[tokio::test]
async fn a_refusal_is_told_in_the_vmms_words_and_the_next_call_works() {
    let (client, _requests) = client(vec![
        answer("400 Bad Request", r#"{"fault_message":"no such thing"}"#),
        answer("400", r#"{"error":"bad http"}"#),
        answer("503 Service Unavailable", "too many connections"),
        answer("400 Bad Request", ""),
        answer("204", ""),
    ])
    .await;
    for (status, words) in [
        (400, "no such thing"),
        (400, "bad http"),
        (503, "too many connections"),
        (400, ""),
    ] {
        let Err(ApiError::Refused {
            status: seen,
            message,
        }) = put(&client, SOON).await
        else {
            panic!("not refused");
        };
        assert_eq!((seen, message.as_str()), (status, words));
    }
    put(&client, SOON).await.unwrap();
}

#[tokio::test]
async fn unknown_fields_and_headers_and_a_missing_reason_are_taken_as_they_come() {
    let body = r#"{"id":"m","state":"Running","vmm_version":"9.9.9","more":[1,{"a":2}]}"#;
    let head = format!(
        "HTTP/1.1 200\r\nDeprecation: true\r\nX-New: a\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (client, _requests) = client(vec![Answer::Send(head)]).await;
    let info: InstanceInfo = client.get("/", SOON).await.unwrap();
    assert_eq!(info.state, InstanceState::Running);
    assert_eq!(info.vmm_version, "9.9.9");
}

#[tokio::test]
async fn an_answer_that_is_no_json_is_told_as_such() {
    let (client, _requests) = client(vec![answer("200 OK", "<html>")]).await;
    assert!(matches!(
        client.get::<InstanceInfo>("/", SOON).await,
        Err(ApiError::Answer(_))
    ));
}

#[tokio::test]
async fn a_server_that_never_answers_costs_the_deadline_and_the_connection() {
    let (client, _requests) = client(vec![Answer::Nothing, answer("204", "")]).await;
    assert!(matches!(
        put(&client, AT_ONCE).await,
        Err(ApiError::Deadline(AT_ONCE))
    ));
    // Its state is unknown: nothing more is sent.
    assert!(matches!(put(&client, SOON).await, Err(ApiError::Broken(_))));
}

#[tokio::test]
async fn a_call_that_is_given_up_ends_the_connection_too() {
    let (client, mut requests) = client(vec![Answer::Nothing, answer("204", "")]).await;
    tokio::select! {
        biased;
        outcome = put(&client, SOON) => panic!("{outcome:?}"),
        request = requests.recv() => assert!(request.is_some()),
    }
    assert!(matches!(put(&client, SOON).await, Err(ApiError::Broken(_))));
}

#[tokio::test]
async fn a_server_that_breaks_off_is_noticed() {
    for bytes in [
        "",
        "HTTP/1.1 2",
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"id\":",
        "nonsense\r\n\r\n",
    ] {
        let (client, _requests) = client(vec![Answer::SendAndClose(bytes.into())]).await;
        assert!(
            matches!(
                client.get::<InstanceInfo>("/", SOON).await,
                Err(ApiError::Broken(_))
            ),
            "{bytes:?}"
        );
    }
}

#[tokio::test]
async fn an_endless_answer_does_not_fill_memory() {
    let body = "x".repeat(MAX_ANSWER_BYTES + 1);
    let (client, _requests) = client(vec![answer("200 OK", &body)]).await;
    assert!(matches!(
        client.get::<InstanceInfo>("/", SOON).await,
        Err(ApiError::Broken(_))
    ));
}

#[tokio::test]
async fn a_request_that_firecracker_would_cut_is_not_sent() {
    let (client, _requests) = client(vec![answer("204", "")]).await;
    let body = json!({ "boot_args": "x".repeat(MAX_REQUEST_BYTES) });
    assert!(matches!(
        client
            .send_body(Method::PUT, "/boot-source", &body, SOON)
            .await,
        Err(ApiError::TooLong(_))
    ));
    put(&client, SOON).await.unwrap();
}

proptest::proptest! {
    #[test]
    fn any_error_body_gives_bounded_words(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let _ = refusal(&body);
    }
}

#[test]
fn an_error_body_of_any_size_gives_bounded_words() {
    let body = json!({ "fault_message": "ä".repeat(100_000) }).to_string();
    assert_eq!(refusal(body.as_bytes()).chars().count(), 4096);
}

#[tokio::test]
async fn what_a_version_does_not_know_is_not_sent() {
    let (client, mut requests) = client(vec![answer("204", "")]).await;
    let client = client.for_version("1.13.1".parse().unwrap());
    let serial = super::super::config::Serial::default();
    assert!(matches!(
        client.send(&serial).await,
        Err(ApiError::NotInVersion {
            feature: Feature::Serial,
            ..
        })
    ));
    client
        .send(&super::super::config::Entropy::default())
        .await
        .unwrap();
    let first = requests.recv().await.unwrap();
    assert!(first.starts_with("PUT /entropy HTTP/1.1"), "{first}");
}

/// A5.10.
#[tokio::test]
async fn a5_10_a_raw_call_returns_status_and_body_whatever_they_are() {
    let (client, mut requests) = client(vec![
        answer("200", r#"{"new":[1]}"#),
        answer("400", r#"{"fault_message":"no"}"#),
        answer("204", ""),
        answer("500", "plain"),
    ])
    .await;
    let get = client.get_raw("/later", SOON).await.unwrap();
    assert_eq!((get.status, get.body), (200, json!({"new": [1]})));
    let put = client
        .put_raw("/later", &json!({"a": 1}), SOON)
        .await
        .unwrap();
    assert_eq!(
        (put.status, put.body),
        (400, json!({"fault_message": "no"}))
    );
    let patch = client.patch_raw("/later", &json!({}), SOON).await.unwrap();
    assert_eq!((patch.status, patch.body), (204, Value::Null));
    let odd = client.get_raw("/later", SOON).await.unwrap();
    assert_eq!((odd.status, odd.body), (500, json!("plain")));
    assert!(requests.recv().await.unwrap().starts_with("GET /later "));
    assert!(requests.recv().await.unwrap().ends_with(r#"{"a":1}"#));
}
