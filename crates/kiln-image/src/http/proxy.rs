//! The way to a server: straight, or by the proxy that the environment names (`HTTPS_PROXY`,
//! `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`, in either case, as curl reads them). Encrypted traffic goes
//! through a tunnel, so that the proxy sees the server's name and nothing else.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

type BoxError = Box<dyn StdError + Send + Sync>;

/// Why a proxy is of no use.
#[derive(Debug, thiserror::Error)]
enum ProxyError {
    #[error("the proxy {0} is not one that speaks plain HTTP (http://…)")]
    Scheme(String),
    #[error("the proxy {proxy} lets nobody through to {to}")]
    Tunnel {
        proxy: String,
        to: String,
        #[source]
        source: BoxError,
    },
    #[error("the proxy {proxy} cannot be reached")]
    Connect {
        proxy: String,
        #[source]
        source: BoxError,
    },
}

/// Makes connections as the environment says.
#[derive(Clone)]
pub(crate) struct Router {
    http: HttpConnector,
    proxies: Arc<Matcher>,
}

impl fmt::Debug for Router {
    /// Without the proxies, whose addresses may hold passwords.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Router").finish_non_exhaustive()
    }
}

impl Router {
    pub(super) fn from_environment(http: HttpConnector) -> Router {
        Router {
            http,
            proxies: Arc::new(Matcher::from_env()),
        }
    }

    /// The proxy on the way to a server. This machine itself is never behind one, as Docker and Go
    /// have it.
    fn proxy(&self, to: &Uri) -> Option<Intercept> {
        let host = to.host()?;
        let address = host.trim_start_matches('[').trim_end_matches(']');
        let is_here = address.eq_ignore_ascii_case("localhost")
            || address
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback());
        self.proxies.intercept(to).filter(|_| !is_here)
    }

    async fn connect(mut self, to: Uri) -> Result<Way, BoxError> {
        let Some(proxy) = self.proxy(&to) else {
            let stream = self.http.call(to).await?;
            return Ok(Way {
                stream,
                by_proxy: false,
            });
        };
        let name = proxy.uri().to_string();
        if proxy.uri().scheme_str() != Some("http") {
            return Err(ProxyError::Scheme(name).into());
        }
        // A proxy that wants a password is told it with the tunnel: requests carry the server's.
        if to.scheme_str() == Some("https") || proxy.basic_auth().is_some() {
            return self.tunnel(&proxy, name, to).await;
        }
        match self.http.call(proxy.uri().clone()).await {
            Ok(stream) => Ok(Way {
                stream,
                by_proxy: true,
            }),
            Err(source) => Err(ProxyError::Connect {
                proxy: name,
                source: source.into(),
            }
            .into()),
        }
    }

    async fn tunnel(self, proxy: &Intercept, name: String, to: Uri) -> Result<Way, BoxError> {
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.http);
        if let Some(proof) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(proof.clone());
        }
        let opened = tunnel.call(with_port(&to)?).await;
        let stream = opened.map_err(|source| ProxyError::Tunnel {
            proxy: name,
            to: to.host().unwrap_or_default().to_owned(),
            source: source.into(),
        })?;
        Ok(Way {
            stream,
            by_proxy: false,
        })
    }
}

/// The same with its port written out: tunnels guess that of HTTPS.
fn with_port(to: &Uri) -> Result<Uri, BoxError> {
    let (None, Some("http"), Some(host)) = (to.port(), to.scheme_str(), to.host()) else {
        return Ok(to.clone());
    };
    Ok(format!("http://{host}:80/").parse()?)
}

impl Service<Uri> for Router {
    type Response = Way;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Way, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.http.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        Box::pin(self.clone().connect(to))
    }
}

/// A connection, and whether a proxy reads its requests: those name the server then.
#[derive(Debug)]
pub(crate) struct Way {
    stream: TokioIo<TcpStream>,
    by_proxy: bool,
}

impl Connection for Way {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.by_proxy)
    }
}

impl Read for Way {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Way {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(no_proxy: &str) -> Router {
        let proxies = Matcher::builder()
            .http("http://plain.example:3128")
            .https("http://user:secret@secure.example:3128")
            .no(no_proxy)
            .build();
        Router {
            http: HttpConnector::new(),
            proxies: Arc::new(proxies),
        }
    }

    #[test]
    fn only_what_the_environment_means_goes_by_a_proxy() {
        let router = router("internal.example,10.0.0.0/8");
        let proxy = |url: &str| {
            let uri: Uri = url.parse().unwrap();
            let proxy = router.proxy(&uri)?;
            proxy.uri().host().map(str::to_owned)
        };
        assert_eq!(proxy("http://a.example/").as_deref(), Some("plain.example"));
        assert_eq!(
            proxy("https://a.example/").as_deref(),
            Some("secure.example")
        );
        for straight in [
            "https://internal.example/",
            "https://r.internal.example/",
            "http://10.1.2.3:5000/",
            "http://localhost:5000/",
            "http://127.0.0.1:5000/",
            "http://[::1]:5000/",
        ] {
            assert_eq!(proxy(straight), None, "{straight}");
        }
    }

    #[test]
    fn passwords_of_proxies_are_never_shown() {
        let router = router("");
        assert!(!format!("{router:?}").contains("secret"));
        let uri: Uri = "https://a.example/".parse().unwrap();
        let proxy = router.proxy(&uri).unwrap();
        assert!(!proxy.uri().to_string().contains("secret"));
    }

    #[test]
    fn tunnels_of_plain_traffic_have_its_port() {
        let port = |url: &str| with_port(&url.parse().unwrap()).unwrap().port_u16();
        assert_eq!(port("http://a.example/x"), Some(80));
        assert_eq!(port("http://a.example:5000/x"), Some(5000));
        assert_eq!(port("https://a.example/x"), None);
    }
}
