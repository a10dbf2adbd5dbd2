//! Against a server that gives good, wrong, torn, slow and no answers.

use std::collections::HashMap;
use std::env::consts::ARCH;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::*;
use crate::progress::Silent;
use crate::publish::digest;

#[derive(Clone)]
enum Answer {
    Body(Vec<u8>),
    /// Announces the whole and closes after this much.
    Torn(Vec<u8>, usize),
    /// Announces and sends nothing more.
    Silence(usize),
    Redirect(String),
}

/// A server on this machine; counts what it was asked.
struct Server {
    url: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    archives: Arc<AtomicUsize>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers: Arc<Mutex<HashMap<String, Answer>>> = Arc::default();
        let archives = Arc::new(AtomicUsize::new(0));
        let (known, count) = (Arc::clone(&answers), Arc::clone(&archives));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (known, count) = (Arc::clone(&known), Arc::clone(&count));
                std::thread::spawn(move || serve(stream, &known, &count));
            }
        });
        Self {
            url,
            answers,
            archives,
        }
    }

    fn answer(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// A whole release.
    fn publish(&self, tag: &str) -> Vec<u8> {
        let archive = release((tag, ARCH), |_| {});
        self.publish_archive(tag, &archive);
        archive
    }

    fn publish_archive(&self, tag: &str, archive: &[u8]) {
        self.publish_at(path((tag, ARCH)), archive);
    }

    fn publish_at(&self, (path, name): (String, String), archive: &[u8]) {
        let sums = format!("{}  {name}\n", digest(archive));
        self.answer(
            &format!("{path}.sha256.txt"),
            Answer::Body(sums.into_bytes()),
        );
        self.answer(&path, Answer::Body(archive.to_vec()));
    }

    fn store(&self, dir: &Path) -> FirecrackerStore {
        FirecrackerStore::new(dir)
            .with_releases(&self.url)
            .with_stall(Duration::from_secs(2))
    }
}

/// Of a version and a processor.
type Which<'w> = (&'w str, &'w str);

fn path((tag, arch): Which<'_>) -> (String, String) {
    let name = format!("firecracker-{tag}-{arch}.tgz");
    (format!("/download/{tag}/{name}"), name)
}

fn serve(mut stream: TcpStream, known: &Mutex<HashMap<String, Answer>>, archives: &AtomicUsize) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else {
        return;
    };
    for line in lines.by_ref() {
        if line.unwrap_or_default().is_empty() {
            break;
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    if path.ends_with(".tgz") {
        archives.fetch_add(1, Ordering::SeqCst);
    }
    let answer = known.lock().unwrap().get(&path).cloned();
    let head = |length: usize| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
    };
    let _ = match answer {
        None => {
            stream.write_all(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        }
        Some(Answer::Redirect(to)) => stream.write_all(
            format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").as_bytes(),
        ),
        Some(Answer::Body(body)) => stream
            .write_all(head(body.len()).as_bytes())
            .and_then(|()| stream.write_all(&body)),
        Some(Answer::Torn(body, length)) => stream
            .write_all(head(body.len()).as_bytes())
            .and_then(|()| stream.write_all(&body[..length])),
        Some(Answer::Silence(length)) => {
            let sent = stream.write_all(head(length).as_bytes());
            std::thread::sleep(Duration::from_secs(5));
            sent
        }
    };
}

/// A release's archive, after `change` of its members.
fn release((tag, arch): Which<'_>, change: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
    let suffix = format!("{tag}-{arch}");
    let member = |name: &str| {
        (
            format!("{name}-{suffix}"),
            format!("the {name} of {tag}").into_bytes(),
        )
    };
    let mut members = vec![
        member("firecracker"),
        member("jailer"),
        member("seccompiler-bin"),
    ];
    let sums: String = members
        .iter()
        .map(|(name, bytes)| format!("{}  {name}\n", digest(bytes)))
        .collect();
    members.push(("SHA256SUMS".to_owned(), sums.into_bytes()));
    change(&mut members);
    let mut tar = Vec::new();
    for (name, bytes) in members {
        tar.extend(header(&format!("release-{suffix}/{name}"), bytes.len()));
        tar.extend(&bytes);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&tar).unwrap();
    packed.finish().unwrap()
}

fn header(name: &str, size: usize) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, name);
    put(100, "0000755");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\u{0}00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn tag(text: &str) -> ReleaseTag {
    text.parse().unwrap()
}

fn pinned(text: &str) -> Release {
    Release::Pinned(tag(text))
}

/// Whatever went wrong, nothing of it may be taken for a release, or stay.
fn nothing_in(dir: &Path) {
    let left: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with(".lock-"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

/// A2.1, A2.2.
#[tokio::test]
async fn a2_1_the_latest_release_is_found_installed_and_kept() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    server.publish("v1.16.1");
    let leads_to = format!("{}/tag/v1.16.1", server.url);
    server.answer("/latest", Answer::Redirect(leads_to));
    let store = server.store(dir.path());
    assert_eq!(store.latest().await.unwrap(), tag("v1.16.1"));
    let release = store.install(&Release::Latest, &Silent).await.unwrap();
    assert_eq!(
        fs::read(&release.firecracker).unwrap(),
        b"the firecracker of v1.16.1"
    );
    assert_eq!(release.firecracker.file_name().unwrap(), "firecracker");
    let mode = fs::metadata(&release.jailer).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    // From now on without a network.
    let offline = store.clone().offline();
    assert_eq!(
        offline.install(&pinned("v1.16.1"), &Silent).await.unwrap(),
        release
    );
    assert!(matches!(
        offline.install(&pinned("v1.15.0"), &Silent).await,
        Err(ReleaseError::Offline(_))
    ));
    assert_eq!(server.archives.load(Ordering::SeqCst), 1);
    assert_eq!(offline.newest_installed(), Some(release.clone()));
    // A program that was changed is no release any more.
    fs::write(&release.jailer, "another").unwrap();
    assert!(store.installed(&tag("v1.16.1")).is_err());
    assert_eq!(store.newest_installed(), None);
}

#[tokio::test]
async fn a2_2_callers_at_the_same_time_download_once() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    server.publish("v1.15.1");
    let store = server.store(dir.path());
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.install(&pinned("v1.15.1"), &Silent).await })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    assert_eq!(server.archives.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a2_2_a_wrong_archive_is_never_taken() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let good = server.publish("v1.14.0");
    let (path, name) = path(("v1.14.0", ARCH));
    let store = server.store(dir.path());
    let mut corrupt = good.clone();
    corrupt[60] ^= 1;
    for (answer, what) in [
        (Answer::Body(corrupt), "corrupt"),
        (Answer::Torn(good.clone(), good.len() / 2), "torn"),
        (Answer::Body(good[..good.len() / 2].to_vec()), "truncated"),
        (Answer::Redirect("/nowhere".to_owned()), "gone"),
    ] {
        server.answer(&path, answer);
        let error = store
            .install(&pinned("v1.14.0"), &Silent)
            .await
            .unwrap_err();
        assert!(
            matches!(error, ReleaseError::Download(_)),
            "{what}: {error:?}"
        );
        nothing_in(dir.path());
    }
    server.answer(&path, Answer::Silence(good.len()));
    let begin = Instant::now();
    let error = store
        .install(&pinned("v1.14.0"), &Silent)
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        ReleaseError::Download(DownloadError::Stalled { .. })
    ));
    assert!(begin.elapsed() < Duration::from_secs(20));
    nothing_in(dir.path());

    let other = format!("{}  other.tgz\n", digest(&good));
    for sums in [other.into_bytes(), b"<html>".to_vec(), vec![b'x'; 10_000]] {
        server.answer(&format!("{path}.sha256.txt"), Answer::Body(sums));
        assert!(store.install(&pinned("v1.14.0"), &Silent).await.is_err());
        nothing_in(dir.path());
    }
    // After all that, the good one.
    server.publish_archive("v1.14.0", &good);
    assert!(name.contains("v1.14.0"));
    store.install(&pinned("v1.14.0"), &Silent).await.unwrap();
}

#[tokio::test]
async fn a2_2_an_archive_that_contradicts_itself_is_refused() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let store = server.store(dir.path());
    type Change = fn(&mut Vec<(String, Vec<u8>)>);
    let changes: [(Change, &str); 5] = [
        (|members| members[0].1.push(b'!'), "another SHA-256"),
        (|members| drop(members.remove(1)), "has no jailer"),
        (|members| drop(members.pop()), "has no SHA256SUMS"),
        (
            |members| members[3].1 = b"nothing".to_vec(),
            "does not name",
        ),
        (|members| members.push(members[0].clone()), "twice"),
    ];
    for (change, words) in changes {
        server.publish_archive("v1.13.1", &release(("v1.13.1", ARCH), change));
        let error = store
            .install(&pinned("v1.13.1"), &Silent)
            .await
            .unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        nothing_in(dir.path());
    }
}

#[tokio::test]
async fn a2_1_a_latest_that_leads_nowhere_is_told() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let store = server.store(dir.path());
    assert!(matches!(
        store.latest().await,
        Err(ReleaseError::Latest(DownloadError::Status {
            status: 404,
            ..
        }))
    ));
    server.answer("/latest", Answer::Redirect("/tag/../../etc".to_owned()));
    assert!(matches!(
        store.latest().await,
        Err(ReleaseError::NoLatest { .. })
    ));
}

#[tokio::test]
async fn a1_5_releases_are_this_hosts_unless_another_processor_is_named() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    for arch in ["x86_64", "aarch64"] {
        let which = ("v1.16.1", arch);
        server.publish_at(path(which), &release(which, |_| {}));
    }
    let tag = pinned("v1.16.1");
    for (store, arch) in [
        (server.store(dir.path()), ARCH),
        (
            server
                .store(dir.path())
                .with_architecture(Architecture::X86_64),
            "x86_64",
        ),
        (
            server
                .store(dir.path())
                .with_architecture(Architecture::Aarch64),
            "aarch64",
        ),
    ] {
        let installed = store.install(&tag, &Silent).await.unwrap();
        let dir = installed.firecracker.parent().unwrap().file_name().unwrap();
        assert_eq!(dir.to_str().unwrap(), format!("v1.16.1-{arch}"));
    }
    assert_eq!(server.archives.load(Ordering::SeqCst), 2, "one for each");
}
