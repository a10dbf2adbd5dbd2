//! The same against a guest that really booted, where somebody provides one: its virtio-serial
//! socket in `KILN_TEST_GUEST_SOCKET`.

use std::time::{Duration, Instant};

use kiln_vmm::AgentEndpoint;

use super::support::{run, shell, within};
use crate::exec::ExecExit;
use crate::guest::{GuestIdentity, GuestLink, PowerIntent};

#[tokio::test]
async fn a_booted_guest_is_a_whole_linux() {
    let Some(socket) = std::env::var_os("KILN_TEST_GUEST_SOCKET") else {
        eprintln!("SKIPPED: a_booted_guest_is_a_whole_linux: no KILN_TEST_GUEST_SOCKET");
        return;
    };
    let began = Instant::now();
    let identity = GuestIdentity {
        hostname: "kiln-test".to_owned(),
    };
    let link = GuestLink::open(AgentEndpoint::Connect(socket.into()), identity);
    let info = within(link.ready()).await.unwrap();
    eprintln!("ready after {:?}: {info:?}", began.elapsed());

    let first = Instant::now();
    let outcome = run(&link, &shell("true")).await;
    eprintln!(
        "first command after {:?}: {:?}",
        first.elapsed(),
        outcome.exit
    );
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..20 {
        let begin = Instant::now();
        run(&link, &super::support::spec(&["/bin/true"])).await;
        times.push(begin.elapsed());
    }
    times.sort();
    eprintln!("/bin/true: median {:?}", times[times.len() / 2]);

    times.clear();
    for _ in 0..50 {
        let begin = Instant::now();
        let _ = within(link.kill(u64::MAX)).await;
        times.push(begin.elapsed());
    }
    times.sort();
    eprintln!("round trip: median {:?}", times[times.len() / 2]);
    let raw = "time sh -c 'i=0; while [ $i -lt 100 ]; do /bin/true; i=$((i+1)); done'";
    eprintln!("100 forks: {}", run(&link, &shell(raw)).await.stderr());
    let script = "hostname; mount; ls -l /dev/fd /dev/ptmx; cat /proc/self/cgroup; \
        cat /proc/self/oom_score_adj; ip addr show lo 2>/dev/null; date +%s; ulimit -n; \
        ls -ld /tmp /dev/shm; echo hello > /root/file && cat /root/file";
    let outcome = run(&link, &shell(script)).await;
    eprintln!("{}{}", outcome.stdout(), outcome.stderr());
    assert!(outcome.stdout().starts_with("kiln-test\n"));
    assert_eq!(outcome.exit, Some(ExecExit::Code(0)));

    let lines: Vec<_> = outcome.stdout().lines().map(str::to_owned).collect();
    assert!(
        lines.iter().any(|line| line == "0"),
        "commands may be killed when memory runs out"
    );
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("0::/kiln-session-"))
    );

    // The guest runs out of memory: the command is killed, process 1 lives.
    let hog = "s=x; while :; do s=$s$s$s$s; done";
    let outcome = run(&link, &shell(hog)).await;
    eprintln!("out of memory: {:?} {}", outcome.exit, outcome.stderr());
    assert_ne!(outcome.exit, Some(ExecExit::Code(0)));
    let stats = within(link.stats()).await.unwrap();
    assert!(stats.agent_rss_kib < 4 * 1024, "{stats:?}");

    // A daemon leaves its session and process group, but not its control group.
    let script = "setsid sh -c 'echo $$ > /tmp/pid; exec sleep 1000' & sleep 1000";
    let session = within(link.exec(&shell(script))).await.unwrap();
    let pid = run(
        &link,
        &shell("while ! [ -s /tmp/pid ]; do :; done; cat /tmp/pid"),
    )
    .await;
    within(link.kill(session.id)).await.unwrap();
    let script = format!(
        "while kill -0 {} 2>/dev/null; do :; done",
        pid.stdout().trim()
    );
    assert_eq!(
        run(&link, &shell(&script)).await.exit,
        Some(ExecExit::Code(0))
    );

    eprintln!("{:?}", link.stats().await.unwrap());
    let begin = Instant::now();
    within(link.power_off_within(Duration::from_secs(5)))
        .await
        .unwrap();
    within(async {
        while link.power_intent().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(link.power_intent(), Some(PowerIntent::PowerOff));
    eprintln!("intent after {:?}", begin.elapsed());
    link.close().await;
}
