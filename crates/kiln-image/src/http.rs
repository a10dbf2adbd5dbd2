//! The one HTTP client of this crate, and what its users agree on: certificates are checked,
//! redirects never leave HTTPS, proxies are those of the environment. Knows nothing of what is
//! fetched.

mod proxy;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use proxy::Router;

pub(crate) const MAX_REDIRECTS: usize = 5;
pub(crate) const AGENT: &str = concat!("kiln/", env!("CARGO_PKG_VERSION"));

pub(crate) type HttpClient = Client<HttpsConnector<Router>, Full<Bytes>>;

/// A client that gives up connecting after `connect`. It belongs to the runtime that it is first
/// used in. It keeps connections that servers leave open, and a server may close one at the very
/// moment when the next request is sent: whoever uses it tries again.
pub(crate) fn client(connect: Duration) -> HttpClient {
    Client::builder(TokioExecutor::new()).build(connector(connect))
}

/// Like [`client`], with a new connection for each request: for those who ask once.
pub(crate) fn client_without_reuse(connect: Duration) -> HttpClient {
    Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(connector(connect))
}

fn connector(connect: Duration) -> HttpsConnector<Router> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(connect));
    // The host's certificates, which may include a company's own; built-in ones where it has none.
    let builder = HttpsConnectorBuilder::new();
    let builder = match builder.with_native_roots() {
        Ok(builder) => builder,
        Err(_) => HttpsConnectorBuilder::new().with_webpki_roots(),
    };
    let router = Router::from_environment(http);
    builder
        .https_or_http()
        .enable_http1()
        .wrap_connector(router)
}

/// Reads an absolute HTTP or HTTPS URL, or says what is wrong with it.
pub(crate) fn parse_url(url: &str) -> Result<Uri, &'static str> {
    let parsed: Uri = url.parse().map_err(|_| "it cannot be read")?;
    match parsed.scheme_str() {
        Some("http" | "https") if parsed.authority().is_some() => Ok(parsed),
        _ => Err("it is neither http nor https"),
    }
}

/// Where a redirect leads. Content is checked by digest in any case, but asking over plain HTTP
/// would still show everyone on the way what is fetched.
pub(crate) fn redirected(from: &Uri, location: &str) -> Result<Uri, &'static str> {
    if location.is_empty() {
        return Err("it redirects to nowhere");
    }
    let target = if location.starts_with('/') && !location.starts_with("//") {
        let scheme = from.scheme_str().unwrap_or_default();
        let authority = from
            .authority()
            .map(ToString::to_string)
            .unwrap_or_default();
        parse_url(&format!("{scheme}://{authority}{location}"))?
    } else {
        parse_url(location)?
    };
    if from.scheme_str() == Some("https") && target.scheme_str() != Some("https") {
        return Err("it redirects from HTTPS to plain HTTP");
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect(from: &str, location: &str) -> Result<String, &'static str> {
        redirected(&parse_url(from).unwrap(), location).map(|uri| uri.to_string())
    }

    #[test]
    fn redirects_keep_the_host_or_name_another() {
        let from = "https://a.example/old?x=1";
        assert_eq!(redirect(from, "/new").unwrap(), "https://a.example/new");
        assert_eq!(
            redirect(from, "https://b.example/c").unwrap(),
            "https://b.example/c"
        );
        for location in ["", "new", "//b.example/c", "ftp://b.example/c"] {
            assert!(redirect(from, location).is_err(), "{location}");
        }
    }

    #[test]
    fn a_redirect_never_leaves_https() {
        assert!(redirect("https://a.example/", "http://a.example/").is_err());
        assert!(redirect("http://a.example/", "https://a.example/").is_ok());
    }
}
