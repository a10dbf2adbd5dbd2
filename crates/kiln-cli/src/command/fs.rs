//! `kiln fs` and `kiln watch`: files of a sandbox, one at a time, and what changes among them.

use clap::{Args, Subcommand};
use kiln_api::{FileChange, FileInfo, FileKind, MakeDirectory, MoveFile};

use super::shared::for_each_path;
use crate::{
    Failure, Output, copy,
    output::{format::Show, printable, size, table},
    start::Daemon,
};

/// Files of a running sandbox: look, make, move, remove, watch
///
/// What is done there is done as root. Paths begin at the root directory. To copy, see `kiln cp`.
#[derive(Debug, Args)]
pub(crate) struct FsArgs {
    #[command(subcommand)]
    command: FsCommand,
}

#[derive(Debug, Subcommand)]
enum FsCommand {
    Stat(StatArgs),
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    Mkdir(MkdirArgs),
    #[command(visible_alias = "move")]
    Mv(MvArgs),
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    Watch(WatchArgs),
}

/// Tell what paths are
#[derive(Debug, Args)]
struct StatArgs {
    /// Tell what a symbolic link points to
    #[arg(long, short = 'L')]
    follow_link: bool,
    #[command(flatten)]
    show: Show<FileInfo>,
    /// Id, unique prefix of an id, or name
    sandbox: String,
    /// Paths in the sandbox
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
}

/// List the files of a directory
#[derive(Debug, Args)]
struct LsArgs {
    /// Print names only
    #[arg(long, short, conflicts_with = "format")]
    quiet: bool,
    #[command(flatten)]
    show: Show<FileInfo>,
    /// Id, unique prefix of an id, or name
    sandbox: String,
    /// A directory in the sandbox
    #[arg(default_value = "/")]
    path: String,
}

/// Make directories
#[derive(Debug, Args)]
struct MkdirArgs {
    /// Make those that lead to it too; one that is there is no failure
    #[arg(long, short)]
    parents: bool,
    /// Permissions, as chmod takes them in digits
    #[arg(long, short, value_name = "MODE", value_parser = mode, default_value = "755")]
    mode: u32,
    /// Whose they are, USER[:GROUP]; the image's user unless said
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// Id, unique prefix of an id, or name
    sandbox: String,
    /// Directories in the sandbox
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
}

/// Give a file or directory another path; what is there is replaced
#[derive(Debug, Args)]
struct MvArgs {
    /// Id, unique prefix of an id, or name
    sandbox: String,
    /// Its path
    from: String,
    /// Its new path, in the same file system
    to: String,
}

/// Remove files and empty directories
#[derive(Debug, Args)]
struct RmArgs {
    /// Directories with all that is in them
    #[arg(long, short)]
    recursive: bool,
    /// Id, unique prefix of an id, or name
    sandbox: String,
    /// Paths in the sandbox
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
}

/// Tell what changes at a path of a sandbox, until Ctrl-C
///
/// One line each: created, modified, attributes, removed, moved_from, moved_to, or lost when changes
/// were not seen. Links are not followed. Ends when what is watched is gone.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Directories in it too, and those that are made later
    #[arg(long, short)]
    recursive: bool,
    #[command(flatten)]
    show: Show<FileChange>,
    /// Id, unique prefix of an id, or name
    sandbox: String,
    /// A file or directory in the sandbox
    path: String,
}

pub(crate) async fn run(args: FsArgs, daemon: &Daemon<'_>, output: &Output) -> Result<u8, Failure> {
    match args.command {
        FsCommand::Stat(args) => stat(&args, daemon, output).await,
        FsCommand::Ls(args) => list(&args, daemon, output).await,
        FsCommand::Mkdir(args) => make(&args, daemon, output).await,
        FsCommand::Mv(args) => rename(&args, daemon, output).await,
        FsCommand::Rm(args) => remove(&args, daemon, output).await,
        FsCommand::Watch(args) => watch(args, daemon, output).await,
    }
}

async fn stat(args: &StatArgs, daemon: &Daemon<'_>, output: &Output) -> Result<u8, Failure> {
    let mut files = Vec::with_capacity(args.paths.len());
    for path in &args.paths {
        let path = copy::from_root(path);
        let asked = daemon.ask(async |it| it.stat(&args.sandbox, &path, args.follow_link).await);
        files.push(asked.await?);
    }
    args.show.list(&files, output, || render(&files));
    Ok(0)
}

async fn list(args: &LsArgs, daemon: &Daemon<'_>, output: &Output) -> Result<u8, Failure> {
    let path = copy::from_root(&args.path);
    let asked = daemon.ask(async |it| it.list_directory(&args.sandbox, &path).await);
    let files = asked.await?;
    if args.quiet {
        let names = files.iter().map(|it| printable(&it.name));
        names.for_each(|name| output.line(&name));
        return Ok(0);
    }
    args.show.list(&files, output, || render(&files));
    Ok(0)
}

async fn make(args: &MkdirArgs, daemon: &Daemon<'_>, output: &Output) -> Result<u8, Failure> {
    for_each_path(&args.paths, output, async |path| {
        let request = MakeDirectory {
            path: copy::from_root(path),
            mode: Some(args.mode),
            parents: args.parents,
            user: args.user.clone(),
        };
        let asked = daemon.ask(async |it| it.make_directory(&args.sandbox, &request).await);
        asked.await
    })
    .await
}

async fn rename(args: &MvArgs, daemon: &Daemon<'_>, output: &Output) -> Result<u8, Failure> {
    let request = MoveFile {
        from: copy::from_root(&args.from),
        to: copy::from_root(&args.to),
    };
    let asked = daemon.ask(async |it| it.move_file(&args.sandbox, &request).await);
    asked.await?;
    output.line(&request.to);
    output.object(&request);
    Ok(0)
}

async fn remove(args: &RmArgs, daemon: &Daemon<'_>, output: &Output) -> Result<u8, Failure> {
    for_each_path(&args.paths, output, async |path| {
        let path = copy::from_root(path);
        let asked =
            daemon.ask(async |it| it.remove_file(&args.sandbox, &path, args.recursive).await);
        asked.await
    })
    .await
}

pub(crate) async fn watch(
    args: WatchArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let path = copy::from_root(&args.path);
    let mut changes = daemon
        .ask(async |it| it.watch_files(&args.sandbox, &path, args.recursive).await)
        .await?;
    output.detail(&format!("watching {path}"));
    while let Some(change) = changes.next().await? {
        args.show.one(&change, output, || line(&change));
    }
    Ok(0)
}

/// Names are a guest's: nothing in them moves this terminal.
fn line(change: &FileChange) -> String {
    let slash = if change.directory { "/" } else { "" };
    format!(
        "{}  {}{slash}",
        change.kind.as_str(),
        printable(&change.path)
    )
}

/// Permissions in octal digits.
fn mode(text: &str) -> Result<u32, &'static str> {
    const WRONG: &str = "not permissions: write 755 or 0700";
    let is_octal = !text.is_empty() && text.bytes().all(|it| (b'0'..b'8').contains(&it));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if is_octal && mode <= 0o7777 => Ok(mode),
        _ => Err(WRONG),
    }
}

fn render(files: &[FileInfo]) -> String {
    let heads = ["MODE", "OWNER", "GROUP", "SIZE", "AGE", "NAME"];
    let mut rows = vec![heads.map(str::to_owned)];
    let now = i64::try_from(table::now_ms()).unwrap_or(i64::MAX);
    rows.extend(files.iter().map(|file| {
        let age = u64::try_from(now.saturating_sub(file.mtime_ms)).unwrap_or(0);
        let link = file.link.iter().map(|link| format!(" -> {link}"));
        [
            format!("{}{:04o}", letter(file.kind), file.mode),
            file.uid.to_string(),
            file.gid.to_string(),
            size::bytes(file.size),
            table::age(age),
            file.name.clone() + &link.collect::<String>(),
        ]
    }));
    table::align(&rows)
}

/// As `ls -l` begins its lines.
fn letter(kind: FileKind) -> char {
    match kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Other => '?',
    }
}

#[cfg(test)]
mod tests {
    use kiln_api::ChangeKind;

    use super::*;

    #[test]
    fn permissions_are_octal() {
        assert_eq!((mode("755"), mode("01777")), (Ok(0o755), Ok(0o1777)));
        for wrong in ["", "8", "rwx", "-1", "+7", "10000", "99999999999"] {
            assert!(mode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn hostile_names_stay_in_their_line() {
        let change = FileChange {
            kind: ChangeKind::Created,
            path: "/a\n\u{1b}[2Jb".into(),
            directory: true,
        };
        assert_eq!(line(&change), "created  /a[2Jb/");
    }
}
