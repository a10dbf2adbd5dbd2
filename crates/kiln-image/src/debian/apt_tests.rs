use std::fs;
use std::path::Path;
use std::process::Command;

use super::super::deb::tests::archive;
use super::{AptError, AptSource};
use crate::progress::Silent;
use crate::publish::digest;

/// An apt that knows only the given source line; `None` where there is no apt.
fn apt(test: &str, root: &Path, line: &str) -> Option<AptSource> {
    if Command::new("apt-get").arg("--version").output().is_err() {
        eprintln!("SKIPPED: {test}: apt is not installed");
        return None;
    }
    let list = root.join("sources.list");
    fs::write(&list, line).unwrap();
    let mut source = AptSource::prepare(&root.join("apt")).unwrap();
    source.set("Dir::Etc::sourcelist", list);
    source.set("Dir::Etc::sourceparts", "-");
    source.set("Acquire::Retries", "0");
    source.use_own_lists().unwrap();
    Some(source)
}

/// A flat archive with two packages, as files.
fn archive_of_two(root: &Path) -> String {
    let directory = root.join("archive");
    fs::create_dir_all(&directory).unwrap();
    let mut index = String::new();
    for (name, depends) in [("kiln-a", "virtual-b"), ("kiln-b", "")] {
        let deb = archive(&[("debian-binary", b"2.0\n"), ("data.tar", name.as_bytes())]);
        fs::write(directory.join(format!("{name}.deb")), &deb).unwrap();
        index.push_str(&format!(
            "Package: {name}\nVersion: 1:1.0-1\nArchitecture: all\nMaintainer: x\n\
             Depends: {depends}\nProvides: {}\nFilename: ./{name}.deb\nSize: {}\nSHA256: {}\n\
             Description: x\n\n",
            name.replace("kiln", "virtual"),
            deb.len(),
            digest(&deb)
        ));
    }
    fs::write(directory.join("Packages"), index).unwrap();
    format!("deb [trusted=yes] copy:{} ./\n", directory.display())
}

#[test]
fn an_archive_that_does_not_answer_is_reported_with_apts_words() {
    let directory = tempfile::tempdir().unwrap();
    let line = "deb [trusted=yes] http://127.0.0.1:1 ./\n";
    let test = "an_archive_that_does_not_answer_is_reported_with_apts_words";
    let Some(apt) = apt(test, directory.path(), line) else {
        return;
    };
    assert!(!apt.has_lists().unwrap());
    let Err(AptError::NoLists { said }) = apt.fetch_lists(&Silent) else {
        panic!()
    };
    assert!(said.contains("127.0.0.1"), "{said}");
}

#[test]
fn packages_are_resolved_downloaded_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let line = archive_of_two(directory.path());
    let test = "packages_are_resolved_downloaded_and_kept";
    let Some(apt) = apt(test, directory.path(), &line) else {
        return;
    };
    // The archive has no base-files, by which complete lists are told.
    assert!(matches!(
        apt.fetch_lists(&Silent),
        Err(AptError::NoLists { .. })
    ));

    let packages = apt.closure(&["kiln-a"], &[]).unwrap();
    let names: Vec<&str> = packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    assert_eq!(names, ["kiln-a", "kiln-b"]);
    let debs = apt.download(&packages, &Silent).unwrap();
    assert_eq!(debs[0].file_name().unwrap(), "kiln-a_1%3a1.0-1_all.deb");
    let good = fs::read(&debs[0]).unwrap();

    fs::write(&debs[0], vec![0; good.len()]).unwrap();
    assert_eq!(apt.download(&packages, &Silent).unwrap(), debs);
    assert_eq!(
        fs::read(&debs[0]).unwrap(),
        good,
        "a damaged package is fetched again"
    );

    let unknown = apt.candidate("kiln-unknown");
    assert!(
        matches!(unknown, Err(AptError::NoSuchPackage { package }) if package == "kiln-unknown")
    );
    assert!(matches!(
        apt.closure(&["nothing"], &[]),
        Err(AptError::NoSuchPackage { .. })
    ));
}

#[test]
fn a_package_that_is_not_what_the_archive_states_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let line = archive_of_two(directory.path());
    let test = "a_package_that_is_not_what_the_archive_states_is_refused";
    let Some(apt) = apt(test, directory.path(), &line) else {
        return;
    };
    let _ = apt.fetch_lists(&Silent);
    let mut package = apt.candidate("kiln-b").unwrap();
    let deb = directory.path().join("archive/kiln-b.deb");
    let good = fs::read(&deb).unwrap();
    fs::write(&deb, vec![1; good.len()]).unwrap();
    let refused = apt.download(std::slice::from_ref(&package), &Silent);
    assert!(
        matches!(refused, Err(AptError::Download { .. })),
        "apt looks itself: {refused:?}"
    );

    // And so do we, whatever apt let through.
    fs::write(&deb, &good).unwrap();
    package.sha256 = "0".repeat(64);
    let refused = apt.download(std::slice::from_ref(&package), &Silent);
    assert!(
        matches!(refused, Err(AptError::Mismatch { .. })),
        "{refused:?}"
    );
    assert!(
        fs::read_dir(directory.path().join("apt/packages"))
            .unwrap()
            .next()
            .is_none()
    );
}
