//! A registry with an image in it, and libraries to pull it into.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kiln_image::library::{ImageInfo, ImageLibrary, LibraryConfig, LibraryError, PullRequest};
use kiln_image::registry::{Patience, RegistrySettings};
use kiln_image::{Limits, Silent};

use crate::support::registry::{Layout, Packing, Registry, Seen, noise, tar_of};

/// Quick to give up, so that tests of failure end.
pub(crate) fn config() -> LibraryConfig {
    LibraryConfig {
        registries: RegistrySettings {
            patience: Patience {
                stall_ms: 2000,
                attempts: 4,
                first_wait_ms: 20,
                longest_wait_ms: 1500,
                parallel: 3,
            },
            ..RegistrySettings::default()
        },
        limits: Limits::default(),
    }
}

pub(crate) const CONFIG: &str = r#"{"Env":["PATH=/bin","LANG=C"],"Entrypoint":["/entry"],"Cmd":["serve"],"User":"app:app","WorkingDir":"/srv","ExposedPorts":{"80/tcp":{}},"Labels":{"made":"here"},"StopSignal":"SIGQUIT"}"#;

/// Three layers, each packed differently.
pub(crate) fn layers() -> Vec<(Vec<u8>, Packing)> {
    vec![
        (
            tar_of(&[("etc/base", b"1"), ("data/a", &noise(1, 700_000))]),
            Packing::Gzip,
        ),
        (
            tar_of(&[("data/b", &noise(2, 1_300_000)), ("etc/.wh.base", b"")]),
            Packing::Zstd,
        ),
        (tar_of(&[("data/c", &noise(3, 400_000))]), Packing::Plain),
    ]
}

pub(crate) struct Bench {
    pub(crate) registry: Registry,
    pub(crate) directory: tempfile::TempDir,
}

impl Bench {
    /// A registry with `app` for this machine's platform and two others.
    pub(crate) fn new(with_passwords: bool) -> Bench {
        let registry = Registry::start(with_passwords);
        let directory = tempfile::tempdir().unwrap();
        let mut layout = Layout::new(directory.path().join("layout"));
        let mine = kiln_image::oci::Platform::host().architecture;
        let other = if mine == "arm64" { "amd64" } else { "arm64" };
        let small = vec![(tar_of(&[("other", b"x")]), Packing::Gzip)];
        let images = [
            layout.image("s390x", "{}", &small),
            layout.image(&mine, CONFIG, &layers()),
            layout.image(other, "{}", &small),
        ];
        let index = layout.index(&images);
        layout.tag(&index, "multi");
        let foreign = layout.index(&images[..1]);
        layout.tag(&foreign, "foreign");
        let extra: &[&str] = if with_passwords {
            &["--dest-creds=kiln:secret"]
        } else {
            &[]
        };
        registry.push(&layout.path, "multi", "team/app:1", extra);
        if !with_passwords {
            registry.push(&layout.path, "foreign", "team/foreign:1", extra);
        }
        Bench {
            registry,
            directory,
        }
    }

    pub(crate) fn library(&self, name: &str) -> ImageLibrary {
        self.library_with(name, config())
    }

    pub(crate) fn library_with(&self, name: &str, config: LibraryConfig) -> ImageLibrary {
        ImageLibrary::open(self.root(name), config).unwrap()
    }

    pub(crate) fn root(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

pub(crate) fn request(address: &str, name: &str) -> PullRequest {
    PullRequest::new(format!("{address}/{name}").parse().unwrap())
}

pub(crate) fn pull(
    library: &ImageLibrary,
    address: &str,
    name: &str,
) -> Result<ImageInfo, LibraryError> {
    library.pull(&request(address, name), &Silent)
}

/// Nothing half-made, nothing that nobody can find.
pub(crate) fn assert_tidy(root: &Path) {
    let count = |name: &str| std::fs::read_dir(root.join(name)).unwrap().count();
    assert_eq!(count("tmp"), 0);
    assert_eq!(count("blobs/partial"), 0);
}

/// Layers are what this file's `layers` makes; everything else that is a blob is a config.
pub(crate) fn is_layer(seen: &Seen) -> bool {
    static DIGESTS: OnceLock<Vec<String>> = OnceLock::new();
    let digests = DIGESTS.get_or_init(|| {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::new(temp.path().join("layout"));
        layout.image("amd64", "{}", &layers());
        let names = std::fs::read_dir(layout.path.join("blobs/sha256")).unwrap();
        let big = names.filter(|entry| entry.as_ref().unwrap().metadata().unwrap().len() > 10_000);
        big.map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    });
    digests.iter().any(|digest| seen.path.contains(digest))
}
