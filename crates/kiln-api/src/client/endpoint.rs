//! Where a daemon is, and how it is reached.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use super::ClientError;

/// How long a host may take to answer and come to terms.
const CONNECT: Duration = Duration::from_secs(15);

/// A daemon's place.
#[derive(Clone)]
pub(super) enum Endpoint {
    /// A socket of this host.
    Unix(PathBuf),
    /// Another host, by TLS and with a token.
    Remote(Arc<RemoteEndpoint>),
}

pub(super) struct RemoteEndpoint {
    address: String,
    name: ServerName<'static>,
    tls: TlsConnector,
    token: String,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => f.debug_tuple("Unix").field(path).finish(),
            // Not the token.
            Self::Remote(remote) => f.debug_tuple("Remote").field(&remote.address).finish(),
        }
    }
}

impl RemoteEndpoint {
    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(&self.address).await?;
        // What is typed at a terminal goes out at once.
        stream.set_nodelay(true)?;
        self.tls.connect(self.name.clone(), stream).await
    }
}

fn unfit(source: impl std::error::Error + Send + Sync + 'static) -> ClientError {
    let what = "the certificates to trust are of no use";
    ClientError::remote(what, Some(Box::new(source)))
}

/// A connection, however it is made.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Endpoint {
    /// A daemon on another host, at `HOST:PORT`, whose certificate one of `roots` (PEM) vouches for.
    pub(super) fn remote(address: &str, roots: &[u8], token: &str) -> Result<Self, ClientError> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|_| ClientError::remote(format!("{host:?} is no name of a host"), None))?;
        let mut store = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots) {
            let root = root.map_err(unfit)?;
            store.add(root).map_err(unfit)?;
        }
        if store.is_empty() {
            return Err(ClientError::remote(
                "there is no certificate to trust",
                None,
            ));
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unfit)?
            .with_root_certificates(store)
            .with_no_client_auth();
        Ok(Self::Remote(Arc::new(RemoteEndpoint {
            address: address.to_owned(),
            name,
            tls: TlsConnector::from(Arc::new(config)),
            token: token.to_owned(),
        })))
    }

    pub(super) fn socket(&self) -> &Path {
        match self {
            Self::Unix(path) => path,
            Self::Remote(_) => Path::new(""),
        }
    }

    pub(super) fn token(&self) -> Option<&str> {
        match self {
            Self::Unix(_) => None,
            Self::Remote(remote) => Some(&remote.token),
        }
    }

    pub(super) async fn connect(&self) -> Result<Box<dyn Duplex>, ClientError> {
        match self {
            Self::Unix(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(source) => Err(ClientError::Connect {
                    socket: path.clone(),
                    source,
                }),
            },
            Self::Remote(remote) => {
                let stream = timeout(CONNECT, remote.connect()).await;
                let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                match stream {
                    Ok(stream) => Ok(Box::new(stream)),
                    Err(source) => Err(ClientError::ConnectRemote {
                        address: remote.address.clone(),
                        source,
                    }),
                }
            }
        }
    }
}
