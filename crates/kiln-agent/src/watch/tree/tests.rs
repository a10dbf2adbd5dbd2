//! Real directories under the real kernel.

use super::*;

fn open(path: &Path, recursive: bool, directories: &Directories) -> Result<Tree, FileError> {
    let path = path.as_os_str().as_bytes().to_vec();
    Tree::open(&Watch { path, recursive }, directories.clone())
}

/// What there is to tell now, in words.
fn told(tree: Tree) -> (Tree, Vec<String>) {
    let events = tree.read().unwrap();
    let (tree, changes) = tree.understand(events);
    let root = tree.root.clone();
    let words = changes.iter().map(|it| {
        let path = PathBuf::from(std::ffi::OsString::from_vec(it.path.clone()));
        let path = path
            .strip_prefix(&root)
            .unwrap_or(&path)
            .display()
            .to_string();
        format!("{:?} {path}", ChangeKind::try_from(it.kind).unwrap())
    });
    let words = words.collect();
    (tree, words)
}

#[test]
fn a_directory_tells_of_its_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    let tree = open(dir.path(), false, &Directories::default()).unwrap();
    fs::write(dir.path().join("a"), "x").unwrap();
    fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
    fs::remove_file(dir.path().join("b")).unwrap();
    fs::write(dir.path().join("sub/unseen"), "x").unwrap();
    let (_, words) = told(tree);
    assert_eq!(
        words,
        [
            "Created a",
            "Modified a",
            "MovedFrom a",
            "MovedTo b",
            "Removed b"
        ]
    );
}

#[test]
fn trees_grow_and_shrink() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("one")).unwrap();
    let directories = Directories::default();
    let tree = open(dir.path(), true, &directories).unwrap();
    let count = || directories.0.load(Ordering::Relaxed);
    assert_eq!(count(), 2);
    // The deeper ones are there before anybody watches them.
    fs::create_dir_all(dir.path().join("two/three")).unwrap();
    fs::write(dir.path().join("two/three/file"), "x").unwrap();
    let (tree, words) = told(tree);
    assert_eq!(
        words,
        ["Created two", "Created two/three", "Created two/three/file"]
    );
    assert_eq!(count(), 4);
    fs::write(dir.path().join("two/three/file"), "y").unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::rename(dir.path().join("two"), elsewhere.path().join("two")).unwrap();
    let (tree, words) = told(tree);
    assert!(words.contains(&"MovedFrom two".to_owned()), "{words:?}");
    fs::write(elsewhere.path().join("two/three/file"), "z").unwrap();
    let (tree, words) = told(tree);
    assert!(words.is_empty(), "{words:?}");
    assert_eq!(count(), 2);
    drop(tree);
    assert_eq!(count(), 0);
}

#[test]
fn the_end_of_what_is_watched_is_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x\n\u{1b}");
    fs::write(&path, "").unwrap();
    let tree = open(&path, true, &Directories::default()).unwrap();
    fs::remove_file(&path).unwrap();
    let (tree, words) = told(tree);
    assert!(
        words.iter().any(|it| it.starts_with("Removed")),
        "{words:?}"
    );
    assert!(tree.is_over());
    assert!(open(&path, false, &Directories::default()).is_err());
}

#[test]
fn links_are_not_followed_and_directories_are_bounded() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
    let directories = Directories::default();
    let tree = open(dir.path(), true, &directories).unwrap();
    fs::write(outside.path().join("file"), "x").unwrap();
    let (tree, words) = told(tree);
    assert!(words.is_empty(), "{words:?}");
    // All but one are in use.
    directories.0.store(MAX_DIRECTORIES - 1, Ordering::Relaxed);
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    let (tree, words) = told(tree);
    assert!(words.contains(&"Lost ".to_owned()), "{words:?}");
    assert!(open(dir.path(), false, &directories).is_err());
    drop(tree);
    assert_eq!(directories.0.load(Ordering::Relaxed), MAX_DIRECTORIES - 2);
}
