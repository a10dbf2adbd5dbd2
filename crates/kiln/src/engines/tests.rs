//! Fetching Firecracker where a machine needs it, against a server on this machine.
//!
//! Each test runs in a process of its own, without the variable that would name a binary: what is
//! to be fetched must not be there.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as Lock};
use std::time::Duration;

use kiln_image::Silent;
use sha2::{Digest, Sha256};

use super::*;

const TAG: &str = "v1.16.1";

/// Runs `inside_NAME` where no Firecracker is found.
fn alone(name: &str) {
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--ignored", "--exact", "--nocapture"])
        .arg(format!("engines::tests::inside_{name}"))
        .env_remove("KILN_FIRECRACKER")
        .env_remove("KILN_JAILER")
        .env("PATH", "/usr/bin:/bin")
        .output()
        .expect("this program");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

#[derive(Clone)]
enum Answer {
    Body(Vec<u8>),
    /// Announces the whole and closes after a half of it.
    Half(Vec<u8>),
    /// Announces it and sends nothing.
    Silence(usize),
    Redirect(String),
}

/// A page of releases; counts how often it was asked.
struct Server {
    url: String,
    answers: Arc<Lock<HashMap<String, Answer>>>,
    asked: Arc<AtomicUsize>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let answers: Arc<Lock<HashMap<String, Answer>>> = Arc::default();
        let asked = Arc::new(AtomicUsize::new(0));
        let (known, count) = (Arc::clone(&answers), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                serve(stream, &known);
            }
        });
        Self {
            url,
            answers,
            asked,
        }
    }

    fn answer(&self, path: &str, answer: Answer) {
        let mut answers = self.answers.lock().expect("no panic");
        answers.insert(path.to_owned(), answer);
    }

    /// A whole release, whose programs only know their version.
    fn publish(&self, dir: &Path) -> Vec<u8> {
        let archive = archive(dir);
        let (path, name) = archive_path();
        let sums = format!("{}  {name}\n", hex(&archive));
        self.answer(
            &format!("{path}.sha256.txt"),
            Answer::Body(sums.into_bytes()),
        );
        self.answer(&path, Answer::Body(archive.clone()));
        let leads_to = format!("{}/tag/{TAG}", self.url);
        self.answer("/latest", Answer::Redirect(leads_to));
        archive
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn serve(mut stream: TcpStream, known: &Lock<HashMap<String, Answer>>) {
    let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
    let first = lines.next().and_then(Result::ok).unwrap_or_default();
    let _ = lines.find(|line| line.as_ref().map_or(true, String::is_empty));
    let path = first.split(' ').nth(1).unwrap_or_default();
    let answer = known.lock().expect("no panic").get(path).cloned();
    let head = |status: &str, length: usize| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n")
    };
    let (text, body) = match answer {
        None => (head("404 No", 0), Vec::new()),
        Some(Answer::Redirect(to)) => (
            head("302 Found", 0) + &format!("Location: {to}\r\n"),
            Vec::new(),
        ),
        Some(Answer::Body(body)) => (head("200 OK", body.len()), body),
        Some(Answer::Half(body)) => (head("200 OK", body.len()), body[..body.len() / 2].to_vec()),
        Some(Answer::Silence(length)) => {
            let _ = stream.write_all((head("200 OK", length) + "\r\n").as_bytes());
            // Held open until the client has given up.
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
            return;
        }
    };
    let _ = stream
        .write_all((text + "\r\n").as_bytes())
        .and_then(|()| stream.write_all(&body));
}

fn archive_path() -> (String, String) {
    let name = format!("firecracker-{TAG}-{}.tgz", std::env::consts::ARCH);
    (format!("/download/{TAG}/{name}"), name)
}

fn archive(dir: &Path) -> Vec<u8> {
    let suffix = format!("{TAG}-{}", std::env::consts::ARCH);
    let root = dir.join(format!("release-{suffix}"));
    std::fs::create_dir(&root).expect("a directory");
    let mut sums = String::new();
    for (program, says) in [("firecracker", "Firecracker"), ("jailer", "Jailer")] {
        let script = format!(
            "#!/bin/sh\ncase $1 in --version) echo {says} {TAG};; *) echo v10.0.0;; esac\n"
        );
        let name = format!("{program}-{suffix}");
        std::fs::write(root.join(&name), &script).expect("a file");
        sums.push_str(&format!("{}  {name}\n", hex(script.as_bytes())));
    }
    std::fs::write(root.join("SHA256SUMS"), sums).expect("a file");
    let file = dir.join("archive.tgz");
    let status = Command::new("tar")
        .arg("-czf")
        .arg(&file)
        .arg("-C")
        .arg(dir)
        .arg(root.file_name().expect("a name"))
        .status()
        .expect("tar");
    assert!(status.success());
    std::fs::read(file).expect("an archive")
}

fn hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Bench {
    server: Server,
    archive: Vec<u8>,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let server = Server::start();
        Self {
            archive: server.publish(dir.path()),
            server,
            dir,
        }
    }

    fn engines(&self, release: FirecrackerRelease) -> Engines {
        let mut config = HostConfig::new(self.dir.path().join("data"), "/run/kiln");
        config.firecracker_release = release;
        config.firecracker_releases = Some(format!("{}/", self.server.url));
        let mut engines = Engines::new(&config, &Directories::new(&config));
        // Guests are not run here.
        engines.options.allow_unusable_kvm = true;
        engines.releases = engines.releases.impatient(Duration::from_secs(2));
        engines
    }

    async fn refused(&self, release: FirecrackerRelease) -> Error {
        let engines = self.engines(release);
        let chosen = engines.choose(EnginePreference::Firecracker, Some(&Silent));
        let error = chosen.await.expect_err("nothing to choose");
        // Nothing half-done counts, or stays.
        let left = std::fs::read_dir(self.dir.path().join("data/firecracker"));
        let left: Vec<_> = left
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with(".lock"))
            .collect();
        assert_eq!(left, Vec::<String>::new());
        error
    }
}

#[test]
fn a2_2_firecracker_is_fetched_when_it_is_needed_and_not_before() {
    alone("needed");
}

#[tokio::test]
#[ignore = "runs alone"]
async fn inside_needed() {
    let bench = Bench::new();
    let engines = bench.engines(FirecrackerRelease::default());
    // Only asked what there is.
    let shown = engines.choose(EnginePreference::Firecracker, None).await;
    assert_eq!(
        shown.expect_err("nothing there").code(),
        ErrorCode::BinaryNotFound
    );
    // An engine for which it is of no use. (That there may be no QEMU here does not matter.)
    let _ = engines.choose(EnginePreference::Qemu, Some(&Silent)).await;
    assert_eq!(bench.server.asked(), 0);

    let chosen = engines
        .choose(EnginePreference::Firecracker, Some(&Silent))
        .await
        .expect("fetched");
    assert_eq!(chosen.engine.kind(), EngineKind::Firecracker);
    assert!(chosen.reason.contains("1.16.1"), "{}", chosen.reason);
    let asked = bench.server.asked();
    // Remembered; and found again by the next daemon, without a network.
    for engines in [&engines, &bench.engines(FirecrackerRelease::default())] {
        let chosen = engines.choose(EnginePreference::Firecracker, None).await;
        assert_eq!(
            chosen.expect("there").engine.kind(),
            EngineKind::Firecracker
        );
    }
    assert_eq!(bench.server.asked(), asked);
}

#[test]
fn a2_1_the_latest_release_is_asked_for_and_its_absence_survived() {
    alone("latest");
}

#[tokio::test]
#[ignore = "runs alone"]
async fn inside_latest() {
    let bench = Bench::new();
    bench.server.answer("/latest", Answer::Body(Vec::new()));
    let error = bench.refused(FirecrackerRelease::Latest).await;
    assert_eq!(error.code(), ErrorCode::VersionFetchFailed);
    let leads_to = format!("{}/tag/{TAG}", bench.server.url);
    bench.server.answer("/latest", Answer::Redirect(leads_to));
    for _ in 0..2 {
        let engines = bench.engines(FirecrackerRelease::Latest);
        let chosen = engines.choose(EnginePreference::Firecracker, Some(&Silent));
        assert!(chosen.await.expect("fetched").reason.contains("1.16.1"));
        // From now on what was fetched will do.
        bench.server.answer("/latest", Answer::Body(Vec::new()));
    }
}

#[test]
fn a2_2_what_is_never_to_be_fetched_is_not() {
    alone("never");
}

#[tokio::test]
#[ignore = "runs alone"]
async fn inside_never() {
    let bench = Bench::new();
    let error = bench.refused(FirecrackerRelease::Never).await;
    assert_eq!(error.code(), ErrorCode::BinaryNotFound);
    assert_eq!(bench.server.asked(), 0);
}

#[test]
fn a2_2_a_bad_download_is_told_by_its_code() {
    alone("bad");
}

#[tokio::test]
#[ignore = "runs alone"]
async fn inside_bad() {
    let bench = Bench::new();
    let (path, _) = archive_path();
    let mut corrupt = bench.archive.clone();
    corrupt[60] ^= 1;
    for (what, answer, words) in [
        ("truncated", Answer::Half(bench.archive.clone()), ""),
        ("corrupt", Answer::Body(corrupt), "SHA-256"),
        ("slow", Answer::Silence(bench.archive.len()), ""),
        ("gone", Answer::Redirect("/nowhere".to_owned()), "404"),
    ] {
        bench.server.answer(&path, answer);
        let error = bench.refused(FirecrackerRelease::default()).await;
        assert_eq!(error.code(), ErrorCode::DownloadFailed, "{what}: {error:?}");
        assert!(error.message().contains(words), "{}", error.message());
        let hint = error.hint().expect("a hint");
        assert!(hint.contains("KILN_FIRECRACKER"));
    }
}

#[test]
fn releases_are_named_by_one_word() {
    let parse = |word: &str| word.parse::<FirecrackerRelease>();
    assert_eq!(parse("latest"), Ok(FirecrackerRelease::Latest));
    assert_eq!(parse("v1.15.1").expect("a tag").to_string(), "v1.15.1");
    assert_eq!(
        parse("known-good").expect("default").to_string(),
        FirecrackerRelease::default().to_string()
    );
    for wrong in ["", "1.16", "v1.16.1/..", "newest"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a1_4_a_release_is_chosen_and_a_binary_of_the_owners_comes_first() {
    alone("chosen");
}

#[tokio::test]
#[ignore = "runs alone"]
async fn inside_chosen() {
    let bench = Bench::new();
    let pinned = |tag: &str| FirecrackerRelease::Pinned(tag.parse().expect("a tag"));
    // The release that is asked for, and no other in its place.
    let error = bench.refused(pinned("v1.15.1")).await;
    assert_eq!(error.code(), ErrorCode::DownloadFailed);
    let engines = bench.engines(pinned(TAG));
    let fetched = engines.choose(EnginePreference::Firecracker, Some(&Silent));
    assert!(fetched.await.expect("fetched").reason.contains("1.16.1"));

    // A binary of the owner's: nothing is fetched, nor is what was fetched used.
    let own = bench.dir.path().join("own-firecracker");
    std::fs::write(&own, "#!/bin/sh\necho Firecracker v1.12.0\n").expect("a file");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&own, mode).expect("executable");
    let asked = bench.server.asked();
    let mut config = HostConfig::new(bench.dir.path().join("data"), "/run/kiln");
    config.firecracker_release = FirecrackerRelease::Latest;
    config.firecracker_releases = Some(bench.server.url.clone());
    config.firecracker = Some(own);
    let mut engines = Engines::new(&config, &Directories::new(&config));
    engines.options.allow_unusable_kvm = true;
    let chosen = engines.choose(EnginePreference::Firecracker, Some(&Silent));
    let chosen = chosen.await.expect("there");
    assert_eq!(chosen.engine.capabilities().version, "1.12.0");
    assert_eq!(bench.server.asked(), asked);
}
