//! A network namespace of a chore's own, with a way out that leads nowhere: what a daemon does to the
//! network in it is not done to this machine.

use std::ffi::OsStr;
use std::process::Command;

use crate::step::{self, StepError};

/// Documentation addresses (RFC 5737): nobody's network.
const UPLINK: &str = "ip link set lo up
ip link add up0 type veth peer name up1
ip link set up1 up
ip address add 203.0.113.1/24 dev up0
ip link set up0 up
ip route add default via 203.0.113.2
nft add table inet kiln-probe
nft delete table inet kiln-probe
test -c /dev/net/tun";

/// The namespace; gone when dropped.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// A new one; an error where this machine or this user cannot make what networks take.
    pub(crate) fn new(purpose: &str) -> Result<Self, StepError> {
        let name = format!("kiln-{purpose}-{}", std::process::id());
        step::capture(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        let mut uplink = namespace.command("sh");
        step::capture(uplink.args(["-e", "-c", UPLINK]))?;
        Ok(namespace)
    }

    /// A program in it. `ip netns exec` would put another `/sys` in the way of the control groups
    /// that jails need.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name));
        command.arg("--").arg(program);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let mut delete = Command::new("ip");
        delete.args(["netns", "delete", &self.name]);
        if let Err(error) = step::capture(&mut delete) {
            eprintln!("{error}");
        }
    }
}
