//! A daemon on another host: its address, whom to trust, and the token to show.
//!
//! The token never stands on a command line, where everybody on this host could read it: it comes
//! from a file or the environment.

use std::{
    env, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use kiln_api::{Client, ClientError, ErrorReport};
use thiserror::Error;

use crate::{cli::Global, failure::with_causes};

/// Whom this system trusts, by distribution.
const SYSTEM_ROOTS: [&str; 2] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
];
/// Where the token may be instead of in a file.
const TOKEN: &str = "KILN_TOKEN";
/// Longer than any token or list of certificates.
const MOST_BYTES: u64 = 4 << 20;

/// Where a daemon is, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// `HOST:PORT` of any host.
    Https(String),
    /// A socket of this one.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "write https://HOST:PORT or unix:///PATH";
        if let Some(path) = text.strip_prefix("unix://") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err(WRONG),
            };
        }
        if text.starts_with("http://") || text.starts_with("tcp://") {
            return Err("a daemon elsewhere is reached by https:// only");
        }
        let rest = text.strip_prefix("https://").ok_or(WRONG)?;
        let address = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = address.rsplit_once(':').ok_or(WRONG)?;
        let is_host = !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']);
        let is_port = port.parse::<u16>().is_ok_and(|port| port != 0);
        if is_host && is_port {
            Ok(Self::Https(address.to_owned()))
        } else {
            Err(WRONG)
        }
    }
}

/// Why a daemon elsewhere cannot be asked.
#[derive(Debug, Error)]
pub(crate) enum RemoteError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("others can read {}", path.display())]
    Exposed { path: PathBuf },
    #[error("there is no token for {0}")]
    NoToken(String),
    #[error("the token is not one line of visible characters")]
    BadToken,
    #[error("this system has no list of certificates that it trusts")]
    NoRoots,
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("this command is about this host, and {0} names another")]
    Local(String),
    #[error("{} means nothing on the daemon's host", path.display())]
    Relative { path: PathBuf },
}

impl RemoteError {
    pub(crate) fn report(&self) -> ErrorReport {
        let hint = match self {
            Self::Client(error) => return error.report(),
            Self::Read { .. } => None,
            Self::Exposed { .. } => Some("take their rights away: `chmod 600`"),
            Self::NoToken(_) | Self::BadToken => {
                Some("put it into a file and name that with --token-file, or set KILN_TOKEN")
            }
            Self::NoRoots => Some("name the daemon's certificate, or its issuer's, with --tls-ca"),
            Self::Local(_) => Some("take --host away, or unset KILN_HOST"),
            Self::Relative { .. } => Some("paths are the daemon's: begin it with `/`"),
        };
        let report = ErrorReport::new("INVALID_CONFIG", with_causes(self));
        match hint {
            Some(hint) => report.with_hint(hint),
            None => report,
        }
    }
}

/// A client of the daemon at another host, if one is named.
pub(crate) fn client(global: &Global) -> Result<Option<Client>, RemoteError> {
    let Some(Address::Https(address)) = &global.host else {
        return Ok(None);
    };
    let roots = roots(global.tls_ca.as_deref())?;
    let token = token(global.token_file.as_deref(), address)?;
    let client = Client::remote(address, &roots, &token)?;
    Ok(Some(client.with_version(kiln_daemon::VERSION)))
}

/// Refuses what is about this host when another is named.
pub(crate) fn refuse_elsewhere(global: &Global) -> Result<(), RemoteError> {
    match &global.host {
        Some(Address::Https(address)) => Err(RemoteError::Local(address.clone())),
        _ => Ok(()),
    }
}

/// Certificates of those who may vouch for the daemon: exactly the named ones, or the system's.
fn roots(named: Option<&Path>) -> Result<Vec<u8>, RemoteError> {
    let system = || {
        SYSTEM_ROOTS
            .into_iter()
            .map(Path::new)
            .find(|it| it.exists())
    };
    let path = named.or_else(system).ok_or(RemoteError::NoRoots)?;
    read(path).map(String::into_bytes)
}

fn token(file: Option<&Path>, address: &str) -> Result<String, RemoteError> {
    let text = match (file, env::var(TOKEN)) {
        (Some(file), _) => {
            let mode = fs::metadata(file).map_err(failed(file))?.mode();
            if mode & 0o077 != 0 {
                return Err(RemoteError::Exposed { path: file.into() });
            }
            read(file)?
        }
        (None, Ok(token)) => token,
        (None, Err(_)) => return Err(RemoteError::NoToken(address.to_owned())),
    };
    let lines = text.lines().map(str::trim);
    let mut tokens = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    match (tokens.next(), tokens.next()) {
        (Some(token), None) if token.bytes().all(|it| it.is_ascii_graphic()) => {
            Ok(token.to_owned())
        }
        (None, _) => Err(RemoteError::NoToken(address.to_owned())),
        _ => Err(RemoteError::BadToken),
    }
}

fn read(path: &Path) -> Result<String, RemoteError> {
    use io::Read as _;
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(MOST_BYTES).read_to_string(&mut text))
        .map_err(failed(path))?;
    Ok(text)
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> RemoteError {
    let path = path.to_owned();
    move |source| RemoteError::Read { path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn addresses_are_https_or_sockets() {
        let https = |text: &str| Ok(Address::Https(text.to_owned()));
        assert_eq!("https://h:1".parse(), https("h:1"));
        assert_eq!("https://[::1]:7443/".parse(), https("[::1]:7443"));
        assert_eq!(
            "unix:///r/k.sock".parse(),
            Ok(Address::Unix("/r/k.sock".into()))
        );
        for wrong in [
            "",
            "h:1",
            "https://",
            "https://h",
            "https://h:0",
            "https://h:99999",
            "https://:1",
            "http://h:1",
            "tcp://h:1",
            "unix://k.sock",
            "https://u@h:1",
            "https://h:1/path",
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_is_a_secret_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let given = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            token(Some(&path), "h:1")
        };
        assert_eq!(given("# mine\n abc \n", 0o600).unwrap(), "abc");
        assert!(matches!(
            given("abc", 0o640),
            Err(RemoteError::Exposed { .. })
        ));
        assert!(matches!(given("a\nb", 0o600), Err(RemoteError::BadToken)));
        assert!(matches!(given("a b", 0o600), Err(RemoteError::BadToken)));
        assert!(matches!(given("\n", 0o600), Err(RemoteError::NoToken(_))));
    }
}
