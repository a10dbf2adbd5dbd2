//! Which image a spec means: a path, a runtime, or a reference; and what the host's owner says of
//! registries and runtimes. It knows the names, not the images.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_image::library::LibraryConfig;
use kiln_image::oci::{Platform, PlatformError, Reference, ReferenceError};
use kiln_image::registry::{Patience, RegistrySetting, RegistrySettings};
use kiln_image::{Limits, Runtimes};
use serde::Deserialize;

use crate::base_images::BaseImageSettings;
use crate::error::{Error, ErrorCode};
use crate::sandbox::SandboxSpec;

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ImageChoice {
    /// Kiln's own.
    Default,
    /// A root filesystem on this host.
    Path(PathBuf),
    /// An image of a registry, or one that is here under such a name.
    Reference(Reference),
}

impl ImageChoice {
    /// What a spec means.
    pub(crate) fn of(spec: &SandboxSpec, runtimes: &Runtimes) -> Result<Self, Error> {
        if let Some(name) = &spec.runtime {
            let image = runtimes.image(name).map_err(|unknown| {
                Error::new(ErrorCode::InvalidSpec, unknown.to_string())
                    .with_hint("images.json in the data directory can name more")
            })?;
            return Ok(Self::Reference(image.clone()));
        }
        match &spec.image {
            None => Ok(Self::Default),
            Some(text) if is_path(text) => Ok(Self::Path(text.into())),
            Some(text) => Ok(Self::Reference(reference(text, runtimes)?)),
        }
    }
}

/// What nobody could mean as the name of an image.
fn is_path(text: &str) -> bool {
    let starts = ["/", "./", "../"];
    [".", ".."].contains(&text) || starts.iter().any(|start| text.starts_with(start))
}

/// The image that a name means: a runtime's, or its own.
pub(crate) fn reference(text: &str, runtimes: &Runtimes) -> Result<Reference, Error> {
    if let Ok(image) = runtimes.image(text) {
        return Ok(image.clone());
    }
    text.parse().map_err(|source: ReferenceError| {
        Error::new(ErrorCode::InvalidSpec, "that is not the name of an image")
            .with_source(source)
            .with_hint("a path begins with `/`, `./` or `../`; a name is like `alpine:3`")
    })
}

/// The platform of that name; this host's when there is none.
pub(crate) fn platform(text: Option<&str>) -> Result<Platform, Error> {
    let Some(text) = text else {
        return Ok(Platform::host());
    };
    text.parse().map_err(|source: PlatformError| {
        Error::new(ErrorCode::InvalidSpec, source.to_string())
            .with_hint("a platform is like linux/amd64 or linux/arm64")
    })
}

/// What is wrong with the platform of a sandbox, which this host's processor has to run.
pub(crate) fn platform_fault(text: &str) -> Option<String> {
    match platform(Some(text)) {
        Err(error) => Some(error.message()),
        Ok(wanted) if !Platform::host().accepts(&wanted) => Some(format!(
            "platform {wanted} does not run here: this host runs {}",
            Platform::host()
        )),
        Ok(_) => None,
    }
}

/// The file `images.json` in the data directory: what the host's owner decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ImageSettings {
    /// Plain HTTP and mirrors, by registry.
    registries: BTreeMap<String, RegistrySetting>,
    /// How long to wait for registries.
    patience: Patience,
    /// Runtimes besides the built-in ones, or in their place.
    runtimes: BTreeMap<String, Reference>,
    /// Kernels with root filesystems.
    base_images: BaseImageSettings,
    /// What is thrown away without being told to.
    keep: Quota,
    /// What an image may cost.
    limits: Limits,
}

/// How much is kept. Nothing goes that a sandbox needs, or that was just fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Quota {
    /// Images and layers together, in bytes.
    pub(crate) max_bytes: Option<u64>,
    /// Images that nobody asked for so long, in days.
    pub(crate) unused_for_days: Option<u32>,
}

impl ImageSettings {
    /// Reads the file; without one, nothing is special.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let failed = |message: String| Error::new(ErrorCode::InvalidConfig, message);
        match std::fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                failed(format!("{} is not understood: {error}", path.display()))
                    .with_hint("docs/images.md lists its fields")
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(format!("cannot read {}", path.display())).with_source(error)),
        }
    }

    pub(crate) fn library(&self) -> LibraryConfig {
        LibraryConfig {
            registries: RegistrySettings {
                registries: self.registries.clone(),
                patience: self.patience.clone(),
            },
            limits: self.limits.clone(),
        }
    }

    pub(crate) fn quota(&self) -> Quota {
        self.keep
    }

    pub(crate) fn base_images(&self) -> BaseImageSettings {
        self.base_images.clone()
    }

    pub(crate) fn runtimes(&self) -> Runtimes {
        Runtimes::default().with(self.runtimes.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(image: Option<&str>, runtime: Option<&str>) -> Result<ImageChoice, Error> {
        let spec = SandboxSpec {
            image: image.map(Into::into),
            runtime: runtime.map(Into::into),
            ..SandboxSpec::default()
        };
        ImageChoice::of(&spec, &Runtimes::default())
    }

    #[test]
    fn paths_names_and_runtimes_are_told_apart() {
        assert_eq!(choice(None, None).expect("none"), ImageChoice::Default);
        for path in ["/x.tar", "./x", "../x", ".", ".."] {
            let chosen = choice(Some(path), None).expect("path");
            assert_eq!(chosen, ImageChoice::Path(path.into()));
        }
        for (name, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("localhost:5000/a/b:1", "localhost:5000/a/b:1"),
            ("rootfs.tar", "docker.io/library/rootfs.tar:latest"),
        ] {
            let chosen = choice(Some(name), None).expect("name");
            assert_eq!(chosen, ImageChoice::Reference(full.parse().expect("full")));
        }
    }

    #[test]
    fn b1_5_a_runtime_is_chosen_by_either_word_and_an_unknown_one_is_refused() {
        let by_image = choice(Some("python3.13"), None).expect("alias");
        let by_runtime = choice(None, Some("python3.13")).expect("runtime");
        assert_eq!(by_image, by_runtime);
        assert!(matches!(by_image, ImageChoice::Reference(image) if image.digest().is_some()));
        let error = choice(None, Some("ruby")).expect_err("unknown");
        assert_eq!(error.code(), ErrorCode::InvalidSpec);
        assert!(error.message().contains("node22"), "{}", error.message());
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", "UPPER", "a b", "~/x", "x:"] {
            let error = choice(Some(text), None).expect_err(text);
            assert_eq!(error.code(), ErrorCode::InvalidSpec, "{text}");
        }
    }

    #[test]
    fn settings_are_read_and_a_misspelt_one_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("images.json");
        let none = ImageSettings::read(&path).expect("none");
        assert_eq!(none, ImageSettings::default());
        std::fs::write(&path, r#"{"runtimes":{"go":"golang:1.25"}}"#).expect("write");
        let some = ImageSettings::read(&path).expect("some");
        assert!(some.runtimes().image("go").is_ok() && some.runtimes().image("base").is_ok());
        let all = r#"{"keep":{"max_bytes":1,"unused_for_days":2},"limits":{"layers":3},
            "base_images":{"max_stored":4}}"#;
        std::fs::write(&path, all).expect("write");
        let some = ImageSettings::read(&path).expect("all");
        assert_eq!(some.library().limits.layers, 3);
        assert_eq!(some.library().limits.entries, Limits::default().entries);
        assert_eq!(some.quota().unused_for_days, Some(2));
        std::fs::write(&path, r#"{"limits":{"layer":3}}"#).expect("write");
        ImageSettings::read(&path).expect_err("misspelt");
        std::fs::write(&path, r#"{"runtime":{}}"#).expect("write");
        let error = ImageSettings::read(&path).expect_err("misspelt");
        assert_eq!(error.code(), ErrorCode::InvalidConfig);
    }
}
