//! Who may pull: passwords, tokens, and who gets to see them.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use kiln_image::Silent;
use kiln_image::credentials::{Credentials, Keyring, Secret};
use kiln_image::library::{LibraryError, PullPolicy, PullRequest};
use kiln_image::registry::RegistryError;

use crate::bench::{Bench, assert_tidy, request};
use crate::support::registry::{Act, Proxy};

fn basic(password: &str) -> Credentials {
    Credentials::Basic {
        username: "kiln".into(),
        password: Secret::new(password),
    }
}

#[test]
fn passwords_are_asked_for_and_checked() {
    needs_tools!("passwords_are_asked_for_and_checked");
    let bench = Bench::new(true);
    let address = &bench.registry.address;
    let library = bench.library("store");
    let keyrings = [
        Keyring::anonymous(),
        Keyring::anonymous().with(address.clone(), basic("wrong")),
        Keyring::anonymous().with("other.example", basic("secret")),
    ];
    for keyring in keyrings {
        let wanted = PullRequest {
            keyring,
            ..request(address, "team/app:1")
        };
        let error = library.pull(&wanted, &Silent).unwrap_err();
        let unauthorized = matches!(
            error,
            LibraryError::Registry(RegistryError::Unauthorized { .. })
        );
        assert!(unauthorized, "{error}");
    }
    // As `docker login` leaves it, and as a helper gives it.
    let docker = bench.directory.path().join("config.json");
    // kiln:secret
    std::fs::write(
        &docker,
        format!(r#"{{"auths":{{"{address}":{{"auth":"a2lsbjpzZWNyZXQ="}}}}}}"#),
    )
    .unwrap();
    let wanted = PullRequest {
        keyring: Keyring::anonymous().with_file(&docker),
        ..request(address, "team/app:1")
    };
    library.pull(&wanted, &Silent).unwrap();
    let given = PullRequest {
        keyring: Keyring::anonymous().with(address.clone(), basic("secret")),
        policy: PullPolicy::Always,
        ..request(address, "team/app:1")
    };
    library.pull(&given, &Silent).unwrap();
}

/// A token server beside a registry that wants its tokens; says how often it was asked.
fn token_proxy(upstream: &str, wants: &'static str) -> Proxy {
    let address = std::sync::Arc::new(Mutex::new(String::new()));
    let own = std::sync::Arc::clone(&address);
    let issued = std::sync::atomic::AtomicUsize::new(0);
    let proxy = Proxy::start(upstream, move |seen| {
        if seen.path.starts_with("/token") {
            let scope = "scope=repository%3Ateam%2Fapp%3Apull";
            let body = String::from_utf8_lossy(&seen.body).into_owned();
            let proof = seen
                .headers
                .get("authorization")
                .cloned()
                .unwrap_or_default();
            let allowed = match wants {
                "refresh" => seen.method == "POST" && body.contains("refresh_token=r%2Ftoken"),
                "basic" => proof == "Basic a2lsbjpzZWNyZXQ=",
                _ => proof.is_empty(),
            };
            if !allowed || !(seen.path.contains(scope) || body.contains(scope)) {
                return Act::Answer("401 Unauthorized".into(), vec![], vec![]);
            }
            let number = issued.fetch_add(1, Ordering::SeqCst);
            let field = if number == 0 { "token" } else { "access_token" };
            return Act::Answer(
                "200 OK".into(),
                vec![],
                format!(r#"{{"{field}":"t{number}"}}"#).into_bytes(),
            );
        }
        // The first token is good for three requests.
        let good = match seen.headers.get("authorization").map(String::as_str) {
            Some("Bearer t0") => {
                issued.load(Ordering::SeqCst) == 1 && !seen.path.contains("/blobs/")
            }
            Some(proof) => proof.starts_with("Bearer t"),
            None => false,
        };
        if good {
            return Act::Pass;
        }
        let own = own.lock().unwrap().clone();
        let challenge = format!(
            r#"WWW-Authenticate: Bearer realm="http://{own}/token",service="test",scope="evil""#
        );
        Act::Answer("401 Unauthorized".into(), vec![challenge], vec![])
    });
    *address.lock().unwrap() = proxy.address.clone();
    proxy
}

#[test]
fn tokens_are_fetched_renewed_and_limited_to_what_is_pulled() {
    needs_tools!("tokens_are_fetched_renewed_and_limited_to_what_is_pulled");
    let bench = Bench::new(false);
    let cases = [
        ("anonymous", None),
        ("basic", Some(basic("secret"))),
        (
            "refresh",
            Some(Credentials::IdentityToken(Secret::new("r/token"))),
        ),
    ];
    for (wants, credentials) in cases {
        let proxy = token_proxy(&bench.registry.address, wants);
        let library = bench.library(wants);
        let mut wanted = request(&proxy.address, "team/app:1");
        if let Some(credentials) = credentials {
            let refused = library.pull(&wanted, &Silent).unwrap_err();
            assert!(matches!(
                refused,
                LibraryError::Registry(RegistryError::Unauthorized { .. })
            ));
            wanted.keyring = Keyring::anonymous().with(proxy.address.clone(), credentials);
        }
        library
            .pull(&wanted, &Silent)
            .unwrap_or_else(|error| panic!("{wants}: {error}"));
        assert_tidy(library.store().root());
    }
}

#[test]
fn passwords_stay_with_the_registry_when_it_redirects() {
    needs_tools!("passwords_stay_with_the_registry_when_it_redirects");
    let bench = Bench::new(false);
    let elsewhere = Proxy::start(&bench.registry.address, |seen| {
        match seen.headers.contains_key("authorization") {
            true => Act::Answer("400 Bad Request".into(), vec![], b"two proofs".to_vec()),
            false => Act::Pass,
        }
    });
    let target = elsewhere.address.clone();
    let registry = Proxy::start(&bench.registry.address, move |seen| {
        let proof = seen.headers.get("authorization").map(String::as_str);
        if proof != Some("Basic a2lsbjpzZWNyZXQ=") {
            let challenge = "WWW-Authenticate: Basic realm=\"x\"".to_owned();
            return Act::Answer("401 Unauthorized".into(), vec![challenge], vec![]);
        }
        match seen.path.contains("/blobs/") {
            true => {
                let location = format!("Location: http://{target}{}", seen.path);
                Act::Answer("307 Temporary Redirect".into(), vec![location], vec![])
            }
            false => Act::Pass,
        }
    });
    let wanted = PullRequest {
        keyring: Keyring::anonymous().with(registry.address.clone(), basic("secret")),
        ..request(&registry.address, "team/app:1")
    };
    bench.library("store").pull(&wanted, &Silent).unwrap();
    assert_eq!(elsewhere.count("/blobs/"), 4);
}
