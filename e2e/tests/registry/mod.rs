//! A registry on loopback with one image of two layers, made here: nothing has to be installed.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Answers until the test ends.
pub(crate) struct Registry {
    pub(crate) address: String,
}

impl Registry {
    /// `dir` is for the layers while they are made.
    pub(crate) fn start(dir: &Path) -> Self {
        let answers = Arc::new(image(dir));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answers = Arc::clone(&answers);
                // A daemon that is killed breaks its connections.
                std::thread::spawn(move || drop(serve(stream, &answers)));
            }
        });
        Self { address }
    }

    pub(crate) fn image(&self) -> String {
        format!("{}/app:1", self.address)
    }
}

type Answers = HashMap<String, (&'static str, Vec<u8>)>;

fn image(dir: &Path) -> Answers {
    let mut answers = Answers::new();
    let mut add = |kind: &'static str, bytes: Vec<u8>| -> Value {
        let digest = format!("sha256:{}", sha256(dir, &bytes));
        let told = json!({"mediaType": kind, "digest": digest, "size": bytes.len()});
        answers.insert(format!("/v2/app/blobs/{digest}"), (kind, bytes));
        told
    };
    let layers: Vec<Value> = (1..=2)
        .map(|number| add(LAYER, layer(dir, number)))
        .collect();
    let ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = json!({
        "architecture": arch, "os": "linux", "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let config = add(CONFIG, config.to_string().into_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
    });
    let manifest = manifest.to_string().into_bytes();
    answers.insert("/v2/app/manifests/1".to_owned(), (MANIFEST, manifest));
    answers
}

/// A tar of two files; bytes that no compression makes small.
fn layer(dir: &Path, number: u32) -> Vec<u8> {
    let root = dir.join(format!("layer{number}"));
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join(format!("name{number}")), format!("{number}")).unwrap();
    let noise = fs::File::open("/dev/urandom").unwrap();
    let mut large = fs::File::create(root.join(format!("large{number}"))).unwrap();
    std::io::copy(&mut std::io::Read::take(noise, 3 << 20), &mut large).unwrap();
    let tar = Command::new("tar")
        .arg("-cC")
        .arg(&root)
        .arg(".")
        .output()
        .unwrap();
    assert!(tar.status.success(), "{tar:?}");
    tar.stdout
}

fn sha256(dir: &Path, bytes: &[u8]) -> String {
    let path = dir.join("digested");
    fs::write(&path, bytes).unwrap();
    let told = Command::new("sha256sum").arg(&path).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    told.split(' ').next().unwrap().to_owned()
}

/// One request. A range is not understood, which registries are free to do.
fn serve(mut stream: TcpStream, answers: &Answers) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    while !lines.next().transpose()?.unwrap_or_default().is_empty() {}
    let mut words = first.split(' ');
    let (method, path) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let head = |status: &str, kind: &str, length: usize| {
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n"
        )
    };
    match answers.get(path) {
        Some((kind, bytes)) => {
            stream.write_all(head("200 OK", kind, bytes.len()).as_bytes())?;
            if method != "HEAD" {
                stream.write_all(bytes)?;
            }
        }
        None if path == "/v2/" => stream.write_all(head("200 OK", "text/plain", 0).as_bytes())?,
        None => stream.write_all(head("404 Not Found", "text/plain", 0).as_bytes())?,
    }
    Ok(())
}
