//! What comes before everything else on a connection: who is there, and in which version.

use kiln_agent_proto::message::{Exec, Request, request};
use kiln_agent_proto::version::VersionRange;
use kiln_vmm::AgentEndpoint;

use super::support::{Agent, connected, run, shell, within};
use crate::guest::connection::multiplex;
use crate::guest::meet::Meeting;
use crate::guest::{GuestIdentity, GuestLink};

/// Who comes without the hello is served nothing, be it asked in the right words.
#[tokio::test]
async fn b3_1_nobody_is_served_before_the_hello() {
    let agent = Agent::start(&[]);
    let mut meeting = Meeting::prepare(AgentEndpoint::Listen(agent.socket())).unwrap();
    let stream = within(meeting.meet()).await.unwrap();
    let (streams, driver) = multiplex(stream);
    let driving = tokio::spawn(driver.run());
    let mark = agent.dir.path().join("mark");
    let exec = Request::of(request::Kind::Exec(Exec {
        argv: vec![b"touch".to_vec(), mark.display().to_string().into_bytes()],
        ..Exec::default()
    }));
    let refused = within(streams.call(&exec)).await.unwrap_err().to_string();
    assert!(refused.contains("hello"), "{refused}");
    assert!(!mark.exists());
    within(streams.greet(&GuestIdentity::default()))
        .await
        .unwrap();
    // The same words, from somebody who has introduced himself.
    within(streams.call(&exec)).await.unwrap();
    driving.abort();
}

#[tokio::test]
async fn b3_1_who_is_ready_has_told_its_version() {
    let (_agent, link) = connected(&[]).await;
    let ready = within(link.ready()).await.unwrap();
    assert_eq!(ready.version, VersionRange::OURS.max);
    assert_eq!(ready.release, env!("CARGO_PKG_VERSION"));
    assert_eq!(run(&link, &shell("echo up")).await.stdout(), "up\n");
}

/// An agent has one host: the place where it is met cannot be had twice.
#[tokio::test]
async fn b3_1_an_agent_is_one_hosts() {
    let (agent, link) = connected(&[]).await;
    let instance = within(link.ready()).await.unwrap().instance;
    link.close().await;
    let other = GuestLink::open(
        AgentEndpoint::Listen(agent.socket()),
        GuestIdentity::default(),
    );
    let again = within(other.ready()).await.unwrap().instance;
    assert_eq!(instance, again, "the same life of the same agent");
    let closed = within(link.sessions()).await.unwrap_err();
    assert!(matches!(closed, crate::guest::GuestError::Closed));
}
