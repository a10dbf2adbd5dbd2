//! Registries that lie.

use kiln_image::library::{LibraryConfig, LibraryError};
use kiln_image::registry::RegistryError;
use kiln_image::{ImageError, Limits};

use crate::bench::{Bench, config, pull};
use crate::support::registry::{Act, Layout, Packing, Proxy, Seen, pipe, tar_of};

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
    let evil = pipe(
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

/// How a registry is hostile, and how the pull must end.
struct Hostility {
    what: &'static str,
    act: fn(&Seen) -> Act,
    refused: fn(&RegistryError) -> bool,
}

fn ok(body: Vec<u8>) -> Act {
    Act::Answer("200 OK".into(), vec![], body)
}

fn found(location: &str) -> Act {
    Act::Answer(
        "302 Found".into(),
        vec![format!("Location: {location}")],
        vec![],
    )
}

/// An index of one entry: whatever was asked for, or the first time another index.
fn itself(seen: &Seen) -> Act {
    let own = seen.path.rsplit('/').next().unwrap_or_default();
    let digest = if own.starts_with("sha256") {
        own
    } else {
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    };
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","size":5}}]}}"#);
    ok(index.into_bytes())
}

const HOSTILITIES: [Hostility; 6] = [
    Hostility {
        what: "a huge manifest",
        act: |_| ok(vec![b' '; 5 << 20]),
        refused: |error| matches!(error, RegistryError::WrongSize { .. }),
    },
    Hostility {
        what: "redirects in a circle",
        act: |seen| found(&seen.path),
        refused: |error| matches!(error, RegistryError::TooManyRedirects { .. }),
    },
    Hostility {
        what: "a redirect to a file",
        act: |_| found("file:///etc/passwd"),
        refused: |error| matches!(error, RegistryError::InvalidUrl { .. }),
    },
    Hostility {
        what: "a page of HTML",
        act: |_| ok(b"<html>".to_vec()),
        refused: |error| matches!(error, RegistryError::Manifest { .. }),
    },
    Hostility {
        what: "an index in itself",
        act: itself,
        refused: |error| matches!(error, RegistryError::WrongDigest { .. }),
    },
    Hostility {
        what: "a token server that is not there",
        act: |_| {
            let challenge = "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:1/\"".to_owned();
            Act::Answer("401 Unauthorized".into(), vec![challenge], vec![])
        },
        refused: |error| matches!(error, RegistryError::Connect { .. }),
    },
];

#[test]
fn hostile_registries_are_refused() {
    needs_tools!("hostile_registries_are_refused");
    let bench = Bench::new(false);
    for Hostility { what, act, refused } in HOSTILITIES {
        let proxy = Proxy::start(&bench.registry.address, act);
        let library = bench.library(&format!("store-{}", proxy.address));
        let error = pull(&library, &proxy.address, "team/app:1").unwrap_err();
        let LibraryError::Registry(error) = error else {
            panic!("{what}: {error}")
        };
        assert!(refused(&error), "{what}: {error}");
        assert!(library.store().list().unwrap().is_empty(), "{what}");
    }
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
