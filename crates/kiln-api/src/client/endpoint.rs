//! Where a daemon is, and how it is reached.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use super::ClientError;

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

/// A connection, however it is made.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Endpoint {
    /// A daemon on another host, at `HOST:PORT`, whose certificate one of `roots` (PEM) vouches for.
    pub(super) fn remote(address: &str, roots: &[u8], token: &str) -> Result<Self, ClientError> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|_| ClientError::answer(format!("{host:?} is no name of a host")))?;
        let mut store = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots) {
            let root = root.map_err(ClientError::lost)?;
            store.add(root).map_err(ClientError::lost)?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(ClientError::lost)?
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
                let failed = |source| ClientError::Connect {
                    socket: PathBuf::from(&remote.address),
                    source,
                };
                let stream = TcpStream::connect(&remote.address).await.map_err(failed)?;
                let stream = remote.tls.connect(remote.name.clone(), stream).await;
                Ok(Box::new(stream.map_err(failed)?))
            }
        }
    }
}
