//! `kiln network create`, `ls` and `rm`: networks that sandboxes share.

use std::path::PathBuf;

use clap::Args;
use kiln_api::{CreateNetwork, NamedNetwork, WireGuardRequest};

use super::policy::PolicyArgs;
use super::shown::{list_in_words, show_named};
use crate::{Failure, Output, output::format::Show, start::Daemon};

/// Longer than any description of a tunnel that the daemon takes.
const MOST_TEXT: u64 = 64 << 10;

/// Make a network that several sandboxes share
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// 1 to 63 of a-z, 0-9 and inner dashes
    name: String,
    /// Its addresses [default: the first of 172.30.0.0/24, 172.30.1.0/24, … that is free]
    #[arg(long, value_name = "CIDR")]
    subnet: Option<String>,
    /// Let the sandboxes in it reach each other
    #[arg(long)]
    members_talk: bool,
    #[command(flatten)]
    tunnel: TunnelArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

#[derive(Debug, Args)]
struct TunnelArgs {
    /// Send everything through a WireGuard tunnel, made of a wg-quick file; `-` reads it from
    /// standard input
    #[arg(long, value_name = "FILE", group = "way")]
    wireguard: Option<PathBuf>,
    /// Send everything through a WireGuard interface that exists
    #[arg(long, value_name = "INTERFACE", group = "way")]
    wireguard_existing: Option<String>,
    /// The interface of the tunnel to make [default: wg- and the network's name]
    #[arg(
        long,
        value_name = "INTERFACE",
        requires = "wireguard",
        conflicts_with = "wireguard_existing"
    )]
    wireguard_interface: Option<String>,
    /// The tunnel's routing table [default: the first free one from 51820 on]
    #[arg(long, value_name = "NUMBER", requires = "way")]
    routing_table: Option<u32>,
    /// Send only what the tunnel's peers allow through it
    #[arg(long, requires = "way")]
    no_route_all: bool,
    /// Let traffic out in the open when the tunnel is down
    #[arg(long, requires = "way")]
    no_fail_closed: bool,
}

impl TunnelArgs {
    /// The keys go from the file to the daemon's socket, and nowhere else.
    fn request(self) -> Result<Option<WireGuardRequest>, Failure> {
        let config = self.wireguard.map(read).transpose()?;
        if config.is_none() && self.wireguard_existing.is_none() {
            return Ok(None);
        }
        Ok(Some(WireGuardRequest {
            config,
            existing: self.wireguard_existing,
            interface: self.wireguard_interface,
            table: self.routing_table,
            route_all: Some(!self.no_route_all),
            fail_closed: Some(!self.no_fail_closed),
        }))
    }
}

fn read(path: PathBuf) -> Result<String, Failure> {
    use std::io::Read as _;
    let source: Result<Box<dyn std::io::Read>, _> = if path.as_os_str() == "-" {
        Ok(Box::new(std::io::stdin()))
    } else {
        std::fs::File::open(&path).map(|file| Box::new(file) as Box<dyn std::io::Read>)
    };
    let mut text = String::new();
    source
        .and_then(|source| source.take(MOST_TEXT + 1).read_to_string(&mut text))
        .map_err(Failure::io("read the description of the tunnel"))?;
    Ok(text)
}

pub(super) async fn create(
    args: CreateArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let request = CreateNetwork {
        name: args.name,
        subnet: args.subnet,
        policy: args.policy.policy(),
        members_talk: args.members_talk,
        wireguard: args.tunnel.request()?,
    };
    let network = daemon
        .ask(async |client| client.create_network(&request).await)
        .await?;
    show_named(&network, output);
    Ok(0)
}

pub(super) async fn list(
    quiet: bool,
    show: &Show<NamedNetwork>,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let networks = daemon.ask(async |client| client.networks().await).await?;
    if quiet {
        networks.iter().for_each(|it| output.line(&it.name));
        return Ok(0);
    }
    show.list(&networks, output, || list_in_words(&networks));
    Ok(0)
}

/// Removes each; the first failure is the last try, as with volumes.
pub(super) async fn remove(
    names: &[String],
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    for name in names {
        daemon
            .ask(async |client| client.remove_network(name).await)
            .await?;
        output.line(name);
    }
    output.object(&names);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use crate::cli::Cli;

    fn typed(line: &str) -> Result<Cli, clap::Error> {
        Cli::parse_words(line.split(' ').map(Into::into).collect())
    }

    #[test]
    fn a8_3_the_two_kinds_of_tunnel_exclude_each_other() {
        for line in [
            "kiln network create lan",
            "kiln network create lan --subnet 10.9.0.0/24 --members-talk --allow-cidr 1.1.1.1",
            "kiln network create lan --wireguard wg.conf --wireguard-interface wg7",
            "kiln network create lan --wireguard - --routing-table 7 --no-fail-closed",
            "kiln network create lan --wireguard-existing wg0 --no-route-all",
            "kiln network ls --quiet",
            "kiln network rm a b",
            "kiln network update lan --rule=deny\u{a0}any",
        ] {
            typed(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in [
            "kiln network create",
            "kiln network create lan --wireguard a --wireguard-existing b",
            "kiln network create lan --wireguard-existing b --wireguard-interface c",
            "kiln network create lan --routing-table 7",
            "kiln network create lan --no-fail-closed",
            "kiln network rm",
            "kiln network update lan",
        ] {
            assert!(typed(line).is_err(), "{line}");
        }
    }
}
