//! `kiln volume`.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Subcommand};
use kiln_api::{CreateVolume, ExportVolume, ResizeVolume, Volume, VolumeMount};

use crate::{
    Failure, Output,
    output::{
        format::Show,
        size::{Mebibytes, bytes},
        table,
    },
    start::Daemon,
};

/// Volumes: disks that outlive sandboxes
#[derive(Debug, Args)]
pub(crate) struct VolumeArgs {
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Debug, Subcommand)]
enum VolumeCommand {
    /// Make a blank volume
    Create {
        /// 1 to 63 of a-z, 0-9, `.`, `_`, `-`
        name: String,
        /// How large: MiB, or with a unit; takes only what is written to it
        #[arg(long, value_name = "SIZE", default_value = "10G")]
        size: Mebibytes,
    },
    /// List volumes
    #[command(visible_alias = "list")]
    Ls {
        /// Print names only
        #[arg(long, short, conflicts_with = "format")]
        quiet: bool,
        #[command(flatten)]
        show: Show<Volume>,
    },
    /// Tell all about a volume
    Inspect {
        /// The volume
        name: String,
        #[command(flatten)]
        show: Show<Volume>,
    },
    /// Remove volumes and all they hold
    #[command(visible_alias = "remove")]
    Rm {
        /// The volumes
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Grow a volume that no running sandbox has
    Resize {
        /// The volume
        name: String,
        /// How large: MiB, or with a unit
        size: Mebibytes,
    },
    /// Make a volume that holds what another one holds now
    Clone {
        /// The volume that is there
        from: String,
        /// The new volume
        to: String,
    },
    /// Make a volume of an ext4 image file, which is copied
    Import {
        /// The file
        file: PathBuf,
        /// The new volume
        name: String,
        /// How large, if more than the file
        #[arg(long, value_name = "SIZE")]
        size: Option<Mebibytes>,
    },
    /// Copy a volume into a new file
    Export {
        /// The volume
        name: String,
        /// The new file
        file: PathBuf,
    },
}

/// A volume in a sandbox, as typed: NAME:/PATH[:ro].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount(VolumeMount);

impl FromStr for Mount {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "write NAME:/PATH or NAME:/PATH:ro";
        let (volume, place) = text.split_once(':').ok_or(WRONG)?;
        let (path, read_only) = match place.split_once(':') {
            None => (place, false),
            Some((path, "ro")) => (path, true),
            Some((path, "rw")) => (path, false),
            Some(_) => return Err(WRONG),
        };
        if volume.starts_with(['/', '.']) {
            return Err(
                "directories of the host cannot be had; name a volume: `kiln volume create`",
            );
        }
        if volume.is_empty() || !path.starts_with('/') {
            return Err(WRONG);
        }
        Ok(Self(VolumeMount {
            volume: volume.to_owned(),
            path: path.to_owned(),
            read_only,
        }))
    }
}

impl From<Mount> for VolumeMount {
    fn from(mount: Mount) -> Self {
        mount.0
    }
}

pub(crate) async fn run(
    args: VolumeArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    match args.command {
        VolumeCommand::Create { name, size } => {
            let request = CreateVolume {
                name,
                size_bytes: Some(in_bytes(size)),
                ..CreateVolume::default()
            };
            create(&request, daemon, output).await
        }
        VolumeCommand::Clone { from, to } => {
            let request = CreateVolume {
                name: to,
                clone_of: Some(from),
                ..CreateVolume::default()
            };
            create(&request, daemon, output).await
        }
        VolumeCommand::Import { file, name, size } => {
            let request = CreateVolume {
                name,
                size_bytes: size.map(in_bytes),
                import: Some(daemon.paths().named(&file)?),
                ..CreateVolume::default()
            };
            create(&request, daemon, output).await
        }
        VolumeCommand::Ls { quiet, show } => list(quiet, &show, daemon, output).await,
        VolumeCommand::Inspect { name, show } => {
            let volume = daemon
                .ask(async |client| client.volume(&name).await)
                .await?;
            show.one(&volume, output, || details(&volume));
            Ok(0)
        }
        VolumeCommand::Rm { names } => remove(&names, daemon, output).await,
        VolumeCommand::Resize { name, size } => {
            let request = ResizeVolume {
                size_bytes: in_bytes(size),
            };
            let volume = daemon
                .ask(async |client| client.resize_volume(&name, request).await)
                .await?;
            output.object(&volume);
            Ok(0)
        }
        VolumeCommand::Export { name, file } => {
            let request = ExportVolume {
                path: daemon.paths().named(&file)?,
            };
            daemon
                .ask(async |client| client.export_volume(&name, &request).await)
                .await?;
            Ok(0)
        }
    }
}

async fn create(
    request: &CreateVolume,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let volume = daemon
        .ask(async |client| client.create_volume(request).await)
        .await?;
    output.line(&volume.name);
    output.object(&volume);
    Ok(0)
}

async fn list(
    quiet: bool,
    show: &Show<Volume>,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let volumes = daemon.ask(async |client| client.volumes().await).await?;
    if quiet {
        volumes.iter().for_each(|volume| output.line(&volume.name));
        return Ok(0);
    }
    show.list(&volumes, output, || render(&volumes, table::now_ms()));
    Ok(0)
}

/// Removes each; the first failure is the last try, since what is removed is gone for good.
async fn remove(names: &[String], daemon: &Daemon<'_>, output: &Output) -> Result<u8, Failure> {
    for name in names {
        daemon
            .ask(async |client| client.remove_volume(name).await)
            .await?;
        output.line(name);
    }
    output.object(&names);
    Ok(0)
}

fn in_bytes(size: Mebibytes) -> u64 {
    size.as_u64() << 20
}

fn render(volumes: &[Volume], now_ms: u64) -> String {
    let mut rows = vec![["NAME", "SIZE", "TAKES", "AGE"].map(str::to_owned)];
    rows.extend(volumes.iter().map(|volume| {
        [
            volume.name.clone(),
            bytes(volume.size_bytes),
            bytes(volume.allocated_bytes),
            table::age(now_ms.saturating_sub(volume.created_at_ms)),
        ]
    }));
    table::align(&rows)
}

fn details(volume: &Volume) -> String {
    table::align(&[
        ["name".to_owned(), volume.name.clone()],
        ["size".to_owned(), bytes(volume.size_bytes)],
        ["takes".to_owned(), bytes(volume.allocated_bytes)],
        ["file".to_owned(), volume.path.clone()],
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};

    fn typed(line: &str) -> Result<VolumeCommand, clap::Error> {
        match Cli::parse_words(line.split(' ').map(Into::into).collect())?.command {
            Command::Volume(args) => Ok(args.command),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_command_is_understood() {
        for line in [
            "kiln volume create data",
            "kiln volume create data --size 1G",
            "kiln volume ls -q",
            "kiln volume inspect data",
            "kiln volume rm a b",
            "kiln volume resize data 2G",
            "kiln volume clone a b",
            "kiln volume import ./x.ext4 data --size 1G",
            "kiln volume export data ./x.ext4",
        ] {
            assert!(typed(line).is_ok(), "{line}");
        }
        for line in [
            "kiln volume",
            "kiln volume create",
            "kiln volume create a --size 1X",
            "kiln volume resize a",
            "kiln volume clone a",
        ] {
            assert!(typed(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_mount_is_a_name_and_a_place() {
        let mount = |text: &str| text.parse::<Mount>().map(VolumeMount::from);
        let expected = |read_only| VolumeMount {
            volume: "data".into(),
            path: "/srv".into(),
            read_only,
        };
        assert_eq!(mount("data:/srv"), Ok(expected(false)));
        assert_eq!(mount("data:/srv:rw"), Ok(expected(false)));
        assert_eq!(mount("data:/srv:ro"), Ok(expected(true)));
        for text in [
            "",
            "data",
            ":/srv",
            "data:srv",
            "data:/srv:x",
            "data:/srv:ro:",
            "./d:/srv",
        ] {
            assert!(mount(text).is_err(), "{text}");
        }
    }
}
