//! QEMU, the real one, with guests that are a few bytes long.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "tests fail by panicking; the configured exception covers test functions only"
)]

mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use kiln_vmm::qemu::QemuEngine;
use kiln_vmm::{
    Acceleration, AdoptError, AgentEndpoint, Engine, Exit, MachineError, MachineRecord,
    MachineSpec, MachineState, SpawnError, SpecFault,
};
use rustix::process::Signal;
use support::stub::{GREETING, Then};
use support::{Owned, Place, alive, close, grown, kill, printed, refused};
use tokio::sync::{Mutex, MutexGuard};

/// Two QEMUs at once are too much for a small machine that others use as well.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

struct Bench {
    engine: QemuEngine,
    place: Place,
    _turn: MutexGuard<'static, ()>,
}

/// The engine, or `None` said loudly where there is no QEMU.
async fn bench(test: &str) -> Option<Bench> {
    let turn = ONE_AT_A_TIME.lock().await;
    let place = Place::new();
    match QemuEngine::open(&program(), Acceleration::Tcg, &place.cache()).await {
        Ok(engine) => Some(Bench {
            engine,
            place,
            _turn: turn,
        }),
        Err(error) => {
            eprintln!("SKIPPED: {test}: {error}");
            None
        }
    }
}

fn program() -> PathBuf {
    std::env::var_os("KILN_QEMU")
        .map_or_else(|| "/usr/bin/qemu-system-x86_64".into(), PathBuf::from)
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
async fn a4_1_a_guest_boots_prints_is_paused_and_goes_on() {
    let Some(bench) = bench("a4_1_a_guest_boots_prints_is_paused_and_goes_on").await else {
        return;
    };
    let machine = spawned(&bench, &bench.place.spec(Then::Tick)).await;
    assert_eq!(machine.state(), MachineState::Spawned);
    assert!(matches!(
        machine.pause().await,
        Err(MachineError::State { call: "pause", .. })
    ));
    let timings = machine.boot().await.unwrap();
    assert!(timings.spawn > Duration::ZERO && timings.control > Duration::ZERO);
    assert_eq!(machine.state(), MachineState::Running);
    assert!(matches!(
        machine.boot().await,
        Err(MachineError::State { call: "boot", .. })
    ));
    printed(&machine.console(), GREETING).await;
    // From the first byte on, nothing is lost.
    let console = machine.console();
    let first = console.read(0, 100).unwrap();
    assert!(
        first.bytes.starts_with(GREETING.as_bytes()),
        "{:?}",
        String::from_utf8_lossy(&first.bytes)
    );

    machine.pause().await.unwrap();
    assert_eq!(machine.state(), MachineState::Paused);
    machine.resume().await.unwrap();
    let now = console.follow().borrow().offset;
    grown(&console, now).await;

    assert!(matches!(
        machine.press_ctrl_alt_del().await,
        Err(MachineError::Unsupported(_))
    ));
    let pid = machine.record().process.pid;
    close(&machine, &bench.place).await;
    assert!(!alive(pid));
    assert_eq!(machine.state(), MachineState::Exited);
    assert!(console.follow().borrow().closed);
    // Idempotent.
    assert_eq!(
        machine.close(Duration::ZERO).await.unwrap(),
        Exit::Signal(Signal::KILL.as_raw())
    );
}

#[tokio::test]
async fn a4_2_a_paused_guest_prints_nothing() {
    let Some(bench) = bench("a4_2_a_paused_guest_prints_nothing").await else {
        return;
    };
    let machine = booted(&bench, Then::Tick).await;
    machine.pause().await.unwrap();
    // `pause` is answered after the processors stopped; what was printed before is drained when
    // two looks, with an answered command in between, see the same end.
    let console = machine.console();
    let mut before = console.follow().borrow().offset;
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = console.follow().borrow().offset;
        if now == before {
            break;
        }
        before = now;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(console.follow().borrow().offset, before);
    close(&machine, &bench.place).await;
}

#[tokio::test]
async fn a_guest_that_resets_ends_its_machine_with_status_0() {
    let Some(bench) = bench("a_guest_that_resets_ends_its_machine_with_status_0").await else {
        return;
    };
    let machine = spawned(&bench, &bench.place.spec(Then::TripleFault)).await;
    machine.boot().await.unwrap();
    assert_eq!(machine.wait().await, Exit::Code(0));
    assert_eq!(machine.diagnostics().console, GREETING);
    assert_eq!(machine.state(), MachineState::Exited);
    close(&machine, &bench.place).await;
}

#[tokio::test]
async fn a_killed_vmm_is_noticed_by_everyone_who_waits() {
    let Some(bench) = bench("a_killed_vmm_is_noticed_by_everyone_who_waits").await else {
        return;
    };
    let machine = booted(&bench, Then::Stay).await;
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let machine = machine.share();
            tokio::spawn(async move { machine.wait().await })
        })
        .collect();
    kill(machine.record().process.pid, Signal::KILL);
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), Exit::Signal(Signal::KILL.as_raw()));
    }
    assert!(matches!(
        machine.pause().await,
        Err(MachineError::State {
            state: MachineState::Exited,
            ..
        })
    ));
    close(&machine, &bench.place).await;
}

#[tokio::test]
async fn a_vmm_that_dies_during_a_call_is_noticed_at_once() {
    let Some(bench) = bench("a_vmm_that_dies_during_a_call_is_noticed_at_once").await else {
        return;
    };
    let machine = booted(&bench, Then::Stay).await;
    let pid = machine.record().process.pid;
    // Stopped, QEMU answers nothing: the call is in flight when the kill comes.
    kill(pid, Signal::STOP);
    let call = tokio::spawn({
        let machine = machine.share();
        async move { machine.pause().await }
    });
    tokio::task::yield_now().await;
    let killed = Instant::now();
    kill(pid, Signal::KILL);
    assert!(matches!(
        call.await.unwrap(),
        Err(MachineError::Exited { .. } | MachineError::State { .. })
    ));
    assert!(killed.elapsed() < Duration::from_secs(5));
    close(&machine, &bench.place).await;
}

#[tokio::test]
async fn a4_11_a_qemu_that_cannot_start_says_why_at_once() {
    let Some(bench) = bench("a4_11_a_qemu_that_cannot_start_says_why_at_once").await else {
        return;
    };
    let mut spec = bench.place.spec(Then::Stay);
    spec.boot.kernel = support::stub::write_without_note(bench.place.path());
    let machine = spawned(&bench, &spec).await;
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
        diagnostics.vmm_output.contains("PVH"),
        "{}",
        diagnostics.vmm_output
    );
    close(&machine, &bench.place).await;
}

#[tokio::test]
async fn every_fault_is_told_and_nothing_is_touched() {
    let Some(bench) = bench("every_fault_is_told_and_nothing_is_touched").await else {
        return;
    };
    let mut spec = bench.place.spec(Then::Stay);
    spec.id = "a/b".into();
    spec.vcpus = 33;
    std::fs::write(bench.place.path().join("text"), "no kernel").unwrap();
    spec.boot.kernel = bench.place.path().join("text");
    let SpawnError::Invalid(faults) = refused(&bench.engine, &spec).await else {
        panic!("not refused");
    };
    assert!(faults.0.contains(&SpecFault::Vcpus(33)));
    assert!(
        faults
            .0
            .contains(&SpecFault::KernelFormat(spec.boot.kernel))
    );
    assert_eq!(faults.0.len(), 3, "{faults}");
    assert_eq!(bench.place.left(), Vec::<String>::new());
    assert!(!spec.console_log.exists());
}

#[tokio::test]
async fn a_second_machine_in_the_same_place_leaves_the_first_alone() {
    let Some(bench) = bench("a_second_machine_in_the_same_place_leaves_the_first_alone").await
    else {
        return;
    };
    let machine = booted(&bench, Then::Stay).await;
    let before = bench.place.left().len();
    assert!(matches!(
        refused(&bench.engine, &bench.place.spec(Then::Stay)).await,
        SpawnError::Runtime { .. }
    ));
    assert_eq!(bench.place.left().len(), before);
    assert_eq!(machine.state(), MachineState::Running);
    close(&machine, &bench.place).await;
}

#[tokio::test]
async fn no_path_can_add_an_option() {
    let Some(bench) = bench("no_path_can_add_an_option").await else {
        return;
    };
    let name = "disk,readonly=on \"quoted\" 'x',,if=none,serial=evil,{\"a\":1}";
    let mut spec = bench.place.spec(Then::Stay);
    spec.disks = vec![
        bench.place.disk("root", name, true),
        bench.place.disk("scratch", "plain", false),
    ];
    spec.boot.initramfs = Some(bench.place.disk("i", "initrd,bus=none", false).path);
    let machine = spawned(&bench, &spec).await;
    machine.boot().await.unwrap();
    printed(&machine.console(), GREETING).await;
    // QEMU holds exactly the files that were named.
    let pid = machine.record().process.pid;
    let open: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .collect();
    for disk in &spec.disks {
        assert!(open.contains(&disk.path), "{open:?}");
    }
    close(&machine, &bench.place).await;
}

#[tokio::test]
async fn the_vmm_inherits_nothing_and_stands_alone() {
    let Some(bench) = bench("the_vmm_inherits_nothing_and_stands_alone").await else {
        return;
    };
    let secret_path = bench.place.path().join("secret");
    let secret = std::fs::File::create(&secret_path).unwrap();
    // As an embedder's careless library would have it.
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).unwrap();
    let machine = booted(&bench, Then::Stay).await;
    let pid = machine.record().process.pid;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = std::fs::read_link(entry.unwrap().path()).unwrap();
        assert_ne!(target, secret_path);
    }
    assert_eq!(std::fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
    let stdin = std::fs::read_link(format!("/proc/{pid}/fd/0")).unwrap();
    assert_eq!(stdin.to_str(), Some("/dev/null"));
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    assert_eq!(fields[3], pid.to_string(), "the session is its own");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Seccomp:\t2"), "{status}");
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
    assert_eq!(
        machine.agent_endpoint(),
        Some(AgentEndpoint::Connect(
            record.runtime_dir.join("agent.sock")
        ))
    );
    // The console goes on behind what the first owner kept.
    let console = machine.console();
    let end = console.follow().borrow().offset;
    assert!(end >= GREETING.len() as u64);
    grown(&console, end).await;
    machine.pause().await.unwrap();
    machine.leave();

    let machine = adopted(&bench, &record).await;
    assert_eq!(machine.state(), MachineState::Paused);
    machine.resume().await.unwrap();
    assert!(matches!(
        machine.boot().await,
        Err(MachineError::State { call: "boot", .. })
    ));
    close(&machine, &bench.place).await;
    assert!(!alive(record.process.pid));
    assert!(matches!(
        bench.engine.adopt(&record).await,
        Err(AdoptError::Gone { .. })
    ));
}

#[tokio::test]
async fn a_stranger_with_the_number_is_never_signalled() {
    let Some(bench) = bench("a_stranger_with_the_number_is_never_signalled").await else {
        return;
    };
    let machine = booted(&bench, Then::Stay).await;
    let mut record = machine.record().clone();
    close(&machine, &bench.place).await;

    let mut stranger = std::process::Command::new("sleep")
        .arg("600")
        .spawn()
        .unwrap();
    record.process.pid = stranger.id();
    assert!(matches!(
        bench.engine.adopt(&record).await,
        Err(AdoptError::Gone { .. })
    ));
    kiln_vmm::discard(&record, Duration::ZERO).await.unwrap();
    assert!(alive(stranger.id()));
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn a_guest_that_floods_its_console_fills_no_disk() {
    let Some(bench) = bench("a_guest_that_floods_its_console_fills_no_disk").await else {
        return;
    };
    let machine = booted(&bench, Then::Flood).await;
    let console = machine.console();
    grown(&console, 5 << 19).await;
    let kept: u64 = ["console.log", "console.log.1"]
        .iter()
        .map(|name| {
            std::fs::metadata(bench.place.path().join(name))
                .unwrap()
                .len()
        })
        .sum();
    assert!(kept <= 2 << 20, "{kept} bytes");
    close(&machine, &bench.place).await;
}

/// Not a test of its own: the owner of the next one, a process that is killed.
#[tokio::test]
#[ignore = "runs inside a_machine_survives_the_sudden_death_of_its_owner"]
async fn owner_that_is_killed() {
    let Some(dir) = std::env::var_os("KILN_VMM_TEST_OWNER") else {
        return;
    };
    let place = Place::at(dir.into());
    let engine = QemuEngine::open(&program(), Acceleration::Tcg, &place.cache())
        .await
        .unwrap();
    let spec = place.spec(Then::Flood);
    let machine = Owned::new(engine.spawn(&spec).await.unwrap());
    machine.boot().await.unwrap();
    printed(&machine.console(), GREETING).await;
    let record = serde_json::to_vec(machine.record()).unwrap();
    std::io::Write::write_all(&mut std::io::stdout(), &record).unwrap();
    println!();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_machine_survives_the_sudden_death_of_its_owner() {
    let Some(bench) = bench("a_machine_survives_the_sudden_death_of_its_owner").await else {
        return;
    };
    let mut owner = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            "owner_that_is_killed",
        ])
        .env("KILN_VMM_TEST_OWNER", bench.place.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(owner.stdout.take().unwrap()));
    let record: MachineRecord = lines
        .map(Result::unwrap)
        .find_map(|line| serde_json::from_str(&line[line.find('{')?..]).ok())
        .unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();

    // The guest prints without pause: with nobody to read, it neither stalls nor dies.
    let machine = adopted(&bench, &record).await;
    assert_eq!(machine.state(), MachineState::Running);
    let console = machine.console();
    let end = console.follow().borrow().offset;
    grown(&console, end + 100_000).await;
    machine.pause().await.unwrap();
    machine.resume().await.unwrap();
    // The kernel told its status to nobody.
    let exit = machine.close(Duration::ZERO).await.unwrap();
    assert_eq!(exit, Exit::Unknown);
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
