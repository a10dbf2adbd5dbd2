//! Tokens: asking a registry's token server for access to one repository.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Uri};
use serde::Deserialize;
use tokio::time::timeout;

use super::error::RegistryError;
use super::settings::Patience;
use crate::credentials::{Credentials, Secret};
use crate::http::{AGENT, HttpClient, parse_url};

const MAX_ANSWER: usize = 1 << 20;
/// The name under which Docker's token servers know clients.
const CLIENT: &str = "kiln";

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// What is asked of a token server.
pub(super) struct TokenRequest<'a> {
    pub(super) realm: &'a str,
    pub(super) service: Option<&'a str>,
    pub(super) repository: &'a str,
    pub(super) credentials: Option<&'a Credentials>,
    /// Whether the registry itself speaks plain HTTP: its token server may then, too.
    pub(super) plain_http: bool,
}

/// The value of `Authorization` for a name and a password.
pub(super) fn basic(username: &str, password: &Secret) -> Option<HeaderValue> {
    let pair = STANDARD.encode(format!("{username}:{}", password.expose()));
    sensitive(format!("Basic {pair}"))
}

fn sensitive(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl TokenRequest<'_> {
    /// The value of `Authorization` that the token server's answer makes.
    pub(super) async fn send(
        &self,
        client: &HttpClient,
        patience: &Patience,
    ) -> Result<HeaderValue, RegistryError> {
        let url = self.url()?;
        let request = self.request(&url)?;
        let shown = shown(&url);
        let stalled = |_| RegistryError::Stalled {
            url: shown.clone(),
            waited: patience.stall(),
        };
        let answer = timeout(patience.stall(), client.request(request)).await;
        let answer = answer.map_err(stalled)?;
        let answer = answer.map_err(|source| RegistryError::Connect {
            url: shown.clone(),
            source,
        })?;
        let status = answer.status();
        if status.as_u16() == 401 || status.as_u16() == 403 {
            return Err(RegistryError::Unauthorized {
                registry: shown,
                repository: self.repository.to_owned(),
            });
        }
        if !status.is_success() {
            return Err(RegistryError::Status {
                url: shown,
                status: status.as_u16(),
            });
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect();
        let body = timeout(patience.stall(), body).await.map_err(stalled)?;
        let malformed = |problem| RegistryError::Malformed {
            url: shown.clone(),
            problem,
        };
        let body = body.map_err(|_| malformed("the token is too long, or broke off"))?;
        let answer: Answer =
            serde_json::from_slice(&body.to_bytes()).map_err(|_| malformed("it holds no token"))?;
        let token = answer
            .token
            .or(answer.access_token)
            .filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| malformed("it holds no token"))?;
        sensitive(format!("Bearer {token}")).ok_or_else(|| malformed("the token is no text"))
    }

    /// A password must not travel in the open because a registry says so.
    fn url(&self) -> Result<Uri, RegistryError> {
        let invalid = |problem| RegistryError::InvalidUrl {
            url: self.realm.chars().take(200).collect(),
            problem,
        };
        let url = parse_url(self.realm).map_err(invalid)?;
        if url.scheme_str() != Some("https") && !self.plain_http {
            return Err(invalid(
                "the token server of a secure registry speaks plain HTTP",
            ));
        }
        Ok(url)
    }

    fn request(&self, url: &Uri) -> Result<Request<Full<Bytes>>, RegistryError> {
        let scope = format!("repository:{}:pull", self.repository);
        let mut form = vec![("scope", scope.as_str())];
        form.extend(self.service.map(|service| ("service", service)));
        let mut request = Request::builder().header(USER_AGENT, AGENT);
        let request = match self.credentials {
            Some(Credentials::IdentityToken(token)) => {
                form.push(("grant_type", "refresh_token"));
                form.push(("client_id", CLIENT));
                form.push(("refresh_token", token.expose()));
                request
                    .method(Method::POST)
                    .uri(url.clone())
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(Full::from(encode(&form)))
            }
            other => {
                if let Some(Credentials::Basic { username, password }) = other
                    && let Some(value) = basic(username, password)
                {
                    form.push(("account", username));
                    request = request.header(AUTHORIZATION, value);
                }
                let separator = if url.query().is_some() { '&' } else { '?' };
                request
                    .uri(format!("{url}{separator}{}", encode(&form)))
                    .body(Full::default())
            }
        };
        let invalid = |problem| RegistryError::InvalidUrl {
            url: shown(url),
            problem,
        };
        let mut request = request.map_err(|_| invalid("it cannot be asked for"))?;
        let host = url
            .authority()
            .map(|authority| authority.as_str().to_owned());
        let host = host.and_then(|host| HeaderValue::try_from(host).ok());
        let host = host.ok_or_else(|| invalid("it has no host"))?;
        request.headers_mut().insert(HOST, host);
        Ok(request)
    }
}

/// Without the query, which can be long.
fn shown(url: &Uri) -> String {
    let authority = url.authority().map(|authority| authority.as_str());
    format!(
        "{}://{}{}",
        url.scheme_str().unwrap_or_default(),
        authority.unwrap_or_default(),
        url.path()
    )
}

/// `application/x-www-form-urlencoded`, also fit for a query.
fn encode(form: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in form {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                text.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(
        realm: &str,
        credentials: Option<&Credentials>,
        plain_http: bool,
    ) -> Result<Request<Full<Bytes>>, RegistryError> {
        let request = TokenRequest {
            realm,
            service: Some("r&d"),
            repository: "library/a",
            credentials,
            plain_http,
        };
        request.request(&request.url()?)
    }

    #[test]
    fn requests_say_who_asks_for_what() {
        let plain = request("https://a.example/token", None, false).unwrap();
        assert_eq!(
            plain.uri(),
            "https://a.example/token?scope=repository%3Alibrary%2Fa%3Apull&service=r%26d"
        );
        assert!(!plain.headers().contains_key(AUTHORIZATION));
        let me = Credentials::Basic {
            username: "me".into(),
            password: Secret::new("pw"),
        };
        let mine = request("https://a.example/token?x=1", Some(&me), false).unwrap();
        assert!(
            mine.uri()
                .to_string()
                .starts_with("https://a.example/token?x=1&scope=")
        );
        assert_eq!(mine.headers()[AUTHORIZATION], "Basic bWU6cHc=");
        let token = Credentials::IdentityToken(Secret::new("t"));
        let posted = request("https://a.example/token", Some(&token), false).unwrap();
        assert_eq!(
            (posted.method(), posted.uri().query()),
            (&Method::POST, None)
        );
    }

    #[test]
    fn a_secure_registry_cannot_send_passwords_over_plain_http() {
        let me = Credentials::Basic {
            username: "me".into(),
            password: Secret::new("pw"),
        };
        let refused = request("http://a.example/token", Some(&me), false);
        assert!(matches!(refused, Err(RegistryError::InvalidUrl { .. })));
        assert!(request("http://a.example/token", Some(&me), true).is_ok());
        assert!(request("file:///etc/passwd", None, true).is_err());
    }
}
