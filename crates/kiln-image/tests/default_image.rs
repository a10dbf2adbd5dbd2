//! The default image from the real package archive, unpacked by tar and entered with chroot.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and tells what it skips and measures"
)]

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use kiln_image::default_image::{self, DefaultImage, DefaultImageError};
use kiln_image::{Progress, ProgressEvent, Silent};

struct Print;

impl Progress for Print {
    fn report(&self, event: ProgressEvent) {
        eprintln!("{event:?}");
    }
}

fn prepared(test: &str, root: &Path) -> Option<DefaultImage> {
    if Command::new("apt-get").arg("--version").output().is_err() {
        eprintln!("SKIPPED: {test}: apt is not installed");
        return None;
    }
    let begin = Instant::now();
    match default_image::prepare(root, &Print) {
        Ok(image) => {
            eprintln!(
                "{} packages, {} MiB unpacked, base layer {} KiB, in {:?}",
                image.packages.len(),
                image.unpacked_kib / 1024,
                image.base.len() / 1024,
                begin.elapsed()
            );
            Some(image)
        }
        Err(DefaultImageError::Apt(error)) => {
            eprintln!("SKIPPED: {test}: {error}");
            None
        }
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
    }
}

/// tar as the oracle: it follows links to directories as the store must.
fn unpack(image: &DefaultImage, root: &Path) {
    for layer in image.layers() {
        let mut tar = Command::new("tar")
            .args(["--keep-directory-symlink", "-xpf", "-", "-C"])
            .arg(root)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = tar.stdin.take().unwrap();
        io::copy(&mut layer.tar().unwrap(), &mut input).unwrap();
        drop(input);
        assert!(tar.wait().unwrap().success(), "{layer:?}");
    }
}

#[test]
fn the_default_image_is_a_system_with_a_shell_and_everyday_tools() {
    let test = "the_default_image_is_a_system_with_a_shell_and_everyday_tools";
    let directory = tempfile::tempdir().unwrap();
    let apt = directory.path().join("apt");
    let Some(image) = prepared(test, &apt) else {
        return;
    };
    for (name, version) in &image.packages {
        eprint!("{name} {version}, ");
    }
    eprintln!();
    assert!(image.unpacked_kib < 150 * 1024);
    let begin = Instant::now();
    let again = default_image::prepare(&apt, &Silent).unwrap();
    eprintln!("again in {:?}", begin.elapsed());
    assert_eq!(again.identity, image.identity);
    assert_eq!(again.base, image.base);

    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: {test}: entering the image needs root");
        return;
    }
    let root = directory.path().join("root");
    std::fs::create_dir(&root).unwrap();
    unpack(&image, &root);
    let script = r#"
        set -eu
        test -L /bin && test -L /lib && test -L /sbin && test -L /var/run
        echo "one two" | sed s/two/three/ | grep -q three
        test "$(echo a b | awk '{print $2}')" = b
        test "$(whoami)" = root
        test "$(id -gn nobody)" = nogroup
        test "$(stat -c %a /tmp)" = 1777
        test "$(stat -c %a:%g /etc/shadow)" = 640:42
        test "$(getent passwd root | cut -d: -f7)" = /bin/bash
        test "$(sh -c 'echo $0')" = sh
        tar -C /etc -cf - hosts | gzip | xz | bzip2 | wc -c
        which ls; find /usr/bin -name env; test -x /bin/ps; ip -V; ping -V; curl --version | head -1
        less --version | head -1; mount --version; hostname --version 2>&1 | head -1
        grep -c BEGIN /etc/ssl/certs/ca-certificates.crt
        openssl version
        for file in /usr/bin/* /usr/sbin/*; do
            if ldd "$file" 2>/dev/null | grep "not found"; then echo "$file lacks a library"; exit 1; fi
        done
        command -v w
        find / -xdev -xtype l -not -path "/usr/share/*" -not -path "/etc/mtab" > /tmp/dangling
        if test -s /tmp/dangling; then echo "dangling links:"; cat /tmp/dangling; exit 1; fi
    "#;
    let output = Command::new("chroot")
        .arg(&root)
        .args(["/bin/bash", "-c", script])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    eprintln!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
