//! Listening beyond this host: TCP, always with TLS, always with a token.
//!
//! There is no way to have one without the other. Whoever has a token can do what the daemon's user
//! can, files of the host included. The key and the tokens are in files that nobody else may read.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    },
    server::TlsStream,
};

/// How long a client may take to come to terms.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once: they cost processor time before anybody has shown a token.
const HANDSHAKES: usize = 64;
/// Shortest token: 128 bits in hexadecimal digits.
const LEAST_TOKEN: usize = 32;

/// Where to listen, and with what.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// Address and port.
    pub address: SocketAddr,
    /// PEM file of the certificate and those above it.
    pub certificate: PathBuf,
    /// PEM file of its key; nobody else may read it.
    pub key: PathBuf,
    /// File of tokens, one on a line, at least 32 characters each; nobody else may read it.
    pub tokens: PathBuf,
}

/// Why that cannot be done.
#[derive(Debug, Error)]
pub enum RemoteError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file holds no certificate or key.
    #[error("{} holds no certificate or key", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A secret that others can read.
    #[error("others can read {}", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// No token, or one that could be guessed.
    #[error("{} holds no token, or one of less than {LEAST_TOKEN} characters", path.display())]
    Tokens {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key do not fit.
    #[error("the certificate and its key are of no use")]
    Tls(#[source] rustls::Error),
    /// The address cannot be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The secrets by which clients show who they are.
#[derive(Clone)]
pub(crate) struct Tokens(Arc<[String]>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

impl Tokens {
    fn read(path: &Path) -> Result<Self, RemoteError> {
        let text = read_secret(path)?;
        let lines = text.lines().map(str::trim);
        let tokens: Vec<String> = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .collect();
        if tokens.is_empty() || tokens.iter().any(|token| token.len() < LEAST_TOKEN) {
            return Err(RemoteError::Tokens {
                path: path.to_owned(),
            });
        }
        Ok(Self(tokens.into()))
    }

    /// Whether this is one of them. Takes the same time however much of it is right.
    pub(crate) fn hold(&self, shown: &str) -> bool {
        let same = |token: &String| {
            let differ = token.bytes().zip(shown.bytes());
            let differ = differ.fold(0, |differ, (a, b)| differ | (a ^ b));
            differ == 0 && token.len() == shown.len()
        };
        self.0
            .iter()
            .fold(false, |found, token| found | same(token))
    }
}

fn read_secret(path: &Path) -> Result<String, RemoteError> {
    let failed = |source| RemoteError::Read {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.mode() & 0o077 != 0 {
        return Err(RemoteError::Exposed {
            path: path.to_owned(),
        });
    }
    fs::read_to_string(path).map_err(failed)
}

/// A listener beyond this host.
pub(crate) struct Remote {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    pub(crate) tokens: Tokens,
    handshakes: Arc<Semaphore>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

impl Remote {
    pub(crate) async fn open(config: &RemoteConfig) -> Result<Self, RemoteError> {
        let tokens = Tokens::read(&config.tokens)?;
        let acceptor = TlsAcceptor::from(Arc::new(tls(config)?));
        let address = config.address;
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|source| RemoteError::Listen { address, source })?;
        Ok(Self {
            listener,
            acceptor,
            tokens,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
        })
    }

    /// The next connection, before its handshake. Cancel-safe.
    pub(crate) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.listener.accept().await
    }

    /// What comes to terms with a connection, elsewhere.
    pub(crate) fn greeter(&self) -> Greeter {
        Greeter {
            acceptor: self.acceptor.clone(),
            handshakes: Arc::clone(&self.handshakes),
        }
    }
}

/// Comes to terms with connections.
pub(crate) struct Greeter {
    acceptor: TlsAcceptor,
    handshakes: Arc<Semaphore>,
}

impl Greeter {
    pub(crate) async fn greet(self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let _turn = self.handshakes.acquire().await.map_err(io::Error::other)?;
        timeout(HANDSHAKE, self.acceptor.accept(stream))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

fn tls(config: &RemoteConfig) -> Result<ServerConfig, RemoteError> {
    let path = &config.certificate;
    let pem = fs::read(path).map_err(|source| RemoteError::Read {
        path: path.clone(),
        source,
    })?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(no_pem(path))?;
    let key = read_secret(&config.key)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(no_pem(&config.key))?;
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(RemoteError::Tls)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(RemoteError::Tls)
}

fn no_pem(path: &Path) -> impl FnOnce(pem::Error) -> RemoteError {
    let path = path.to_owned();
    move |source| RemoteError::Pem { path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn tokens_are_whole_long_and_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let write = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Tokens::read(&path)
        };
        let token = "0123456789abcdef0123456789abcdef";
        let tokens = write(&format!("# mine\n{token}\n"), 0o600).unwrap();
        assert!(tokens.hold(token));
        for wrong in [
            "",
            "0",
            &token[1..],
            &format!("{token}0"),
            &token.to_uppercase(),
        ] {
            assert!(!tokens.hold(wrong), "{wrong}");
        }
        assert!(matches!(
            write(token, 0o644),
            Err(RemoteError::Exposed { .. })
        ));
        assert!(matches!(
            write("short", 0o600),
            Err(RemoteError::Tokens { .. })
        ));
        assert!(matches!(write("", 0o600), Err(RemoteError::Tokens { .. })));
        assert!(!format!("{tokens:?}").contains("0123"));
    }
}
