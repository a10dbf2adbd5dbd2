//! Firecracker, the real one, natively, with guests that are a few bytes long.
//!
//! The guests avoid what a KVM without hardware cannot emulate, so these tests run wherever
//! `/dev/kvm` opens, also on hosts that the probe calls unusable.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "tests fail by panicking; the configured exception covers test functions only"
)]

mod support;

use std::time::{Duration, Instant};

use kiln_vmm::firecracker::FirecrackerEngine;
use kiln_vmm::{
    AdoptError, AgentEndpoint, Engine, Exit, MachineError, MachineRecord, MachineSpec, MachineState,
};
use rustix::process::Signal;
use support::stub::{GREETING, Then};
use support::{Owned, Place, alive, close, grown, kill, printed};

struct Bench {
    engine: FirecrackerEngine,
    place: Place,
}

/// The engine, or `None` said loudly where it was not asked for.
async fn bench(test: &str) -> Option<Bench> {
    let Some(program) = std::env::var_os("KILN_FIRECRACKER") else {
        eprintln!("SKIPPED: {test}: KILN_FIRECRACKER is not set");
        return None;
    };
    if let Err(error) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        eprintln!("SKIPPED: {test}: /dev/kvm: {error}");
        return None;
    }
    Some(Bench {
        engine: FirecrackerEngine::open(program.as_ref()).await.unwrap(),
        place: Place::new(),
    })
}

async fn spawned(bench: &Bench, spec: &MachineSpec) -> Owned {
    Owned::new(bench.engine.spawn(spec).await.unwrap())
}

async fn booted(bench: &Bench, then: Then) -> Owned {
    let machine = spawned(bench, &bench.place.spec(then)).await;
    machine.boot().await.unwrap();
    printed(&machine.console(), GREETING).await;
    machine
}

async fn adopted(bench: &Bench, record: &MachineRecord) -> Owned {
    Owned::new(bench.engine.adopt(record).await.unwrap())
}

#[tokio::test]
async fn a4_1_a_guest_boots_with_everything_prints_is_paused_and_goes_on() {
    let Some(bench) =
        bench("a4_1_a_guest_boots_with_everything_prints_is_paused_and_goes_on").await
    else {
        return;
    };
    let mut spec = bench.place.spec(Then::Tick);
    spec.vcpus = 2;
    spec.boot.args = vec!["agent.x=1".into()];
    spec.boot.initramfs = Some(bench.place.disk("i", "initrd", true).path);
    spec.disks = vec![
        bench.place.disk("root", "a, \"quoted\" disk", true),
        bench.place.disk("scratch", "scratch", false),
    ];
    let machine = spawned(&bench, &spec).await;
    assert_eq!(machine.state(), MachineState::Spawned);
    assert_eq!(
        machine.agent_endpoint(),
        Some(AgentEndpoint::Listen(spec.runtime_dir.join("v.sock_5556")))
    );
    machine.boot().await.unwrap();
    assert!(spec.runtime_dir.join("v.sock").exists());
    let console = machine.console();
    printed(&console, GREETING).await;
    assert!(
        console
            .read(0, 100)
            .unwrap()
            .bytes
            .starts_with(GREETING.as_bytes())
    );
    machine.pause().await.unwrap();
    assert_eq!(machine.state(), MachineState::Paused);
    assert!(matches!(
        machine.pause().await,
        Err(MachineError::State { call: "pause", .. })
    ));
    machine.resume().await.unwrap();
    let now = console.follow().borrow().offset;
    grown(&console, now).await;
    let pid = machine.record().process.pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Seccomp:\t2"), "{status}");
    close(&machine, &bench.place).await;
    assert!(!alive(pid));
}

#[tokio::test]
async fn a_guest_that_resets_ends_its_machine_with_status_0() {
    let Some(bench) = bench("a_guest_that_resets_ends_its_machine_with_status_0").await else {
        return;
    };
    let machine = spawned(&bench, &bench.place.spec(Then::Reset)).await;
    machine.boot().await.unwrap();
    assert_eq!(machine.wait().await, Exit::Code(0));
    assert_eq!(machine.diagnostics().console, GREETING);
    close(&machine, &bench.place).await;
}

#[tokio::test]
async fn a4_3_ctrl_alt_del_reaches_the_guest() {
    let Some(bench) = bench("a4_3_ctrl_alt_del_reaches_the_guest").await else {
        return;
    };
    let machine = booted(&bench, Then::AwaitKey).await;
    machine.press_ctrl_alt_del().await.unwrap();
    assert_eq!(machine.wait().await, Exit::Code(0));
    close(&machine, &bench.place).await;
}

#[tokio::test]
async fn a_killed_vmm_is_noticed() {
    let Some(bench) = bench("a_killed_vmm_is_noticed").await else {
        return;
    };
    let machine = booted(&bench, Then::Stay).await;
    kill(machine.record().process.pid, Signal::KILL);
    assert_eq!(machine.wait().await, Exit::Signal(Signal::KILL.as_raw()));
    close(&machine, &bench.place).await;
}

#[tokio::test]
async fn a_kernel_that_firecracker_refuses_is_told_in_its_words() {
    let Some(bench) = bench("a_kernel_that_firecracker_refuses_is_told_in_its_words").await else {
        return;
    };
    let mut spec = bench.place.spec(Then::Stay);
    // An ELF header and nothing behind it.
    let head = std::fs::read(&spec.boot.kernel).unwrap()[..80].to_vec();
    spec.boot.kernel = bench.place.path().join("cut");
    std::fs::write(&spec.boot.kernel, head).unwrap();
    let machine = spawned(&bench, &spec).await;
    let error = machine.boot().await.unwrap_err();
    let MachineError::Refused {
        call,
        status: Some(400),
        message,
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(call, "boot");
    assert!(message.to_lowercase().contains("kernel"), "{message}");
    close(&machine, &bench.place).await;
}

#[tokio::test]
async fn a4_11_a_firecracker_that_cannot_start_says_why_at_once() {
    let Some(bench) = bench("a4_11_a_firecracker_that_cannot_start_says_why_at_once").await else {
        return;
    };
    // Its socket is there already, as a leftover would be.
    std::fs::write(bench.place.runtime_dir().join("api.sock"), b"").unwrap();
    let machine = spawned(&bench, &bench.place.spec(Then::Stay)).await;
    let begin = Instant::now();
    let error = machine.boot().await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(10));
    let MachineError::Exited {
        exit, diagnostics, ..
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(exit, Exit::Code(1));
    assert!(
        diagnostics.vmm_output.contains("API socket"),
        "{}",
        diagnostics.vmm_output
    );
    close(&machine, &bench.place).await;
}

#[tokio::test]
async fn a_machine_outlives_its_owner_and_is_adopted() {
    let Some(bench) = bench("a_machine_outlives_its_owner_and_is_adopted").await else {
        return;
    };
    let machine = booted(&bench, Then::Tick).await;
    let record = machine.leave();
    assert!(alive(record.process.pid));
    let machine = adopted(&bench, &record).await;
    assert_eq!(machine.state(), MachineState::Running);
    let console = machine.console();
    let end = console.follow().borrow().offset;
    grown(&console, end).await;
    assert!(machine.agent_endpoint().is_some());
    machine.pause().await.unwrap();
    machine.leave();
    let machine = adopted(&bench, &record).await;
    assert_eq!(machine.state(), MachineState::Paused);
    close(&machine, &bench.place).await;
    assert!(!alive(record.process.pid));
    assert!(matches!(
        bench.engine.adopt(&record).await,
        Err(AdoptError::Gone { .. })
    ));
}

#[tokio::test]
async fn a_machine_that_does_not_answer_can_still_be_discarded() {
    let Some(bench) = bench("a_machine_that_does_not_answer_can_still_be_discarded").await else {
        return;
    };
    let machine = booted(&bench, Then::Stay).await;
    let record = machine.leave();
    std::fs::remove_file(record.runtime_dir.join("api.sock")).unwrap();
    assert!(matches!(
        bench.engine.adopt(&record).await,
        Err(AdoptError::Unresponsive { .. })
    ));
    assert!(
        kiln_vmm::discard(&record, Duration::ZERO)
            .await
            .unwrap()
            .is_some()
    );
    assert!(!alive(record.process.pid));
    assert_eq!(bench.place.left(), Vec::<String>::new());
}

#[tokio::test]
async fn a5_9_a_guest_that_floods_its_console_fills_no_disk() {
    let Some(bench) = bench("a5_9_a_guest_that_floods_its_console_fills_no_disk").await else {
        return;
    };
    let machine = booted(&bench, Then::Flood).await;
    let console = machine.console();
    let begin = Instant::now();
    // As much as an emulated processor prints in a few seconds.
    while begin.elapsed() < Duration::from_secs(2) {
        let now = console.follow().borrow().offset;
        grown(&console, now).await;
    }
    let kept: u64 = ["console.log", "console.log.1"]
        .iter()
        .filter_map(|name| std::fs::metadata(bench.place.path().join(name)).ok())
        .map(|data| data.len())
        .sum();
    assert!(kept <= 2 << 20, "{kept} bytes");
    close(&machine, &bench.place).await;
}

/// Figures for the report; run with `--ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn measure_spawn_to_output() {
    let Some(bench) = bench("measure_spawn_to_output").await else {
        return;
    };
    let mut rows = Vec::new();
    let spec = bench.place.spec(Then::Stay);
    for _ in 0..20 {
        let begin = Instant::now();
        let machine = spawned(&bench, &spec).await;
        let timings = machine.boot().await.unwrap();
        printed(&machine.console(), GREETING).await;
        rows.push((begin.elapsed(), timings));
        close(&machine, &bench.place).await;
        std::fs::remove_file(bench.place.path().join("console.log")).unwrap();
    }
    rows.sort_by_key(|(total, _)| *total);
    println!(
        "median {:?}, min {:?}, max {:?}",
        rows[10], rows[0].0, rows[19].0
    );
}
