//! Connections to ports, carried by a real agent.

use kiln_agent_proto::version;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::support::{connected, within};
use crate::guest::{GuestError, GuestLink, Refusal};

/// Reads to the end, then gives everything back: only a half-closed connection gets an answer.
async fn echo_at_the_end() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                stream.write_all(&all).await.unwrap();
            });
        }
    });
    port
}

async fn exchange(link: &GuestLink, port: u16, sent: &[u8]) -> Vec<u8> {
    let carried = link.connect(port).await.unwrap();
    // Smaller than a message: each side has to wait for the other.
    let (near, far) = tokio::io::duplex(1000);
    let relay = tokio::spawn(carried.relay(far));
    let (mut from, mut to) = tokio::io::split(near);
    let send = async {
        to.write_all(sent).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (_, read) = tokio::join!(send, from.read_to_end(&mut got));
    read.unwrap();
    relay.await.unwrap().unwrap();
    got
}

#[tokio::test]
async fn b4_4_bytes_go_both_ways_and_each_direction_ends_by_itself() {
    let (_agent, link) = connected(&[]).await;
    assert!(within(link.ready()).await.unwrap().version >= version::CONNECT);
    let port = echo_at_the_end().await;
    let long: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    for sent in [&b""[..], b"x", &long] {
        assert!(within(exchange(&link, port, sent)).await == sent);
    }
    // Many at once, more than a window each.
    let all: Vec<_> = (0..20)
        .map(|_| {
            let (link, sent) = (link.clone(), long[..700_000].to_vec());
            tokio::spawn(async move { exchange(&link, port, &sent).await == sent })
        })
        .collect();
    for one in all {
        assert!(within(one).await.unwrap());
    }
}

#[tokio::test]
async fn b4_4_a_port_that_nobody_serves_is_refused() {
    let (_agent, link) = connected(&[]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let free = listener.local_addr().unwrap().port();
    drop(listener);
    for (port, refusal) in [(free, Refusal::PortClosed), (0, Refusal::BadRequest)] {
        let refused = within(link.connect(port)).await.unwrap_err();
        assert_eq!(refused.refusal(), Some(refusal), "{refused:?}");
    }
}

#[tokio::test]
async fn b4_4_a_client_that_leaves_ends_the_guests_connection() {
    let (_agent, link) = connected(&[]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let carried = within(link.connect(port)).await.unwrap();
    let (mut stream, _) = within(listener.accept()).await.unwrap();
    drop(carried);
    let ended = within(stream.read(&mut [0; 8])).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    link.close().await;
    let closed = within(link.connect(port)).await.unwrap_err();
    assert!(matches!(closed, GuestError::Closed), "{closed:?}");
}
