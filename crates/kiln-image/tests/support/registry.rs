//! A real registry on loopback, images to put into it, and a proxy that misbehaves on demand.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kiln_image::oci::Digest;

use super::run;

/// `kiln:secret`, by bcrypt.
const HTPASSWD: &str = "kiln:$2b$04$f8oWLD5okbV7p06NPHSjB.JyNQdTd9PQd8BdKBy8ru7a4xCjOMHwS\n";

/// Whether the programs of these tests are there.
pub(crate) fn have_tools() -> bool {
    ["docker-registry", "skopeo"].iter().all(|tool| {
        std::env::var_os("PATH").is_some_and(|paths| {
            std::env::split_paths(&paths).any(|directory| directory.join(tool).is_file())
        })
    })
}

/// Debian's `docker-registry`, until dropped.
pub(crate) struct Registry {
    pub(crate) address: String,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Registry {
    pub(crate) fn start(with_passwords: bool) -> Registry {
        let directory = tempfile::tempdir().unwrap();
        let passwords = directory.path().join("htpasswd");
        std::fs::write(&passwords, HTPASSWD).unwrap();
        let auth = if with_passwords {
            format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                passwords.display()
            )
        } else {
            String::new()
        };
        Registry::start_in(directory, &auth)
    }

    /// With more lines of its configuration, which continue the part about HTTP.
    pub(crate) fn start_with(lines: &str) -> Registry {
        Registry::start_in(tempfile::tempdir().unwrap(), lines)
    }

    fn start_in(directory: tempfile::TempDir, auth: &str) -> Registry {
        // Another program may take the port in between: try again then.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            let address = format!("127.0.0.1:{port}");
            let config = format!(
                "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {address}\n{auth}",
                directory.path().join("data").display()
            );
            let path = directory.path().join("config.yml");
            std::fs::write(&path, config).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&path)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let deadline = Instant::now() + Duration::from_secs(20);
            while child.try_wait().unwrap().is_none() {
                if TcpStream::connect(&address).is_ok() {
                    return Registry {
                        address,
                        child,
                        _directory: directory,
                    };
                }
                assert!(Instant::now() < deadline, "the registry does not answer");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("the registry does not start");
    }

    /// Puts an image of an OCI layout into the registry, all its platforms.
    pub(crate) fn push(&self, layout: &Path, tag: &str, name: &str, extra: &[&str]) {
        run(Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--all",
                "--preserve-digests",
                "--insecure-policy",
                "--dest-tls-verify=false",
            ])
            .args(extra)
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{}/{name}", self.address)));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Packs files into a tar archive with names sorted and times fixed.
pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let output = Command::new("tar")
        .args([
            "--sort=name",
            "--mtime=@1700000000",
            "--owner=0",
            "--group=0",
            "-C",
        ])
        .arg(directory.path())
        .args(["-cf", "-", "."])
        .output()
        .unwrap();
    assert!(output.status.success());
    output.stdout
}

/// Bytes that do not compress and differ by seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// An OCI layout, written by hand.
pub(crate) struct Layout {
    pub(crate) path: PathBuf,
    tags: Vec<String>,
}

impl Layout {
    pub(crate) fn new(path: PathBuf) -> Layout {
        std::fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Layout {
            path,
            tags: Vec::new(),
        }
    }

    pub(crate) fn blob(&self, bytes: &[u8]) -> (Digest, usize) {
        let digest = Digest::of(bytes);
        std::fs::write(self.path.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        (digest, bytes.len())
    }

    /// Adds an image for an architecture; gives its descriptor without annotations.
    pub(crate) fn image(
        &self,
        architecture: &str,
        config: &str,
        layers: &[(Vec<u8>, Packing)],
    ) -> String {
        let mut diff_ids = Vec::new();
        let mut descriptors = Vec::new();
        for (tar, packing) in layers {
            diff_ids.push(format!("\"{}\"", Digest::of(tar)));
            let (suffix, bytes) = match packing {
                Packing::Plain => ("", tar.clone()),
                Packing::Gzip => ("+gzip", pipe(Command::new("gzip").args(["-1", "-n"]), tar)),
                Packing::Zstd => ("+zstd", zstd::encode_all(&tar[..], 1).unwrap()),
            };
            let (digest, size) = self.blob(&bytes);
            descriptors.push(format!(
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar{suffix}","digest":"{digest}","size":{size}}}"#
            ));
        }
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{config},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            diff_ids.join(",")
        );
        let (digest, size) = self.blob(config.as_bytes());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":{size}}},"layers":[{}]}}"#,
            descriptors.join(",")
        );
        let (digest, size) = self.blob(manifest.as_bytes());
        format!(
            r#""mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{size},"platform":{{"os":"linux","architecture":"{architecture}"}}"#
        )
    }

    pub(crate) fn index(&self, images: &[String]) -> String {
        let images: Vec<String> = images.iter().map(|image| format!("{{{image}}}")).collect();
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{}]}}"#,
            images.join(",")
        );
        let (digest, size) = self.blob(index.as_bytes());
        format!(
            r#""mediaType":"application/vnd.oci.image.index.v1+json","digest":"{digest}","size":{size}"#
        )
    }

    pub(crate) fn tag(&mut self, descriptor: &str, tag: &str) {
        self.tags.push(format!(
            r#"{{{descriptor},"annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}}}"#
        ));
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            self.tags.join(",")
        );
        std::fs::write(self.path.join("index.json"), index).unwrap();
    }
}

pub(crate) fn pipe(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// What the proxy does with one request.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Nothing special.
    Pass,
    /// Answers this instead: status line, headers, body.
    Answer(String, Vec<String>, Vec<u8>),
    /// Sends the true answer's head and this much of the body, then hangs up.
    Cut(usize),
    /// Changes the byte of the body at this place.
    Flip(usize),
    /// Sends this much of the body, then nothing for this long.
    Stall(usize, Duration),
    /// As if it knew no ranges.
    NoRange,
}

/// One request as the proxy sees it.
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// How many requests with this path came before.
    pub(crate) before: usize,
}

pub(crate) struct Proxy {
    pub(crate) address: String,
    pub(crate) requests: Arc<AtomicUsize>,
    pub(crate) log: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub(crate) fn start(
        upstream: &str,
        act: impl Fn(&Seen) -> Act + Send + Sync + 'static,
    ) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(AtomicUsize::new(0));
        let log = Arc::new(Mutex::new(Vec::new()));
        let counts = Arc::new(Mutex::new(BTreeMap::new()));
        let (act, upstream) = (Arc::new(act), upstream.to_owned());
        let (count, seen_log) = (Arc::clone(&requests), Arc::clone(&log));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (act, upstream) = (Arc::clone(&act), upstream.clone());
                let (count, counts, log) = (
                    Arc::clone(&count),
                    Arc::clone(&counts),
                    Arc::clone(&seen_log),
                );
                std::thread::spawn(move || {
                    let _ = serve(stream, &upstream, &*act, &count, &counts, &log);
                });
            }
        });
        Proxy {
            address,
            requests,
            log,
        }
    }

    /// Requests so far whose path holds this text.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.log
            .lock()
            .unwrap()
            .iter()
            .filter(|line| line.contains(text))
            .count()
    }
}

type Counts = Mutex<BTreeMap<String, usize>>;

fn serve(
    mut stream: TcpStream,
    upstream: &str,
    act: &dyn Fn(&Seen) -> Act,
    count: &AtomicUsize,
    counts: &Counts,
    log: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let head = read_head(&mut stream)?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let method = first.next().unwrap_or_default().to_owned();
    let path = first.next().unwrap_or_default().to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length = headers
        .get("content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    count.fetch_add(1, Ordering::SeqCst);
    let range = headers.get("range").cloned().unwrap_or_default();
    log.lock().unwrap().push(format!("{method} {path} {range}"));
    let before = {
        let mut counts = counts.lock().unwrap();
        let entry = counts.entry(path.clone()).or_insert(0);
        *entry += 1;
        *entry - 1
    };
    let seen = Seen {
        method,
        path,
        headers,
        body,
        before,
    };
    let action = act(&seen);
    if let Act::Answer(status, extra, body) = &action {
        return answer(&mut stream, status, extra, body);
    }
    let (head, body) = forward(upstream, &seen, matches!(action, Act::NoRange))?;
    stream.write_all(head.as_bytes())?;
    match action {
        Act::Cut(at) => stream.write_all(&body[..at.min(body.len())]),
        Act::Flip(at) => {
            let mut body = body;
            // The registry may have ended, with the test, and said nothing.
            let at = at % body.len().max(1);
            body.get_mut(at).into_iter().for_each(|byte| *byte ^= 1);
            stream.write_all(&body)
        }
        Act::Stall(at, pause) => {
            stream.write_all(&body[..at.min(body.len())])?;
            std::thread::sleep(pause);
            stream.write_all(&body[at.min(body.len())..])
        }
        _ => stream.write_all(&body),
    }
}

fn answer(
    stream: &mut TcpStream,
    status: &str,
    extra: &[String],
    body: &[u8],
) -> std::io::Result<()> {
    let mut head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n",
        body.len()
    );
    for line in extra {
        head += line;
        head += "\r\n";
    }
    head += "\r\n";
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < 1 << 16 && stream.read(&mut byte)? == 1 {
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Asks upstream; gives the head, made to close, and the whole body.
fn forward(upstream: &str, seen: &Seen, no_range: bool) -> std::io::Result<(String, Vec<u8>)> {
    let mut server = TcpStream::connect(upstream)?;
    let mut request = format!(
        "{} {} HTTP/1.1\r\nhost: {upstream}\r\nconnection: close\r\n",
        seen.method, seen.path
    );
    for name in ["accept", "range", "authorization"] {
        if let Some(value) = seen.headers.get(name)
            && !(no_range && name == "range")
        {
            request += &format!("{name}: {value}\r\n");
        }
    }
    request += "\r\n";
    server.write_all(request.as_bytes())?;
    let head = read_head(&mut server)?;
    let mut body = Vec::new();
    server.read_to_end(&mut body)?;
    let kept: Vec<&str> = head
        .trim_end()
        .split("\r\n")
        .filter(|line| !line.to_lowercase().starts_with("connection:"))
        .collect();
    Ok((kept.join("\r\n") + "\r\nconnection: close\r\n\r\n", body))
}
