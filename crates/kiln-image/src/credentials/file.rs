//! Docker's `config.json` and Podman's `auth.json`: the same format, different habits of naming.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::helper;
use super::{CredentialError, Credentials, Secret};

const MAX_FILE: u64 = 1 << 20;
/// What Docker calls Docker Hub in its files.
const DOCKER_HUB: [&str; 4] = [
    "index.docker.io/v1",
    "index.docker.io",
    "docker.io",
    "registry-1.docker.io",
];
const DOCKER_HUB_HELPER_KEY: &str = "https://index.docker.io/v1/";

/// One file.
pub(super) struct AuthFile {
    path: PathBuf,
    content: Content,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Content {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl AuthFile {
    /// Reads the file; `None` if there is none.
    pub(super) fn read(path: &Path) -> Result<Option<AuthFile>, CredentialError> {
        let failed = |source| CredentialError::Read {
            path: path.into(),
            source,
        };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        AuthFile::parse(path, &bytes).map(Some)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<AuthFile, CredentialError> {
        // The cause would quote what is in the file.
        let content =
            serde_json::from_slice(bytes).map_err(|_| CredentialError::Malformed(path.into()))?;
        Ok(AuthFile {
            path: path.into(),
            content,
        })
    }

    /// What the file knows: a helper for the registry, then an entry, then the helper for all.
    pub(super) async fn find(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credentials>, CredentialError> {
        let helper_key = if registry == "docker.io" {
            DOCKER_HUB_HELPER_KEY
        } else {
            registry
        };
        let named = self.content.cred_helpers.iter();
        let own = named
            .filter(|(key, _)| names_registry(key, registry))
            .map(|(_, helper)| helper)
            .next();
        if let Some(helper) = own {
            return helper::ask(helper, helper_key).await;
        }
        if let Some(found) = self.entry(registry, repository)? {
            return Ok(Some(found));
        }
        match self.content.creds_store.as_deref() {
            Some(helper) if !helper.is_empty() => helper::ask(helper, helper_key).await,
            _ => Ok(None),
        }
    }

    /// The entry whose key is the longest prefix of the image's name: Podman has entries for parts
    /// of a registry.
    fn entry(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credentials>, CredentialError> {
        let mut best: Option<(usize, &Entry)> = None;
        for (key, entry) in &self.content.auths {
            let Some(length) = match_length(key, registry, repository) else {
                continue;
            };
            if best.is_none_or(|(longest, _)| length > longest) {
                best = Some((length, entry));
            }
        }
        match best {
            Some((_, entry)) => entry
                .credentials()
                .map_err(|()| CredentialError::Malformed(self.path.clone())),
            None => Ok(None),
        }
    }
}

/// Without scheme, trailing slash and the API's path, which older Dockers wrote.
fn bare(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or(key.strip_prefix("http://"))
        .unwrap_or(key);
    let key = key.trim_end_matches('/');
    if DOCKER_HUB.contains(&key) {
        return "docker.io";
    }
    key.strip_suffix("/v1")
        .or(key.strip_suffix("/v2"))
        .unwrap_or(key)
}

fn names_registry(key: &str, registry: &str) -> bool {
    bare(key).eq_ignore_ascii_case(registry)
}

fn match_length(key: &str, registry: &str, repository: &str) -> Option<usize> {
    if names_registry(key, registry) {
        return Some(0);
    }
    let namespace = bare(key).strip_prefix(registry)?.strip_prefix('/')?;
    let rest = repository.strip_prefix(namespace)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(namespace.len())
}

impl Entry {
    /// An entry may be empty: it then says that a helper knows.
    fn credentials(&self) -> Result<Option<Credentials>, ()> {
        if let Some(token) = self
            .identitytoken
            .as_deref()
            .filter(|token| !token.is_empty())
        {
            return Ok(Some(Credentials::IdentityToken(Secret::new(token))));
        }
        if let Some(auth) = self.auth.as_deref().filter(|auth| !auth.is_empty()) {
            let bytes = STANDARD.decode(auth).map_err(|_| ())?;
            let text = String::from_utf8(bytes).map_err(|_| ())?;
            let (username, password) = text.split_once(':').ok_or(())?;
            return Ok(Some(Credentials::Basic {
                username: username.to_owned(),
                // Old Dockers padded it.
                password: Secret::new(password.trim_end_matches('\0')),
            }));
        }
        match (&self.username, &self.password) {
            (Some(username), Some(password)) if !username.is_empty() => {
                Ok(Some(Credentials::Basic {
                    username: username.clone(),
                    password: Secret::new(password.clone()),
                }))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn find(content: &str, registry: &str, repository: &str) -> Option<Credentials> {
        let file = AuthFile::parse(Path::new("auth.json"), content.as_bytes()).unwrap();
        file.entry(registry, repository).unwrap()
    }

    fn basic(username: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Basic {
            username: username.into(),
            password: Secret::new(password),
        })
    }

    #[test]
    fn docker_hub_has_many_names() {
        for key in [
            "https://index.docker.io/v1/",
            "docker.io",
            "index.docker.io",
            "https://registry-1.docker.io",
        ] {
            // me:p:w
            let content = format!(r#"{{"auths":{{"{key}":{{"auth":"bWU6cDp3"}}}}}}"#);
            assert_eq!(
                find(&content, "docker.io", "library/a"),
                basic("me", "p:w"),
                "{key}"
            );
            assert_eq!(find(&content, "ghcr.io", "a"), None);
        }
    }

    #[test]
    fn the_longest_name_wins() {
        let content = r#"{"auths":{"quay.io":{"username":"a","password":"1"},
            "quay.io/team":{"username":"b","password":"2"},
            "quay.io/team/app":{"username":"c","password":"3"},
            "https://r.example:5000/v2/":{"identitytoken":"t"}, "empty.example":{}}}"#;
        assert_eq!(find(content, "quay.io", "other/x"), basic("a", "1"));
        assert_eq!(find(content, "quay.io", "team/x"), basic("b", "2"));
        assert_eq!(find(content, "quay.io", "teamster/x"), basic("a", "1"));
        assert_eq!(find(content, "quay.io", "team/app/y"), basic("c", "3"));
        let token = Some(Credentials::IdentityToken(Secret::new("t")));
        assert_eq!(find(content, "r.example:5000", "x"), token);
        assert_eq!(find(content, "r.example", "x"), None);
        assert_eq!(find(content, "empty.example", "x"), None);
    }

    #[test]
    fn malformed_files_are_errors_that_quote_nothing() {
        let bad = AuthFile::parse(Path::new("f"), br#"{"auths":{"a.b":{"auth": "hunter2"#).err();
        let bad = format!("{:?}", bad.unwrap());
        assert!(!bad.contains("hunter2"), "{bad}");
        let file = AuthFile::parse(Path::new("f"), br#"{"auths":{"a.b":{"auth":"!!"}}}"#).unwrap();
        assert!(matches!(
            file.entry("a.b", "x"),
            Err(CredentialError::Malformed(_))
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), key in "\\PC{0,20}") {
            let _ = AuthFile::parse(Path::new("f"), &bytes);
            let _ = match_length(&key, "docker.io", "library/a");
        }
    }
}
