//! A real registry on loopback with the sample tree in it, as an image of several layers.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use super::ImageBenchError;
use crate::step;

/// A registry that starts does so in a fraction of this.
const PATIENCE: Duration = Duration::from_secs(20);
const SHORT_PAUSE: Duration = Duration::from_millis(20);

/// Debian's `docker-registry`, until dropped.
pub(super) struct Registry {
    process: Child,
    address: String,
}

impl Registry {
    /// Starts one that keeps its data below `work`.
    pub(super) fn start(work: &Path) -> Result<Registry, ImageBenchError> {
        let port = free_port().map_err(ImageBenchError::Directory)?;
        let address = format!("127.0.0.1:{port}");
        let config = work.join("registry.yml");
        let data = work.join("registry");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  \
             filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            data.display()
        );
        std::fs::write(&config, text).map_err(ImageBenchError::Directory)?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(ImageBenchError::Registry)?;
        let mut registry = Registry { process, address };
        registry.wait()?;
        Ok(registry)
    }

    fn wait(&mut self) -> Result<(), ImageBenchError> {
        let started = Instant::now();
        while TcpStream::connect(&self.address).is_err() {
            let ended = self.process.try_wait().map_err(ImageBenchError::Registry)?;
            if ended.is_some() || started.elapsed() > PATIENCE {
                return Err(ImageBenchError::Registry(io::ErrorKind::TimedOut.into()));
            }
            std::thread::sleep(SHORT_PAUSE);
        }
        Ok(())
    }

    /// The image's name for those who pull it.
    pub(super) fn image(&self) -> String {
        format!("{}/sample:1", self.address)
    }

    /// Fills the registry with an image of these layers, which travel compressed by gzip.
    pub(super) fn fill(&self, layers: &[PathBuf], work: &Path) -> Result<(), ImageBenchError> {
        let layout = work.join("layout");
        write_layout(&layout, layers)?;
        let mut skopeo = skopeo_copy();
        skopeo.args(["--dest-tls-verify=false", "--dest-compress-format=gzip"]);
        skopeo.arg(format!("oci:{}:1", layout.display()));
        step::capture(skopeo.arg(format!("docker://{}", self.image())))?;
        std::fs::remove_dir_all(&layout).map_err(ImageBenchError::Directory)
    }

    /// `skopeo copy` to a directory; gives the compressed layers, lowest first.
    pub(super) fn copy_to(&self, directory: &Path) -> Result<Vec<PathBuf>, ImageBenchError> {
        let mut skopeo = skopeo_copy();
        skopeo.arg("--src-tls-verify=false");
        skopeo.arg(format!("docker://{}", self.image()));
        step::capture(skopeo.arg(format!("dir:{}", directory.display())))?;
        layers_of(directory)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

fn skopeo_copy() -> Command {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--quiet", "--insecure-policy"]);
    skopeo
}

/// An OCI layout of plain layers.
fn write_layout(layout: &Path, layers: &[PathBuf]) -> Result<(), ImageBenchError> {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).map_err(ImageBenchError::Directory)?;
    let mut descriptors = Vec::new();
    for layer in layers {
        let digest = digest_of(layer)?;
        let size = layer.metadata().map_err(ImageBenchError::Directory)?.len();
        std::fs::hard_link(layer, blobs.join(&digest)).map_err(ImageBenchError::Directory)?;
        descriptors.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": format!("sha256:{digest}"),
            "size": size,
        }));
    }
    let diff_ids: Vec<_> = descriptors.iter().map(|layer| &layer["digest"]).collect();
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = put(&blobs, &config, "application/vnd.oci.image.config.v1+json")?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": config,
        "layers": descriptors,
    });
    let mut manifest = put(&blobs, &manifest, manifest_type)?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "1" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    write(&layout.join("index.json"), &index)?;
    let version = json!({ "imageLayoutVersion": "1.0.0" });
    write(&layout.join("oci-layout"), &version)
}

/// Puts a document among the blobs and describes it.
fn put(
    blobs: &Path,
    document: &serde_json::Value,
    media_type: &str,
) -> Result<serde_json::Value, ImageBenchError> {
    let path = blobs.join("document");
    write(&path, document)?;
    let digest = digest_of(&path)?;
    std::fs::rename(&path, blobs.join(&digest)).map_err(ImageBenchError::Directory)?;
    Ok(json!({
        "mediaType": media_type,
        "digest": format!("sha256:{digest}"),
        "size": document.to_string().len(),
    }))
}

fn write(path: &Path, document: &serde_json::Value) -> Result<(), ImageBenchError> {
    std::fs::write(path, document.to_string()).map_err(ImageBenchError::Directory)
}

fn digest_of(path: &Path) -> Result<String, ImageBenchError> {
    let output = step::capture(Command::new("sha256sum").arg(path))?;
    let text = String::from_utf8_lossy(&output);
    Ok(text.chars().take_while(char::is_ascii_hexdigit).collect())
}

/// The layers that skopeo's manifest names.
fn layers_of(directory: &Path) -> Result<Vec<PathBuf>, ImageBenchError> {
    #[derive(Deserialize)]
    struct Manifest {
        layers: Vec<Layer>,
    }
    #[derive(Deserialize)]
    struct Layer {
        digest: String,
    }
    let text =
        std::fs::read(directory.join("manifest.json")).map_err(ImageBenchError::Directory)?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|source| ImageBenchError::Answer {
            answer: String::from_utf8_lossy(&text).into_owned(),
            source,
        })?;
    let path = |layer: Layer| directory.join(layer.digest.trim_start_matches("sha256:"));
    Ok(manifest.layers.into_iter().map(path).collect())
}
