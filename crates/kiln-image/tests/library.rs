//! The library keeps what is wanted, throws away what is not, and is whole whatever dies.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use kiln_image::library::{
    ImageInfo, ImageLibrary, ImageQuery, ImportRequest, LibraryConfig, LibraryError, PruneRequest,
    PullPolicy, PullRequest,
};
use kiln_image::oci::{Platform, Reference};
use kiln_image::{Progress, ProgressEvent, Silent};
use support::registry::{Layout, Packing, Registry, have_tools, noise, tar_of};
use support::{fsck, skip};

fn open(root: &Path) -> ImageLibrary {
    ImageLibrary::open(root, LibraryConfig::default()).unwrap()
}

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

/// A layout with images `a` and `b`, which share their first layer.
fn siblings(directory: &Path) -> PathBuf {
    let mut layout = Layout::new(directory.join("layout"));
    let base = (tar_of(&[("base", &noise(1, 400_000))]), Packing::Gzip);
    for (number, tag) in ["example.com/a:1", "example.com/b:1"]
        .into_iter()
        .enumerate()
    {
        let own = (
            tar_of(&[("own", &noise(10 + number as u64, 200_000))]),
            Packing::Gzip,
        );
        let image = layout.image(
            &Platform::host().architecture,
            r#"{"Cmd":["x"]}"#,
            &[base.clone(), own],
        );
        layout.tag(&image, tag);
    }
    layout.path
}

struct Shelf {
    _temp: tempfile::TempDir,
    library: ImageLibrary,
    a: ImageInfo,
    b: ImageInfo,
}

fn shelf() -> Shelf {
    let temp = tempfile::tempdir().unwrap();
    let layout = siblings(temp.path());
    let library = open(&temp.path().join("store"));
    let images = library
        .import(&ImportRequest::new(layout), &Silent)
        .unwrap();
    let [a, b] = <[ImageInfo; 2]>::try_from(images).unwrap();
    let (a, b) = (
        library.inspect(&a.id.hex()).unwrap(),
        library.inspect(&b.id.hex()).unwrap(),
    );
    Shelf {
        _temp: temp,
        library,
        a,
        b,
    }
}

impl Shelf {
    fn ids(&self) -> Vec<String> {
        let images = self.library.list(&ImageQuery { all: true }).unwrap();
        images.into_iter().map(|image| image.id.hex()).collect()
    }

    fn blobs(&self) -> usize {
        std::fs::read_dir(self.library.store().root().join("blobs/sha256"))
            .unwrap()
            .count()
    }
}

fn free(_: &kiln_image::ImageId) -> bool {
    false
}

#[test]
fn images_are_tagged_found_and_removed_by_name_and_id() {
    let shelf = shelf();
    let (library, a) = (&shelf.library, &shelf.a);
    let tagged = library.tag("example.com/a:1", &name("mine")).unwrap();
    assert_eq!(
        tagged.names,
        ["docker.io/library/mine:latest", "example.com/a:1"]
    );
    for key in [
        "mine",
        "docker.io/library/mine:latest",
        &a.id.hex(),
        &a.id.hex()[..10],
        &a.id.to_string(),
    ] {
        assert_eq!(library.inspect(key).unwrap().id, a.id, "{key}");
    }
    for key in [
        "nothing",
        "",
        "abc",
        "ffffffffffff",
        "../../etc/passwd",
        "a\u{0}b",
    ] {
        assert!(
            matches!(library.inspect(key), Err(LibraryError::NotFound(_))),
            "{key:?}"
        );
    }
    let several = library.remove(&a.id.hex(), false, &free).unwrap_err();
    assert!(
        matches!(several, LibraryError::SeveralNames { count: 2, .. }),
        "{several}"
    );
    let untagged = library.remove("mine", false, &free).unwrap();
    assert_eq!((untagged.untagged.len(), untagged.deleted), (1, None));
    assert!(a.rootfs.path.exists());
    let deleted = library.remove("example.com/a:1", false, &free).unwrap();
    assert_eq!(deleted.deleted, Some(a.id));
    assert!(!a.rootfs.path.exists());
    assert_eq!(shelf.ids(), [shelf.b.id.hex()]);
    // A name may move from one image to another.
    let request = ImportRequest::new(siblings(shelf._temp.path()));
    library.import(&request, &Silent).unwrap();
    library
        .tag("example.com/b:1", &name("example.com/a:1"))
        .unwrap();
    assert_eq!(library.inspect("example.com/a:1").unwrap().id, shelf.b.id);
    // The one that lost its name is there by its id, and goes with the next prune.
    assert!(library.inspect(&a.id.hex()).unwrap().names.is_empty());
    assert_eq!(library.list(&ImageQuery::default()).unwrap().len(), 1);
    let pruned = library.prune(&PruneRequest::default(), &free).unwrap();
    assert_eq!(pruned.images, [a.id]);
}

#[test]
fn sizes_tell_shared_from_unique() {
    let shelf = shelf();
    let (a, b) = (&shelf.a, &shelf.b);
    // The common layer's blob, 400,000 bytes that do not compress.
    for image in [a, b] {
        assert!(
            (400_000..410_000).contains(&image.shared_bytes),
            "{}",
            image.shared_bytes
        );
        assert!(image.unique_bytes() > 200_000 + 600_000);
    }
    let before = shelf.library.disk_bytes().unwrap();
    shelf
        .library
        .remove("example.com/a:1", false, &free)
        .unwrap();
    let freed = before - shelf.library.disk_bytes().unwrap();
    assert_eq!(freed, a.unique_bytes());
    assert_eq!(
        shelf
            .library
            .inspect("example.com/b:1")
            .unwrap()
            .shared_bytes,
        0
    );
}

#[test]
fn what_is_held_stays() {
    let shelf = shelf();
    let (library, a) = (&shelf.library, &shelf.a);
    let all = PruneRequest {
        all: true,
        ..PruneRequest::default()
    };
    library.pin("example.com/a:1", "sandbox-1").unwrap();
    library.pin("example.com/a:1", "snapshot.2").unwrap();
    let held = library
        .remove("example.com/a:1", true, &free)
        .unwrap_err()
        .to_string();
    assert!(held.contains("sandbox-1, snapshot.2"), "{held}");
    assert_eq!(
        library.inspect("example.com/a:1").unwrap().pinned_by.len(),
        2
    );
    assert_eq!(library.prune(&all, &free).unwrap().images, [shelf.b.id]);
    for owner in ["", "a/b", "../x", "a\0b"] {
        assert!(matches!(
            library.pin("example.com/a:1", owner),
            Err(LibraryError::PinOwner(_))
        ));
    }
    library.unpin("sandbox-1").unwrap();
    library.retain_pins(&|owner| owner != "snapshot.2").unwrap();
    // A jail's hard link, and a caller who knows.
    let jail = shelf._temp.path().join("jail.img");
    std::fs::hard_link(&a.rootfs.path, &jail).unwrap();
    assert!(matches!(
        library.remove("example.com/a:1", false, &free),
        Err(LibraryError::InUse { .. })
    ));
    assert!(library.prune(&all, &free).unwrap().images.is_empty());
    std::fs::remove_file(jail).unwrap();
    let in_use = |id: &kiln_image::ImageId| *id == a.rootfs.id;
    assert!(matches!(
        library.remove("example.com/a:1", false, &in_use),
        Err(LibraryError::InUse { .. })
    ));
    assert!(library.prune(&all, &in_use).unwrap().images.is_empty());
    assert_eq!(library.prune(&all, &free).unwrap().images, [a.id]);
    assert_eq!((shelf.ids().len(), shelf.blobs()), (0, 0));
}

/// As if the image had last been asked for so long ago.
fn age(library: &ImageLibrary, image: &ImageInfo, by: Duration) {
    let path = library
        .store()
        .root()
        .join("records")
        .join(format!("{}.json", image.id.hex()));
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - by).unwrap();
}

const DAY: Duration = Duration::from_secs(24 * 3600);

#[test]
fn age_and_size_bound_the_library() {
    let shelf = shelf();
    let library = &shelf.library;
    age(library, &shelf.a, DAY * 10);
    age(library, &shelf.b, DAY * 5);
    let old = |days: u32| PruneRequest {
        all: true,
        unused_for: Some(DAY * days),
        ..PruneRequest::default()
    };
    assert!(library.prune(&old(11), &free).unwrap().images.is_empty());
    // Room for one: the older goes.
    let both = library.disk_bytes().unwrap();
    let fits = PruneRequest {
        max_bytes: Some(both),
        ..PruneRequest::default()
    };
    assert!(library.prune(&fits, &free).unwrap().images.is_empty());
    let tight = PruneRequest {
        max_bytes: Some(both - 1),
        ..PruneRequest::default()
    };
    let pruned = library.prune(&tight, &free).unwrap();
    assert_eq!(
        (pruned.images, pruned.names),
        (vec![shelf.a.id], vec!["example.com/a:1".to_owned()])
    );
    assert!(pruned.freed_bytes >= shelf.a.unique_bytes());
    assert_eq!(library.prune(&old(4), &free).unwrap().images, [shelf.b.id]);
    assert_eq!(library.disk_bytes().unwrap(), 0);
}

/// Block images that no name leads to are made again when needed: they go before those with one.
#[test]
fn what_has_no_name_goes_first_and_only_as_far_as_needed() {
    let shelf = shelf();
    let library = &shelf.library;
    let named = library.disk_bytes().unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), vec![1; 1 << 20]).unwrap();
    let source = kiln_image::ImageSource::Directory(directory.path().into());
    let unnamed = library
        .store()
        .import(source, &kiln_image::Limits::default(), &Silent)
        .unwrap();
    let quota = |max_bytes| PruneRequest {
        max_bytes: Some(max_bytes),
        unused_for: Some(Duration::MAX),
        ..PruneRequest::default()
    };
    let all = library.disk_bytes().unwrap();
    assert!(all > named);
    assert_eq!(library.prune(&quota(all), &free).unwrap().freed_bytes, 0);
    let in_use = |id: &kiln_image::ImageId| *id == unnamed.id;
    let pruned = library.prune(&quota(all - 1), &in_use).unwrap();
    assert_eq!(
        pruned.images.len(),
        1,
        "what is in use stays, and a name goes"
    );
    let pruned = library.prune(&quota(0), &|_| true).unwrap();
    assert!(pruned.images.is_empty());
    let left = library.disk_bytes().unwrap();
    let pruned = library.prune(&quota(left - 1), &free).unwrap();
    assert!(pruned.images.is_empty() && pruned.freed_bytes > 0);
    assert!(library.store().get(&unnamed.id).unwrap().is_none());
}

#[test]
fn asking_for_an_image_makes_it_young() {
    let shelf = shelf();
    age(&shelf.library, &shelf.a, DAY * 10);
    let request = PullRequest {
        policy: PullPolicy::Never,
        ..PullRequest::new(name("example.com/a:1"))
    };
    shelf.library.pull(&request, &Silent).unwrap();
    let used = shelf.library.inspect("example.com/a:1").unwrap().last_used;
    assert!(used.elapsed().unwrap() < DAY);
    let request = PullRequest {
        pin: Some("sandbox-1".to_owned()),
        ..request
    };
    assert_eq!(
        shelf.library.pull(&request, &Silent).unwrap().pinned_by,
        ["sandbox-1"]
    );
}

#[test]
fn layers_are_not_swept_away_under_an_import() {
    struct PruneMeanwhile(ImageLibrary, AtomicUsize);
    impl Progress for PruneMeanwhile {
        fn report(&self, _event: ProgressEvent) {
            let pruned = self
                .0
                .prune(
                    &PruneRequest {
                        all: true,
                        ..PruneRequest::default()
                    },
                    &free,
                )
                .unwrap();
            assert!(pruned.layers_skipped);
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }
    let temp = tempfile::tempdir().unwrap();
    let layout = siblings(temp.path());
    let library = open(&temp.path().join("store"));
    let meanwhile = PruneMeanwhile(open(&temp.path().join("store")), AtomicUsize::new(0));
    let images = library.import(&ImportRequest::new(layout), &meanwhile);
    assert!(meanwhile.1.load(Ordering::Relaxed) > 3);
    // The first image may have been pruned while the second came; what is there is whole.
    drop(images);
    for image in library.list(&ImageQuery { all: true }).unwrap() {
        fsck(&image.rootfs.path);
    }
}

#[test]
fn what_a_crash_or_a_hand_cut_off_is_mended_at_the_next_start() {
    let shelf = shelf();
    let root = shelf.library.store().root().to_path_buf();
    std::fs::remove_dir_all(shelf.a.rootfs.path.parent().unwrap()).unwrap();
    std::fs::remove_file(
        root.join("records")
            .join(format!("{}.json", shelf.b.id.hex())),
    )
    .unwrap();
    std::fs::write(root.join("names/ab.json"), b"{").unwrap();
    let library = open(&root);
    assert!(library.list(&ImageQuery { all: true }).unwrap().is_empty());
    assert!(matches!(
        library.inspect("example.com/a:1"),
        Err(LibraryError::NotFound(_))
    ));
    // Both come back whole from what is still here and the archive.
    let images = library
        .import(&ImportRequest::new(siblings(shelf._temp.path())), &Silent)
        .unwrap();
    assert_eq!(images.len(), 2);
    assert_eq!(library.inspect("example.com/a:1").unwrap().id, shelf.a.id);
    // A layer that lost its end is fetched again, not believed.
    let largest = std::fs::read_dir(root.join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let largest = largest
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let whole = std::fs::read(&largest).unwrap();
    std::fs::remove_file(&largest).unwrap();
    std::fs::write(&largest, &whole[..whole.len() / 2]).unwrap();
    library.remove("example.com/a:1", false, &free).unwrap();
    library
        .import(&ImportRequest::new(siblings(shelf._temp.path())), &Silent)
        .unwrap();
    assert_eq!(std::fs::read(&largest).unwrap(), whole);
}

/// Kills its process at the n-th event.
struct DieAt(AtomicUsize);

impl Progress for DieAt {
    fn report(&self, _event: ProgressEvent) {
        if self.0.fetch_sub(1, Ordering::Relaxed) == 1 {
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
        }
    }
}

/// Not a test of its own: the process that the next tests kill.
#[test]
fn child_that_dies() {
    let (Ok(root), Ok(image)) = (std::env::var("DIE_LIBRARY"), std::env::var("DIE_IMAGE")) else {
        return;
    };
    let at = std::env::var("DIE_AT")
        .unwrap_or_default()
        .parse()
        .unwrap_or(usize::MAX);
    let library = open(Path::new(&root));
    let image = library
        .pull(
            &PullRequest::new(name(&image)),
            &DieAt(AtomicUsize::new(at)),
        )
        .unwrap();
    library.tag(&image.id.hex(), &name("mine:1")).unwrap();
    library.remove("mine:1", false, &free).unwrap();
    library.remove(&image.id.hex(), true, &free).unwrap();
    library
        .prune(
            &PruneRequest {
                all: true,
                ..PruneRequest::default()
            },
            &free,
        )
        .unwrap();
    library
        .pull(&PullRequest::new(name(&image.names[0])), &Silent)
        .unwrap();
}

fn child(root: &Path, image: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child_that_dies"])
        .env("DIE_LIBRARY", root)
        .env("DIE_IMAGE", image)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Whatever was cut off: all that is listed is whole, nothing is in the way of the next one.
fn assert_whole(root: &Path) {
    let library = open(root);
    for image in library.list(&ImageQuery { all: true }).unwrap() {
        fsck(&image.rootfs.path);
        assert_eq!(library.inspect(&image.id.hex()).unwrap(), image);
    }
    assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    for blob in std::fs::read_dir(root.join("blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        let digest = kiln_image::oci::Digest::of(&std::fs::read(&path).unwrap());
        assert_eq!(digest.hex(), path.file_name().unwrap().to_str().unwrap());
    }
}

struct Source {
    registry: Registry,
    temp: tempfile::TempDir,
}

impl Source {
    fn new() -> Source {
        let source = Source {
            registry: Registry::start(false),
            temp: tempfile::tempdir().unwrap(),
        };
        let mut layout = Layout::new(source.temp.path().join("layout"));
        let layers = [
            (tar_of(&[("a", &noise(1, 2_500_000))]), Packing::Gzip),
            (tar_of(&[("b", &noise(2, 1_500_000))]), Packing::Zstd),
        ];
        let image = layout.image(&Platform::host().architecture, "{}", &layers);
        layout.tag(&image, "x");
        source.registry.push(&layout.path, "x", "app:1", &[]);
        source
    }

    fn image(&self) -> String {
        format!("{}/app:1", self.registry.address)
    }
}

#[test]
fn a_pull_killed_at_any_step_leaves_a_whole_library() {
    if !have_tools() {
        return skip(
            "a_pull_killed_at_any_step_leaves_a_whole_library",
            "no docker-registry or no skopeo",
        );
    }
    let source = Source::new();
    for step in 1.. {
        let root = source.temp.path().join(format!("step{step}"));
        let status = child(&root, &source.image())
            .env("DIE_AT", step.to_string())
            .status()
            .unwrap();
        assert_whole(&root);
        let library = open(&root);
        let image = library
            .pull(&PullRequest::new(name(&source.image())), &Silent)
            .unwrap();
        fsck(&image.rootfs.path);
        if status.success() {
            assert!(step > 6, "only {step} steps were killed");
            return;
        }
    }
}

#[test]
fn a_process_killed_at_random_moments_leaves_a_whole_library() {
    if !have_tools() {
        return skip(
            "a_process_killed_at_random_moments_leaves_a_whole_library",
            "no docker-registry or no skopeo",
        );
    }
    let source = Source::new();
    let root = source.temp.path().join("store");
    // How long it takes undisturbed, to spread the moments over.
    let start = std::time::Instant::now();
    assert!(child(&root, &source.image()).status().unwrap().success());
    let whole = start.elapsed();
    let moments = noise(7, 24);
    let mut killed = 0;
    for moment in &moments {
        let mut victim = child(&root, &source.image()).spawn().unwrap();
        // A moment by the clock is what this test is about.
        std::thread::sleep(whole * u32::from(*moment) / 255);
        victim.kill().unwrap();
        killed += u32::from(!victim.wait().unwrap().success());
        assert_whole(&root);
    }
    assert!(killed > 6, "only {killed} were killed");
    let library = open(&root);
    let image = library
        .pull(&PullRequest::new(name(&source.image())), &Silent)
        .unwrap();
    fsck(&image.rootfs.path);
    // Nothing but the image is left.
    library.prune(&PruneRequest::default(), &free).unwrap();
    assert_eq!(
        library.disk_bytes().unwrap(),
        library.inspect(&source.image()).unwrap().size_bytes
    );
}

#[test]
fn processes_that_pull_and_prune_at_once_do_not_hurt_each_other() {
    if !have_tools() {
        return skip(
            "processes_that_pull_and_prune_at_once_do_not_hurt_each_other",
            "no docker-registry or no skopeo",
        );
    }
    let source = Source::new();
    let root = source.temp.path().join("store");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..4 {
                    let library = open(&root);
                    let image = library.pull(&PullRequest::new(name(&source.image())), &Silent);
                    // Another one may have removed it in the moment between pulling and looking.
                    assert!(
                        matches!(image, Ok(_) | Err(LibraryError::NotFound(_))),
                        "{image:?}"
                    );
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..30 {
                open(&root)
                    .prune(
                        &PruneRequest {
                            all: true,
                            ..PruneRequest::default()
                        },
                        &free,
                    )
                    .unwrap();
            }
        });
    });
    assert_whole(&root);
}
