//! Where a host keeps its things: in the directories that its owner names, and nowhere else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::stage::{Stage, within};

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a1_1_what_is_kept_is_in_the_data_directory_and_found_there_again() {
    let stage = Stage::new().await;
    let before = names(stage.dir());
    let id = stage.started(stage.spec()).await;
    stage.stop(&id).await;
    assert_eq!(
        names(stage.dir()),
        before,
        "nothing beside the two directories"
    );
    for kept in ["kiln.db", "images", "kernels", "sandboxes"] {
        assert!(stage.data().join(kept).exists(), "{kept}");
    }
    let stage = stage.reopened().await;
    assert_eq!(stage.host().get(&id).await.unwrap().id, id);
    // Another directory is another host, which knows nothing of it.
    let other = stage.dir().join("other");
    let stage = stage
        .reopened_as(|config| config.data_dir.clone_from(&other))
        .await;
    assert_eq!(stage.host().list(&[]).await.unwrap(), []);
    assert!(other.join("kiln.db").exists());
}

#[tokio::test]
async fn a1_2_each_machine_has_a_private_directory_that_goes_with_it() {
    let stage = Stage::new().await;
    let vm = stage.dir().join("run/vm");
    let one = stage.started(stage.spec()).await;
    let two = stage.started(stage.spec()).await;
    let mut both = vec![one.clone(), two.clone()];
    both.sort();
    assert_eq!(names(&vm), both);
    for id in &both {
        let mode = fs::metadata(vm.join(id)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "nobody else meets its agent");
        assert!(!names(&vm.join(id)).is_empty(), "its sockets are there");
    }
    stage.stop(&one).await;
    assert_eq!(names(&vm.join(&one)), Vec::<String>::new());
    within(stage.host().remove(&one, false)).await.unwrap();
    within(stage.host().remove(&two, true)).await.unwrap();
    assert_eq!(names(&vm), Vec::<String>::new());
}
