//! Writing images out: as the tar archive of their root filesystem, or as an OCI archive that every
//! tool takes, Docker's included.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use super::ImageLibrary;
use super::catalog::Record;
use super::error::LibraryError;
use crate::export::{self, ExportError, Purpose};
use crate::limits::Budget;
use crate::oci::{
    Descriptor, Digest, ImageDocument, MAX_DOCUMENT, Manifest, OCI_CONFIG, OCI_LAYER_GZIP,
    OCI_MANIFEST, Reference,
};
use crate::progress::{Progress, ProgressEvent};
use crate::rootfs::Filesystem;
use crate::store::Workspace;

/// Half the time of gzip's default for a tenth more bytes.
const LEVEL: u32 = 3;

/// One file of the archive.
enum Part {
    Bytes(String, Vec<u8>),
    File(String, File, u64),
}

impl ImageLibrary {
    /// Writes the image's root filesystem as a tar archive.
    ///
    /// # Errors
    /// [`LibraryError::NotFound`], [`LibraryError::Ambiguous`], [`LibraryError::Export`], or
    /// [`LibraryError::Image`].
    pub fn export(
        &self,
        key: &str,
        out: &mut dyn Write,
        progress: &dyn Progress,
    ) -> Result<(), LibraryError> {
        let record = self.find(key)?;
        progress.report(ProgressEvent::Step(format!("Exporting {key}")));
        self.export_rootfs(&record, out, Purpose::Rootfs, progress)
    }

    fn export_rootfs(
        &self,
        record: &Record,
        out: &mut dyn Write,
        purpose: Purpose,
        progress: &dyn Progress,
    ) -> Result<(), LibraryError> {
        let failed = |source| LibraryError::Export {
            image: record.id.short(),
            source,
        };
        let image = self.store.get(&record.rootfs)?;
        let image = image.ok_or_else(|| LibraryError::NotFound(record.id.to_string()))?;
        if image.filesystem != Filesystem::Ext4 {
            return Err(failed(ExportError::Unsupported(
                "a squashfs or erofs image",
            )));
        }
        let file = File::open(&image.path).map_err(|error| failed(ExportError::Read(error)))?;
        let budget = Budget::new(&self.config.limits);
        export::rootfs(&file, out, purpose, &budget, progress).map_err(failed)
    }

    /// Writes the image as an OCI archive, which also is what `docker load` takes: with its own
    /// layers if they are still here, else with one layer made of its root filesystem.
    ///
    /// # Errors
    /// See [`ImageLibrary::export`].
    pub fn save(
        &self,
        key: &str,
        out: &mut dyn Write,
        progress: &dyn Progress,
    ) -> Result<(), LibraryError> {
        let _quiet = self.keep_blobs()?;
        let record = self.find(key)?;
        progress.report(ProgressEvent::Step(format!("Saving {key}")));
        let workspace = Workspace::create(self.store.root())?;
        let (descriptor, mut parts) = match self.own_parts(&record)? {
            Some(parts) => parts,
            None => self.squashed_parts(&record, workspace.path(), progress)?,
        };
        let names = self.names_of(record.id)?;
        parts.extend(self.leading_parts(&descriptor, &names, &parts));
        // Where tools look first; then the order is fixed, whatever the image.
        parts.sort_by(|a, b| {
            (a.name().contains('/'), a.name()).cmp(&(b.name().contains('/'), b.name()))
        });
        parts.dedup_by(|a, b| a.name() == b.name());
        let failed = |source| LibraryError::Export {
            image: record.id.short(),
            source: ExportError::Write(source),
        };
        write_archive(parts, out).map_err(failed)
    }

    /// Manifest, config and layers as they came; `None` if something is gone.
    fn own_parts(&self, record: &Record) -> Result<Option<(Descriptor, Vec<Part>)>, LibraryError> {
        let Some(manifest) = record.manifest else {
            return Ok(None);
        };
        let (Some(manifest_bytes), Some(config)) = (
            self.blobs.read(manifest, MAX_DOCUMENT)?,
            self.blobs.read(record.id, MAX_DOCUMENT)?,
        ) else {
            return Ok(None);
        };
        let descriptor = descriptor(OCI_MANIFEST, manifest, manifest_bytes.len());
        let mut parts = vec![
            Part::Bytes(blob_name(manifest), manifest_bytes),
            Part::Bytes(blob_name(record.id), config),
        ];
        for layer in &record.layers {
            let Some(file) = self.blobs.find(layer.digest, Some(layer.size)) else {
                return Ok(None);
            };
            parts.push(Part::File(blob_name(layer.digest), file, layer.size));
        }
        Ok(Some((descriptor, parts)))
    }

    /// One layer of all files, and the documents that go with it.
    fn squashed_parts(
        &self,
        record: &Record,
        temporary: &std::path::Path,
        progress: &dyn Progress,
    ) -> Result<(Descriptor, Vec<Part>), LibraryError> {
        let failed = |source| LibraryError::Export {
            image: record.id.short(),
            source: ExportError::Write(source),
        };
        let file = tempfile::tempfile_in(temporary).map_err(failed)?;
        let mut layer = Layer {
            plain: Sha256::new(),
            packed: GzEncoder::new(
                Hashing {
                    hash: Sha256::new(),
                    length: 0,
                    inner: file,
                },
                flate2::Compression::new(LEVEL),
            ),
        };
        self.export_rootfs(record, &mut layer, Purpose::Layer, progress)?;
        let diff_id = Digest::from(<[u8; 32]>::from(layer.plain.finalize()));
        let packed = layer.packed.finish().map_err(failed)?;
        let (size, digest) = (
            packed.length,
            Digest::from(<[u8; 32]>::from(packed.hash.finalize())),
        );
        let mut file = packed.inner;
        file.rewind().map_err(failed)?;
        let config = ImageDocument {
            platform: record.platform.clone(),
            created: None,
            diff_ids: vec![diff_id],
            config: record.config.clone(),
        };
        let config = config.to_bytes();
        let config_digest = Digest::of(&config);
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.to_owned()),
            config: descriptor(OCI_CONFIG, config_digest, config.len()),
            layers: vec![Descriptor {
                size,
                ..descriptor(OCI_LAYER_GZIP, digest, 0)
            }],
        };
        let manifest = serde_json::to_vec(&manifest).unwrap_or_default();
        let manifest_digest = Digest::of(&manifest);
        let leading = descriptor(OCI_MANIFEST, manifest_digest, manifest.len());
        let parts = vec![
            Part::Bytes(blob_name(manifest_digest), manifest),
            Part::Bytes(blob_name(config_digest), config),
            Part::File(blob_name(digest), file, size),
        ];
        Ok((leading, parts))
    }

    /// The documents that say what is where: OCI's, and Docker's beside them.
    fn leading_parts(&self, manifest: &Descriptor, names: &[String], parts: &[Part]) -> Vec<Part> {
        let named = names.iter().map(|name| {
            let mut entry = manifest.clone();
            let tag = name
                .parse::<Reference>()
                .ok()
                .and_then(|name| name.tag().map(str::to_owned));
            entry
                .annotations
                .insert("io.containerd.image.name".to_owned(), name.clone());
            if let Some(tag) = tag {
                entry
                    .annotations
                    .insert("org.opencontainers.image.ref.name".to_owned(), tag);
            }
            entry
        });
        let mut entries: Vec<Descriptor> = named.collect();
        if entries.is_empty() {
            entries.push(manifest.clone());
        }
        let index = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries,
        });
        let body = parts.iter().find_map(|part| match part {
            Part::Bytes(name, bytes) if *name == blob_name(manifest.digest) => Some(bytes),
            _ => None,
        });
        let body: Option<Manifest> = body.and_then(|bytes| serde_json::from_slice(bytes).ok());
        let docker = body.map(|body| {
            let layers: Vec<String> = body
                .layers
                .iter()
                .map(|layer| blob_name(layer.digest))
                .collect();
            serde_json::json!([{
                "Config": blob_name(body.config.digest),
                "RepoTags": names.iter().filter(|name| !name.contains('@')).collect::<Vec<_>>(),
                "Layers": layers,
            }])
        });
        let mut leading = vec![
            Part::Bytes(
                "oci-layout".to_owned(),
                br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
            ),
            Part::Bytes("index.json".to_owned(), index.to_string().into_bytes()),
        ];
        leading.extend(docker.map(|docker| {
            Part::Bytes("manifest.json".to_owned(), docker.to_string().into_bytes())
        }));
        leading
    }
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn descriptor(media_type: &str, digest: Digest, size: usize) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size: size as u64,
        platform: None,
        annotations: std::collections::BTreeMap::new(),
    }
}

impl Part {
    fn name(&self) -> &str {
        match self {
            Part::Bytes(name, _) | Part::File(name, _, _) => name,
        }
    }
}

fn write_archive(parts: Vec<Part>, out: &mut dyn Write) -> io::Result<()> {
    let mut archive = export::FileArchive::new(out);
    for part in parts {
        match part {
            Part::Bytes(name, bytes) => archive.file(&name, bytes.len() as u64, &mut &bytes[..])?,
            Part::File(name, file, size) => archive.file(&name, size, &mut file.take(size))?,
        }
    }
    archive.finish()
}

/// Hashes what is written before and after compression.
struct Layer {
    plain: Sha256,
    packed: GzEncoder<Hashing>,
}

impl Write for Layer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.packed.write(bytes)?;
        self.plain.update(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.packed.flush()
    }
}

struct Hashing {
    hash: Sha256,
    length: u64,
    inner: File,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(bytes)?;
        self.hash.update(&bytes[..length]);
        self.length += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
