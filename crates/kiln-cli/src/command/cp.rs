//! `kiln cp`, `kiln upload` and `kiln download`.

use std::path::Path;

use clap::Args;
use kiln_api::{ErrorReport, FileInfo, FileKind, UploadTo};
use kiln_tree::Follow;

use crate::{
    Failure, Output,
    copy::{self, Copied, CopyError, Place, Source, Target},
    start::Daemon,
};

/// Copy files and directories between this machine and a running sandbox
///
/// One side is SANDBOX:/PATH, the other a path here. As with `cp -r`: into a directory that is there,
/// or under the name that is given; DIR/. copies what is in DIR. Modes, times, symbolic links and
/// holes come along; devices, sockets and pipes do not.
#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    #[command(flatten)]
    how: How,
    /// What is copied: PATH or SANDBOX:/PATH
    #[arg(id = "sandbox_or_source", value_name = "SOURCE")]
    source: String,
    /// Where it goes: SANDBOX:/PATH or PATH
    #[arg(id = "sandbox_or_target", value_name = "TARGET")]
    target: String,
}

/// Copy files and directories into a running sandbox
#[derive(Debug, Args)]
pub(crate) struct UploadArgs {
    #[command(flatten)]
    how: How,
    /// Id, unique prefix of an id, or name
    sandbox: String,
    /// Files and directories here
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<String>,
    /// Where they go in the sandbox
    #[arg(long, short, value_name = "PATH", default_value = "/root")]
    to: String,
}

/// Copy files and directories out of a running sandbox
#[derive(Debug, Args)]
pub(crate) struct DownloadArgs {
    #[command(flatten)]
    how: How,
    /// Id, unique prefix of an id, or name
    sandbox: String,
    /// Files and directories in the sandbox
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<String>,
    /// Where they go here
    #[arg(long, short, value_name = "PATH", default_value = ".")]
    to: String,
}

/// What all three take.
#[derive(Debug, Args)]
struct How {
    /// Into a sandbox: whose the files are there, USER[:GROUP]; the image's user unless said
    #[arg(long, short, value_name = "USER", conflicts_with = "archive")]
    user: Option<String>,
    /// Keep the owners by number, as far as this user may
    #[arg(long, short)]
    archive: bool,
    /// Copy what SOURCE points to when it is a symbolic link
    #[arg(long, short = 'L')]
    follow_link: bool,
}

pub(crate) async fn run(args: CpArgs, daemon: &Daemon<'_>, output: &Output) -> Result<u8, Failure> {
    let copied = match (Place::parse(&args.source), Place::parse(&args.target)) {
        (Place::Local(from), Place::Sandbox { key, path }) => {
            args.how.upload(daemon, &key, &from, &path).await?
        }
        (Place::Sandbox { key, path }, Place::Local(to)) => {
            args.how.download(daemon, &key, &path, &to).await?
        }
        (Place::Local(_), Place::Local(_)) => return Err(usage("neither side is in a sandbox")),
        (Place::Sandbox { .. }, Place::Sandbox { .. }) => {
            return Err(usage("both sides are in a sandbox"));
        }
    };
    tell(&[copied], output);
    Ok(0)
}

pub(crate) async fn upload(
    args: UploadArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let mut copied = Vec::new();
    for from in &args.sources {
        let to = copy::from_root(&args.to);
        copied.push(args.how.upload(daemon, &args.sandbox, from, &to).await?);
    }
    tell(&copied, output);
    Ok(0)
}

pub(crate) async fn download(
    args: DownloadArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let mut copied = Vec::new();
    for from in &args.sources {
        let from = copy::from_root(from);
        copied.push(
            args.how
                .download(daemon, &args.sandbox, &from, &args.to)
                .await?,
        );
    }
    tell(&copied, output);
    Ok(0)
}

impl How {
    fn follow(&self) -> Follow {
        if self.follow_link {
            Follow::Yes
        } else {
            Follow::No
        }
    }

    async fn upload(
        &self,
        daemon: &Daemon<'_>,
        key: &str,
        from: &str,
        to: &str,
    ) -> Result<Copied, Failure> {
        let source = Source {
            path: from,
            kind: local_kind(from, self.follow_link)?.ok_or_else(|| missing(from))?,
        };
        let there = remote(daemon, key, to).await?;
        let target = Target {
            path: to,
            kind: there.map(|info| info.kind),
        };
        let to = UploadTo {
            path: copy::target(source, target)?,
            user: self.user.clone(),
            keep_owner: self.archive,
        };
        copy::to_sandbox(daemon, key, Path::new(from), &to, self.follow()).await
    }

    async fn download(
        &self,
        daemon: &Daemon<'_>,
        key: &str,
        from: &str,
        to: &str,
    ) -> Result<Copied, Failure> {
        if self.user.is_some() {
            return Err(usage("--user is for copies into a sandbox"));
        }
        let follow = self.follow_link;
        let source = daemon
            .ask(async |client| client.stat(key, from, follow).await)
            .await?;
        let source = Source {
            path: from,
            kind: source.kind,
        };
        let target = Target {
            path: to,
            kind: local_kind(to, true)?,
        };
        let to = copy::target(source, target)?;
        let tree = daemon
            .ask(async |client| client.download(key, from, follow).await)
            .await?;
        Ok(copy::from_sandbox(tree, Path::new(&to), self.archive).await?)
    }
}

/// What a path here is; `None` when nothing is there.
fn local_kind(path: &str, follow: bool) -> Result<Option<FileKind>, CopyError> {
    let metadata = if follow {
        std::fs::metadata(path)
    } else {
        std::fs::symlink_metadata(path)
    };
    match metadata {
        Ok(metadata) if metadata.is_dir() => Ok(Some(FileKind::Directory)),
        Ok(metadata) if metadata.is_file() => Ok(Some(FileKind::File)),
        Ok(metadata) if metadata.is_symlink() => Ok(Some(FileKind::Symlink)),
        Ok(_) => Ok(Some(FileKind::Other)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CopyError::Local {
            path: path.into(),
            source,
        }),
    }
}

fn missing(path: &str) -> CopyError {
    CopyError::Local {
        path: path.into(),
        source: std::io::ErrorKind::NotFound.into(),
    }
}

/// What a path in a sandbox is; `None` when nothing is there.
async fn remote(daemon: &Daemon<'_>, key: &str, path: &str) -> Result<Option<FileInfo>, Failure> {
    let asked = daemon
        .ask(async |client| client.stat(key, path, true).await)
        .await;
    match asked {
        Ok(info) => Ok(Some(info)),
        Err(failure) if failure.report().code == "FILE_NOT_FOUND" => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn usage(message: &str) -> Failure {
    let report = ErrorReport::new("USAGE", message);
    Failure::reported(report.with_hint("a side in a sandbox is SANDBOX:/PATH"))
}

fn tell(copied: &[Copied], output: &Output) {
    for path in copied.iter().flat_map(Copied::skipped) {
        let path = path.display().to_string();
        output.warning(&format!(
            "skipped {}: no file",
            crate::output::printable(&path)
        ));
    }
    output.object(&copied);
}
