//! `cargo xtask bench image`: how long a tar, or an image of a registry, takes to become a published
//! block image, and a machine its own disk, against the pipelines that Kiln replaces.
//!
//! Ours is a small release program of `kiln-image` (its example `measure`), timed from outside as
//! the baselines are: from the start of the first process until everything is on the disk.

mod baselines;
mod registry;
mod tree;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Deserialize;

use super::report::Report;
use super::stats::Samples;
use crate::setup::{self, Purpose, SetupError};
use crate::step::{self, StepError};
use crate::workspace;
use registry::Registry;
use tree::SampleTree;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Print one flat JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// How often each thing is measured.
    #[arg(long, default_value_t = 5, value_name = "N")]
    runs: u32,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageBenchError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Step(#[from] StepError),
    #[error("cannot make the sample tree at {}", path.display())]
    Tree {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot work in the target directory")]
    Directory(#[source] std::io::Error),
    #[error("the registry does not start")]
    Registry(#[source] std::io::Error),
    #[error("cargo does not name the program it built")]
    NoProgram,
    #[error("the measuring program answered `{answer}`")]
    Answer {
        answer: String,
        #[source]
        source: serde_json::Error,
    },
}

/// Disks made in one run of the measuring program.
const DISKS: u32 = 50;

pub(crate) fn run(options: &Options) -> Result<ExitCode, ImageBenchError> {
    setup::ensure(Purpose::Bench)?;
    let program = build()?;
    let work = tempfile::Builder::new()
        .prefix("bench-image-")
        .tempdir_in(workspace::target())
        .map_err(ImageBenchError::Directory)?;
    eprintln!("making a tree of {} files", tree::FILES);
    let sample = SampleTree::make(work.path())?;
    let bench = Bench {
        program,
        work: work.path(),
        sample,
        runs: options.runs,
    };
    let mut report = Report::default();
    bench.images(&mut report)?;
    bench.disks(&mut report)?;
    bench.pulls(&mut report)?;
    report.show(options.json);
    Ok(ExitCode::SUCCESS)
}

/// Builds the measuring program and says where it is.
fn build() -> Result<PathBuf, ImageBenchError> {
    #[derive(Deserialize)]
    struct Artifact {
        executable: Option<PathBuf>,
    }
    let options = ["--release", "--locked", "--message-format=json"];
    let mut cargo = step::cargo(["build", "-p", "kiln-image", "--example", "measure"]);
    let output = step::capture(cargo.args(options))?;
    String::from_utf8_lossy(&output)
        .lines()
        .filter_map(|line| serde_json::from_str::<Artifact>(line).ok()?.executable)
        .next_back()
        .ok_or(ImageBenchError::NoProgram)
}

struct Bench<'a> {
    program: PathBuf,
    work: &'a Path,
    sample: SampleTree,
    runs: u32,
}

/// What `measure import` and `measure pull` print.
#[derive(Deserialize)]
struct Imported {
    image: PathBuf,
    peak_rss_mib: f64,
}

/// What `measure disks` prints.
#[derive(Deserialize)]
struct Disks {
    each_ms: Vec<f64>,
}

impl Bench<'_> {
    /// One image after the other, alternating with the baselines, so that a busy machine slows all
    /// alike.
    fn images(&self, report: &mut Report) -> Result<(), ImageBenchError> {
        let (mut ours, mut memory) = (Samples::default(), Samples::default());
        let (mut mounted, mut populated) = (Samples::default(), Samples::default());
        let privileged = rustix::process::geteuid().is_root();
        for _ in 0..self.runs {
            let (took, imported) = self.import()?;
            ours.push(ms(took));
            memory.push(imported.peak_rss_mib);
            if privileged {
                mounted.push(ms(baselines::mount_and_untar(&self.sample, self.work)?));
                populated.push(ms(baselines::untar_and_mke2fs(&self.sample, self.work)?));
            }
        }
        report.median("import_ms", "tar to published image, Kiln", &ours);
        if privileged {
            report.median("tar_ms", "mkfs.ext4, mount, tar x, umount", &mounted);
            report.median("mke2fs_ms", "tar x, mke2fs -d", &populated);
            report.ratio("tar_speedup", "mount pipeline over Kiln", &mounted, &ours);
            report.ratio("mke2fs_speedup", "mke2fs -d over Kiln", &populated, &ours);
        } else {
            for key in ["tar_speedup", "mke2fs_speedup"] {
                report.missing(
                    key,
                    "the baselines need root: a loop mount, owners, devices",
                );
            }
        }
        report.median("rss_mib", "peak memory of the import", &memory);
        Ok(())
    }

    /// Imports into a fresh store; the image must be a clean filesystem.
    fn import(&self) -> Result<(Duration, Imported), ImageBenchError> {
        let store = self.fresh("store")?;
        let mut command = Command::new(&self.program);
        command.arg("import").arg(&store).arg(&self.sample.archive);
        baselines::settle();
        let (took, imported) = self.answer::<Imported>(&mut command)?;
        step::capture(Command::new("e2fsck").arg("-fn").arg(&imported.image))?;
        Ok((took, imported))
    }

    /// A machine's own disk against a copy of its image.
    fn disks(&self, report: &mut Report) -> Result<(), ImageBenchError> {
        let (_, imported) = self.import()?;
        let directory = self.fresh("disks")?;
        let mut command = Command::new(&self.program);
        command.arg("disks").arg(&directory).arg(DISKS.to_string());
        let (_, disks) = self.answer::<Disks>(&mut command)?;
        let mut copies = Samples::default();
        for _ in 0..self.runs {
            copies.push(ms(baselines::full_copy(&imported.image, self.work)?));
        }
        let disks: Samples = disks.each_ms.into_iter().collect();
        report.median("disk_ms", "a 10 GiB disk of a machine's own", &disks);
        report.median("copy_ms", "a full copy of the image", &copies);
        report.ratio("disk_speedup", "full copy over own disk", &copies, &disks);
        Ok(())
    }

    /// An image of five layers from a registry on loopback, against `skopeo copy` to a directory
    /// followed by the conversion alone.
    fn pulls(&self, report: &mut Report) -> Result<(), ImageBenchError> {
        let programs = ["docker-registry", "skopeo"];
        let dirs = step::program_dirs();
        if let Some(missing) = programs
            .iter()
            .find(|program| step::find_program(program, &dirs).is_none())
        {
            report.missing("pull_ratio", format!("there is no {missing}"));
            return Ok(());
        }
        let registry = Registry::start(self.work)?;
        registry.fill(&self.sample.layers, self.work)?;
        let (mut ours, mut memory) = (Samples::default(), Samples::default());
        let mut baseline = Samples::default();
        for _ in 0..self.runs {
            let (took, pulled) = self.pull(&registry)?;
            ours.push(ms(took));
            memory.push(pulled.peak_rss_mib);
            baseline.push(ms(self.copy_and_convert(&registry)?));
        }
        report.median("pull_ms", "pull to published image, Kiln", &ours);
        report.median("skopeo_ms", "skopeo copy, conversion alone", &baseline);
        report.ratio(
            "pull_ratio",
            "Kiln over skopeo and conversion",
            &ours,
            &baseline,
        );
        report.median("pull_rss_mib", "peak memory of the pull", &memory);
        Ok(())
    }

    fn pull(&self, registry: &Registry) -> Result<(Duration, Imported), ImageBenchError> {
        let library = self.fresh("library")?;
        let mut command = Command::new(&self.program);
        command.arg("pull").arg(&library).arg(registry.image());
        baselines::settle();
        let (took, pulled) = self.answer::<Imported>(&mut command)?;
        step::capture(Command::new("e2fsck").arg("-fn").arg(&pulled.image))?;
        Ok((took, pulled))
    }

    fn copy_and_convert(&self, registry: &Registry) -> Result<Duration, ImageBenchError> {
        let (copied, store) = (self.fresh("copied")?, self.fresh("store")?);
        baselines::settle();
        let started = Instant::now();
        let layers = registry.copy_to(&copied)?;
        let mut command = Command::new(&self.program);
        command.arg("import").arg(&store).args(layers);
        self.answer::<Imported>(&mut command)?;
        Ok(started.elapsed())
    }

    /// An empty directory that nothing was left in.
    fn fresh(&self, name: &str) -> Result<PathBuf, ImageBenchError> {
        let path = self.work.join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(ImageBenchError::Directory)?;
        }
        std::fs::create_dir(&path).map_err(ImageBenchError::Directory)?;
        Ok(path)
    }

    fn answer<T: for<'de> Deserialize<'de>>(
        &self,
        command: &mut Command,
    ) -> Result<(Duration, T), ImageBenchError> {
        let started = Instant::now();
        let output = step::capture(command)?;
        let took = started.elapsed();
        let answer = serde_json::from_slice(&output).map_err(|source| ImageBenchError::Answer {
            answer: String::from_utf8_lossy(&output).into_owned(),
            source,
        })?;
        Ok((took, answer))
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
