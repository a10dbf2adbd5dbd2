//! From a source to a block image: archives in layers, directories, existing filesystem images.
//! Owns the order of the steps and the content key; where results are kept is the store's.

mod directory;
mod error;
mod filesystem;
mod layers;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

pub(crate) use error::Action;
pub use error::ImageError;
pub(crate) use filesystem::identify;
pub use filesystem::{Filesystem, FilesystemFault};

use crate::clone::clone_file;
use crate::content::{Contents, Stamp};
use crate::decompress::Compression;
use crate::ext4::{self, Format, Room, Unsealed};
use crate::limits::Budget;
use crate::oci::Digest;
use crate::progress::{Progress, ProgressEvent};
use crate::tree::{LayerRules, Tree};
use layers::Archives;

/// Changes whenever the same input would give other bytes: images of older writers are then not
/// taken for results of this one.
const WRITER_VERSION: u32 = 2;
/// All images say that they were made at the start of 2024: the true time would make equal inputs
/// give unequal images.
const CLOCK: u32 = 1_704_067_200;
/// All images have the same seeds, so that they can be written while their content key is still
/// being computed. A secret seed would protect writable disks from chosen names; nothing is ever
/// added to an image.
const CHECKSUM_SEED: u32 = 0x6b69_6c6e;
const HASH_SEED: [u32; 4] = [0x6b69_6c6e, 0x696d_6167, 0x6500_0000, 1];

/// What an image is made of.
pub enum ImageSource {
    /// One archive of a whole root filesystem, plain or compressed.
    Tar(PathBuf),
    /// The same, read from somewhere.
    Stream(Box<dyn Read + Send>),
    /// OCI layers, lowest first: whiteouts delete.
    Layers(Vec<LayerSource>),
    /// Data archives of Debian packages, in the order of unpacking: existing directories and
    /// symlinks to directories are kept, as dpkg keeps them.
    Packages(Vec<LayerSource>),
    /// A directory of the host; symlinks in it are not followed, other filesystems mounted in it
    /// are left out.
    Directory(PathBuf),
    /// An existing ext4, squashfs or erofs image, taken as it is.
    Filesystem(PathBuf),
}

/// One layer.
pub enum LayerSource {
    /// A file, plain or compressed.
    File(PathBuf),
    /// The same, read from somewhere.
    Stream(Box<dyn Read + Send>),
}

impl fmt::Debug for ImageSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageSource::Tar(path) => out.debug_tuple("Tar").field(path).finish(),
            ImageSource::Stream(_) => out.write_str("Stream"),
            ImageSource::Layers(layers) => out.debug_tuple("Layers").field(layers).finish(),
            ImageSource::Packages(layers) => out.debug_tuple("Packages").field(layers).finish(),
            ImageSource::Directory(path) => out.debug_tuple("Directory").field(path).finish(),
            ImageSource::Filesystem(path) => out.debug_tuple("Filesystem").field(path).finish(),
        }
    }
}

impl fmt::Debug for LayerSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerSource::File(path) => out.debug_tuple("File").field(path).finish(),
            LayerSource::Stream(_) => out.write_str("Stream"),
        }
    }
}

impl ImageSource {
    /// Looks at what `path` is: a directory, a filesystem image or a tar archive.
    ///
    /// # Errors
    /// [`ImageError::Open`] when it cannot be looked at, [`ImageError::Filesystem`] for a damaged
    /// filesystem image, [`ImageError::Unknown`] for anything else.
    pub fn detect(path: impl Into<PathBuf>) -> Result<ImageSource, ImageError> {
        let path = path.into();
        let opened = open(&path)?;
        let unreadable = |source| ImageError::Open {
            path: path.clone(),
            source,
        };
        if opened.metadata().map_err(unreadable)?.is_dir() {
            return Ok(ImageSource::Directory(path));
        }
        match filesystem::identify(&opened).map_err(unreadable)? {
            Some(Ok(_)) => return Ok(ImageSource::Filesystem(path)),
            Some(Err(fault)) => return Err(ImageError::Filesystem { path, fault }),
            None => {}
        }
        let mut head = Vec::new();
        (&opened)
            .take(512)
            .read_to_end(&mut head)
            .map_err(unreadable)?;
        let compressed = Compression::detect(&head) != Compression::None;
        if compressed || crate::tar::looks_like_tar(&head) {
            return Ok(ImageSource::Tar(path));
        }
        Err(ImageError::Unknown(path))
    }

    /// A name for messages.
    fn describe(&self) -> String {
        match self {
            ImageSource::Tar(path)
            | ImageSource::Directory(path)
            | ImageSource::Filesystem(path) => path.display().to_string(),
            ImageSource::Stream(_) => "the archive".into(),
            ImageSource::Layers(layers) => format!("the image of {} layers", layers.len()),
            ImageSource::Packages(layers) => format!("the image of {} packages", layers.len()),
        }
    }

    /// A cheap name of exactly this state of the source, by what the host's filesystem says of it;
    /// `None` for streams, and for what was written to so lately that a clock tick could hide the
    /// next change.
    pub(crate) fn fingerprint(&self) -> Option<String> {
        let mut hash = Sha256::new();
        hash.update(WRITER_VERSION.to_le_bytes());
        match self {
            ImageSource::Tar(path) => fingerprint_file(&mut hash, b"tar", path)?,
            ImageSource::Filesystem(path) => fingerprint_file(&mut hash, b"filesystem", path)?,
            ImageSource::Layers(layers) => fingerprint_layers(&mut hash, b"layers", layers)?,
            ImageSource::Packages(layers) => fingerprint_layers(&mut hash, b"packages", layers)?,
            ImageSource::Directory(path) => {
                hash.update(b"directory");
                hash.update(directory::fingerprint(path)?);
            }
            ImageSource::Stream(_) => return None,
        }
        Some(hex::encode(hash.finalize()))
    }
}

fn fingerprint_layers(hash: &mut Sha256, kind: &[u8], layers: &[LayerSource]) -> Option<()> {
    for layer in layers {
        match layer {
            LayerSource::File(path) => fingerprint_file(hash, kind, path)?,
            LayerSource::Stream(_) => return None,
        }
    }
    Some(())
}

fn fingerprint_file(hash: &mut Sha256, kind: &[u8], path: &Path) -> Option<()> {
    let stamp = Stamp::of(&rustix::fs::stat(path).ok()?);
    hash.update(kind);
    hash.update(stamp.settled()?);
    Some(())
}

/// A source made ready to become an image.
pub(crate) struct Material {
    /// SHA-256 over everything that decides the image's bytes, if it is known before the image is
    /// made: plain archives are read for it only while they are copied.
    pub(crate) key: Option<[u8; 32]>,
    source: String,
    body: Body,
}

enum Body {
    Archives(Archives),
    Directory { tree: Tree, contents: Contents },
    Filesystem { file: File, filesystem: Filesystem },
}

/// A finished image file, not yet published.
pub(crate) struct Built {
    /// See [`Material::key`].
    pub(crate) key: [u8; 32],
    pub(crate) file: File,
    pub(crate) filesystem: Filesystem,
}

/// Reads the source into what an image can be made of; `temporary` is a directory for spools.
pub(crate) fn prepare(
    source: ImageSource,
    temporary: &Path,
    budget: &Budget,
    progress: &dyn Progress,
) -> Result<Material, ImageError> {
    let name = source.describe();
    let (key, body) = match source {
        ImageSource::Tar(path) => {
            let layer = vec![LayerSource::File(path)];
            prepare_layers(layer, LayerRules::Plain, temporary, budget, progress)?
        }
        ImageSource::Stream(stream) => {
            let layer = vec![LayerSource::Stream(stream)];
            prepare_layers(layer, LayerRules::Plain, temporary, budget, progress)?
        }
        ImageSource::Layers(layers) => {
            prepare_layers(layers, LayerRules::Overlay, temporary, budget, progress)?
        }
        ImageSource::Packages(layers) => {
            prepare_layers(layers, LayerRules::Package, temporary, budget, progress)?
        }
        ImageSource::Directory(path) => prepare_directory(&path, budget, progress)?,
        ImageSource::Filesystem(path) => prepare_filesystem(&path, temporary, budget, progress)?,
    };
    Ok(Material {
        key,
        source: name,
        body,
    })
}

type Prepared = (Option<[u8; 32]>, Body);

fn prepare_layers(
    layers: Vec<LayerSource>,
    rules: LayerRules,
    temporary: &Path,
    budget: &Budget,
    progress: &dyn Progress,
) -> Result<Prepared, ImageError> {
    let archives = layers::prepare(layers, rules, temporary, budget, progress)?;
    Ok((archives.key(), Body::Archives(archives)))
}

fn prepare_directory(
    path: &Path,
    budget: &Budget,
    progress: &dyn Progress,
) -> Result<Prepared, ImageError> {
    progress.report(ProgressEvent::Step(format!("Reading {}", path.display())));
    let (tree, contents, digest) = directory::read(path, budget, progress)?;
    let key = content_key("directory", &[digest]);
    Ok((Some(key), Body::Directory { tree, contents }))
}

/// Copies first and reads the copy, so that nobody can change it in between.
fn prepare_filesystem(
    path: &Path,
    temporary: &Path,
    budget: &Budget,
    progress: &dyn Progress,
) -> Result<Prepared, ImageError> {
    progress.report(ProgressEvent::Step(format!("Copying {}", path.display())));
    let original = open(path)?;
    let unreadable = |source| ImageError::Read {
        what: path.display().to_string(),
        source,
    };
    let unwritable = |source| ImageError::Store {
        action: "write in",
        path: temporary.into(),
        source,
    };
    let length = original.metadata().map_err(unreadable)?.len();
    let limit = budget.limits().total_bytes;
    if length > limit {
        let what = path.display().to_string();
        return Err(ImageError::LayerTooLarge { what, limit });
    }
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(temporary.join(COPY))
        .map_err(unwritable)?;
    clone_file(&original, &file).map_err(unwritable)?;
    // Block devices come in whole sectors; 4 KiB serves all.
    file.set_len(length.next_multiple_of(4096))
        .map_err(unwritable)?;
    let filesystem = match filesystem::identify(&file).map_err(unreadable)? {
        Some(Ok(filesystem)) => filesystem,
        Some(Err(fault)) => {
            return Err(ImageError::Filesystem {
                path: path.into(),
                fault,
            });
        }
        None => return Err(ImageError::Unknown(path.into())),
    };
    let digest = digest_of_data(&file).map_err(unreadable)?;
    let key = content_key(filesystem.name(), &[digest]);
    Ok((Some(key), Body::Filesystem { file, filesystem }))
}

/// Name of a copied-in filesystem inside the temporary directory.
const COPY: &str = "copy";

/// Hashes what is not zero, so that holes and written zeros count the same and cost nothing.
fn digest_of_data(file: &File) -> io::Result<[u8; 32]> {
    const PIECE: u64 = 64 << 10;
    use std::os::unix::fs::FileExt;
    let length = file.metadata()?.len();
    let mut hash = Sha256::new();
    hash.update(length.to_le_bytes());
    let mut buffer = vec![0; PIECE as usize];
    let mut next = 0;
    crate::clone::for_each_data(file, length, |start, end| {
        // Whole pieces, so that it does not matter where holes begin.
        let mut at = (start / PIECE * PIECE).max(next);
        while at < end {
            let size = PIECE.min(length - at) as usize;
            file.read_exact_at(&mut buffer[..size], at)?;
            if buffer[..size].iter().any(|byte| *byte != 0) {
                hash.update(at.to_le_bytes());
                hash.update(&buffer[..size]);
            }
            at += PIECE;
        }
        next = next.max(at);
        Ok(())
    })?;
    Ok(hash.finalize().into())
}

impl Material {
    /// Makes the image file `name` in `temporary`.
    pub(crate) fn build(
        self,
        temporary: &Path,
        name: &str,
        budget: &Budget,
        progress: &dyn Progress,
    ) -> Result<Built, ImageError> {
        let path = temporary.join(name);
        let failed = |source| ImageError::Store {
            action: "write",
            path: path.clone(),
            source,
        };
        let create = || {
            let mut options = File::options();
            options.read(true).write(true).create_new(true);
            options.open(&path).map_err(failed)
        };
        let (file, unsealed, key) = match self.body {
            Body::Filesystem { file, filesystem } => {
                std::fs::rename(temporary.join(COPY), &path).map_err(failed)?;
                return Ok(Built {
                    key: self.key.unwrap_or_default(),
                    file,
                    filesystem,
                });
            }
            Body::Directory { tree, contents } => {
                let file = create()?;
                let unsealed = write_ext4(&tree, &contents, &file, &self.source, progress)?;
                (file, unsealed, self.key.unwrap_or_default())
            }
            Body::Archives(archives) => {
                let file = create()?;
                let (unsealed, key) = archives.write(&file, &self.source, budget, progress)?;
                (file, unsealed, key)
            }
        };
        unsealed.seal(&file, &uuid_from(&key))?;
        Ok(Built {
            key,
            file,
            filesystem: Filesystem::Ext4,
        })
    }
}

/// Writes everything but the superblock, whose identity comes from the content key.
fn write_ext4(
    tree: &Tree,
    contents: &Contents,
    out: &File,
    source: &str,
    progress: &dyn Progress,
) -> Result<Unsealed, ImageError> {
    if tree.is_empty() {
        return Err(ImageError::Empty(source.to_owned()));
    }
    progress.report(ProgressEvent::Step("Writing the block image".into()));
    let format = Format {
        checksum_seed: CHECKSUM_SEED,
        hash_seed: HASH_SEED,
        clock: CLOCK,
        label: "kiln-image",
        room: Room::ReadOnly,
    };
    let mut report = |done| progress.report(ProgressEvent::Bytes { done, total: None });
    let unsealed = ext4::write(tree, contents, out, &format, &mut report)?;
    let remarks = &unsealed.remarks;
    if let Some(example) = &remarks.foreign_example {
        progress.report(ProgressEvent::Note(format!(
            "{} extended attributes of other systems were left out, such as {example}",
            remarks.foreign_xattrs
        )));
    }
    if remarks.moved_times > 0 {
        progress.report(ProgressEvent::Note(format!(
            "{} files carry times that ext4 cannot hold; the nearest were taken",
            remarks.moved_times
        )));
    }
    Ok(unsealed)
}

/// SHA-256 over kind, version and the digests of the parts, in order.
fn content_key(kind: &str, parts: &[[u8; 32]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"kiln image\0");
    hash.update(WRITER_VERSION.to_le_bytes());
    hash.update([kind.len() as u8]);
    hash.update(kind);
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// The key of an image of OCI layers with these diff ids, known before any of them is read.
pub(crate) fn layers_key(diff_ids: &[Digest]) -> [u8; 32] {
    let digests: Vec<[u8; 32]> = diff_ids.iter().map(|digest| *digest.as_bytes()).collect();
    content_key(layers::kind(LayerRules::Overlay), &digests)
}

/// A version-8 UUID (RFC 9562: contents are the maker's own).
fn uuid_from(key: &[u8; 32]) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&key[..16]);
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    uuid
}

fn open(path: &Path) -> Result<File, ImageError> {
    File::open(path).map_err(|source| ImageError::Open {
        path: path.into(),
        source,
    })
}

fn stamp_of(file: impl AsFd) -> io::Result<Stamp> {
    Ok(Stamp::of(&rustix::fs::fstat(file)?))
}
