//! Much data, many sessions, whole trees of processes, and the end.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::support::{Agent, collect, connected, gone, is_alive, run, shell, spec, until, within};
use crate::exec::{ExecExit, ExecInput, ExecLimits, ExecOutput, ExecSpec};
use crate::guest::{PowerIntent, Refusal};

/// Resident memory in KiB.
fn rss_kib(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup
        .lines()
        .find(|line| line.starts_with("Rss:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Bytes that differ everywhere, cheaply: any shift or loss shows.
fn pattern(offset: u64, len: usize) -> Bytes {
    let word = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (offset / 8..(offset + len as u64) / 8)
        .flat_map(word)
        .collect::<Vec<u8>>()
        .into()
}

/// Through `cat` and back; `KILN_TEST_BULK_MIB=1024` for the whole figure, alone.
#[tokio::test]
async fn bulk_through_cat_is_identical_and_bounded_in_memory() {
    const PIECE: usize = 64 * 1024;
    let wanted = std::env::var("KILN_TEST_BULK_MIB").ok();
    let mib: u64 = wanted.as_deref().map_or(32, |mib| mib.parse().unwrap());
    let total = mib * 1024 * 1024;
    let (agent, link) = connected(&[]).await;
    run(&link, &spec(&["true"])).await;
    let own = std::process::id();
    let (idle_agent, idle_host) = (rss_kib(agent.pid()), rss_kib(own));
    let began = Instant::now();

    let cat = ExecSpec {
        stdin: true,
        ..spec(&["cat"])
    };
    let mut session = within(link.exec(&cat)).await.unwrap();
    let input = tokio::spawn(async move {
        for offset in (0..total).step_by(PIECE) {
            let piece = ExecInput::Stdin(pattern(offset, PIECE));
            session.input.send(piece).await.unwrap();
        }
        session.input.send(ExecInput::StdinEof).await.unwrap();
    });
    let (mut received, mut peak_agent, mut peak_host) = (0u64, 0, 0);
    let mut rest = Vec::new();
    while let Some(output) = within(session.output.next()).await.unwrap() {
        match output {
            ExecOutput::Stdout(bytes) => rest.extend_from_slice(&bytes),
            ExecOutput::Exited(exit) => assert_eq!(exit, ExecExit::Code(0)),
            other => panic!("{other:?}"),
        }
        while rest.len() >= PIECE {
            assert!(
                rest[..PIECE] == pattern(received, PIECE),
                "differs at {received}"
            );
            rest.drain(..PIECE);
            received += PIECE as u64;
            if received % (8 * 1024 * 1024) == 0 {
                peak_agent = peak_agent.max(rss_kib(agent.pid()));
                peak_host = peak_host.max(rss_kib(own));
            }
        }
    }
    input.await.unwrap();
    assert_eq!((received, rest.len()), (total, 0));
    let agent_kib = peak_agent.saturating_sub(idle_agent);
    let host_kib = peak_host.saturating_sub(idle_host);
    let rate = mib as f64 / began.elapsed().as_secs_f64();
    eprintln!("{mib} MiB, {rate:.0} MiB/s; above idle: agent {agent_kib} KiB, host {host_kib} KiB");
    assert!(agent_kib < 8 * 1024);
    // Other tests share this process, unless it was asked for alone.
    assert!(wanted.is_none() || host_kib < 8 * 1024);
}

#[tokio::test]
async fn a_hundred_sessions_at_once_each_get_their_own() {
    let (_agent, link) = connected(&[]).await;
    let cat = ExecSpec {
        stdin: true,
        ..spec(&["cat"])
    };
    let mut sessions = Vec::new();
    for _ in 0..100 {
        sessions.push(within(link.exec(&cat)).await.unwrap());
    }
    assert_eq!(within(link.sessions()).await.unwrap().len(), 100);
    assert_eq!(within(link.stats()).await.unwrap().sessions_running, 100);
    for (n, session) in sessions.iter_mut().enumerate().rev() {
        let text = format!("session {n}").repeat(1000);
        session
            .input
            .send(ExecInput::Stdin(text.clone().into()))
            .await
            .unwrap();
        session.input.send(ExecInput::StdinEof).await.unwrap();
        assert_eq!(collect(&mut session.output).await.stdout(), text);
    }
    drop(sessions);
    // The last ones are kept, not all.
    let kept = within(async {
        loop {
            run(&link, &spec(&["true"])).await;
            let kept = within(link.sessions()).await.unwrap().len();
            if kept <= 65 {
                break kept;
            }
        }
    });
    assert!(kept.await >= 60);
}

#[tokio::test]
async fn the_number_of_sessions_is_bounded() {
    let (_agent, link) = connected(&[]).await;
    let sleeper = spec(&["sleep", "1000"]);
    let mut sessions = Vec::new();
    let refused = loop {
        match within(link.exec(&sleeper)).await {
            Ok(session) => sessions.push(session),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.refusal(), Some(Refusal::Busy));
    assert_eq!(sessions.len(), 256);
    within(link.kill(sessions[0].id)).await.unwrap();
    collect(&mut sessions[0].output).await;
    within(link.exec(&sleeper)).await.unwrap();
    for session in &sessions {
        within(link.kill(session.id)).await.unwrap();
    }
}

#[tokio::test]
async fn many_short_commands_at_once_all_run() {
    let (_agent, link) = connected(&[]).await;
    let runs = (0..600).map(|n| {
        let link = link.clone();
        tokio::spawn(async move {
            loop {
                match link.exec(&spec(&["echo", &n.to_string()])).await {
                    Ok(mut session) => return collect(&mut session.output).await.stdout(),
                    Err(error) => assert_eq!(error.refusal(), Some(Refusal::Busy)),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    });
    for (n, run) in runs.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(within(run).await.unwrap(), format!("{n}\n"));
    }
}

#[tokio::test]
async fn killing_a_session_ends_its_whole_process_group() {
    let (_agent, link) = connected(&[]).await;
    let script = "trap '' TERM HUP; (trap '' TERM; sleep 1000) & echo $!; sleep 1000";
    let mut session = within(link.exec(&shell(script))).await.unwrap();
    let child: u32 = until(&mut session.output, "\n")
        .await
        .stdout()
        .trim()
        .parse()
        .unwrap();
    assert!(is_alive(child));
    within(link.kill(session.id)).await.unwrap();
    assert_eq!(
        collect(&mut session.output).await.exit,
        Some(ExecExit::Signal(9))
    );
    gone(child).await;
}

/// A control group for tests, where the host has them.
struct TestCgroup(std::path::PathBuf);

impl TestCgroup {
    fn new() -> Option<Self> {
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let root = roots.iter().find(|root| {
            std::path::Path::new(root)
                .join("cgroup.controllers")
                .exists()
        })?;
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("kiln-test-{}-{number}", std::process::id());
        let path = std::path::Path::new(root).join(name);
        std::fs::create_dir(&path).ok()?;
        path.join("cgroup.kill").exists().then_some(Self(path))
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        for _ in 0..100 {
            for entry in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(entry.path());
            }
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[tokio::test]
async fn killing_a_session_ends_daemons_that_left_it() {
    let Some(cgroup) = TestCgroup::new() else {
        eprintln!("SKIPPED: killing_a_session_ends_daemons_that_left_it: no cgroup2 to write to");
        return;
    };
    let path = cgroup.0.display().to_string();
    let (_agent, link) = connected(&["--cgroup", &path]).await;
    let script = "setsid sh -c 'setsid sleep 1000 & echo $!; exec sleep 1000' & sleep 1000";
    let mut session = within(link.exec(&shell(script))).await.unwrap();
    let daemon: u32 = until(&mut session.output, "\n")
        .await
        .stdout()
        .trim()
        .parse()
        .unwrap();
    assert!(is_alive(daemon));
    within(link.kill(session.id)).await.unwrap();
    collect(&mut session.output).await;
    gone(daemon).await;
    // Its group goes with it. There may be the next command's, made ahead, and the last one's,
    // which is removed a little later.
    let its_own = cgroup.0.join(format!("kiln-session-{}", session.id));
    within(async {
        while its_own.exists() {
            run(&link, &spec(&["true"])).await;
        }
    })
    .await;
    let groups = std::fs::read_dir(&cgroup.0).unwrap().flatten();
    assert!(groups.filter(|entry| entry.path().is_dir()).count() <= 2);
}

async fn wind_down(mut agent: Agent, link: crate::guest::GuestLink) {
    within(async {
        while link.power_intent().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert!(agent.ended().await.success());
}

#[tokio::test]
async fn power_off_ends_what_runs_and_is_told_first() {
    let (agent, link) = connected(&[]).await;
    let stubborn = shell("trap '' TERM; echo up; while :; do sleep 0.1; done");
    let mut stubborn = within(link.exec(&stubborn)).await.unwrap();
    until(&mut stubborn.output, "up").await;
    let mut polite = within(link.exec(&shell(
        "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.01; done",
    )))
    .await
    .unwrap();
    until(&mut polite.output, "up\n").await;
    within(link.power_off_within(Duration::from_millis(500)))
        .await
        .unwrap();
    let outcome = collect(&mut polite.output).await;
    assert_eq!(
        (outcome.stdout().as_str(), outcome.exit),
        ("bye\n", Some(ExecExit::Code(4)))
    );
    assert_eq!(
        collect(&mut stubborn.output).await.exit,
        Some(ExecExit::Signal(9))
    );
    wind_down(agent, link.clone()).await;
    assert_eq!(link.power_intent(), Some(PowerIntent::PowerOff));
}

#[tokio::test]
async fn signals_to_process_1_end_the_guest() {
    for (signal, intent) in [
        ("USR1", PowerIntent::PowerOff),
        ("USR2", PowerIntent::PowerOff),
        ("INT", PowerIntent::PowerOff),
        ("PWR", PowerIntent::PowerOff),
        ("TERM", PowerIntent::Reboot),
    ] {
        let (agent, link) = connected(&[]).await;
        let pid = agent.pid().to_string();
        let sent = std::process::Command::new("kill")
            .args(["-s", signal, &pid])
            .status();
        assert!(sent.unwrap().success());
        wind_down(agent, link.clone()).await;
        assert_eq!(link.power_intent(), Some(intent), "{signal}");
    }
}

/// Where the host's kernel has the controllers; a guest's is tested by `e2e`.
#[tokio::test]
async fn limits_that_a_kernel_lacks_are_refused_and_nothing_runs() {
    let Some(cgroup) = TestCgroup::new() else {
        eprintln!("SKIPPED: limits_that_a_kernel_lacks_are_refused: no cgroup2 to write to");
        return;
    };
    let (agent, link) = connected(&["--cgroup", &cgroup.0.display().to_string()]).await;
    let mark = agent.dir.path().join("ran");
    let limits = ExecLimits {
        processes: Some(1),
        ..ExecLimits::default()
    };
    let limited = ExecSpec {
        limits,
        ..shell(&format!("touch {}; sleep 1 & exit 3", mark.display()))
    };
    let controllers = std::fs::read_to_string(cgroup.0.join("cgroup.controllers")).unwrap();
    if controllers.contains("pids") {
        assert_ne!(run(&link, &limited).await.exit, Some(ExecExit::Code(3)));
        return;
    }
    let refused = within(link.exec(&limited)).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(Refusal::NoLimits), "{refused}");
    assert!(!mark.exists());
}
