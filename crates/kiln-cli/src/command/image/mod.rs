//! `kiln image` and `kiln pull`.

mod bundle;
mod shown;
mod transfer;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use kiln_api::{Image, ImportImage, PruneImages, PullImage, PullPolicy, TagImage};

use crate::{
    Failure, Output,
    output::{
        format::Show,
        size::{Mebibytes, Span, bytes},
        table,
    },
    start::Daemon,
};

/// When to ask the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pull {
    /// Each time.
    Always,
    /// When the image is not here.
    Missing,
    /// Not at all.
    Never,
}

impl From<Pull> for PullPolicy {
    fn from(pull: Pull) -> Self {
        match pull {
            Pull::Always => Self::Always,
            Pull::Missing => Self::Missing,
            Pull::Never => Self::Never,
        }
    }
}

/// Fetch an image from its registry
///
/// Credentials are those that `podman login` or `docker login` keep for the daemon's user.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Name of the image, such as alpine:3 or ghcr.io/x/y@sha256:…, or a runtime
    image: String,
    /// Which of its builds, such as linux/arm64; this host's own by default
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
}

/// Images: list, fetch, name, take in, write out, throw away
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// List images
    #[command(visible_alias = "list")]
    Ls {
        /// Those without a name too
        #[arg(long, short)]
        all: bool,
        /// Print ids only
        #[arg(long, short, conflicts_with = "format")]
        quiet: bool,
        #[command(flatten)]
        show: Show<Image>,
    },
    /// Tell all about an image
    Inspect {
        /// Name, id, or the beginning of an id
        image: String,
        #[command(flatten)]
        show: Show<Image>,
    },
    Pull(PullArgs),
    /// Give an image one more name
    Tag {
        /// Name, id, or the beginning of an id
        image: String,
        /// The new name
        name: String,
    },
    /// Take names away, and with their last one images
    #[command(visible_alias = "remove")]
    Rm {
        /// Remove an image of several names by its id
        #[arg(long, short)]
        force: bool,
        /// Names, ids, or beginnings of ids
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Throw away images that nobody needs: those without a name
    Prune {
        /// Those with names too, unless a sandbox needs them
        #[arg(long, short)]
        all: bool,
        /// Layers of the images that stay too
        #[arg(long)]
        layers: bool,
        /// Only what nobody asked for so long: 90s, 30m, 24h, 7d
        #[arg(long, value_name = "TIME")]
        unused_for: Option<Span>,
        /// The least recently used ones until all fit: MiB, or with a unit
        #[arg(long, value_name = "SIZE")]
        max_size: Option<Mebibytes>,
    },
    /// Take in an archive of `docker save`, an OCI archive or layout, or a root filesystem
    Import {
        /// A tar archive, a directory, or an ext4, squashfs or erofs file
        file: PathBuf,
        /// The image's name; the archive's own by default
        name: Option<String>,
    },
    /// Write an image's root filesystem as a tar archive
    Export(WriteArgs),
    /// Write an image as an OCI archive, which `docker load` takes too
    Save(WriteArgs),
    Bundle(bundle::BundleArgs),
}

/// What to write where.
#[derive(Debug, Args)]
struct WriteArgs {
    /// Name, id, or the beginning of an id
    image: String,
    /// File to write; standard output by default
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) async fn pull(
    args: PullArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let request = PullImage {
        image: args.image,
        policy: None,
        platform: args.platform,
    };
    let stream = daemon
        .ask(async |client| client.pull_image(&request).await)
        .await?;
    transfer::follow(stream, output).await
}

pub(crate) async fn run(
    args: ImageArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    match args.command {
        ImageCommand::Ls { all, quiet, show } => {
            let images = daemon.ask(async |client| client.images(all).await).await?;
            if quiet {
                images.iter().for_each(|image| output.line(&image.id));
                return Ok(0);
            }
            show.list(&images, output, || shown::list(&images, table::now_ms()));
            Ok(0)
        }
        ImageCommand::Inspect { image, show } => {
            let image = daemon
                .ask(async |client| client.image(&image).await)
                .await?;
            show.one(&image, output, || shown::details(&image));
            Ok(0)
        }
        ImageCommand::Pull(args) => pull(args, daemon, output).await,
        ImageCommand::Tag { image, name } => {
            let request = TagImage { name };
            let tagged = daemon
                .ask(async |client| client.tag_image(&image, &request).await)
                .await?;
            output.object(&tagged);
            Ok(0)
        }
        ImageCommand::Rm { force, images } => remove(&images, force, daemon, output).await,
        ImageCommand::Prune {
            all,
            layers,
            unused_for,
            max_size,
        } => {
            let request = PruneImages {
                all,
                layers,
                unused_for_s: unused_for.map(Span::as_secs),
                max_bytes: max_size.map(|size| size.as_u64() << 20),
            };
            prune(request, daemon, output).await
        }
        ImageCommand::Import { file, name } => {
            let path = daemon.paths().named(&file)?;
            let request = ImportImage { path, name };
            let stream = daemon
                .ask(async |client| client.import_image(&request).await)
                .await?;
            transfer::follow(stream, output).await
        }
        ImageCommand::Bundle(args) => bundle::run(args, daemon, output).await,
        ImageCommand::Export(args) => {
            transfer::check_target(args.output.as_deref())?;
            let archive = daemon
                .ask(async |client| client.export_image(&args.image).await)
                .await?;
            transfer::write(archive, args.output.as_deref()).await
        }
        ImageCommand::Save(args) => {
            transfer::check_target(args.output.as_deref())?;
            let archive = daemon
                .ask(async |client| client.save_image(&args.image).await)
                .await?;
            transfer::write(archive, args.output.as_deref()).await
        }
    }
}

/// Removes each; tells every failure and goes on.
async fn remove(
    keys: &[String],
    force: bool,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    for key in keys {
        let removed = daemon
            .ask(async |client| client.remove_image(key, force).await)
            .await;
        match removed {
            Ok(removed) => {
                for name in &removed.untagged {
                    output.line(&format!("untagged {name}"));
                }
                if let Some(id) = &removed.deleted {
                    output.line(&format!("deleted {id}"));
                }
                done.push(removed);
            }
            Err(failure) => failures.push(failure),
        }
    }
    output.object(&done);
    match failures.pop() {
        None => Ok(0),
        // Told by main.
        Some(only) if failures.is_empty() => Err(only),
        Some(last) => {
            failures.push(last);
            failures.iter().for_each(|it| output.failure(&it.report()));
            Err(Failure::Several {
                failed: failures.len(),
                asked: keys.len(),
            })
        }
    }
}

async fn prune(request: PruneImages, daemon: &Daemon<'_>, output: &Output) -> Result<u8, Failure> {
    let pruned = daemon
        .ask(async |client| client.prune_images(request).await)
        .await?;
    for name in &pruned.names {
        output.line(&format!("untagged {name}"));
    }
    for id in &pruned.images {
        output.line(&format!("deleted {id}"));
    }
    output.line(&format!("freed {}", bytes(pruned.freed_bytes)));
    if pruned.layers_skipped {
        output.note("a pull or import is running: layers were left for the next time");
    }
    output.object(&pruned);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};

    fn typed(line: &str) -> Result<ImageCommand, clap::Error> {
        match Cli::parse_words(line.split(' ').map(Into::into).collect())?.command {
            Command::Image(args) => Ok(args.command),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_command_is_understood() {
        for line in [
            "kiln image ls",
            "kiln image ls -a -q",
            "kiln image inspect alpine:3",
            "kiln image pull localhost:5000/a/b@sha256:00",
            "kiln image tag a b",
            "kiln image rm -f a b",
            "kiln image import ./x.tar",
            "kiln image import ./x.tar name:tag",
            "kiln image export a",
            "kiln image save a -o f",
            "kiln image pull --platform linux/arm64 a",
            "kiln image bundle ls -q",
            "kiln image bundle pull latest",
            "kiln image bundle pull hosted --manifest ./m.json --force-download",
        ] {
            assert!(typed(line).is_ok(), "{line}");
        }
        for line in [
            "kiln image",
            "kiln image rm",
            "kiln image tag a",
            "kiln image ls x",
            "kiln image prune --unused-for 3",
            "kiln image prune --max-size 1Q",
            "kiln image save",
            "kiln image bundle",
            "kiln image bundle pull",
            "kiln image bundle pull newest",
        ] {
            assert!(typed(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_prune_takes_times_and_sizes() {
        let line = "kiln image prune --all --layers --unused-for 24h --max-size 10G";
        let ImageCommand::Prune {
            all,
            layers,
            unused_for,
            max_size,
        } = typed(line).unwrap()
        else {
            panic!("no prune")
        };
        assert!(all && layers);
        assert_eq!(unused_for.map(Span::as_secs), Some(86_400));
        assert_eq!(max_size.map(Mebibytes::as_u32), Some(10_240));
    }

    #[test]
    fn pull_is_short_for_image_pull() {
        let words = ["kiln", "pull", "alpine"].map(Into::into).to_vec();
        match Cli::parse_words(words).unwrap().command {
            Command::Pull(args) => assert_eq!(args.image, "alpine"),
            other => panic!("{other:?}"),
        }
    }
}
