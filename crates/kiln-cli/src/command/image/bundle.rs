//! `kiln image bundle`: base images, kernels with root filesystems.

use std::path::Path;

use clap::{Args, Subcommand, ValueEnum};
use kiln_api::{BaseImage, BasePreset, PullBaseImage, stream::ServerControl};

use super::transfer;
use crate::{
    Failure, Output,
    output::{format::Show, size::bytes, table},
    place::Paths,
    start::Daemon,
};

/// Base images: kernels with root filesystems that belong together
///
/// `kiln run --bundle` boots them.
#[derive(Debug, Args)]
pub(super) struct BundleArgs {
    #[command(subcommand)]
    command: BundleCommand,
}

#[derive(Debug, Subcommand)]
enum BundleCommand {
    /// List base images that are here
    #[command(visible_alias = "list")]
    Ls {
        /// Print ids only
        #[arg(long, short, conflicts_with = "format")]
        quiet: bool,
        #[command(flatten)]
        show: Show<BaseImage>,
    },
    /// Fetch a base image, or verify the one that is here
    Pull {
        /// Its kind
        preset: Preset,
        /// For `hosted`: the manifest's URL or path; the one of images.json by default
        #[arg(long, value_name = "URL|FILE")]
        manifest: Option<String>,
        /// Fetch it even if it is here
        #[arg(long)]
        force_download: bool,
    },
}

/// Kinds of base images.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Preset {
    /// Firecracker's latest release and what its CI tests it with.
    Latest,
    /// Firecracker v1.7.0 and what its CI tested it with.
    Lts,
    /// What a manifest describes.
    Hosted,
    /// Debian's kernel and a small Debian system.
    Debian,
}

impl From<Preset> for BasePreset {
    fn from(preset: Preset) -> Self {
        match preset {
            Preset::Latest => Self::Latest,
            Preset::Lts => Self::Lts,
            Preset::Hosted => Self::Hosted,
            Preset::Debian => Self::Debian,
        }
    }
}

pub(super) async fn run(
    args: BundleArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    match args.command {
        BundleCommand::Ls { quiet, show } => {
            let images = daemon
                .ask(async |client| client.base_images().await)
                .await?;
            if quiet {
                images.iter().for_each(|image| output.line(&image.id));
                return Ok(0);
            }
            show.list(&images, output, || list(&images));
            Ok(0)
        }
        BundleCommand::Pull {
            preset,
            manifest,
            force_download,
        } => {
            let request = PullBaseImage {
                preset: preset.into(),
                manifest: manifest.map(|it| place(it, daemon.paths())).transpose()?,
                force_download,
            };
            pull(&request, daemon, output).await
        }
    }
}

/// A path means the same to the daemon, which stands elsewhere.
fn place(manifest: String, paths: Paths) -> Result<String, Failure> {
    if manifest.contains("://") {
        return Ok(manifest);
    }
    paths.named(Path::new(&manifest))
}

async fn pull(
    request: &PullBaseImage,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let mut stream = daemon
        .ask(async |client| client.pull_base_image(request).await)
        .await?;
    let pulled = transfer::receive(&mut stream, output, |message| match message {
        ServerControl::BaseImage(pulled) => Some(*pulled),
        _ => None,
    })
    .await?;
    output.line(&pulled.image.id);
    output.object(&pulled);
    Ok(0)
}

fn list(images: &[BaseImage]) -> String {
    let head = ["ID", "PRESET", "FIRECRACKER", "ROOTFS", "SIZE"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(images.iter().map(|image| {
        [
            image.id.clone(),
            image.preset.as_str().to_owned(),
            image.firecracker_version.clone(),
            image.rootfs_type.clone(),
            bytes(image.kernel.size_bytes + image.rootfs.size_bytes),
        ]
    }));
    table::align(&rows)
}
