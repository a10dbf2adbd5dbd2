//! Transfers that break, and servers that are busy.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kiln_image::library::{ImageQuery, LibraryError};
use kiln_image::registry::RegistryError;

use crate::bench::{Bench, assert_tidy, config, is_layer, pull};
use crate::support::fsck;
use crate::support::registry::{Act, Proxy};

fn assert_wrong_digest(error: &LibraryError) {
    assert!(
        matches!(
            error,
            LibraryError::Registry(RegistryError::WrongDigest { .. })
        ),
        "{error}"
    );
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
    assert_wrong_digest(&error);
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
    assert_wrong_digest(&error);
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
    assert_wrong_digest(&error);
    assert!(library.store().list().unwrap().is_empty());
    assert!(library.list(&ImageQuery { all: true }).unwrap().is_empty());
    assert_eq!(
        std::fs::read_dir(library.store().root().join("tmp"))
            .unwrap()
            .count(),
        0
    );
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
