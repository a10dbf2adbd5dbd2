//! Who someone is to a registry: given outright, or found where Docker and Podman keep it.
//!
//! Owns the reading of their files and the asking of their helpers. It sends nothing anywhere.

mod file;
mod helper;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;

use file::AuthFile;

use crate::oci::Reference;

/// Text that must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps the text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself; never for messages or logs.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("(secret)")
    }
}

/// What proves to a registry who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// A name and a password, or a token that serves as one.
    Basic {
        /// The account.
        username: String,
        /// Its password.
        password: Secret,
    },
    /// A refresh token, which the registry's token server takes for access tokens.
    IdentityToken(Secret),
}

/// Why credentials cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// A file of credentials cannot be read.
    #[error("cannot read the credentials in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of credentials is malformed. What is in it is not shown.
    #[error("the credentials in {} are malformed", .0.display())]
    Malformed(PathBuf),
    /// A helper's name is not one of a program.
    #[error("`{0}` cannot be the name of a credential helper")]
    HelperName(String),
    /// A helper failed.
    #[error("credential helper {helper}: {problem}")]
    Helper {
        /// Its program.
        helper: String,
        /// What went wrong.
        problem: String,
    },
}

/// Where credentials are looked for, in order.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    given: BTreeMap<String, Credentials>,
    files: Vec<PathBuf>,
}

impl Keyring {
    /// Knows nothing: every registry is asked anonymously.
    #[must_use]
    pub fn anonymous() -> Keyring {
        Keyring::default()
    }

    /// The places where this process's user keeps credentials: `REGISTRY_AUTH_FILE`, Podman's
    /// `auth.json`, Docker's `config.json`.
    #[must_use]
    pub fn of_user() -> Keyring {
        let from = |variable: &str| {
            std::env::var_os(variable)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let home = from("HOME");
        let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
        let config = from("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
        let docker = from("DOCKER_CONFIG").or_else(|| in_home(".docker"));
        let files = [
            from("REGISTRY_AUTH_FILE"),
            from("XDG_RUNTIME_DIR").map(|directory| directory.join("containers/auth.json")),
            config.map(|directory| directory.join("containers/auth.json")),
            docker.map(|directory| directory.join("config.json")),
        ];
        Keyring {
            given: BTreeMap::new(),
            files: files.into_iter().flatten().collect(),
        }
    }

    /// Looks into this file too, after the others. It may be missing.
    #[must_use]
    pub fn with_file(mut self, path: impl Into<PathBuf>) -> Keyring {
        self.files.push(path.into());
        self
    }

    /// Uses these credentials for a registry (`ghcr.io`, `localhost:5000`), before any file.
    #[must_use]
    pub fn with(mut self, registry: impl Into<String>, credentials: Credentials) -> Keyring {
        self.given.insert(registry.into(), credentials);
        self
    }

    /// What is known for an image, for a blocking thread: to hand to a daemon that runs as someone
    /// else.
    ///
    /// # Errors
    /// See [`CredentialError`].
    pub fn find(&self, image: &Reference) -> Result<Option<Credentials>, CredentialError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| CredentialError::Helper {
                helper: "(none)".to_owned(),
                problem: error.to_string(),
            })?;
        runtime.block_on(self.lookup(image.registry(), image.repository()))
    }

    pub(crate) async fn lookup(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credentials>, CredentialError> {
        if let Some(given) = self.given.get(registry) {
            return Ok(Some(given.clone()));
        }
        for path in &self.files {
            let Some(file) = AuthFile::read(path)? else {
                continue;
            };
            if let Some(found) = file.find(registry, repository).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show() {
        let credentials = Credentials::Basic {
            username: "me".into(),
            password: Secret::new("hunter2"),
        };
        let keyring = Keyring::anonymous().with("r.example", credentials);
        assert!(!format!("{keyring:?}").contains("hunter2"));
        let image = "r.example/a".parse().unwrap();
        let Some(Credentials::Basic { password, .. }) = keyring.find(&image).unwrap() else {
            panic!()
        };
        assert_eq!(password.expose(), "hunter2");
        assert_eq!(
            keyring.find(&"other.example/a".parse().unwrap()).unwrap(),
            None
        );
    }
}
