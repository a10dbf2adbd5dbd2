//! The config of an image: how its processes start, and which layers it is made of.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;
use super::platform::Platform;

/// How an image wants to be run. Users and groups stay as they are written: only the guest knows
/// their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// First words of every command.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Words that follow unless the caller gives others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Environment, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// `name`, `uid`, `name:group` or `uid:gid`; empty for root.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Where processes start; empty for the root.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// What asks the main process to end: `SIGTERM`, `SIGRTMIN+3`, `15`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// `80/tcp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<String>,
    /// Directories that the image wants on disks of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// Notes of whoever made it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How to see whether it is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
}

/// How to see whether an image's service is well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["CMD", …]`, `["CMD-SHELL", …]` or `["NONE"]`.
    #[serde(deserialize_with = "nullable")]
    pub test: Vec<String>,
    /// Nanoseconds between checks.
    pub interval: i64,
    /// Nanoseconds that a check may take.
    pub timeout: i64,
    /// Nanoseconds of grace at the start.
    pub start_period: i64,
    /// Nanoseconds between checks during the grace.
    pub start_interval: i64,
    /// Failures in a row that count as one.
    pub retries: u32,
}

/// The whole document that an image's id is the digest of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageDocument {
    /// What it runs on.
    pub platform: Platform,
    /// When it was made, as the document writes it.
    pub created: Option<String>,
    /// Digests of the plain layers, lowest first.
    pub diff_ids: Vec<Digest>,
    /// How it wants to be run.
    pub config: ImageConfig,
}

/// Why a config cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not JSON, or without what a config must have.
    #[error("the image's config cannot be read")]
    Malformed(#[source] serde_json::Error),
    /// A layer scheme of the future.
    #[error("the image's root filesystem is of type `{0}`, not `layers`")]
    RootfsType(String),
    /// A word, name or path with a NUL in it, which no process can be given.
    #[error("the image's config has a NUL character in {0}")]
    Nul(&'static str),
}

impl ImageDocument {
    /// Reads the document.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(bytes: &[u8]) -> Result<ImageDocument, ConfigError> {
        let wire: WireDocument = serde_json::from_slice(bytes).map_err(ConfigError::Malformed)?;
        if wire.rootfs.kind != "layers" {
            let kind = wire
                .rootfs
                .kind
                .chars()
                .take(40)
                .flat_map(char::escape_default);
            return Err(ConfigError::RootfsType(kind.collect()));
        }
        let config = wire.config.unwrap_or_default().into_config();
        check_nul(&config)?;
        Ok(ImageDocument {
            platform: Platform {
                os: wire.os,
                architecture: wire.architecture,
                variant: wire.variant.filter(|variant| !variant.is_empty()),
            },
            created: wire.created,
            diff_ids: wire.rootfs.diff_ids,
            config,
        })
    }

    /// Writes the document: the same value gives the same bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let wire = WireDocument {
            created: self.created.clone(),
            architecture: self.platform.architecture.clone(),
            variant: self.platform.variant.clone(),
            os: self.platform.os.clone(),
            config: Some(WireConfig::of(&self.config)),
            rootfs: WireRootfs {
                kind: "layers".to_owned(),
                diff_ids: self.diff_ids.clone(),
            },
        };
        // Strings, numbers and maps keyed by strings: nothing that JSON could refuse.
        serde_json::to_vec(&wire).unwrap_or_default()
    }
}

fn check_nul(config: &ImageConfig) -> Result<(), ConfigError> {
    let has_nul = |text: &String| text.contains('\0');
    if config.entrypoint.iter().chain(&config.cmd).any(has_nul) {
        return Err(ConfigError::Nul("its command"));
    }
    if config
        .env
        .iter()
        .any(|(name, value)| has_nul(name) || has_nul(value))
    {
        return Err(ConfigError::Nul("its environment"));
    }
    if has_nul(&config.user) || has_nul(&config.working_dir) {
        return Err(ConfigError::Nul("its user or working directory"));
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct WireDocument {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(default)]
    architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
    #[serde(default)]
    os: String,
    config: Option<WireConfig>,
    rootfs: WireRootfs,
}

#[derive(Serialize, Deserialize)]
struct WireRootfs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(deserialize_with = "nullable", default)]
    diff_ids: Vec<Digest>,
}

/// Names of sets that Go writes as `{"80/tcp": {}}`.
type Names = BTreeMap<String, serde_json::Value>;

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct WireConfig {
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "nullable"
    )]
    user: String,
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "nullable"
    )]
    exposed_ports: Names,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "words")]
    entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "words")]
    cmd: Vec<String>,
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "nullable"
    )]
    volumes: Names,
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "nullable"
    )]
    working_dir: String,
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "nullable"
    )]
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthcheck: Option<Healthcheck>,
}

impl WireConfig {
    fn into_config(self) -> ImageConfig {
        let pair = |entry: String| match entry.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (entry, String::new()),
        };
        ImageConfig {
            entrypoint: self.entrypoint,
            cmd: self.cmd,
            env: self.env.into_iter().map(pair).collect(),
            user: self.user,
            working_dir: self.working_dir,
            stop_signal: self.stop_signal.filter(|signal| !signal.is_empty()),
            exposed_ports: self.exposed_ports.into_keys().collect(),
            volumes: self.volumes.into_keys().collect(),
            labels: self.labels,
            healthcheck: self.healthcheck.filter(|check| !check.test.is_empty()),
        }
    }

    fn of(config: &ImageConfig) -> WireConfig {
        let names = |names: &[String]| {
            let empty = || serde_json::Value::Object(serde_json::Map::new());
            names.iter().map(|name| (name.clone(), empty())).collect()
        };
        WireConfig {
            user: config.user.clone(),
            exposed_ports: names(&config.exposed_ports),
            env: config
                .env
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
            volumes: names(&config.volumes),
            working_dir: config.working_dir.clone(),
            labels: config.labels.clone(),
            stop_signal: config.stop_signal.clone(),
            healthcheck: config.healthcheck.clone(),
        }
    }
}

/// Go writes empty lists and maps as `null`.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A list, or, as old Dockers wrote, one word.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        Many(Vec<String>),
        One(String),
    }
    Ok(match Option::<Words>::deserialize(deserializer)? {
        Some(Words::Many(words)) => words,
        Some(Words::One(word)) => vec![word],
        None => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As Docker writes it, with what old and lazy builders write.
    const NGINX: &str = r#"{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z",
        "history":[{"created_by":"x"}],
        "config":{"Hostname":"","User":"nginx:nginx","Env":["PATH=/usr/bin","EMPTY=","LONE","A=b=c"],
        "ExposedPorts":{"80/tcp":{},"443/tcp":{}},"Cmd":["nginx","-g","daemon off;"],
        "Entrypoint":"/entry.sh","WorkingDir":"/srv","Labels":{"a":"b"},"StopSignal":"SIGQUIT",
        "Volumes":{"/data":{}},"OnBuild":null,
        "Healthcheck":{"Test":["CMD","true"],"Interval":5000000000,"Retries":3}},
        "rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}"#;

    #[test]
    fn a_docker_config_is_read_whole() {
        let document = ImageDocument::parse(NGINX.as_bytes()).unwrap();
        assert_eq!(document.platform.to_string(), "linux/amd64");
        assert_eq!(document.diff_ids, [Digest::of(b"")]);
        let config = document.config;
        assert_eq!(config.entrypoint, ["/entry.sh"]);
        assert_eq!(config.cmd, ["nginx", "-g", "daemon off;"]);
        let env: Vec<(&str, &str)> = config.env.iter().map(|(n, v)| (&**n, &**v)).collect();
        assert_eq!(
            env,
            [
                ("PATH", "/usr/bin"),
                ("EMPTY", ""),
                ("LONE", ""),
                ("A", "b=c")
            ]
        );
        assert_eq!(config.user, "nginx:nginx");
        assert_eq!(config.working_dir, "/srv");
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(config.exposed_ports, ["443/tcp", "80/tcp"]);
        assert_eq!(config.volumes, ["/data"]);
        assert_eq!(config.labels["a"], "b");
        let check = config.healthcheck.unwrap();
        assert_eq!(
            (check.test.len(), check.interval, check.retries),
            (2, 5_000_000_000, 3)
        );
    }

    #[test]
    fn nulls_and_gaps_are_empty() {
        let text = r#"{"config":{"Env":null,"Cmd":null,"Entrypoint":null,"Labels":null},
            "rootfs":{"type":"layers","diff_ids":null}}"#;
        let document = ImageDocument::parse(text.as_bytes()).unwrap();
        assert_eq!(document.config, ImageConfig::default());
        let bare = r#"{"config":null,"rootfs":{"type":"layers"}}"#;
        assert!(ImageDocument::parse(bare.as_bytes()).is_ok());
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        let nul = r#"{"config":{"Cmd":["a\u0000b"]},"rootfs":{"type":"layers"}}"#;
        assert!(matches!(
            ImageDocument::parse(nul.as_bytes()),
            Err(ConfigError::Nul(_))
        ));
        let other = r#"{"rootfs":{"type":"blocks"}}"#;
        assert!(matches!(
            ImageDocument::parse(other.as_bytes()),
            Err(ConfigError::RootfsType(_))
        ));
        assert!(ImageDocument::parse(b"{}").is_err());
    }

    proptest! {
        #[test]
        fn no_change_of_a_byte_makes_it_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = NGINX.as_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = ImageDocument::parse(&bytes);
        }

        #[test]
        fn what_is_written_reads_the_same(
            cmd in proptest::collection::vec("[^\0]{0,9}", 0..3),
            name in "[A-Z]{1,5}",
            value in "[^\0]{0,9}",
            user in "[a-z]{0,5}",
            port in 1..65535_u16,
        ) {
            let document = ImageDocument {
                platform: Platform::host(),
                created: None,
                diff_ids: vec![Digest::of(b"x")],
                config: ImageConfig {
                    cmd,
                    env: vec![(name, value)],
                    user,
                    exposed_ports: vec![format!("{port}/tcp")],
                    ..ImageConfig::default()
                },
            };
            prop_assert_eq!(ImageDocument::parse(&document.to_bytes()).unwrap(), document);
        }
    }
}
