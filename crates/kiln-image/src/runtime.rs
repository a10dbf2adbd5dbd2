//! Short names for images that programs are run in: `node22`, `python3.13`. Each means one image,
//! by its digest, until the host's owner says otherwise.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::oci::Reference;

/// Name and image. The digests are those of the multi-platform indexes that Docker's official
/// images published (debian in January, python in August, node 22 in September 2026); the tags are
/// for people.
const BUILT_IN: [(&str, &str); 4] = [
    (
        "base",
        "docker.io/library/debian:bookworm-slim@sha256:56ff6d36d4eb3db13a741b342ec466f121480b5edded42e4b7ee850ce7a418ee",
    ),
    (
        "node22",
        "docker.io/library/node:22-bookworm-slim@sha256:48e4b67d85f87bd551df43704e24d252f56cc5f8e9718841aace50f19948f0f9",
    ),
    (
        "node24",
        "docker.io/library/node:24-bookworm-slim@sha256:a9f5f7c91a432850b2a8a7797adf5eadb6c733ceed61167806cee7ea7fbc29df",
    ),
    (
        "python3.13",
        "docker.io/library/python:3.13-slim-bookworm@sha256:67a1e1f215ccda113cfc024e8639049257e88f273898f595b61476d128d387e8",
    ),
];

/// The runtimes of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Runtimes(BTreeMap<String, Reference>);

/// There is no such runtime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no runtime `{name}`; there are {}", known.join(", "))]
pub struct UnknownRuntime {
    /// What was asked for.
    pub name: String,
    /// What there is.
    pub known: Vec<String>,
}

impl Default for Runtimes {
    fn default() -> Runtimes {
        // A test holds that none is lost here.
        let parsed = BUILT_IN
            .iter()
            .filter_map(|(name, image)| Some(((*name).to_owned(), image.parse().ok()?)));
        Runtimes(parsed.collect())
    }
}

impl Runtimes {
    /// The built-in ones, with those of the host's owner added or put in their place.
    #[must_use]
    pub fn with(mut self, own: impl IntoIterator<Item = (String, Reference)>) -> Runtimes {
        self.0.extend(own);
        self
    }

    /// The image that a name means.
    ///
    /// # Errors
    /// [`UnknownRuntime`].
    pub fn image(&self, name: &str) -> Result<&Reference, UnknownRuntime> {
        self.0.get(name).ok_or_else(|| UnknownRuntime {
            name: name
                .chars()
                .take(80)
                .flat_map(char::escape_default)
                .collect(),
            known: self.0.keys().cloned().collect(),
        })
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Reference)> {
        self.0.iter().map(|(name, image)| (name.as_str(), image))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b1_5_all_names_mean_pinned_images() {
        let runtimes = Runtimes::default();
        let names: Vec<&str> = runtimes.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["base", "node22", "node24", "python3.13"]);
        for (name, image) in runtimes.iter() {
            assert!(image.digest().is_some() && image.tag().is_some(), "{name}");
        }
    }

    #[test]
    fn the_owner_adds_and_replaces() {
        let own: BTreeMap<String, Reference> =
            serde_json::from_str(r#"{"base":"localhost:5000/base","go":"golang:1.25"}"#).unwrap();
        let runtimes = Runtimes::default().with(own);
        assert_eq!(runtimes.image("base").unwrap().registry(), "localhost:5000");
        assert_eq!(
            runtimes.image("go").unwrap().to_string(),
            "docker.io/library/golang:1.25"
        );
        let unknown = runtimes.image("ruby").unwrap_err().to_string();
        assert!(unknown.contains("base, go, node22"), "{unknown}");
    }
}
