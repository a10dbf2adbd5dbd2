//! A network for a machine that starts, and the network of a machine that is adopted.

use std::path::{Path, PathBuf};

use kiln_net::policy::Policy;
use kiln_net::{GuestFacts, HostNetwork, Label, MemberSpec, NetNamespace, Network, TapOwner};
use kiln_vmm::{EngineKind, MacAddress, Nic, UserNetwork};

use super::attachment::Attachment;
use super::host::{Networks, blocking};
use super::spec::NetworkMode;
use super::user;
use crate::error::{Error, ErrorCode};
use crate::sandbox::undo::UndoStack;
use crate::store::{Leases, NamedNetworks, Owner, SandboxRow};

/// The guest's only card.
const CARD: &str = "eth0";

/// What a machine needs to know of its network. The default is a machine without one.
#[derive(Default)]
pub(crate) struct Attached {
    pub(crate) attachment: Option<Attachment>,
    pub(crate) nics: Vec<Nic>,
    /// The card of a user-mode network.
    pub(crate) user: Option<UserNetwork>,
    /// Where the VMM must run; good while the attachment lives.
    pub(crate) namespace: Option<PathBuf>,
    /// That namespace, where it is nobody's network.
    #[allow(dead_code, reason = "held until the VMM is in it")]
    pub(crate) empty: Option<NetNamespace>,
    /// For the guest's agent.
    pub(crate) kernel_args: Vec<String>,
    pub(crate) warning: Option<String>,
}

/// The VMM that a network is for.
pub(crate) struct Occupant<'o> {
    /// Whom it runs as.
    pub(crate) owner: TapOwner,
    pub(crate) engine: EngineKind,
    /// Its sockets and other short-lived files.
    pub(crate) runtime_dir: &'o Path,
}

/// Makes the network of a sandbox that starts.
pub(crate) async fn attach(
    networks: &Networks,
    row: &SandboxRow,
    occupant: Occupant<'_>,
    undo: &mut UndoStack,
) -> Result<Attached, Error> {
    let wanted = &row.spec.network;
    match wanted.mode {
        NetworkMode::None => return nothing(row).await,
        NetworkMode::User if occupant.engine != EngineKind::Qemu => {
            let message = "a user-mode network takes QEMU: Firecracker has none";
            return Err(Error::new(ErrorCode::NetworkUnavailable, message)
                .with_hint("add --engine qemu, or do without: --network none"));
        }
        NetworkMode::User => {
            let policy = wanted.checked_policy()?;
            return user::attach(occupant.runtime_dir, &policy, undo).await;
        }
        NetworkMode::Auto | NetworkMode::Default => {}
    }
    let owner = occupant.owner;
    let host = match networks.host().await {
        Ok(host) => host,
        Err(error) if wanted.is_optional() => {
            return Ok(Attached {
                warning: Some(format!("no network: {}", error.message())),
                ..Attached::default()
            });
        }
        Err(error) => return Err(error),
    };
    let policy = wanted.checked_policy()?;
    let attachment = Attachment::of(&row.id, &networks.store);
    let undone = attachment.clone();
    undo.push(async move { undone.release().await });
    let attached = match &wanted.name {
        Some(name) => join(networks, name, row, owner, policy, attachment).await?,
        None => create(networks, host, row, owner, policy, attachment).await?,
    };
    Ok(Attached {
        warning: networks.firewalls.warning(),
        ..attached
    })
}

/// No card, and for root's VMMs no network either: one that a guest took over would have the host's.
async fn nothing(row: &SandboxRow) -> Result<Attached, Error> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Attached::default());
    }
    match blocking(|| Ok(NetNamespace::create(|| ())?)).await {
        Ok((empty, ())) => Ok(Attached {
            namespace: Some(empty.path()),
            empty: Some(empty),
            ..Attached::default()
        }),
        Err(error) if row.spec.allow_insecure_vmm => {
            let message = error.message();
            Ok(Attached {
                warning: Some(format!("the VMM is in the host's network: {message}")),
                ..Attached::default()
            })
        }
        Err(error) => Err(error),
    }
}

/// Makes the sandbox a member of a network with a name.
async fn join(
    networks: &Networks,
    name: &str,
    row: &SandboxRow,
    owner: TapOwner,
    policy: Policy,
    attachment: Attachment,
) -> Result<Attached, Error> {
    let bridge = networks.named.bridge(networks, name).await?;
    let membership = bridge
        .join(MemberSpec {
            vm: row.id.clone(),
            card: CARD.to_owned(),
            owner,
            address: row.spec.network.address,
            publish: policy.publish,
            bandwidth: policy.bandwidth,
            // The agent is told by its host link.
            hostname: None,
        })
        .await?;
    let (facts, record) = (membership.facts.clone(), membership.record.clone());
    let namespace = membership.namespace();
    attachment.hold_member(membership);
    attachment.keep_member(name, record).await?;
    Ok(Attached {
        nics: vec![nic(&facts)?],
        user: None,
        namespace,
        empty: None,
        kernel_args: vec![kernel_argument(&facts)],
        warning: None,
        attachment: Some(attachment),
    })
}

async fn create(
    networks: &Networks,
    host: HostNetwork,
    row: &SandboxRow,
    owner: TapOwner,
    policy: Policy,
    attachment: Attachment,
) -> Result<Attached, Error> {
    // The lease is written down, names and all, before anything of the network exists.
    let (sandbox, naming) = (row.id.clone(), host.clone());
    let record = networks
        .store
        .write(move |tx| {
            let (owner, slots) = (Owner::Sandbox(&sandbox), naming.slots());
            Leases(tx).take(owner, slots, |slot| naming.reserve(slot))
        })
        .await??;
    let spec = network_spec(row, owner, policy);
    let network = blocking(move || Ok(Network::create(&host, record, spec)?)).await?;
    let (facts, namespace) = (network.guest(), network.namespace().path());
    let record = network.record();
    attachment.hold(network);
    networks.watched.add(&attachment);
    attachment.keep(record).await?;
    Ok(Attached {
        nics: vec![nic(&facts)?],
        user: None,
        namespace: Some(namespace),
        empty: None,
        kernel_args: vec![kernel_argument(&facts)],
        warning: None,
        attachment: Some(attachment),
    })
}

/// Takes over the network of a machine that runs as process `pid`; `None` for one without.
pub(crate) async fn adopt(
    networks: &Networks,
    row: &SandboxRow,
    pid: u32,
) -> Result<Option<Attachment>, Error> {
    if let Some(name) = &row.spec.network.name {
        return adopt_member(networks, name, row).await;
    }
    let id = row.id.clone();
    let lease = networks
        .store
        .write(move |tx| Leases(tx).of(Owner::Sandbox(&id)));
    let Some(record) = lease.await? else {
        return Ok(None);
    };
    let host = networks.host().await?;
    // The TAP exists: who owns it was settled when it was made.
    let owner = TapOwner { uid: 0, gid: 0 };
    let spec = network_spec(row, owner, row.spec.network.checked_policy()?);
    let network = blocking(move || {
        let namespace = NetNamespace::of_process(pid)?;
        Ok(Network::adopt(&host, record, spec, namespace)?)
    })
    .await?;
    let attachment = Attachment::of(&row.id, &networks.store);
    let record = network.record();
    attachment.hold(network);
    networks.watched.add(&attachment);
    attachment.keep(record).await?;
    Ok(Some(attachment))
}

async fn adopt_member(
    networks: &Networks,
    name: &str,
    row: &SandboxRow,
) -> Result<Option<Attachment>, Error> {
    let id = row.id.clone();
    let member = networks
        .store
        .write(move |tx| NamedNetworks(tx).member(&id));
    let Some(record) = member.await? else {
        return Ok(None);
    };
    let bridge = networks.named.adopt(networks, name).await?;
    let attachment = Attachment::of(&row.id, &networks.store);
    let wanted = row.spec.network.checked_policy()?;
    let is_applied = record.publish == wanted.publish && record.bandwidth == wanted.bandwidth;
    attachment.hold_member(bridge.rejoin(record).await?);
    if !is_applied {
        attachment.update(wanted).await?;
    }
    Ok(Some(attachment))
}

fn network_spec(row: &SandboxRow, owner: TapOwner, policy: Policy) -> kiln_net::NetworkSpec {
    kiln_net::NetworkSpec {
        label: Label::new(&row.id),
        // The agent is told by its host link.
        hostname: None,
        owner,
        policy,
        via: None,
    }
}

fn nic(facts: &GuestFacts) -> Result<Nic, Error> {
    let mac = MacAddress::new(facts.mac.0).map_err(|error| {
        Error::new(
            ErrorCode::NetworkSetupFailed,
            "the guest's address is no address",
        )
        .with_source(error)
    })?;
    Ok(Nic {
        id: CARD.to_owned(),
        tap: facts.tap.to_string(),
        mac,
        rx_limit: None,
        tx_limit: None,
    })
}

/// Read by the agent: address and prefix, gateway, resolver, MTU.
fn kernel_argument(facts: &GuestFacts) -> String {
    let GuestFacts {
        address,
        prefix,
        gateway,
        resolver,
        mtu,
        ..
    } = facts;
    format!("kiln.net={address}/{prefix},{gateway},{resolver},{mtu}")
}
