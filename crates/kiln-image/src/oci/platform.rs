//! Which of an image's builds fits a machine.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::manifest::Descriptor;

/// Operating system and processor of an image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// As Go names it: `amd64`, `arm64`.
    pub architecture: String,
    /// Of the processor: `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// No build fits, or the text names no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    /// The image is not built for it.
    #[error("the image is not built for {wanted}, only for {}", list(.found))]
    Missing {
        /// What was asked for.
        wanted: String,
        /// What there is.
        found: Vec<Platform>,
    },
    /// Not `os/architecture[/variant]`.
    #[error("`{0}` is not a platform (os/architecture[/variant])")]
    Malformed(String),
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "no platform at all".to_owned();
    }
    let names: Vec<String> = platforms.iter().take(12).map(ToString::to_string).collect();
    names.join(", ")
}

impl Platform {
    /// Linux on this machine's processor.
    #[must_use]
    pub fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// Variants that run on this platform, best first. The empty one is what most images say.
    fn variants(&self) -> Vec<&str> {
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm64", None | Some("v8")) => vec!["v8", ""],
            ("arm", None | Some("v7")) => vec!["v7", "v6", "v5", ""],
            ("arm", Some("v6")) => vec!["v6", "v5", ""],
            // What a host is beyond the first level is not known: only that one is sure to run.
            ("amd64", None) => vec!["", "v1"],
            (_, Some(variant)) => vec![variant, ""],
            (_, None) => vec![""],
        }
    }

    /// How well a build fits, lower is better; `None` if it does not.
    fn rank(&self, build: &Platform) -> Option<usize> {
        if self.os != build.os || self.architecture != build.architecture {
            return None;
        }
        let variant = build.variant.as_deref().unwrap_or_default();
        self.variants().iter().position(|fits| *fits == variant)
    }

    /// Whether an image whose config says `build` runs here.
    #[must_use]
    pub fn accepts(&self, build: &Platform) -> bool {
        self.os == build.os && self.architecture == build.architecture
    }

    /// The best build of an index; the first of equals.
    ///
    /// # Errors
    /// [`PlatformError::Missing`].
    pub fn select<'a>(&self, manifests: &'a [Descriptor]) -> Result<&'a Descriptor, PlatformError> {
        // Attestations stand among the builds as `unknown/unknown`.
        let builds = manifests
            .iter()
            .filter_map(|entry| Some((entry, entry.platform.as_ref()?)));
        let ranked = builds.filter_map(|(entry, build)| Some((self.rank(build)?, entry)));
        if let Some((_, entry)) = ranked.min_by_key(|(rank, _)| *rank) {
            return Ok(entry);
        }
        // An index of one image that says nothing about itself: its config will tell.
        if let [entry] = manifests
            && entry.platform.is_none()
        {
            return Ok(entry);
        }
        let found = manifests.iter().filter_map(|entry| entry.platform.clone());
        Err(PlatformError::Missing {
            wanted: self.to_string(),
            found: found.filter(|build| build.os != "unknown").collect(),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match &self.variant {
            Some(variant) => format!("{}/{}/{variant}", self.os, self.architecture),
            None => format!("{}/{}", self.os, self.architecture),
        };
        // Indexes from outside say these.
        let shown: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
        out.write_str(&shown)
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Platform, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let fits = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(PlatformError::Malformed(text.chars().take(60).collect())),
        };
        if ![Some(os), Some(architecture), variant]
            .iter()
            .flatten()
            .all(fits)
        {
            return Err(PlatformError::Malformed(text.chars().take(60).collect()));
        }
        Ok(Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn entry(number: u8, platform: Option<&str>) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: Digest::of(&[number]),
            size: 1,
            platform: platform.map(|text| text.parse().unwrap()),
            annotations: std::collections::BTreeMap::new(),
        }
    }

    fn choose(wanted: &str, builds: &[&str]) -> Option<usize> {
        let entries: Vec<Descriptor> = (0..)
            .zip(builds)
            .map(|(number, build)| entry(number, Some(build)))
            .collect();
        let chosen = wanted.parse::<Platform>().unwrap().select(&entries).ok()?;
        entries.iter().position(|entry| entry == chosen)
    }

    #[test]
    fn the_best_variant_wins_and_attestations_never() {
        let builds = [
            "unknown/unknown",
            "linux/arm/v6",
            "linux/arm/v7",
            "linux/amd64/v3",
            "linux/amd64",
            "linux/arm64/v8",
        ];
        assert_eq!(choose("linux/amd64", &builds), Some(4));
        assert_eq!(choose("linux/amd64/v3", &builds), Some(3));
        assert_eq!(choose("linux/arm64", &builds), Some(5));
        assert_eq!(choose("linux/arm64/v8", &["linux/arm64"]), Some(0));
        assert_eq!(choose("linux/arm", &builds), Some(2));
        assert_eq!(choose("linux/arm/v6", &builds), Some(1));
        assert_eq!(choose("linux/amd64", &["linux/amd64/v2"]), None);
        assert_eq!(choose("linux/riscv64", &builds), None);
    }

    #[test]
    fn a_missing_platform_names_what_there_is() {
        let entries = [
            entry(0, Some("linux/arm64/v8")),
            entry(1, Some("unknown/unknown")),
        ];
        let error = "linux/amd64"
            .parse::<Platform>()
            .unwrap()
            .select(&entries)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "the image is not built for linux/amd64, only for linux/arm64/v8"
        );
        assert!("linux".parse::<Platform>().is_err());
        let alone = [entry(0, None)];
        assert!(Platform::host().select(&alone).is_ok());
    }
}
