//! Pulling from a real registry on loopback, and from one that fails in every way a proxy can make
//! it fail.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kiln_image::credentials::{Credentials, Keyring, Secret};
use kiln_image::library::{
    ImageInfo, ImageLibrary, ImageQuery, LibraryConfig, LibraryError, PullPolicy, PullRequest,
};
use kiln_image::oci::Overrides;
use kiln_image::registry::{Patience, RegistryError, RegistrySetting, RegistrySettings};
use kiln_image::{ImageError, Limits, Progress, ProgressEvent, Silent};
use support::registry::{Act, Layout, Packing, Proxy, Registry, have_tools, noise, tar_of};
use support::{Mount, fsck, is_root, skip};

macro_rules! needs_tools {
    ($test:literal) => {
        if !have_tools() {
            return skip($test, "no docker-registry or no skopeo");
        }
    };
}

/// Quick to give up, so that tests of failure end.
fn config() -> LibraryConfig {
    LibraryConfig {
        registries: RegistrySettings {
            patience: Patience {
                stall_ms: 2000,
                attempts: 4,
                first_wait_ms: 20,
                longest_wait_ms: 1500,
                parallel: 3,
            },
            ..RegistrySettings::default()
        },
        limits: Limits::default(),
    }
}

const CONFIG: &str = r#"{"Env":["PATH=/bin","LANG=C"],"Entrypoint":["/entry"],"Cmd":["serve"],"User":"app:app","WorkingDir":"/srv","ExposedPorts":{"80/tcp":{}},"Labels":{"made":"here"},"StopSignal":"SIGQUIT"}"#;

/// Three layers, each packed differently.
fn layers() -> Vec<(Vec<u8>, Packing)> {
    vec![
        (
            tar_of(&[("etc/base", b"1"), ("data/a", &noise(1, 700_000))]),
            Packing::Gzip,
        ),
        (
            tar_of(&[("data/b", &noise(2, 1_300_000)), ("etc/.wh.base", b"")]),
            Packing::Zstd,
        ),
        (tar_of(&[("data/c", &noise(3, 400_000))]), Packing::Plain),
    ]
}

struct Bench {
    registry: Registry,
    directory: tempfile::TempDir,
}

impl Bench {
    /// A registry with `app` for this machine's platform and two others.
    fn new(with_passwords: bool) -> Bench {
        let registry = Registry::start(with_passwords);
        let directory = tempfile::tempdir().unwrap();
        let mut layout = Layout::new(directory.path().join("layout"));
        let mine = kiln_image::oci::Platform::host().architecture;
        let other = if mine == "arm64" { "amd64" } else { "arm64" };
        let small = vec![(tar_of(&[("other", b"x")]), Packing::Gzip)];
        let images = [
            layout.image("s390x", "{}", &small),
            layout.image(&mine, CONFIG, &layers()),
            layout.image(other, "{}", &small),
        ];
        let index = layout.index(&images);
        layout.tag(&index, "multi");
        let foreign = layout.index(&images[..1]);
        layout.tag(&foreign, "foreign");
        let extra: &[&str] = if with_passwords {
            &["--dest-creds=kiln:secret"]
        } else {
            &[]
        };
        registry.push(&layout.path, "multi", "team/app:1", extra);
        if !with_passwords {
            registry.push(&layout.path, "foreign", "team/foreign:1", extra);
        }
        Bench {
            registry,
            directory,
        }
    }

    fn library(&self, name: &str) -> ImageLibrary {
        self.library_with(name, config())
    }

    fn library_with(&self, name: &str, config: LibraryConfig) -> ImageLibrary {
        ImageLibrary::open(self.root(name), config).unwrap()
    }

    fn root(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

fn request(address: &str, name: &str) -> PullRequest {
    PullRequest::new(format!("{address}/{name}").parse().unwrap())
}

fn pull(library: &ImageLibrary, address: &str, name: &str) -> Result<ImageInfo, LibraryError> {
    library.pull(&request(address, name), &Silent)
}

/// Nothing half-made, nothing that nobody can find.
fn assert_tidy(root: &Path) {
    let count = |name: &str| std::fs::read_dir(root.join(name)).unwrap().count();
    assert_eq!(count("tmp"), 0);
    assert_eq!(count("blobs/partial"), 0);
}

#[test]
fn an_image_is_pulled_whole_with_its_config() {
    needs_tools!("an_image_is_pulled_whole_with_its_config");
    let bench = Bench::new(false);
    let library = bench.library("store");
    let image = pull(&library, &bench.registry.address, "team/app:1").unwrap();
    fsck(&image.rootfs.path);
    assert_tidy(library.store().root());
    assert_eq!(
        image.names,
        [format!("{}/team/app:1", bench.registry.address)]
    );
    assert_eq!(image.layers.len(), 3);
    assert_eq!(image.config.labels["made"], "here");
    assert_eq!(image.config.exposed_ports, ["80/tcp"]);
    let process = image.config.process(&Overrides::default()).unwrap();
    assert_eq!(process.argv, ["/entry", "serve"]);
    assert_eq!(
        (process.user.as_deref(), process.stop_signal.as_str()),
        (Some("app:app"), "SIGQUIT")
    );
    assert_eq!(
        library.list(&ImageQuery::default()).unwrap(),
        std::slice::from_ref(&image)
    );
    assert_eq!(library.inspect(&image.id.hex()[..12]).unwrap(), image);
    // Deterministic: another store, the same bytes.
    let again = pull(
        &bench.library("store2"),
        &bench.registry.address,
        "team/app:1",
    )
    .unwrap();
    assert_eq!(
        std::fs::read(&again.rootfs.path).unwrap(),
        std::fs::read(&image.rootfs.path).unwrap()
    );
    if !is_root() {
        return skip(
            "an_image_is_pulled_whole_with_its_config (content)",
            "needs root to mount",
        );
    }
    let mount = Mount::new(&image.rootfs.path, "ro");
    for (name, seed, length) in [
        ("data/a", 1, 700_000),
        ("data/b", 2, 1_300_000),
        ("data/c", 3, 400_000),
    ] {
        assert!(
            std::fs::read(mount.path().join(name)).unwrap() == noise(seed, length),
            "{name}"
        );
    }
    assert!(
        !mount.path().join("etc/base").exists(),
        "the whiteout was ignored"
    );
}

#[test]
fn b1_3_an_image_is_built_once_and_policies_decide_whether_the_registry_is_asked() {
    needs_tools!("b1_3_an_image_is_built_once_and_policies_decide_whether_the_registry_is_asked");
    let bench = Bench::new(false);
    let proxy = Proxy::start(&bench.registry.address, |_| Act::Pass);
    let library = bench.library("store");
    let with = |policy| PullRequest {
        policy,
        ..request(&proxy.address, "team/app:1")
    };
    let never = library.pull(&with(PullPolicy::Never), &Silent).unwrap_err();
    assert!(matches!(never, LibraryError::NotHere(_)), "{never}");
    assert_eq!(proxy.requests.load(Ordering::SeqCst), 0);
    let image = library.pull(&with(PullPolicy::Missing), &Silent).unwrap();
    let asked = proxy.requests.load(Ordering::SeqCst);
    for policy in [PullPolicy::Missing, PullPolicy::Never] {
        assert_eq!(library.pull(&with(policy), &Silent).unwrap().id, image.id);
    }
    assert_eq!(proxy.requests.load(Ordering::SeqCst), asked);
    // Asks what the name means now, and fetches nothing that is here.
    let layers = proxy.count("/blobs/");
    assert_eq!(
        library.pull(&with(PullPolicy::Always), &Silent).unwrap().id,
        image.id
    );
    assert!(proxy.requests.load(Ordering::SeqCst) > asked);
    assert_eq!(
        proxy.count("/blobs/") - layers,
        1,
        "only the config is asked for again"
    );
    // By digest the same image, under another name.
    let digest = image.manifest.unwrap();
    let by_digest = pull(&library, &proxy.address, &format!("team/app@{digest}")).unwrap();
    assert_eq!((by_digest.id, by_digest.names.len()), (image.id, 2));
}

#[test]
fn a_missing_platform_image_or_tag_is_named() {
    needs_tools!("a_missing_platform_image_or_tag_is_named");
    let bench = Bench::new(false);
    let library = bench.library("store");
    let foreign = pull(&library, &bench.registry.address, "team/foreign:1")
        .unwrap_err()
        .to_string();
    assert!(foreign.contains("only for linux/s390x"), "{foreign}");
    let wanted = PullRequest {
        platform: "linux/s390x".parse().unwrap(),
        ..request(&bench.registry.address, "team/foreign:1")
    };
    assert_eq!(
        library
            .pull(&wanted, &Silent)
            .unwrap()
            .platform
            .architecture,
        "s390x"
    );
    for name in ["team/app:2", "team/none:1"] {
        let error = pull(&library, &bench.registry.address, name).unwrap_err();
        assert!(
            matches!(
                error,
                LibraryError::Registry(RegistryError::NotFound { .. })
            ),
            "{error}"
        );
    }
}

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
fn a_broken_transfer_is_gone_on_with() {
    needs_tools!("a_broken_transfer_is_gone_on_with");
    let bench = Bench::new(false);
    for no_range in [false, true] {
        let proxy = Proxy::start(&bench.registry.address, move |seen| {
            match (seen.path.contains("/blobs/"), seen.before, no_range) {
                (true, 0 | 1, _) => Act::Cut(150_000),
                (true, _, true) => Act::NoRange,
                _ => Act::Pass,
            }
        });
        let library = bench.library(&format!("store-{no_range}"));
        let image = pull(&library, &proxy.address, "team/app:1").unwrap();
        fsck(&image.rootfs.path);
        assert!(
            proxy.count("bytes=150000-") >= 3,
            "{:?}",
            proxy.log.lock().unwrap()
        );
        assert_tidy(library.store().root());
    }
}

#[test]
fn what_a_failed_pull_brought_is_not_fetched_again() {
    needs_tools!("what_a_failed_pull_brought_is_not_fetched_again");
    let bench = Bench::new(false);
    let broken = Proxy::start(&bench.registry.address, |seen| {
        match (seen.path.contains("/blobs/"), seen.before) {
            (true, 0) => Act::Cut(200_000),
            (true, _) => Act::Answer("404 Not Found".into(), vec![], vec![]),
            _ => Act::Pass,
        }
    });
    let library = bench.library("store");
    // The config is small: let it through by asking for it directly.
    let error = pull(&library, &broken.address, "team/app:1").unwrap_err();
    assert!(matches!(error, LibraryError::Registry(_)), "{error}");
    let partials = || {
        std::fs::read_dir(library.store().root().join("blobs/partial"))
            .unwrap()
            .count()
    };
    assert!(partials() > 0);
    let whole = Proxy::start(&bench.registry.address, |_| Act::Pass);
    pull(&library, &whole.address, "team/app:1").unwrap();
    assert!(
        whole.count("bytes=200000-") >= 1,
        "{:?}",
        whole.log.lock().unwrap()
    );
    assert_tidy(library.store().root());
    assert_eq!(partials(), 0);
}

#[test]
fn wrong_bytes_are_never_published() {
    needs_tools!("wrong_bytes_are_never_published");
    let bench = Bench::new(false);
    // Once wrong, where a decoder sees it at once and where only the digest tells: fetched again,
    // and the image is right.
    for place in [0, 100_000] {
        let once = Proxy::start(&bench.registry.address, move |seen| match seen.before {
            0 if is_layer(seen) => Act::Flip(place),
            _ => Act::Pass,
        });
        let library = bench.library(&format!("once-{place}"));
        let image = pull(&library, &once.address, "team/app:1").unwrap();
        fsck(&image.rootfs.path);
        assert_tidy(library.store().root());
    }
    // The config.
    let config = Proxy::start(&bench.registry.address, |seen| {
        match seen.path.contains("/blobs/") && !is_layer(seen) {
            true => Act::Flip(100),
            false => Act::Pass,
        }
    });
    let library = bench.library("config");
    let error = pull(&library, &config.address, "team/app:1").unwrap_err();
    assert!(
        matches!(
            error,
            LibraryError::Registry(RegistryError::WrongDigest { .. })
        ),
        "{error}"
    );
    // The manifest itself.
    let manifest = Proxy::start(&bench.registry.address, |seen| {
        if seen.path.contains("/manifests/sha256") {
            Act::Flip(20)
        } else {
            Act::Pass
        }
    });
    let library = bench.library("manifest");
    let error = pull(&library, &manifest.address, "team/app:1").unwrap_err();
    assert!(
        matches!(
            error,
            LibraryError::Registry(RegistryError::WrongDigest { .. })
        ),
        "{error}"
    );
    assert!(library.store().list().unwrap().is_empty());
}

#[test]
fn layers_that_stay_wrong_fail_and_leave_nothing() {
    needs_tools!("layers_that_stay_wrong_fail_and_leave_nothing");
    let bench = Bench::new(false);
    let proxy = Proxy::start(&bench.registry.address, |seen| {
        let length: usize = 100_000;
        if seen.path.contains("/blobs/") && is_layer(seen) {
            Act::Flip(length)
        } else {
            Act::Pass
        }
    });
    let library = bench.library("store");
    let error = pull(&library, &proxy.address, "team/app:1").unwrap_err();
    assert!(
        matches!(
            error,
            LibraryError::Registry(RegistryError::WrongDigest { .. })
        ),
        "{error}"
    );
    assert!(library.store().list().unwrap().is_empty());
    assert!(library.list(&ImageQuery { all: true }).unwrap().is_empty());
    assert_eq!(
        std::fs::read_dir(library.store().root().join("tmp"))
            .unwrap()
            .count(),
        0
    );
}

/// Layers are what this file's `layers` makes; everything else that is a blob is a config.
fn is_layer(seen: &support::registry::Seen) -> bool {
    static DIGESTS: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
    let digests = DIGESTS.get_or_init(|| {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::new(temp.path().join("layout"));
        layout.image("amd64", "{}", &layers());
        let names = std::fs::read_dir(layout.path.join("blobs/sha256")).unwrap();
        let big = names.filter(|entry| entry.as_ref().unwrap().metadata().unwrap().len() > 10_000);
        big.map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    });
    digests.iter().any(|digest| seen.path.contains(digest))
}

#[test]
fn busy_and_broken_servers_are_asked_again_when_they_say() {
    needs_tools!("busy_and_broken_servers_are_asked_again_when_they_say");
    let bench = Bench::new(false);
    let proxy = Proxy::start(&bench.registry.address, |seen| match seen.before {
        0 if seen.path.contains("/manifests/1") => Act::Answer(
            "429 Too Many Requests".into(),
            vec!["Retry-After: 1".into()],
            vec![],
        ),
        0 => Act::Answer("503 Service Unavailable".into(), vec![], b"busy".to_vec()),
        1 => Act::Answer("502 Bad Gateway".into(), vec![], vec![]),
        _ => Act::Pass,
    });
    let start = Instant::now();
    pull(&bench.library("store"), &proxy.address, "team/app:1").unwrap();
    assert!(
        start.elapsed() >= Duration::from_secs(1),
        "Retry-After was ignored"
    );
    let never = Proxy::start(&bench.registry.address, |_| {
        Act::Answer(
            "429 Too Many Requests".into(),
            vec!["Retry-After: 0".into()],
            vec![],
        )
    });
    let error = pull(&bench.library("store2"), &never.address, "team/app:1").unwrap_err();
    assert!(
        matches!(
            error,
            LibraryError::Registry(RegistryError::RateLimited { .. })
        ),
        "{error}"
    );
    assert_eq!(never.requests.load(Ordering::SeqCst), 4);
}

#[test]
fn a_stalled_transfer_is_given_up_and_gone_on_with() {
    needs_tools!("a_stalled_transfer_is_given_up_and_gone_on_with");
    let bench = Bench::new(false);
    let proxy = Proxy::start(&bench.registry.address, |seen| match seen.before {
        0 if is_layer(seen) => Act::Stall(100_000, Duration::from_secs(30)),
        _ => Act::Pass,
    });
    let mut config = config();
    config.registries.patience.stall_ms = 400;
    let start = Instant::now();
    let library = bench.library_with("store", config);
    pull(&library, &proxy.address, "team/app:1").unwrap();
    assert!(start.elapsed() < Duration::from_secs(20));
    assert!(proxy.count("bytes=100000-") >= 3);
}

#[test]
fn mirrors_are_asked_first_and_the_registry_when_they_fail() {
    needs_tools!("mirrors_are_asked_first_and_the_registry_when_they_fail");
    let bench = Bench::new(false);
    let good = Proxy::start(&bench.registry.address, |_| Act::Pass);
    let bad = Proxy::start(&bench.registry.address, |_| {
        Act::Answer("404 Not Found".into(), vec![], vec![])
    });
    let through = |mirrors: Vec<String>| {
        let mut config = config();
        let setting = RegistrySetting {
            insecure: Some(true),
            mirrors,
        };
        config
            .registries
            .registries
            .insert("registry.invalid".into(), setting);
        config
    };
    let mirrors = vec![
        format!("http://{}", bad.address),
        format!("http://{}", good.address),
    ];
    let library = bench.library_with("store", through(mirrors));
    let image = pull(&library, "registry.invalid", "team/app:1").unwrap();
    assert_eq!(image.names, ["registry.invalid/team/app:1"]);
    assert!(bad.count("manifests") > 0 && good.count("manifests") > 0);
    let library = bench.library_with("store2", through(vec![format!("http://{}", bad.address)]));
    let error = pull(&library, "registry.invalid", "team/app:1").unwrap_err();
    assert!(
        matches!(error, LibraryError::Registry(RegistryError::Connect { .. })),
        "{error}"
    );
}

#[test]
fn many_at_once_fetch_each_layer_once() {
    needs_tools!("many_at_once_fetch_each_layer_once");
    let bench = Bench::new(false);
    let proxy = Proxy::start(&bench.registry.address, |seen| {
        if is_layer(seen) {
            Act::Stall(50_000, Duration::from_millis(200))
        } else {
            Act::Pass
        }
    });
    let ids: Vec<_> = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let library = bench.library("store");
                    pull(&library, &proxy.address, "team/app:1").unwrap().id
                })
            })
            .collect();
        pulls.into_iter().map(|pull| pull.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]));
    let log = proxy.log.lock().unwrap();
    let layer_requests = log.iter().filter(|line| {
        let path = line.split(' ').nth(1).unwrap().to_owned();
        let seen = support::registry::Seen {
            method: String::new(),
            path,
            headers: Default::default(),
            body: Vec::new(),
            before: 0,
        };
        is_layer(&seen)
    });
    assert_eq!(layer_requests.count(), 3);
}

#[test]
fn progress_counts_bytes_up_to_the_total() {
    needs_tools!("progress_counts_bytes_up_to_the_total");
    struct Log(Mutex<Vec<ProgressEvent>>);
    impl Progress for Log {
        fn report(&self, event: ProgressEvent) {
            self.0.lock().unwrap().push(event);
        }
    }
    let bench = Bench::new(false);
    let log = Log(Mutex::default());
    let library = bench.library("store");
    library
        .pull(&request(&bench.registry.address, "team/app:1"), &log)
        .unwrap();
    let events = log.0.into_inner().unwrap();
    let counts: Vec<(u64, u64)> = events
        .iter()
        .filter_map(|event| match event {
            ProgressEvent::Bytes {
                done,
                total: Some(total),
            } => Some((*done, *total)),
            _ => None,
        })
        .collect();
    let (done, total) = *counts.last().unwrap();
    assert_eq!(done, total);
    let has = |wanted: &str| {
        events
            .iter()
            .any(|event| matches!(event, ProgressEvent::Step(step) if step.contains(wanted)))
    };
    assert!(
        has("Pulling") && has("Downloading 3 layers") && has("Publishing"),
        "{events:?}"
    );
}

#[test]
fn layers_other_than_the_config_names_are_refused() {
    needs_tools!("layers_other_than_the_config_names_are_refused");
    let bench = Bench::new(false);
    let mut layout = Layout::new(bench.directory.path().join("lying"));
    let mine = kiln_image::oci::Platform::host().architecture;
    let honest = layout.image(&mine, "{}", &[(tar_of(&[("a", b"1")]), Packing::Gzip)]);
    layout.tag(&honest, "x");
    // The same config, another layer.
    let manifest_digest = honest
        .split('"')
        .find(|word| word.starts_with("sha256:"))
        .unwrap();
    let path = layout.path.join("blobs/sha256").join(&manifest_digest[7..]);
    let manifest = std::fs::read_to_string(&path).unwrap();
    let evil = support::registry::pipe(
        std::process::Command::new("gzip").args(["-1", "-n"]),
        &tar_of(&[("a", b"2")]),
    );
    let (digest, size) = layout.blob(&evil);
    let layers = manifest.split(r#""layers":"#).nth(1).unwrap();
    let replaced = manifest.replace(
        layers,
        &format!(r#"[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":{size}}}]}}"#),
    );
    let (digest, size) = layout.blob(replaced.as_bytes());
    layout.tag(
        &format!(r#""mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{size}"#),
        "evil",
    );
    bench.registry.push(&layout.path, "evil", "evil:1", &[]);
    let error = pull(&bench.library("store"), &bench.registry.address, "evil:1").unwrap_err();
    assert!(
        matches!(error, LibraryError::Image(ImageError::OtherLayers)),
        "{error}"
    );
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

#[test]
fn hostile_registries_are_refused() {
    needs_tools!("hostile_registries_are_refused");
    let bench = Bench::new(false);
    let against = |act: Box<dyn Fn(&support::registry::Seen) -> Act + Send + Sync>| {
        let proxy = Proxy::start(&bench.registry.address, act);
        let library = bench.library(&format!("store-{}", proxy.address));
        let error = pull(&library, &proxy.address, "team/app:1").unwrap_err();
        assert!(library.store().list().unwrap().is_empty());
        error
    };
    let huge = against(Box::new(|_| {
        Act::Answer("200 OK".into(), vec![], vec![b' '; 5 << 20])
    }));
    assert!(
        matches!(
            huge,
            LibraryError::Registry(RegistryError::WrongSize { .. })
        ),
        "{huge}"
    );
    let round = against(Box::new(|seen| {
        let location = format!("Location: {}", seen.path);
        Act::Answer("302 Found".into(), vec![location], vec![])
    }));
    assert!(
        matches!(
            round,
            LibraryError::Registry(RegistryError::TooManyRedirects { .. })
        ),
        "{round}"
    );
    let local = against(Box::new(|_| {
        Act::Answer(
            "302 Found".into(),
            vec!["Location: file:///etc/passwd".into()],
            vec![],
        )
    }));
    assert!(
        matches!(
            local,
            LibraryError::Registry(RegistryError::InvalidUrl { .. })
        ),
        "{local}"
    );
    let html = against(Box::new(|_| {
        Act::Answer("200 OK".into(), vec![], b"<html>".to_vec())
    }));
    assert!(
        matches!(html, LibraryError::Registry(RegistryError::Manifest { .. })),
        "{html}"
    );
    let nested = against(Box::new(|seen| {
        let own = seen.path.rsplit('/').next().unwrap_or_default();
        let digest = if own.starts_with("sha256") {
            own
        } else {
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        };
        let index =
            format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","size":5}}]}}"#);
        Act::Answer("200 OK".into(), vec![], index.into_bytes())
    }));
    assert!(
        matches!(
            nested,
            LibraryError::Registry(RegistryError::WrongDigest { .. })
        ),
        "{nested}"
    );
    let endless = against(Box::new(|_| {
        Act::Answer(
            "401 Unauthorized".into(),
            vec!["WWW-Authenticate: Bearer realm=\"http://127.0.0.1:1/\"".into()],
            vec![],
        )
    }));
    assert!(
        matches!(
            endless,
            LibraryError::Registry(RegistryError::Connect { .. })
        ),
        "{endless}"
    );
}

#[test]
fn an_image_that_is_too_much_is_refused_before_it_is_fetched() {
    needs_tools!("an_image_that_is_too_much_is_refused_before_it_is_fetched");
    let bench = Bench::new(false);
    for limits in [
        Limits {
            layers: 2,
            ..Limits::default()
        },
        Limits {
            layer_bytes: 1_000_000,
            ..Limits::default()
        },
        Limits {
            total_bytes: 2_000_000,
            ..Limits::default()
        },
    ] {
        let proxy = Proxy::start(&bench.registry.address, |_| Act::Pass);
        let library = bench.library_with("store", LibraryConfig { limits, ..config() });
        let error = pull(&library, &proxy.address, "team/app:1").unwrap_err();
        assert!(matches!(error, LibraryError::Image(_)), "{error}");
        assert_eq!(proxy.count("/blobs/"), 1, "only the config");
    }
}

/// Not a test of its own: a process with an environment of its own.
#[test]
fn child_that_pulls() {
    let (Ok(root), Ok(image)) = (std::env::var("CHILD_LIBRARY"), std::env::var("CHILD_IMAGE"))
    else {
        return;
    };
    let mut config = config();
    config.registries.patience.attempts = 1;
    let image: kiln_image::oci::Reference = image.parse().unwrap();
    let setting = RegistrySetting {
        insecure: Some(std::env::var_os("CHILD_TLS").is_none()),
        mirrors: vec![],
    };
    config
        .registries
        .registries
        .insert(image.registry().to_owned(), setting);
    let library = ImageLibrary::open(root, config).unwrap();
    let request = PullRequest {
        keyring: Keyring::of_user(),
        ..PullRequest::new(image)
    };
    library.pull(&request, &Silent).unwrap();
}

fn child(root: &Path, image: &str) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child_that_pulls", "--nocapture"])
        .env("CHILD_LIBRARY", root)
        .env("CHILD_IMAGE", image)
        .env_remove("XDG_RUNTIME_DIR")
        .env_remove("REGISTRY_AUTH_FILE")
        .env("HOME", root.parent().unwrap());
    command
}

#[test]
fn credentials_are_found_where_docker_and_podman_keep_them() {
    use std::os::unix::fs::PermissionsExt;
    needs_tools!("credentials_are_found_where_docker_and_podman_keep_them");
    let bench = Bench::new(true);
    let address = &bench.registry.address;
    let image = format!("{address}/team/app:1");
    let home = bench.directory.path();
    let try_it = |name: &str, path: Option<&Path>| {
        let mut command = child(&bench.root(name), &image);
        if let Some(path) = path {
            let paths = std::env::var("PATH").unwrap();
            command.env("PATH", format!("{}:{paths}", path.display()));
        }
        let output = command.output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (succeeded, output) = try_it("none", None);
    assert!(!succeeded && output.contains("Unauthorized"), "{output}");
    // Docker.
    std::fs::create_dir_all(home.join(".docker")).unwrap();
    let docker = home.join(".docker/config.json");
    std::fs::write(
        &docker,
        format!(r#"{{"auths":{{"{address}":{{"auth":"a2lsbjpzZWNyZXQ="}}}}}}"#),
    )
    .unwrap();
    assert!(try_it("docker", None).0);
    // Podman, for a part of the registry.
    std::fs::remove_file(&docker).unwrap();
    std::fs::create_dir_all(home.join(".config/containers")).unwrap();
    let podman = home.join(".config/containers/auth.json");
    std::fs::write(
        &podman,
        format!(r#"{{"auths":{{"{address}/team":{{"auth":"a2lsbjpzZWNyZXQ="}}}}}}"#),
    )
    .unwrap();
    assert!(try_it("podman", None).0);
    std::fs::remove_file(&podman).unwrap();
    // Helpers: one that knows, one that does not, one that fails, one that is not there.
    let bin = home.join("bin");
    std::fs::create_dir(&bin).unwrap();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = get ] && [ \"$(cat)\" = {address} ] && echo '{{\"Username\":\"kiln\",\"Secret\":\"secret\"}}'\n"
    );
    let scripts = [
        ("knows", script.as_str()),
        (
            "empty",
            "#!/bin/sh\necho credentials not found in native keychain\nexit 1\n",
        ),
        ("fails", "#!/bin/sh\necho s3cr3t; exit 1\n"),
    ];
    for (name, script) in scripts {
        let path = bin.join(format!("docker-credential-{name}"));
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (name, expected) in [
        ("knows", Ok(())),
        ("empty", Err("Unauthorized")),
        ("fails", Err("Helper")),
        ("absent", Err("Helper")),
    ] {
        for key in [
            format!(r#"{{"credHelpers":{{"{address}":"{name}"}}}}"#),
            format!(r#"{{"credsStore":"{name}"}}"#),
        ] {
            std::fs::write(&docker, &key).unwrap();
            let (succeeded, output) = try_it(&format!("helper-{name}"), Some(&bin));
            match expected {
                Ok(()) => assert!(succeeded, "{output}"),
                Err(word) => assert!(
                    !succeeded && output.contains(word) && !output.contains("s3cr3t"),
                    "{output}"
                ),
            }
        }
    }
}

#[test]
fn certificates_are_checked() {
    needs_tools!("certificates_are_checked");
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name).display().to_string();
    let openssl = |arguments: &[&str]| {
        let output = std::process::Command::new("openssl")
            .args(arguments)
            .output();
        output.is_ok_and(|output| output.status.success())
    };
    let (authority, authority_key) = (at("authority.pem"), at("authority-key.pem"));
    let (request, key, certificate, names) =
        (at("request"), at("key.pem"), at("cert.pem"), at("names"));
    std::fs::write(&names, "subjectAltName=DNS:localhost\n").unwrap();
    let curve = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ];
    let made = openssl(
        &[
            &[
                "req",
                "-x509",
                "-days",
                "2",
                "-subj",
                "/CN=authority",
                "-keyout",
                &authority_key,
                "-out",
                &authority,
            ][..],
            &curve,
        ]
        .concat(),
    ) && openssl(
        &[
            &[
                "req",
                "-subj",
                "/CN=localhost",
                "-keyout",
                &key,
                "-out",
                &request,
            ][..],
            &curve,
        ]
        .concat(),
    ) && openssl(&[
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        &request,
        "-CA",
        &authority,
        "-CAkey",
        &authority_key,
        "-CAcreateserial",
        "-extfile",
        &names,
        "-out",
        &certificate,
    ]);
    if !made {
        return skip("certificates_are_checked", "no openssl");
    }
    let registry = Registry::start_with(&format!(
        "  tls:\n    certificate: {}\n    key: {}\n",
        certificate, key
    ));
    let mut layout = Layout::new(temp.path().join("layout"));
    let image = layout.image(
        &kiln_image::oci::Platform::host().architecture,
        "{}",
        &layers()[..1],
    );
    layout.tag(&image, "x");
    registry.push(&layout.path, "x", "app:1", &[]);
    let image = format!(
        "localhost:{}/app:1",
        registry.address.rsplit(':').next().unwrap()
    );
    let run = |name: &str, trusted: Option<&str>| {
        let mut command = child(&temp.path().join(name), &image);
        command.env("CHILD_TLS", "1").env_remove("SSL_CERT_DIR");
        match trusted {
            Some(path) => command.env("SSL_CERT_FILE", path),
            None => command.env_remove("SSL_CERT_FILE"),
        };
        let output = command.output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (trusted, output) = run("trusted", Some(&authority));
    assert!(trusted, "{output}");
    let (untrusted, output) = run("untrusted", None);
    assert!(
        !untrusted && output.contains("InvalidCertificate"),
        "{output}"
    );
}
