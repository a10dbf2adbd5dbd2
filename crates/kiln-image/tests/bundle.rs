//! Parity A3 against a server that speaks like the bucket, the release page and a manifest's host.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use kiln_image::bundle::{
    BundleError, BundleSource, BundleStore, Ensured, ManifestSource, Origins, Preset, RootfsType,
};
use kiln_image::kernel::Architecture;
use kiln_image::{Progress, ProgressEvent, Silent};
use serde_json::json;
use sha2::{Digest, Sha256};

/// What the server answers by path and query; shared, so that tests change it while it runs.
#[derive(Clone, Default)]
struct World {
    answers: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl World {
    fn put(&self, path: &str, content: impl Into<Vec<u8>>) {
        self.answers
            .lock()
            .unwrap()
            .insert(path.into(), content.into());
    }

    fn remove(&self, path: &str) {
        self.answers.lock().unwrap().remove(path);
    }

    /// How often paths that begin so were asked for.
    fn asked(&self, start: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|path| path.starts_with(start)).count()
    }

    /// Serves for as long as the test's process lives; returns the address.
    fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let world = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                world.answer(&mut stream.unwrap());
            }
        });
        url
    }

    fn answer(&self, stream: &mut TcpStream) {
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
            request.push(byte[0]);
        }
        let request = String::from_utf8_lossy(&request).into_owned();
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        self.asked.lock().unwrap().push(path.clone());
        let answer = self.answers.lock().unwrap().get(&path).cloned();
        let (status, header, body) = match answer {
            _ if path == "/broken" => ("503 Service Unavailable", String::new(), Vec::new()),
            Some(tag) if path == "/releases/latest" => {
                let tag = String::from_utf8(tag).unwrap();
                (
                    "302 Found",
                    format!("location: /releases/tag/{tag}\r\n"),
                    Vec::new(),
                )
            }
            Some(body) => ("200 OK", String::new(), body),
            None => ("404 Not Found", String::new(), Vec::new()),
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\n{header}content-length: {length}\r\nconnection: close\r\n\r\n"
        );
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&body);
    }
}

fn arch() -> &'static str {
    Architecture::host().name()
}

fn digest(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

/// The listing of a train, in S3's words; `next` makes it one page of several.
fn listing(train: &str, files: &[(&str, usize)], next: Option<&str>) -> String {
    let prefix = format!("firecracker-ci/{train}/{}/", arch());
    let contents: String = files
        .iter()
        .map(|(name, size)| {
            format!(
                "<Contents><Key>{prefix}{name}</Key><LastModified>2025-01-07T09:34:56.000Z\
                 </LastModified><ETag>&quot;0123&quot;</ETag><Size>{size}</Size>\
                 <StorageClass>INTELLIGENT_TIERING</StorageClass></Contents>"
            )
        })
        .collect();
    let token = next.map_or_else(String::new, |token| {
        format!("<NextContinuationToken>{token}</NextContinuationToken>")
    });
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult \
         xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>spec.ccfc.min</Name>\
         <Prefix>{prefix}</Prefix>{token}<KeyCount>{}</KeyCount><MaxKeys>1000</MaxKeys>\
         <IsTruncated>{}</IsTruncated>{contents}</ListBucketResult>",
        files.len(),
        next.is_some()
    )
}

fn list_path(train: &str) -> String {
    format!(
        "/bucket/?list-type=2&prefix=firecracker-ci%2F{train}%2F{}%2F",
        arch()
    )
}

fn object_path(train: &str, name: &str) -> String {
    format!("/bucket/firecracker-ci/{train}/{}/{name}", arch())
}

/// A train with one kernel and one root filesystem.
fn put_train(world: &World, train: &str, kernel: &[u8], rootfs: (&str, &[u8])) {
    let files = [("vmlinux-6.1.155", kernel), rootfs];
    let sizes = files.map(|(name, content)| (name, content.len()));
    world.put(&list_path(train), listing(train, &sizes, None));
    for (name, content) in files {
        world.put(&object_path(train, name), content);
    }
}

fn open(root: &Path, url: &str, max_stored: usize) -> BundleStore {
    let store = BundleStore::open(root, max_stored).unwrap();
    store.with_origins(Origins {
        bucket: format!("{url}/bucket"),
        latest_release: format!("{url}/releases/latest"),
    })
}

fn ensure(store: &BundleStore, source: &BundleSource) -> Result<Ensured, BundleError> {
    store.ensure(source, false, &Silent)
}

/// Nothing but whole bundles is in the store.
fn assert_tidy(root: &Path, bundles: usize) {
    let names = |path: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(path).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(root), ["bundles", "lock"]);
    assert_eq!(names(&root.join("bundles")).len(), bundles);
}

#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Progress for Notes {
    fn report(&self, event: ProgressEvent) {
        if let ProgressEvent::Note(note) = event {
            self.0.lock().unwrap().push(note);
        }
    }
}

/// A server with one train, and the bundle of `latest` from it.
fn latest() -> (World, tempfile::TempDir, BundleStore, Ensured) {
    let (world, temp) = (World::default(), tempfile::tempdir().unwrap());
    let url = world.serve();
    world.put("/releases/latest", "v1.16.1");
    put_train(
        &world,
        "v1.16",
        b"kernel",
        ("ubuntu-24.04.squashfs", b"rootfs"),
    );
    let store = open(temp.path(), &url, 2);
    let made = ensure(&store, &BundleSource::Latest).unwrap();
    (world, temp, store, made)
}

#[test]
fn a3_1_latest_follows_the_release() {
    let (world, temp, store, made) = latest();
    assert!(!made.was_cached && made.evicted.is_empty());
    assert_eq!(made.image.firecracker_version, "v1.16.1");
    assert_eq!(made.image.train, "v1.16");
    assert_tidy(temp.path(), 1);
    assert!(ensure(&store, &BundleSource::Latest).unwrap().was_cached);
    assert_eq!(world.asked("/bucket/firecracker-ci/"), 2, "fetched once");
    store.ensure(&BundleSource::Latest, true, &Silent).unwrap();
    assert_eq!(world.asked("/bucket/firecracker-ci/"), 4, "fetched anew");

    world.put("/releases/latest", "nightly");
    let odd = ensure(&store, &BundleSource::Latest).unwrap_err();
    assert_eq!(odd.code(), "VERSION_FETCH_FAILED", "{odd}");
}

#[test]
fn a3_4_a_bundle_is_recorded_whole() {
    let (_world, temp, store, made) = latest();
    let image = &made.image;
    assert_eq!(image.preset, Preset::Latest);
    assert_eq!(image.architecture.name(), arch());
    assert_eq!(image.rootfs_type, RootfsType::Squashfs);
    assert!(image.rootfs_is_read_only);
    assert!(
        image
            .boot_args
            .ends_with("console=ttyS0 reboot=k panic=1 pci=off ro rootfstype=squashfs")
    );
    assert!(image.source.starts_with("http://127.0.0.1"));
    assert!(image.id.starts_with("latest-"), "{}", image.id);
    for (file, content) in [(&image.kernel, &b"kernel"[..]), (&image.rootfs, b"rootfs")] {
        assert_eq!(file.size_bytes, content.len() as u64);
        assert_eq!(file.sha256, digest(content));
        assert_eq!(std::fs::read(&file.path).unwrap(), content);
        assert!(file.path.starts_with(&image.directory));
    }
    assert!(image.directory.starts_with(temp.path()));
    assert_eq!(store.list().unwrap(), std::slice::from_ref(image));

    let again = ensure(&store, &BundleSource::Latest).unwrap().image;
    assert!(again.last_accessed > image.last_accessed);
    assert_eq!(again.created, image.created);
}

#[test]
fn a3_1_lts_is_one_release_and_hosted_needs_a_manifest() {
    let (world, temp) = (World::default(), tempfile::tempdir().unwrap());
    let url = world.serve();
    put_train(&world, "v1.7", b"old", ("ubuntu-22.04.ext4", b"rootfs"));
    let store = open(temp.path(), &url, 2);
    let image = ensure(&store, &BundleSource::Lts).unwrap().image;
    assert_eq!(image.firecracker_version, "v1.7.0");
    assert_eq!(
        (image.rootfs_type, image.rootfs_is_read_only),
        (RootfsType::Ext4, false)
    );
    let error = BundleSource::hosted(None).unwrap_err();
    assert_eq!(error.code(), "BASE_IMAGE_RESOLVE_FAILED");
    assert_eq!("debian".parse::<Preset>().unwrap(), Preset::Debian);
    assert!("newest".parse::<Preset>().is_err());
}

#[test]
fn a3_2_all_pages_of_the_listing_are_read() {
    let (world, temp) = (World::default(), tempfile::tempdir().unwrap());
    let url = world.serve();
    let first = [
        ("vmlinux-5.10.239", 3),
        ("ubuntu-22.04.ext4", 6),
        ("debug/vmlinux-9.9.9", 1),
    ];
    let second = [
        ("vmlinux-6.1.141", 3),
        ("vmlinux-6.1.9", 3),
        ("ubuntu-24.04.squashfs", 6),
    ];
    world.put(&list_path("v1.7"), listing("v1.7", &first, Some("a/b==")));
    let next = format!("{}&continuation-token=a%2Fb%3D%3D", list_path("v1.7"));
    world.put(&next, listing("v1.7", &second, None));
    world.put(&object_path("v1.7", "vmlinux-6.1.141"), "ker");
    world.put(&object_path("v1.7", "ubuntu-24.04.squashfs"), "rootfs");
    let store = open(temp.path(), &url, 2);
    let image = ensure(&store, &BundleSource::Lts).unwrap().image;
    assert!(image.kernel.path.ends_with("vmlinux-6.1.141"));
    assert!(image.rootfs.path.ends_with("ubuntu-24.04.squashfs"));

    for (page, code) in [
        (
            listing("v1.7", &first[..1], None),
            "BASE_IMAGE_RESOLVE_FAILED",
        ),
        (listing("v1.7", &[], None), "BASE_IMAGE_RESOLVE_FAILED"),
        (
            "<Error><Code>AccessDenied</Code></Error>".into(),
            "BASE_IMAGE_RESOLVE_FAILED",
        ),
    ] {
        world.put(&list_path("v1.7"), page);
        let error = ensure(&store, &BundleSource::Lts).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    world.remove(&list_path("v1.7"));
    let error = ensure(&store, &BundleSource::Lts).unwrap_err();
    assert!(matches!(error, BundleError::List { .. }), "{error}");
    assert_tidy(temp.path(), 1);
}

/// A manifest whose files the world serves.
fn manifest(url: &str, id: &str, kernel: &[u8], rootfs: &[u8]) -> serde_json::Value {
    json!({
        "schemaVersion": 1, "bundleId": id, "arch": arch(), "firecrackerVersion": "v1.10.1",
        "rootfsType": "ext4", "bootArgs": "console=ttyS0 quiet",
        "kernel": { "url": format!("{url}/{id}/kernel"), "sha256": digest(kernel) },
        "rootfs": {
            "url": format!("{url}/{id}/rootfs"), "fileName": "root.ext4",
            "sha256": digest(rootfs), "sizeBytes": rootfs.len(),
        },
    })
}

fn put_hosted(world: &World, url: &str, id: &str) -> BundleSource {
    let (kernel, rootfs) = (format!("kernel of {id}"), format!("rootfs of {id}"));
    let text = manifest(url, id, kernel.as_bytes(), rootfs.as_bytes()).to_string();
    world.put(&format!("/{id}.json"), text);
    world.put(&format!("/{id}/kernel"), kernel);
    world.put(&format!("/{id}/rootfs"), rootfs);
    BundleSource::Hosted(ManifestSource::Url(format!("{url}/{id}.json")))
}

#[test]
fn a3_3_a_hosted_bundle_comes_by_url_or_from_files() {
    let (world, temp) = (World::default(), tempfile::tempdir().unwrap());
    let url = world.serve();
    let store = open(&temp.path().join("store"), &url, 2);
    let image = ensure(&store, &put_hosted(&world, &url, "base"))
        .unwrap()
        .image;
    assert_eq!(
        (image.id.as_str(), image.boot_args.as_str()),
        ("base", "console=ttyS0 quiet")
    );
    assert!(image.rootfs.path.ends_with("base/root.ext4"));

    std::fs::write(temp.path().join("k"), "local kernel").unwrap();
    std::fs::write(temp.path().join("r"), "local rootfs").unwrap();
    let mut local = manifest(&url, "local", b"", b"");
    local["kernel"] = json!({ "path": "k" });
    local["rootfs"] = json!({ "path": temp.path().join("r"), "sha256": digest(b"local rootfs") });
    let path = temp.path().join("manifest.json");
    std::fs::write(&path, local.to_string()).unwrap();
    let source = BundleSource::Hosted(ManifestSource::File(path.clone()));
    let image = ensure(&store, &source).unwrap().image;
    assert_eq!(std::fs::read(&image.kernel.path).unwrap(), b"local kernel");
    assert!(ensure(&store, &source).unwrap().was_cached);
    std::fs::write(temp.path().join("k"), "newer kernel").unwrap();
    let image = ensure(&store, &source).unwrap().image;
    assert_eq!(std::fs::read(&image.kernel.path).unwrap(), b"newer kernel");
    std::fs::write(temp.path().join("r"), "other rootfs").unwrap();
    let error = store.ensure(&source, true, &Silent).unwrap_err();
    assert!(matches!(error, BundleError::Mismatch { .. }), "{error}");
    assert_tidy(&temp.path().join("store"), 2);

    local["schemaVersion"] = 2.into();
    std::fs::write(&path, local.to_string()).unwrap();
    assert_eq!(
        ensure(&store, &source).unwrap_err().code(),
        "INVALID_BASE_IMAGE_MANIFEST"
    );
    std::fs::remove_file(&path).unwrap();
    assert_eq!(
        ensure(&store, &source).unwrap_err().code(),
        "BASE_IMAGE_MANIFEST_FAILED"
    );
    let gone = BundleSource::Hosted(ManifestSource::Url(format!("{url}/gone.json")));
    assert_eq!(
        ensure(&store, &gone).unwrap_err().code(),
        "BASE_IMAGE_MANIFEST_FAILED"
    );
}

#[test]
fn a3_5_damage_of_any_kind_is_seen_and_mended() {
    let (world, temp) = (World::default(), tempfile::tempdir().unwrap());
    let url = world.serve();
    let store = open(temp.path(), &url, 2);
    let source = put_hosted(&world, &url, "base");
    let image = ensure(&store, &source).unwrap().image;
    let good = std::fs::read(&image.rootfs.path).unwrap();
    let outside = temp.path().join("bundles").join("outside");
    std::fs::write(&outside, &good).unwrap();
    let record = image.directory.join("bundle.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let damages: [&dyn Fn(); 6] = [
        &|| std::fs::write(&image.rootfs.path, b"x").unwrap(),
        &|| {
            std::fs::write(
                &image.kernel.path,
                vec![0; image.kernel.size_bytes as usize],
            )
            .unwrap()
        },
        &|| std::fs::remove_file(&image.kernel.path).unwrap(),
        &|| {
            // The right content, but not here.
            std::fs::remove_file(&image.rootfs.path).unwrap();
            std::os::unix::fs::symlink(&outside, &image.rootfs.path).unwrap();
        },
        &|| std::fs::write(&record, text.replace("root.ext4", "../outside")).unwrap(),
        &|| std::fs::write(&record, "{").unwrap(),
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        damage();
        let mended = ensure(&store, &source).unwrap();
        assert!(!mended.was_cached, "damage {number} was not seen");
        assert_eq!(std::fs::read(&image.rootfs.path).unwrap(), good);
        assert!(!image.rootfs.path.is_symlink());
        assert!(ensure(&store, &source).unwrap().was_cached);
    }
}

#[test]
fn a3_6_a_failed_preparation_leaves_nothing_and_keeps_what_was() {
    let (world, temp) = (World::default(), tempfile::tempdir().unwrap());
    let url = world.serve();
    let store = open(temp.path(), &url, 2);
    let source = put_hosted(&world, &url, "base");
    world.put("/base/rootfs", "tampered content");
    let error = ensure(&store, &source).unwrap_err();
    assert_eq!(error.code(), "BASE_IMAGE_PREPARE_FAILED", "{error}");
    assert_tidy(temp.path(), 0);

    world.put("/base/rootfs", "rootfs of base");
    ensure(&store, &source).unwrap();
    world.remove("/base/kernel");
    let error = store.ensure(&source, true, &Silent).unwrap_err();
    assert!(matches!(error, BundleError::Download { .. }), "{error}");
    assert!(ensure(&store, &source).unwrap().was_cached);
    assert_tidy(temp.path(), 1);

    // What a killed process leaves.
    std::fs::create_dir(temp.path().join(".partial-dead")).unwrap();
    ensure(&store, &source).unwrap();
    assert_tidy(temp.path(), 1);
}

#[test]
fn a3_7_the_least_recently_used_go_with_a_warning() {
    let (world, temp) = (World::default(), tempfile::tempdir().unwrap());
    let url = world.serve();
    let error = BundleStore::open(temp.path(), 0).unwrap_err();
    assert_eq!(error.code(), "INVALID_BASE_IMAGE_CACHE_LIMIT");
    let sources = ["a", "b", "c"].map(|id| put_hosted(&world, &url, id));
    let store = open(temp.path(), &url, 2);
    ensure(&store, &sources[0]).unwrap();
    ensure(&store, &sources[1]).unwrap();
    ensure(&store, &sources[0]).unwrap();
    let notes = Notes::default();
    let made = store.ensure(&sources[2], false, &notes).unwrap();
    assert_eq!(made.evicted, ["b"]);
    let notes = notes.0.into_inner().unwrap();
    assert!(
        notes
            .iter()
            .any(|note| note.contains('b') && note.contains("max_stored_base_images is 2")),
        "{notes:?}"
    );
    let ids = |store: &BundleStore| -> Vec<String> {
        store
            .list()
            .unwrap()
            .into_iter()
            .map(|image| image.id)
            .collect()
    };
    assert_eq!(ids(&store), ["c", "a"]);
    let store = open(temp.path(), &url, 1);
    assert_eq!(ensure(&store, &sources[1]).unwrap().evicted, ["c", "a"]);
    assert_eq!(ids(&store), ["b"], "never the one just asked for");
}

#[test]
fn without_its_servers_a_preset_is_what_is_here() {
    let (world, temp) = (World::default(), tempfile::tempdir().unwrap());
    let url = world.serve();
    world.put("/releases/latest", "v1.16.1");
    put_train(
        &world,
        "v1.16",
        b"kernel",
        ("ubuntu-24.04.squashfs", b"rootfs"),
    );
    ensure(&open(temp.path(), &url, 2), &BundleSource::Latest).unwrap();
    let away = open(temp.path(), &url, 2).with_origins(Origins {
        bucket: format!("{url}/bucket"),
        latest_release: format!("{url}/broken"),
    });
    let notes = Notes::default();
    let found = away.ensure(&BundleSource::Latest, false, &notes).unwrap();
    assert!(found.was_cached);
    assert!(notes.0.into_inner().unwrap()[0].contains("cannot be reached"));
    assert!(away.ensure(&BundleSource::Latest, true, &Silent).is_err());
    std::fs::write(&found.image.kernel.path, b"x").unwrap();
    assert!(
        ensure(&away, &BundleSource::Latest).is_err(),
        "a damaged one never serves"
    );
}

/// Kills its process at the n-th event.
struct DieAt(std::sync::atomic::AtomicUsize);

impl Progress for DieAt {
    fn report(&self, _event: ProgressEvent) {
        if self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) == 1 {
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
        }
    }
}

/// Not a test of its own: a process that dies while it fetches a bundle.
#[test]
fn child_that_dies() {
    let Ok(at) = std::env::var("CHILD_DIES_AT") else {
        return;
    };
    let (root, url) = (
        std::env::var("CHILD_STORE").unwrap(),
        std::env::var("CHILD_URL").unwrap(),
    );
    let source = BundleSource::Hosted(ManifestSource::Url(format!("{url}/base.json")));
    let store = open(Path::new(&root), &url, 2);
    let death = DieAt(at.parse::<usize>().unwrap().into());
    store.ensure(&source, false, &death).unwrap();
}

#[test]
fn a3_6_a_fetcher_killed_at_any_step_leaves_nothing_half_made() {
    let (world, temp) = (World::default(), tempfile::tempdir().unwrap());
    let url = world.serve();
    let source = put_hosted(&world, &url, "base");
    let mut survived = false;
    for at in 1..100 {
        let root = temp.path().join(at.to_string());
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_dies"])
            .env("CHILD_DIES_AT", at.to_string())
            .env("CHILD_STORE", &root)
            .env("CHILD_URL", &url)
            .output()
            .unwrap()
            .status;
        survived = status.success();
        let store = open(&root, &url, 2);
        // Whole or not there, and the next one finishes it and clears the rest away.
        for image in store.list().unwrap() {
            assert!(store.stored(&image.id).unwrap().is_some(), "at {at}");
        }
        ensure(&store, &source).unwrap();
        assert_tidy(&root, 1);
        if survived {
            assert!(at > 2, "it was never killed");
            break;
        }
    }
    assert!(survived, "it has no end");
}
