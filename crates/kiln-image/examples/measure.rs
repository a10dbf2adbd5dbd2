//! What `cargo xtask bench image` times: one operation per run, its facts as one line of JSON.
//!
//! `measure import STORE PATH…` makes an image (several paths are layers, lowest first);
//! `measure pull LIBRARY IMAGE` fetches one and makes it a block image; `measure disks DIRECTORY
//! COUNT` makes scratch disks. `MEASURE_STEPS=1` says on standard error when each step of an import
//! or pull began.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool for developers"
)]

use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

use kiln_image::credentials::Keyring;
use kiln_image::library::{ImageLibrary, LibraryConfig, PullPolicy, PullRequest};
use kiln_image::{
    Image, ImageSource, ImageStore, LayerSource, Limits, Progress, ProgressEvent, ScratchDisks,
};

type Error = Box<dyn std::error::Error>;

/// Prints when each step began.
struct Steps {
    start: Instant,
    told: bool,
}

impl Steps {
    fn begin() -> Steps {
        Steps {
            start: Instant::now(),
            told: std::env::var_os("MEASURE_STEPS").is_some(),
        }
    }

    /// The answer of an operation that made an image.
    fn answer(&self, image: &Image) -> Result<(), Error> {
        let answer = serde_json::json!({
            "image": image.path,
            "size_bytes": image.size_bytes,
            "peak_rss_mib": peak_rss_mib()?,
            "ms": self.start.elapsed().as_secs_f64() * 1000.0,
        });
        println!("{answer}");
        Ok(())
    }
}

impl Progress for Steps {
    fn report(&self, event: ProgressEvent) {
        if self.told && !matches!(event, ProgressEvent::Bytes { .. }) {
            eprintln!("{:>12?} {event:?}", self.start.elapsed());
        }
    }
}

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args_os().skip(1);
    let what = arguments.next().unwrap_or_default();
    let place = arguments.next().ok_or("no directory given")?;
    let rest: Vec<OsString> = arguments.collect();
    match what.to_str() {
        Some("import") => import(Path::new(&place), &rest),
        Some("pull") => pull(Path::new(&place), &rest),
        Some("disks") => disks(Path::new(&place), &rest),
        _ => Err("import STORE PATH… | pull LIBRARY IMAGE | disks DIRECTORY COUNT".into()),
    }
}

fn import(store: &Path, paths: &[OsString]) -> Result<(), Error> {
    let steps = Steps::begin();
    let store = ImageStore::open(store)?;
    let source = match paths {
        [path] => ImageSource::detect(path)?,
        paths => ImageSource::Layers(paths.iter().map(|p| LayerSource::File(p.into())).collect()),
    };
    let image = store.import(source, &Limits::default(), &steps)?;
    steps.answer(&image)
}

fn pull(library: &Path, arguments: &[OsString]) -> Result<(), Error> {
    let steps = Steps::begin();
    let image = arguments.first().and_then(|image| image.to_str());
    let library = ImageLibrary::open(library, LibraryConfig::default())?;
    let request = PullRequest {
        policy: PullPolicy::Always,
        keyring: Keyring::of_user(),
        ..PullRequest::new(image.ok_or("no image given")?.parse()?)
    };
    let image = library.pull(&request, &steps)?;
    steps.answer(&image.rootfs)
}

/// The most memory this process had at once.
fn peak_rss_mib() -> Result<f64, Error> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib: f64 = kib.ok_or("no VmHWM")?.parse()?;
    Ok(kib / 1024.0)
}

/// The first disk makes the template and is not counted.
fn disks(directory: &Path, arguments: &[OsString]) -> Result<(), Error> {
    let count = arguments.first().and_then(|count| count.to_str());
    let count: u32 = count.ok_or("no count given")?.parse()?;
    let disks = ScratchDisks::new(directory);
    let mut each_ms = Vec::new();
    for number in 0..=count {
        let path = directory.join(format!("disk{number}"));
        let start = Instant::now();
        disks.create(&path, 10 << 30)?;
        if number > 0 {
            each_ms.push(start.elapsed().as_secs_f64() * 1000.0);
        }
    }
    println!("{}", serde_json::json!({ "each_ms": each_ms }));
    Ok(())
}
