//! `kiln forward`: ports of this host that lead to ports of a guest, without any network.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use clap::Args;
use kiln_api::{Client, ErrorReport, SandboxState};
use serde::Serialize;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{Failure, Output, start::Daemon};

/// Lead TCP ports of this host to ports of a guest, until interrupted
///
/// Goes through the guest's agent to its loopback address: works with --network none, with any
/// network policy, and without privilege.
#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    /// Id, unique prefix of one, or name
    sandbox: String,
    /// Where to listen, and the guest's port; the host's port 0 takes any that is free
    #[arg(required = true, value_name = "[[ADDRESS:]PORT:]GUESTPORT")]
    ports: Vec<Forward>,
}

/// One port of the host and one of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Forward {
    listen: SocketAddr,
    guest: u16,
}

impl FromStr for Forward {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "write GUESTPORT, PORT:GUESTPORT or ADDRESS:PORT:GUESTPORT";
        let (listen, guest) = match text.rsplit_once(':') {
            Some((listen, guest)) => (Some(listen), guest),
            None => (None, text),
        };
        let guest: u16 = guest.parse().map_err(|_| WRONG)?;
        if guest == 0 {
            return Err("the guest's port is 1 to 65535");
        }
        let (address, port) = match listen.map(|listen| listen.rsplit_once(':').ok_or(listen)) {
            None => (None, guest),
            Some(Err(port)) => (None, port.parse().map_err(|_| WRONG)?),
            Some(Ok((address, port))) => (Some(address), port.parse().map_err(|_| WRONG)?),
        };
        let address: IpAddr = match address {
            None => Ipv4Addr::LOCALHOST.into(),
            Some(address) => {
                let bare = address.trim_start_matches('[').trim_end_matches(']');
                bare.parse().map_err(|_| WRONG)?
            }
        };
        Ok(Self {
            listen: SocketAddr::new(address, port),
            guest,
        })
    }
}

/// What is told once a port is open.
#[derive(Debug, Serialize)]
struct Open<'a> {
    sandbox: &'a str,
    listen: SocketAddr,
    guest_port: u16,
}

pub(crate) async fn run(
    args: ForwardArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let sandbox = daemon
        .ask(async |client| client.get(&args.sandbox).await)
        .await?;
    if sandbox.state != SandboxState::Running {
        let state = sandbox.state.as_str();
        let message = format!("sandbox {} is {state}", sandbox.id);
        let report = ErrorReport::new("INVALID_STATE", message);
        return Err(Failure::reported(
            report.with_hint("only a running sandbox has ports"),
        ));
    }
    // All of them are open before the first is told of.
    let mut listeners = Vec::new();
    for forward in &args.ports {
        let listener = TcpListener::bind(forward.listen).await;
        listeners.push((
            listener.map_err(|source| taken(*forward, &source))?,
            *forward,
        ));
    }
    let mut doors = JoinSet::new();
    for (listener, forward) in listeners {
        let listen = listener
            .local_addr()
            .map_err(Failure::io("look at a listener"))?;
        output.line(&format!("{listen} -> {}:{}", sandbox.id, forward.guest));
        output.object(&Open {
            sandbox: &sandbox.id,
            listen,
            guest_port: forward.guest,
        });
        let (client, key) = (daemon.client.clone(), sandbox.id.clone());
        doors.spawn(serve(listener, client, key, forward.guest));
    }
    // The first that cannot go on ends them all.
    match doors.join_next().await {
        Some(Ok(failure)) => Err(failure),
        _ => Ok(0),
    }
}

/// Serves one port until the sandbox is no more.
async fn serve(listener: TcpListener, client: Client, key: String, port: u16) -> Failure {
    let (ended, mut ends) = tokio::sync::mpsc::channel(1);
    let (client, key) = (Arc::new(client), Arc::new(key));
    loop {
        let stream = tokio::select! {
            Some(failure) = ends.recv() => return failure,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(source) => return Failure::io("accept a connection")(source),
            },
        };
        let (client, key, ended) = (Arc::clone(&client), Arc::clone(&key), ended.clone());
        tokio::spawn(async move {
            if let Err(failure) = relay(stream, &client, &key, port).await {
                // Nobody listens there now: perhaps the next one finds somebody.
                let lasting = ["NOT_FOUND", "INVALID_STATE", "AGENT_TOO_OLD"];
                if lasting.contains(&failure.report().code.as_str()) {
                    drop(ended.send(failure).await);
                }
            }
        });
    }
}

async fn relay(
    mut stream: TcpStream,
    client: &Client,
    key: &str,
    port: u16,
) -> Result<(), Failure> {
    let mut guest = client.connect_port(key, port).await?;
    // Either side may break off: that is theirs to say, not ours.
    drop(copy_bidirectional(&mut stream, &mut guest).await);
    Ok(())
}

fn taken(forward: Forward, source: &std::io::Error) -> Failure {
    let message = format!("cannot listen at {}: {source}", forward.listen);
    let report = ErrorReport::new("PORT_TAKEN", message);
    Failure::reported(report.with_hint("choose another port, or 0 for any that is free"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b4_4_forwards_are_understood() {
        let typed = |text: &str| text.parse::<Forward>();
        let all = |listen: &str, guest| {
            let listen = listen.parse().unwrap();
            Ok(Forward { listen, guest })
        };
        assert_eq!(typed("80"), all("127.0.0.1:80", 80));
        assert_eq!(typed("8080:80"), all("127.0.0.1:8080", 80));
        assert_eq!(typed("0:80"), all("127.0.0.1:0", 80));
        assert_eq!(typed("0.0.0.0:8080:80"), all("0.0.0.0:8080", 80));
        assert_eq!(typed("[::1]:8080:80"), all("[::1]:8080", 80));
        for wrong in [
            "", "0", "x:80", "80:0", "80:80:80", "70000", "1:2:3:4", "host:1:2",
        ] {
            assert!(typed(wrong).is_err(), "{wrong}");
        }
    }
}
