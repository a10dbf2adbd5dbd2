//! A real kernel under QEMU loads every module of its bundle, in the bundle's order.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and tells what it skips and measures"
)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiln_image::Silent;
use kiln_image::initramfs::{self, NewcWriter};
use kiln_image::kernel::{KernelError, KernelSource, KernelStore};

const INIT: &str = r#"#!/bin/busybox sh
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t devtmpfs dev /dev
while read -r file params; do
    if $bb insmod /lib/modules/$file $params; then echo "LOADED $file"; else echo "FAILED $file"; fi
done < /lib/modules/order
test -b /dev/vda && echo "DISK here"
test -c /dev/vport0p1 -o -c /dev/vport1p1 -o -c /dev/vport2p1 && echo "PORT here"
test -c /dev/console && echo "CONSOLE here"
echo "COUNT $($bb wc -l < /proc/modules)"
$bb poweroff -f
"#;

#[test]
fn a_guest_loads_every_module_of_its_bundle() {
    let test = "a_guest_loads_every_module_of_its_bundle";
    let qemu = "qemu-system-x86_64";
    let busybox = Path::new("/bin/busybox");
    if !cfg!(target_arch = "x86_64") || Command::new(qemu).arg("--version").output().is_err() {
        eprintln!("SKIPPED: {test}: {qemu} is not here");
        return;
    }
    if !busybox.exists() {
        eprintln!("SKIPPED: {test}: busybox-static is not installed");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let store = KernelStore::open(&directory.path().join("kernels")).unwrap();
    let bundle = match store.ensure(&KernelSource::Debian, &Silent) {
        Ok(bundle) => bundle,
        Err(KernelError::Apt(error)) => {
            eprintln!("SKIPPED: {test}: {error}");
            return;
        }
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
    };

    // The kernel unpacks archives one after another: ours as it is, then the shell for the script.
    let mut shell = NewcWriter::new(initramfs::build(INIT.as_bytes(), &bundle).unwrap());
    shell
        .file("bin/busybox", 0o755, &std::fs::read(busybox).unwrap())
        .unwrap();
    let initrd = directory.path().join("initrd");
    std::fs::write(&initrd, shell.finish().unwrap()).unwrap();
    let disk = directory.path().join("disk");
    std::fs::File::create(&disk)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();

    let begin = Instant::now();
    let console = boot(qemu, &bundle.vmlinux, &initrd, &disk);
    eprintln!("{console}\nguest ended after {:?}", begin.elapsed());
    let loaded: Vec<&str> = console
        .lines()
        .filter_map(|line| line.trim().strip_prefix("LOADED "))
        .collect();
    let expected: Vec<&str> = bundle
        .modules
        .iter()
        .map(|module| module.file.as_str())
        .collect();
    assert_eq!(loaded, expected);
    for wanted in ["DISK here", "PORT here", "CONSOLE here"] {
        assert!(console.contains(wanted), "{wanted}");
    }
    assert!(console.contains(&format!("COUNT {}", expected.len())));
}

fn boot(qemu: &str, kernel: &Path, initrd: &Path, disk: &Path) -> String {
    let append = format!(
        "console=ttyS0 quiet reboot=t panic=-1 pci=off tsc_early_khz={} tsc=reliable \
         cryptomgr.notests mitigations=off noreplace-smp",
        tsc_khz()
    );
    let mut guest = Command::new(qemu)
        .args([
            "-nodefaults",
            "-no-user-config",
            "-nographic",
            "-no-reboot",
            "-serial",
            "stdio",
        ])
        .args([
            "-M",
            "microvm,accel=tcg",
            "-cpu",
            "max",
            "-smp",
            "1",
            "-m",
            "256M",
        ])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", &append])
        .arg("-drive")
        .arg(format!(
            "id=root,file={},format=raw,if=none,readonly=on",
            disk.display()
        ))
        .args([
            "-device",
            "virtio-blk-device,drive=root",
            "-device",
            "virtio-rng-device",
        ])
        .args([
            "-device",
            "virtio-serial-device,id=serial0",
            "-chardev",
            "null,id=agent",
        ])
        .args([
            "-device",
            "virtserialport,bus=serial0.0,chardev=agent,name=agent.0",
        ])
        .args([
            "-netdev",
            "user,id=net0,restrict=on",
            "-device",
            "virtio-net-device,netdev=net0",
        ])
        .args(["-device", "virtio-balloon-device"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = guest.stdout.take().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = std::io::copy(&mut output, &mut text);
        let _ = sender.send(text);
    });
    let console = receiver.recv_timeout(Duration::from_secs(120));
    guest.kill().unwrap();
    guest.wait().unwrap();
    std::io::stderr().flush().unwrap();
    String::from_utf8_lossy(&console.expect("the guest did not end")).into_owned()
}

/// The guest's counter is the host's under TCG; calibrating it hangs on a busy host.
fn tsc_khz() -> u64 {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("cpu MHz"))
        .unwrap();
    let mhz: f64 = line.split(':').nth(1).unwrap().trim().parse().unwrap();
    (mhz * 1000.0) as u64
}
