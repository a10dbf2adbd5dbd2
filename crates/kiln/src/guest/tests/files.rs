//! Files of a guest, on a real agent.

use std::fs;

use kiln_agent_proto::message::{self, Download, FileKind, Upload};
use kiln_tree::wire::{Decoder, encode};
use kiln_tree::{Entry, Follow, Item, Kind, TreeReader, TreeWriter, WriteOptions};
use tempfile::tempdir;

use super::support::{connected, run, shell, within};
use crate::exec::ExecExit;
use crate::files::ChangeKind;
use crate::guest::{FileWatch, GuestError, GuestLink, Refusal, TreeUpload};
use crate::sandbox::activity::Activity;

async fn begin(link: &GuestLink, path: &str) -> Result<TreeUpload, GuestError> {
    let request = Upload {
        path: path.into(),
        user: String::new(),
        keep_owner: true,
    };
    within(link.upload(request, Activity::new().begin(false))).await
}

fn bytes_of(items: &[Item]) -> Vec<u8> {
    let mut wire = Vec::new();
    items.iter().for_each(|item| encode(item, &mut wire));
    wire
}

#[tokio::test]
async fn b3_4_a_tree_goes_in_and_comes_out_as_it_was() {
    let (_agent, link) = connected(&[]).await;
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir_all(path("from/sub")).unwrap();
    fs::write(path("from/sub/large"), vec![3; 3 << 20]).unwrap();
    std::os::unix::fs::symlink("sub/large", path("from/link")).unwrap();

    let mut upload = begin(&link, &path("in")).await.unwrap();
    let mut reader = TreeReader::open(path("from").as_ref(), Follow::No).unwrap();
    loop {
        let item = reader.next_item().unwrap();
        within(upload.send(&bytes_of(std::slice::from_ref(&item))))
            .await
            .unwrap();
        if item == Item::End {
            break;
        }
    }
    within(upload.finish()).await.unwrap();
    assert_eq!(fs::read(path("in/sub/large")).unwrap(), vec![3; 3 << 20]);

    let request = Download {
        path: path("in").into(),
        follow: false,
    };
    let held = Activity::new().begin(false);
    let mut download = within(link.download(request, held)).await.unwrap();
    let mut writer = TreeWriter::new(path("out").as_ref(), WriteOptions::default());
    let mut decoder = Decoder::default();
    while let Some(bytes) = within(download.next()).await.unwrap() {
        decoder.push(&bytes);
        while let Some(item) = decoder.next_item().unwrap() {
            writer.put(&item).unwrap();
        }
    }
    assert!(writer.finish().unwrap().is_empty());
    assert_eq!(fs::read(path("out/link")).unwrap(), vec![3; 3 << 20]);
}

#[tokio::test]
async fn b3_4_the_agent_refuses_hostile_trees_while_they_are_sent() {
    let (_agent, link) = connected(&[]).await;
    let (dir, outside) = (tempdir().unwrap(), tempdir().unwrap());
    let to = dir.path().join("to").to_str().unwrap().to_owned();
    let root = Item::Entry(Entry {
        kind: Kind::Directory,
        mode: 0o755,
        ..Entry::default()
    });
    let link_out = Item::Entry(Entry {
        path: b"a".to_vec(),
        kind: Kind::Symlink,
        link: outside.path().to_str().unwrap().into(),
        ..Entry::default()
    });
    let beneath = Item::Entry(Entry {
        path: b"a/x".to_vec(),
        ..Entry::default()
    });
    let mut upload = begin(&link, &to).await.unwrap();
    let wire = bytes_of(&[root, link_out, beneath]);
    // It may say so at once, or at the end.
    let mut refused = within(upload.send(&wire)).await;
    let more = bytes_of(&[Item::Data(vec![0; 30_000])]);
    for _ in 0..1000 {
        if refused.is_ok() {
            refused = within(upload.send(&more)).await;
        }
    }
    let error = match refused {
        Ok(()) => within(upload.finish()).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.code(), crate::ErrorCode::FileFailed, "{error:?}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    // Half a tree, or none at all, is no success either.
    let upload = begin(&link, &to).await.unwrap();
    drop(upload);
    let missing = begin(&link, "relative").await.unwrap_err();
    assert_eq!(missing.refusal(), Some(Refusal::BadRequest));
}

#[tokio::test]
async fn files_are_asked_about_made_moved_and_removed() {
    let (_agent, link) = connected(&[]).await;
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let make = |name: &str, parents| {
        let request = message::MakeDirectory {
            path: path(name).into(),
            mode: 0o711,
            parents,
            user: String::new(),
        };
        within(link.make_directory(request))
    };
    make("a/b", false).await.unwrap_err();
    make("a/b", true).await.unwrap();
    make("a/b", true).await.unwrap();
    for number in 0..30 {
        fs::write(path(&format!("a/{number}")), "x").unwrap();
    }
    let listed = within(link.list_files(&path("a"))).await.unwrap();
    assert_eq!(listed.len(), 31);
    let stat = within(link.stat_file(&path("a/b"), false)).await.unwrap();
    assert_eq!((stat.kind, stat.mode), (FileKind::Directory as i32, 0o711));
    within(link.move_file(&path("a/b"), &path("c")))
        .await
        .unwrap();
    let gone = within(link.stat_file(&path("a/b"), false))
        .await
        .unwrap_err();
    assert_eq!(gone.refusal(), Some(Refusal::NoSuchFile));
    let full = within(link.remove_file(&path("a"), false))
        .await
        .unwrap_err();
    assert_eq!(full.refusal(), Some(Refusal::FileRefused));
    within(link.remove_file(&path("a"), true)).await.unwrap();
    assert!(!dir.path().join("a").exists() && dir.path().join("c").exists());
}

#[tokio::test]
async fn b3_2_a_commands_time_out_ends_it_with_its_children() {
    let (_agent, link) = connected(&[]).await;
    let spec = crate::exec::ExecSpec {
        timeout_ms: Some(300),
        ..shell("sleep 1000 & echo $!; wait")
    };
    let outcome = super::support::run(&link, &spec).await;
    assert_eq!(outcome.exit, Some(ExecExit::TimedOut(9)));
    let child = outcome.stdout().trim().to_owned();
    within(async {
        while fs::metadata(format!("/proc/{child}")).is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    let quick = crate::exec::ExecSpec {
        timeout_ms: Some(60_000),
        ..shell("exit 3")
    };
    let outcome = super::support::run(&link, &quick).await;
    assert_eq!(outcome.exit, Some(ExecExit::Code(3)));
}

async fn watched(link: &GuestLink, path: &str, recursive: bool) -> Result<FileWatch, GuestError> {
    let request = message::Watch {
        path: path.into(),
        recursive,
    };
    within(link.watch(request, Activity::new().begin(false))).await
}

#[tokio::test]
async fn b3_4_changes_are_told_until_what_is_watched_is_gone() {
    let (_agent, link) = connected(&[]).await;
    let dir = tempdir().unwrap();
    let root = dir.path().join("watched");
    fs::create_dir(&root).unwrap();
    let mut watch = watched(&link, root.to_str().unwrap(), true).await.unwrap();
    // A name that a terminal would obey, or that would break a line, comes as it is.
    let hostile = root.join("a\n\u{1b}[2J");
    fs::create_dir(&hostile).unwrap();
    let created = within(watch.next()).await.unwrap().unwrap();
    assert_eq!(created.kind, ChangeKind::Created);
    assert_eq!(created.path, hostile.to_str().unwrap());
    assert!(created.directory);
    // It is watched too, since it was made later.
    let inner = hostile.join("inner");
    let seen = within(async {
        // Until the agent has come to it, nobody watches: made as often as it takes.
        loop {
            fs::write(&inner, "x").unwrap();
            let next = tokio::time::timeout(std::time::Duration::from_millis(200), watch.next());
            if let Ok(change) = next.await {
                return change.unwrap().unwrap();
            }
        }
    });
    assert_eq!(seen.await.path, inner.to_str().unwrap());
    fs::remove_dir_all(&root).unwrap();
    let mut kinds = Vec::new();
    while let Some(change) = within(watch.next()).await.unwrap() {
        kinds.push(change.kind);
    }
    assert!(kinds.contains(&ChangeKind::Removed), "{kinds:?}");
    // The agent goes on.
    assert!(watched(&link, "/nowhere", false).await.is_err());
    assert_eq!(
        run(&link, &shell("exit 3")).await.exit,
        Some(ExecExit::Code(3))
    );
}

#[tokio::test]
async fn a_watch_that_nobody_reads_costs_the_agent_little() {
    let (agent, link) = connected(&[]).await;
    let dir = tempdir().unwrap();
    let mut watch = watched(&link, dir.path().to_str().unwrap(), false)
        .await
        .unwrap();
    let rss = || {
        let path = format!("/proc/{}/smaps_rollup", agent.pid());
        let text = fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|it| it.strip_prefix("Rss:")).unwrap();
        line.split_whitespace()
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let before = rss();
    for number in 0..40_000 {
        fs::write(dir.path().join(format!("{number}-{}", "x".repeat(200))), "").unwrap();
        fs::remove_file(dir.path().join(format!("{number}-{}", "x".repeat(200)))).unwrap();
    }
    assert_eq!(
        run(&link, &shell("exit 4")).await.exit,
        Some(ExecExit::Code(4))
    );
    let grown = rss().saturating_sub(before);
    assert!(grown < 1536, "{grown} KiB");
    // The kernel has dropped some, and says so in its turn.
    let lost = within(async {
        loop {
            let change = watch.next().await.unwrap().unwrap();
            if change.kind == ChangeKind::Lost {
                return true;
            }
        }
    });
    assert!(lost.await);
}
