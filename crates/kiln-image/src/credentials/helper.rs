//! Programs that keep credentials: `docker-credential-<name> get`, the registry on their standard
//! input, JSON on their output.

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::{CredentialError, Credentials, Secret};

/// They may ask people: a smart card, a password window.
const PATIENCE: Duration = Duration::from_secs(60);
const MAX_OUTPUT: u64 = 64 << 10;
/// What all helpers say when they know nothing of a registry.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The user name that marks a refresh token.
const TOKEN: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Asks a helper for a registry; `None` if it knows nothing.
pub(super) async fn ask(
    name: &str,
    registry: &str,
) -> Result<Option<Credentials>, CredentialError> {
    let program = program(name)?;
    let failed = |problem: String| CredentialError::Helper {
        helper: program.clone(),
        problem,
    };
    let exchange = tokio::time::timeout(PATIENCE, exchange(&program, registry)).await;
    let exchanged =
        exchange.map_err(|_| failed(format!("no answer in {} s", PATIENCE.as_secs())))?;
    let (output, succeeded) = exchanged.map_err(|error| failed(error.to_string()))?;
    if !succeeded {
        let said = String::from_utf8_lossy(&output);
        if said.contains(NOT_FOUND) {
            return Ok(None);
        }
        // It may be a secret that the helper prints before it fails.
        return Err(failed("it failed; run it by hand to see why".to_owned()));
    }
    let answer: Answer = serde_json::from_slice(&output)
        .map_err(|_| failed("its answer is malformed".to_owned()))?;
    Ok(match (answer.username.as_str(), answer.secret) {
        (_, secret) if secret.is_empty() => None,
        (TOKEN, secret) => Some(Credentials::IdentityToken(Secret::new(secret))),
        (username, secret) => Some(Credentials::Basic {
            username: username.to_owned(),
            password: Secret::new(secret),
        }),
    })
}

/// The name stands in a file; it must not lead anywhere but to a program on the search path.
fn program(name: &str) -> Result<String, CredentialError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
        return Err(CredentialError::HelperName(
            name.chars()
                .take(64)
                .flat_map(char::escape_default)
                .collect(),
        ));
    }
    Ok(format!("docker-credential-{name}"))
}

async fn exchange(program: &str, registry: &str) -> std::io::Result<(Vec<u8>, bool)> {
    let mut child: Child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // One that reads nothing may be gone already; its answer counts.
        let _ = input.write_all(registry.as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_OUTPUT).read_to_end(&mut output).await?;
    }
    let status = child.wait().await?;
    Ok((output, status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_are_programs_on_the_path_and_nothing_else() {
        assert_eq!(program("desktop").unwrap(), "docker-credential-desktop");
        for name in ["", "../x", "a b", "a/b", "a\0", "x;y"] {
            assert!(
                matches!(program(name), Err(CredentialError::HelperName(_))),
                "{name}"
            );
        }
    }
}
