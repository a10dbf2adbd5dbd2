//! Pulls that work: once, by policy, by platform, through mirrors, many at once.

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kiln_image::library::{ImageQuery, LibraryError, PullPolicy, PullRequest};
use kiln_image::oci::Overrides;
use kiln_image::registry::{RegistryError, RegistrySetting};
use kiln_image::{Progress, ProgressEvent, Silent};

use crate::bench::{Bench, assert_tidy, config, is_layer, pull, request};
use crate::support::registry::{Act, Proxy, Seen, noise};
use crate::support::{Mount, fsck, is_root, skip};

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
        let seen = Seen {
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
