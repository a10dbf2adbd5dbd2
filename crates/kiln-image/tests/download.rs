//! Downloads from a local server that behaves, and from ones that do not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and tells what it skips and measures"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kiln_image::Silent;
use kiln_image::download::{Download, DownloadError, fetch_blocking};
use kiln_image::kernel::{Architecture, KernelError, KernelSource, KernelStore, PinnedKernel};
use sha2::{Digest, Sha256};

/// A server that answers every request with what `answer` writes, given the path asked for.
struct Server {
    url: String,
    requests: Arc<AtomicUsize>,
}

impl Server {
    fn start(answer: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let (count, answer) = (Arc::clone(&requests), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(mut stream), answer) = (stream, Arc::clone(&answer)) else {
                    return;
                };
                count.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    let mut request = Vec::new();
                    let mut byte = [0];
                    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                        request.push(byte[0]);
                    }
                    let request = String::from_utf8_lossy(&request).into_owned();
                    answer(request.split(' ').nth(1).unwrap_or_default(), &mut stream);
                });
            }
        });
        Self { url, requests }
    }

    fn of(content: &'static [u8]) -> Self {
        Self::start(move |_, stream| respond(stream, "200 OK", content.len(), content))
    }
}

fn respond(stream: &mut TcpStream, status: &str, length: usize, content: &[u8]) {
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(content);
}

fn digest(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

/// Fetches into a fresh directory; on failure nothing may be left in it.
fn fetch(server: &Server, sha256: &str, size: Option<u64>) -> Result<Vec<u8>, DownloadError> {
    fetch_within(Duration::from_secs(20), server, sha256, size)
}

fn fetch_within(
    stall: Duration,
    server: &Server,
    sha256: &str,
    size: Option<u64>,
) -> Result<Vec<u8>, DownloadError> {
    let directory = tempfile::tempdir().unwrap();
    let target: PathBuf = directory.path().join("file");
    let url = format!("{}/file", server.url);
    let download = Download {
        size,
        stall,
        max_size: 1 << 20,
        ..Download::new(&url, sha256)
    };
    let result = fetch_blocking(&download, &target, &Silent);
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    match result {
        Ok(fetched) => {
            assert_eq!(left.len(), 1);
            assert!(fetched.sha256.eq_ignore_ascii_case(sha256));
            Ok(std::fs::read(target).unwrap())
        }
        Err(error) => {
            assert!(left.is_empty(), "{left:?} is left after {error}");
            Err(error)
        }
    }
}

const CONTENT: &[u8] = b"the kernel";

#[test]
fn good_content_arrives_with_and_without_a_known_size() {
    let server = Server::of(CONTENT);
    assert_eq!(fetch(&server, &digest(CONTENT), Some(10)).unwrap(), CONTENT);
    assert_eq!(fetch(&server, &digest(CONTENT), None).unwrap(), CONTENT);
    assert_eq!(
        fetch(&server, &digest(CONTENT).to_uppercase(), None).unwrap(),
        CONTENT
    );
}

#[test]
fn other_content_is_refused() {
    let server = Server::of(b"the kernal");
    let error = fetch(&server, &digest(CONTENT), Some(10)).unwrap_err();
    assert!(
        matches!(error, DownloadError::WrongDigest { .. }),
        "{error}"
    );
}

#[test]
fn other_sizes_are_refused_before_they_are_read() {
    let server = Server::of(b"the kernel and more");
    for size in [Some(10), Some(30)] {
        let error = fetch(&server, &digest(CONTENT), size).unwrap_err();
        assert!(
            matches!(error, DownloadError::WrongSize { received: 19, .. }),
            "{error}"
        );
    }
    let huge = Server::start(|_, stream| respond(stream, "200 OK", 1 << 30, b"x"));
    let error = fetch(&huge, &digest(CONTENT), None).unwrap_err();
    assert!(matches!(error, DownloadError::WrongSize { .. }), "{error}");
}

#[test]
fn a_body_without_an_end_is_cut_at_the_limit() {
    let server = Server::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
        while stream.write_all(&[0; 4096]).is_ok() {}
    });
    let error = fetch(&server, &digest(CONTENT), None).unwrap_err();
    assert!(matches!(error, DownloadError::WrongSize { .. }), "{error}");
}

#[test]
fn a_broken_transfer_is_refused() {
    let server = Server::start(|_, stream| respond(stream, "200 OK", 10, b"the"));
    let error = fetch(&server, &digest(CONTENT), Some(10)).unwrap_err();
    assert!(
        matches!(error, DownloadError::Interrupted { .. }),
        "{error}"
    );
}

#[test]
fn a_refusal_names_status_and_address() {
    let server = Server::start(|_, stream| respond(stream, "404 Not Found", 4, b"gone"));
    let error = fetch(&server, &digest(CONTENT), Some(10)).unwrap_err();
    assert!(
        matches!(error, DownloadError::Status { status: 404, .. }),
        "{error}"
    );
    assert!(error.to_string().contains(&server.url), "{error}");
}

#[test]
fn a_transfer_that_stops_is_given_up() {
    for head in ["", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nthe"] {
        let server = Server::start(move |_, stream| {
            let _ = stream.write_all(head.as_bytes());
            // Holds the connection until the client gives up.
            let _ = stream.read(&mut [0]);
        });
        let stall = Duration::from_millis(500);
        let error = fetch_within(stall, &server, &digest(CONTENT), Some(10)).unwrap_err();
        assert!(matches!(error, DownloadError::Stalled { .. }), "{error}");
    }
}

#[test]
fn redirects_are_followed_but_not_for_ever() {
    let server = Server::start(|path, stream| {
        if path == "/real" {
            respond(stream, "200 OK", CONTENT.len(), CONTENT);
        } else {
            let head = "HTTP/1.1 302 Found\r\nlocation: /real\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.write_all(head.as_bytes());
        }
    });
    assert_eq!(fetch(&server, &digest(CONTENT), None).unwrap(), CONTENT);

    let server = Server::start(|_, stream| {
        let head = "HTTP/1.1 302 Found\r\nlocation: /loop\r\ncontent-length: 0\r\n\
                    connection: close\r\n\r\n";
        let _ = stream.write_all(head.as_bytes());
    });
    let error = fetch(&server, &digest(CONTENT), None).unwrap_err();
    assert!(
        matches!(error, DownloadError::TooManyRedirects { .. }),
        "{error}"
    );
    assert_eq!(server.requests.load(Ordering::SeqCst), 6);
}

#[test]
fn nobody_listening_and_strange_addresses_are_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let closed = Server {
        url,
        requests: Arc::default(),
    };
    let error = fetch(&closed, &digest(CONTENT), None).unwrap_err();
    assert!(matches!(error, DownloadError::Connect { .. }), "{error}");
    for url in [
        "ftp://example.com",
        "file:///etc/passwd",
        "",
        "http://",
        "no scheme",
    ] {
        let server = Server {
            url: url.to_owned(),
            requests: Arc::default(),
        };
        let error = fetch(&server, &digest(CONTENT), None).unwrap_err();
        assert!(
            matches!(error, DownloadError::InvalidUrl { .. }),
            "{url}: {error}"
        );
    }
}

#[test]
fn a_pinned_kernel_is_fetched_once_and_checked_to_be_a_kernel() {
    let this: &'static [u8] = std::fs::read(std::env::current_exe().unwrap())
        .unwrap()
        .leak();
    let server = Server::of(this);
    let pin = |content: &[u8]| PinnedKernel {
        version: "1.2.3".to_owned(),
        architecture: Architecture::host().name().to_owned(),
        url: format!("{}/vmlinux", server.url),
        size: None,
        sha256: digest(content),
    };
    let source = KernelSource::FirecrackerCi {
        version: "1.2.3".to_owned(),
    };
    let directory = tempfile::tempdir().unwrap();
    let open = || KernelStore::open(directory.path()).unwrap();

    let store = open().with_pins(vec![pin(this)]);
    let bundle = store.ensure(&source, &Silent).unwrap();
    assert_eq!(store.ensure(&source, &Silent).unwrap(), bundle);
    assert_eq!(
        open()
            .with_pins(vec![pin(this)])
            .ensure(&source, &Silent)
            .unwrap(),
        bundle
    );
    assert_eq!(server.requests.load(Ordering::SeqCst), 1);
    assert_eq!(std::fs::read(&bundle.vmlinux).unwrap(), this);

    let other = open()
        .with_pins(vec![pin(b"other")])
        .ensure(&source, &Silent);
    assert!(matches!(
        other,
        Err(KernelError::Download(DownloadError::WrongDigest { .. }))
    ));
    let unknown = open().ensure(&source, &Silent);
    assert!(matches!(unknown, Err(KernelError::UnknownVersion { .. })));

    let text = Server::of(b"<html>not a kernel</html>");
    let url = format!("{}/vmlinux", text.url);
    let pins = vec![PinnedKernel {
        url,
        ..pin(b"<html>not a kernel</html>")
    }];
    let refused = open().with_pins(pins).ensure(&source, &Silent);
    assert!(
        matches!(refused, Err(KernelError::NotAKernel { .. })),
        "{refused:?}"
    );
}
