//! Connections that break, are taken over, or come from an engine without edges.

use std::time::Duration;

use kiln_vmm::AgentEndpoint;

use super::proxy::Proxy;
use super::support::{
    Agent, Outcome, collect, connected, gone, is_alive, run, shell, spec, until, within,
};
use crate::exec::{ExecExit, ExecInput, ExecOutput, ExecSpec};
use crate::guest::{GuestError, GuestEvent, GuestIdentity, GuestLink, Refusal};

fn link_to(proxy: &Proxy) -> GuestLink {
    GuestLink::open(
        AgentEndpoint::Listen(proxy.host_socket()),
        GuestIdentity::default(),
    )
}

/// An agent behind a proxy that can break.
async fn breakable(options: &[&str]) -> (Agent, Proxy, GuestLink) {
    let proxy = Proxy::start();
    let link = link_to(&proxy);
    let agent = Agent::dialling(proxy.agent_socket(), options);
    within(link.ready()).await.unwrap();
    (agent, proxy, link)
}

#[tokio::test]
async fn output_goes_on_where_a_break_cut_it_off() {
    let (_agent, proxy, link) = breakable(&[]).await;
    let script = "i=0; while [ $i -lt 60000 ]; do echo line $i; i=$((i+1)); done";
    let mut session = within(link.exec(&shell(script))).await.unwrap();
    let mut all = Vec::new();
    let mut breaks = 0;
    let exit = loop {
        match within(session.output.next()).await.unwrap().unwrap() {
            ExecOutput::Stdout(bytes) => all.extend_from_slice(&bytes),
            ExecOutput::Exited(exit) => break exit,
            other => panic!("{other:?}"),
        }
        if all.len() > breaks * 60_000 && breaks < 8 {
            breaks += 1;
            proxy.cut();
        }
    };
    let expected: String = (0..60_000).map(|i| format!("line {i}\n")).collect();
    assert!(
        all == expected.as_bytes(),
        "{} bytes of {}",
        all.len(),
        expected.len()
    );
    assert_eq!(exit, ExecExit::Code(0));
    assert!(breaks > 4);
}

#[tokio::test]
async fn an_agent_that_is_killed_in_a_test_leaves_no_command_behind() {
    let (mut agent, link) = connected(&[]).await;
    let mut session = within(link.exec(&shell("echo $$; exec sleep 1000")))
        .await
        .unwrap();
    let told = until(&mut session.output, "\n").await;
    let pid = told.stdout().trim().parse().unwrap();
    assert!(is_alive(pid));
    agent.kill();
    within(gone(pid)).await;
}

#[tokio::test]
async fn input_is_neither_lost_nor_doubled_by_breaks() {
    let (_agent, proxy, link) = breakable(&[]).await;
    let cat = ExecSpec {
        stdin: true,
        ..spec(&["cat"])
    };
    let mut session = within(link.exec(&cat)).await.unwrap();
    let all: Vec<u8> = (0..500_000u32).flat_map(u32::to_le_bytes).collect();
    let input = async {
        for (n, piece) in all.chunks(25_000).enumerate() {
            let piece = ExecInput::Stdin(piece.to_vec().into());
            session.input.send(piece).await.unwrap();
            if n % 8 == 3 {
                proxy.cut();
            }
        }
        session.input.send(ExecInput::StdinEof).await.unwrap();
    };
    let ((), outcome) = tokio::join!(input, collect(&mut session.output));
    assert!(
        outcome.stdout == all,
        "{} bytes of {}",
        outcome.stdout.len(),
        all.len()
    );
    assert_eq!(outcome.exit, Some(ExecExit::Code(0)));
}

#[tokio::test]
async fn operations_wait_for_the_next_connection() {
    let (_agent, proxy, link) = breakable(&[]).await;
    let mut events = link.events();
    for _ in 0..10 {
        proxy.cut();
        assert!(within(link.sessions()).await.unwrap().is_empty());
    }
    let down = within(events.recv()).await.unwrap();
    assert!(matches!(down, GuestEvent::Down(_)), "{down:?}");
    let up = within(events.recv()).await.unwrap();
    assert!(matches!(up, GuestEvent::Up(_)), "{up:?}");
}

#[tokio::test]
async fn b3_3_another_link_takes_the_sessions_over_by_their_ids() {
    let (agent, link) = connected(&[]).await;
    let wanted = ExecSpec {
        stdin: true,
        ..shell("echo before; read line; echo \"<$line>\"; exit 3")
    };
    let mut session = within(link.exec(&wanted)).await.unwrap();
    until(&mut session.output, "before\n").await;
    let (id, offset) = (session.id, session.output.offset());
    link.close().await;
    let lost = within(session.output.next()).await;
    assert!(matches!(lost, Err(GuestError::Closed)), "{lost:?}");
    drop(link);

    let link = agent.link();
    let listed = within(link.sessions()).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].id, listed[0].exit), (id, None));
    assert_eq!(listed[0].argv[0], "sh");
    let mut session = within(link.attach(id, offset)).await.unwrap();
    session
        .input
        .send(ExecInput::Stdin("hello\n".into()))
        .await
        .unwrap();
    let outcome = collect(&mut session.output).await;
    assert_eq!(outcome.stdout(), "<hello>\n");
    assert_eq!(outcome.exit, Some(ExecExit::Code(3)));
    // It is kept: history from the start, and how it ended.
    let mut again = within(link.attach(id, 0)).await.unwrap();
    let outcome = collect(&mut again.output).await;
    assert_eq!(outcome.stdout(), "before\n<hello>\n");
    assert_eq!(outcome.exit, Some(ExecExit::Code(3)));
}

#[tokio::test]
async fn a_session_without_client_runs_on_and_says_what_it_dropped() {
    let (_agent, link) = connected(&[]).await;
    let session = within(link.exec(&shell("sleep 0.1; seq 1000000; echo end")))
        .await
        .unwrap();
    let id = session.id;
    drop(session);
    within(async {
        while within(link.sessions()).await.unwrap()[0].exit.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let mut session = within(link.attach(id, 0)).await.unwrap();
    let outcome = collect(&mut session.output).await;
    let all: String = (1..=1_000_000)
        .map(|n| format!("{n}\n"))
        .chain(["end\n".to_owned()])
        .collect();
    assert_eq!(outcome.stdout.len(), 256 * 1024);
    assert_eq!(outcome.lost as usize, all.len() - 256 * 1024);
    assert!(all.ends_with(&outcome.stdout()));
}

#[tokio::test]
async fn a_flood_without_client_starves_nobody() {
    let (_agent, link) = connected(&[]).await;
    let session = within(link.exec(&spec(&["yes"]))).await.unwrap();
    let id = session.id;
    drop(session);
    for _ in 0..5 {
        assert_eq!(run(&link, &spec(&["echo", "x"])).await.stdout(), "x\n");
    }
    within(link.kill(id)).await.unwrap();
}

#[tokio::test]
async fn the_newest_client_of_a_session_has_it() {
    let (_agent, link) = connected(&[]).await;
    let mut first = within(link.exec(&spec(&["sleep", "1000"]))).await.unwrap();
    let mut second = within(link.attach(first.id, 0)).await.unwrap();
    let put_out = within(first.output.next()).await.unwrap_err();
    assert_eq!(put_out.refusal(), Some(Refusal::Replaced));
    within(link.kill(second.id)).await.unwrap();
    assert_eq!(
        collect(&mut second.output).await.exit,
        Some(ExecExit::Signal(9))
    );
    let nobody = within(link.attach(999, 0)).await.unwrap_err();
    assert_eq!(nobody.refusal(), Some(Refusal::NoSuchSession));
}

#[tokio::test]
async fn a_session_that_is_its_clients_ends_with_it() {
    let (_agent, link) = connected(&[]).await;
    let wanted = ExecSpec {
        kill_on_detach: true,
        ..shell("echo $$; sleep 1000")
    };
    let mut session = within(link.exec(&wanted)).await.unwrap();
    let pid = until(&mut session.output, "\n").await.stdout();
    drop(session);
    super::support::gone(pid.trim().parse().unwrap()).await;
}

#[tokio::test]
async fn a_broken_connection_is_waited_for_before_a_session_is_given_up() {
    let (_agent, proxy, link) = breakable(&["--linger-ms", "300"]).await;
    let wanted = ExecSpec {
        kill_on_detach: true,
        ..shell("echo $$; sleep 1000")
    };
    let mut session = within(link.exec(&wanted)).await.unwrap();
    let pid: u32 = until(&mut session.output, "\n")
        .await
        .stdout()
        .trim()
        .parse()
        .unwrap();
    proxy.cut();
    within(link.sessions()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(
        super::support::is_alive(pid),
        "it was attached again in time"
    );
    proxy.block();
    super::support::gone(pid).await;
}

#[tokio::test]
async fn a_stream_without_edges_is_resynchronised() {
    let proxy = Proxy::without_edges();
    let agent = Agent::dialling(proxy.agent_socket(), &[]);
    let endpoint = AgentEndpoint::Connect(proxy.host_socket());
    for n in 0..6 {
        let link = GuestLink::open(endpoint.clone(), GuestIdentity::default());
        within(link.ready()).await.unwrap();
        // In the middle of something, in both directions.
        let cat = ExecSpec {
            stdin: true,
            ..spec(&["cat", "/dev/zero"])
        };
        let mut session = within(link.exec(&cat)).await.unwrap();
        within(session.output.next()).await.unwrap();
        within(
            session
                .input
                .send(ExecInput::Stdin(vec![0; 100_000].into())),
        )
        .await
        .unwrap();
        let listed = within(link.sessions()).await.unwrap();
        assert_eq!(listed.len(), n + 1);
        within(link.kill(session.id)).await.unwrap();
        if n % 2 == 0 {
            link.close().await;
        }
    }
    drop(agent);
}

#[tokio::test]
async fn a_guest_that_has_not_started_is_waited_for() {
    let proxy = Proxy::without_edges();
    let endpoint = AgentEndpoint::Connect(proxy.host_socket());
    let link = GuestLink::open(endpoint, GuestIdentity::default());
    tokio::time::sleep(Duration::from_millis(400)).await;
    let _agent = Agent::dialling(proxy.agent_socket(), &[]);
    within(link.ready()).await.unwrap();
    assert_eq!(run(&link, &spec(&["echo", "up"])).await.stdout(), "up\n");
}

#[tokio::test]
async fn sessions_of_an_agent_that_died_are_gone() {
    let (mut agent, proxy, link) = breakable(&[]).await;
    let mut session = within(link.exec(&spec(&["sleep", "1000"]))).await.unwrap();
    agent.kill();
    let _other = Agent::dialling(proxy.agent_socket(), &[]);
    let lost = within(session.output.next()).await.unwrap_err();
    assert_eq!(lost.refusal(), Some(Refusal::NoSuchSession));
}

#[tokio::test]
async fn a_place_that_cannot_be_had_is_reported() {
    let nowhere = AgentEndpoint::Listen("/no/such/directory/agent.sock".into());
    let link = GuestLink::open(nowhere, GuestIdentity::default());
    let error = within(link.ready()).await.unwrap_err();
    assert!(matches!(error, GuestError::Endpoint { .. }), "{error:?}");
    assert_eq!(Outcome::default().lost, 0);
}

#[tokio::test]
async fn the_end_of_a_session_is_told_to_who_is_not_its_client_over_breaks() {
    let (_agent, proxy, link) = breakable(&[]).await;
    let wanted = ExecSpec {
        stdin: true,
        ..shell("read line; exit 4")
    };
    let mut session = within(link.exec(&wanted)).await.unwrap();
    let (waiting, id) = (link.clone(), session.id);
    let waiting = tokio::spawn(async move { waiting.session_ended(id).await });
    let mut events = link.events();
    proxy.cut();
    while !matches!(within(events.recv()).await.unwrap(), GuestEvent::Up(_)) {}
    assert!(!waiting.is_finished());
    let input = ExecInput::Stdin("go\n".into());
    session.input.send(input).await.unwrap();
    let end = within(waiting).await.unwrap().unwrap();
    assert_eq!(end.exit, ExecExit::Code(4));
    assert_eq!(collect(&mut session.output).await.exit, Some(end.exit));
    // Also to who asks later; of one that never was there is nothing to tell.
    let again = within(link.session_ended(id)).await.unwrap();
    assert_eq!(again, end);
    let nobody = within(link.session_ended(999)).await.unwrap_err();
    assert_eq!(nobody.refusal(), Some(Refusal::NoSuchSession));
}
