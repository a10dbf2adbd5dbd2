//! What the host's owner says about registries: which speak plain HTTP, which have mirrors.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::RegistryError;
use crate::http::parse_url;
use crate::oci::Reference;

/// Settings by registry (`docker.io`, `localhost:5000`), and how patient to be with all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrySettings {
    /// By host, or host and port.
    pub registries: BTreeMap<String, RegistrySetting>,
    /// Waiting and trying again.
    pub patience: Patience,
}

/// What is special about one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrySetting {
    /// Speak plain HTTP. Without a word, only registries on this machine's loopback do.
    pub insecure: Option<bool>,
    /// Asked first, in order: `https://mirror.example/prefix`, or a bare host for HTTPS.
    pub mirrors: Vec<String>,
}

/// How long to wait for a registry, and how often to try again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Patience {
    /// Milliseconds that connecting, an answer, or the next bytes may take.
    pub stall_ms: u64,
    /// Tries without any progress before giving up.
    pub attempts: u32,
    /// Milliseconds before the second try; doubles with each.
    pub first_wait_ms: u64,
    /// The longest wait, also where a registry asks for a longer one.
    pub longest_wait_ms: u64,
    /// Downloads at once.
    pub parallel: usize,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            stall_ms: 30_000,
            attempts: 5,
            first_wait_ms: 300,
            longest_wait_ms: 60_000,
            parallel: 4,
        }
    }
}

impl Patience {
    pub(crate) fn stall(&self) -> Duration {
        Duration::from_millis(self.stall_ms.max(1))
    }
}

/// One place where a registry's content is had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `https://host[:port][/prefix]`, without a slash at the end.
    pub(crate) base: String,
    /// The name under which credentials are kept.
    pub(crate) account: String,
}

/// Where Docker Hub's API lives.
const DOCKER_HUB: &str = "registry-1.docker.io";

impl RegistrySettings {
    /// Where to ask for an image: mirrors, then the registry itself.
    pub(super) fn endpoints(&self, image: &Reference) -> Result<Vec<Endpoint>, RegistryError> {
        let registry = image.registry();
        let setting = self.registries.get(registry).cloned().unwrap_or_default();
        let mirrors = setting.mirrors.iter().map(|mirror| mirror_endpoint(mirror));
        let mut endpoints = mirrors.collect::<Result<Vec<_>, _>>()?;
        let insecure = setting.insecure.unwrap_or_else(|| is_loopback(registry));
        let scheme = if insecure { "http" } else { "https" };
        let host = if registry == "docker.io" {
            DOCKER_HUB
        } else {
            registry
        };
        endpoints.push(Endpoint {
            base: format!("{scheme}://{host}"),
            account: registry.to_owned(),
        });
        Ok(endpoints)
    }
}

fn mirror_endpoint(mirror: &str) -> Result<Endpoint, RegistryError> {
    let url = if mirror.contains("://") {
        mirror.to_owned()
    } else {
        format!("https://{mirror}")
    };
    let base = url.trim_end_matches('/').to_owned();
    let invalid = |problem| RegistryError::InvalidUrl {
        url: mirror.to_owned(),
        problem,
    };
    let parsed = parse_url(&base).map_err(invalid)?;
    match parsed.authority() {
        Some(authority) if !authority.as_str().contains('@') && parsed.query().is_none() => {
            Ok(Endpoint {
                account: authority.to_string(),
                base,
            })
        }
        _ => Err(invalid("a mirror is a host and perhaps a path")),
    }
}

/// Whether the name can only mean this machine.
fn is_loopback(registry: &str) -> bool {
    if registry.starts_with("[::1]") {
        return true;
    }
    let host = registry.split(':').next().unwrap_or_default();
    let address = host.parse::<std::net::Ipv4Addr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(settings: &RegistrySettings, image: &str) -> Vec<String> {
        let endpoints = settings.endpoints(&image.parse().unwrap()).unwrap();
        endpoints
            .into_iter()
            .map(|endpoint| endpoint.base)
            .collect()
    }

    #[test]
    fn plain_http_is_for_loopback_and_where_it_is_allowed() {
        let mut settings = RegistrySettings::default();
        assert_eq!(bases(&settings, "alpine"), ["https://registry-1.docker.io"]);
        assert_eq!(
            bases(&settings, "localhost:5000/a"),
            ["http://localhost:5000"]
        );
        assert_eq!(
            bases(&settings, "127.0.0.1:5000/a"),
            ["http://127.0.0.1:5000"]
        );
        assert_eq!(bases(&settings, "[::1]:5000/a"), ["http://[::1]:5000"]);
        // Names that only look like it.
        assert_eq!(
            bases(&settings, "localhost.example.com/a"),
            ["https://localhost.example.com"]
        );
        assert_eq!(
            bases(&settings, "127.0.0.1.example.com/a"),
            ["https://127.0.0.1.example.com"]
        );
        let insecure = |insecure| RegistrySetting {
            insecure: Some(insecure),
            mirrors: Vec::new(),
        };
        settings.registries.insert("lab:80".into(), insecure(true));
        settings
            .registries
            .insert("localhost".into(), insecure(false));
        assert_eq!(bases(&settings, "lab:80/a"), ["http://lab:80"]);
        assert_eq!(bases(&settings, "localhost/a"), ["https://localhost"]);
    }

    #[test]
    fn mirrors_come_first() {
        let mut settings = RegistrySettings::default();
        let hub = RegistrySetting {
            insecure: None,
            mirrors: vec!["mirror.example/hub/".into(), "http://10.0.0.1:5000".into()],
        };
        settings.registries.insert("docker.io".into(), hub);
        assert_eq!(
            bases(&settings, "alpine"),
            [
                "https://mirror.example/hub",
                "http://10.0.0.1:5000",
                "https://registry-1.docker.io"
            ]
        );
        for wrong in ["ftp://x", "", "http://user:pw@x", "http://x?y"] {
            let setting = RegistrySetting {
                insecure: None,
                mirrors: vec![wrong.into()],
            };
            settings.registries.insert("docker.io".into(), setting);
            assert!(
                settings.endpoints(&"alpine".parse().unwrap()).is_err(),
                "{wrong}"
            );
        }
    }
}
