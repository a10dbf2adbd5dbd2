//! One server of a registry's content: sends a request until it is answered, proves who is asking,
//! follows redirects.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, HOST, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT,
    WWW_AUTHENTICATE,
};
use hyper::{Request, Response, StatusCode, Uri};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::backoff::{Backoff, retry_after};
use super::challenge::{self, Challenge};
use super::error::RegistryError;
use super::settings::{Endpoint, Patience};
use super::token::{TokenRequest, basic};
use crate::credentials::{Credentials, Keyring};
use crate::http::{AGENT, HttpClient, MAX_REDIRECTS, parse_url, redirected};

pub(super) struct EndpointClient {
    endpoint: Endpoint,
    repository: String,
    client: HttpClient,
    keyring: Keyring,
    patience: Patience,
    /// The proof that worked last, shared by parallel requests. Held while one of them gets a new
    /// one: the others would only ask for the same.
    proof: Mutex<Proof>,
}

#[derive(Default)]
struct Proof {
    value: Option<HeaderValue>,
    /// Counts renewals.
    generation: u64,
}

/// What to do with an answer.
enum Verdict {
    Take,
    Authenticate,
    Again(Option<Duration>),
    Refuse(RegistryError),
}

impl EndpointClient {
    pub(super) fn new(
        endpoint: Endpoint,
        repository: String,
        client: HttpClient,
        keyring: Keyring,
        patience: Patience,
    ) -> EndpointClient {
        EndpointClient {
            endpoint,
            repository,
            client,
            keyring,
            patience,
            proof: Mutex::default(),
        }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/v2/{}/{path}", self.endpoint.base, self.repository)
    }

    /// Asks until there is an answer with content, patience ends, or the answer is final.
    pub(super) async fn get(
        &self,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Response<Incoming>, RegistryError> {
        let url = self.url(path);
        let start = parse_url(&url).map_err(|problem| RegistryError::InvalidUrl {
            url: url.clone(),
            problem,
        })?;
        let mut backoff = Backoff::new(&self.patience);
        let mut proofs = 0;
        loop {
            let (proof, generation) = self.proof().await;
            let (asked, error) = match self.follow(&start, headers, proof).await {
                Ok(response) => match self.judge(path, &url, &response) {
                    Verdict::Take => return Ok(response),
                    Verdict::Refuse(error) => return Err(error),
                    // One proof may be too old, a fresh one is not.
                    Verdict::Authenticate if proofs < 2 => {
                        proofs += 1;
                        self.authenticate(&response, generation).await?;
                        continue;
                    }
                    Verdict::Authenticate => return Err(self.unauthorized()),
                    Verdict::Again(asked) => (asked, self.status_error(&url, response.status())),
                },
                Err(error) if error.is_passing() => (None, error),
                Err(error) => return Err(error),
            };
            match backoff.next(asked) {
                Some(wait) => {
                    tracing::debug!(url, %error, ?wait, "trying again");
                    tokio::time::sleep(wait).await;
                }
                None => return Err(error),
            }
        }
    }

    async fn proof(&self) -> (Option<HeaderValue>, u64) {
        let proof = self.proof.lock().await;
        (proof.value.clone(), proof.generation)
    }

    fn judge(&self, path: &str, url: &str, response: &Response<Incoming>) -> Verdict {
        let status = response.status();
        match status.as_u16() {
            200 | 206 => Verdict::Take,
            401 => Verdict::Authenticate,
            403 => Verdict::Refuse(self.unauthorized()),
            404 => Verdict::Refuse(RegistryError::NotFound {
                registry: self.endpoint.account.clone(),
                what: format!("{}/{path}", self.repository),
            }),
            408 | 429 | 500 | 502 | 503 | 504 => {
                let header = response.headers().get(RETRY_AFTER);
                let asked =
                    header.and_then(|value| retry_after(value.to_str().ok()?, SystemTime::now()));
                Verdict::Again(asked)
            }
            _ => Verdict::Refuse(self.status_error(url, status)),
        }
    }

    fn status_error(&self, url: &str, status: StatusCode) -> RegistryError {
        if status == StatusCode::TOO_MANY_REQUESTS {
            return RegistryError::RateLimited {
                registry: self.endpoint.account.clone(),
            };
        }
        RegistryError::Status {
            url: url.to_owned(),
            status: status.as_u16(),
        }
    }

    fn unauthorized(&self) -> RegistryError {
        RegistryError::Unauthorized {
            registry: self.endpoint.account.clone(),
            repository: self.repository.clone(),
        }
    }

    /// Follows redirects. The proof goes to the registry alone: where it keeps its blobs, others
    /// may listen.
    async fn follow(
        &self,
        start: &Uri,
        headers: &[(HeaderName, HeaderValue)],
        proof: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut url = start.clone();
        for _ in 0..=MAX_REDIRECTS {
            let at_home = url.authority() == start.authority() && url.scheme() == start.scheme();
            let proof = proof.clone().filter(|_| at_home);
            let response = self.send(&url, headers, proof).await?;
            let status = response.status();
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION);
            let location = location.and_then(|value| value.to_str().ok());
            let next = redirected(&url, location.unwrap_or_default());
            url = next.map_err(|problem| RegistryError::InvalidUrl {
                url: start.to_string(),
                problem,
            })?;
        }
        Err(RegistryError::TooManyRedirects {
            url: start.to_string(),
        })
    }

    async fn send(
        &self,
        url: &Uri,
        headers: &[(HeaderName, HeaderValue)],
        proof: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let shown = || format!("{}{}", self.endpoint.base, url.path());
        let host = url
            .authority()
            .map(|authority| authority.as_str())
            .unwrap_or_default();
        let mut request = Request::get(url.clone())
            .header(HOST, host)
            .header(USER_AGENT, AGENT);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(proof) = proof {
            request = request.header(AUTHORIZATION, proof);
        }
        let request: Request<Full<Bytes>> =
            request
                .body(Full::default())
                .map_err(|_| RegistryError::InvalidUrl {
                    url: shown(),
                    problem: "it cannot be asked for",
                })?;
        let answer = timeout(self.patience.stall(), self.client.request(request)).await;
        let answer = answer.map_err(|_| RegistryError::Stalled {
            url: shown(),
            waited: self.patience.stall(),
        })?;
        answer.map_err(|source| RegistryError::Connect {
            url: shown(),
            source,
        })
    }

    /// Gets the proof that the registry asks for, unless another request just did.
    async fn authenticate(
        &self,
        response: &Response<Incoming>,
        seen: u64,
    ) -> Result<(), RegistryError> {
        let mut proof = self.proof.lock().await;
        if proof.generation != seen {
            return Ok(());
        }
        let credentials = self
            .keyring
            .lookup(&self.endpoint.account, &self.repository)
            .await?;
        let headers = response.headers().get_all(WWW_AUTHENTICATE).into_iter();
        let challenges: Vec<Challenge> = headers
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        let bearer = challenges
            .iter()
            .find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let value = match bearer.or(challenges.first()) {
            Some(Challenge::Bearer { realm, service }) => {
                self.token(realm, service.as_deref(), credentials.as_ref())
                    .await?
            }
            Some(Challenge::Basic) => match credentials {
                Some(Credentials::Basic { username, password }) => {
                    basic(&username, &password).ok_or_else(|| self.unauthorized())?
                }
                _ => return Err(self.unauthorized()),
            },
            None => {
                return Err(RegistryError::Challenge {
                    registry: self.endpoint.account.clone(),
                });
            }
        };
        *proof = Proof {
            value: Some(value),
            generation: seen + 1,
        };
        Ok(())
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        credentials: Option<&Credentials>,
    ) -> Result<HeaderValue, RegistryError> {
        let request = TokenRequest {
            realm,
            service,
            repository: &self.repository,
            credentials,
            plain_http: self.endpoint.base.starts_with("http://"),
        };
        let mut backoff = Backoff::new(&self.patience);
        loop {
            let error = match request.send(&self.client, &self.patience).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let server_fault = matches!(&error, RegistryError::Status { status, .. } if *status >= 500 || *status == 429);
            match backoff
                .next(None)
                .filter(|_| error.is_passing() || server_fault)
            {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error),
            }
        }
    }
}
