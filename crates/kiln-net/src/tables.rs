//! Loads the two tables of a data directory, and replaces nobody else's.

use crate::host::HostError;
use crate::identity::Identity;
use crate::netlink::NetlinkError;
use crate::nft::Nft;
use crate::ruleset::base::Base;
use crate::ruleset::{Transaction, bridge};
use crate::subnet::stable_hash;

/// Load both tables; whether one was missing, and whether there can be one for bridges.
pub(crate) fn load(
    nft: &mut Nft,
    identity: &Identity,
    base: &Base,
) -> Result<(bool, bool), HostError> {
    let claim = |transaction: &Transaction| {
        let version = stable_hash(&[transaction.to_string().as_bytes()]);
        format!("{} {version:016x} {}", identity.tag(), base.pool)
    };
    let comment = claim(&base.load(String::new()));
    let loaded = load_table(nft, identity, &comment, &base.load(comment.clone()))?;
    let bridge = |comment| bridge::load(identity.table(), &identity.tap_prefix(), comment);
    let comment = claim(&bridge(String::new()));
    match load_table(nft, identity, &comment, &bridge(comment.clone())) {
        Err(HostError::Netlink(error)) if is_unsupported(&error) => {
            tracing::warn!("this kernel has no nftables for bridges: there are no bridge networks");
            Ok((loaded, false))
        }
        bridge => bridge.map(|bridge| (loaded || bridge, true)),
    }
}

/// Load a table unless the very same is there; refuse to replace one that is not ours. Whether it
/// was loaded.
fn load_table(
    nft: &mut Nft,
    identity: &Identity,
    comment: &str,
    transaction: &Transaction,
) -> Result<bool, HostError> {
    let found = nft
        .tables(transaction.family)?
        .into_iter()
        .find(|info| info.name == transaction.table);
    if let Some(info) = found {
        let theirs = info
            .comment
            .as_deref()
            .and_then(|text| text.split(' ').next());
        if theirs != Some(identity.tag()) {
            return Err(HostError::TableTaken {
                table: info.name,
                comment: info.comment,
            });
        }
        if info.comment.as_deref() == Some(comment) {
            return Ok(false);
        }
    }
    nft.apply(transaction)?;
    Ok(true)
}

fn is_unsupported(error: &NetlinkError) -> bool {
    use rustix::io::Errno;
    matches!(
        error.errno(),
        Some(Errno::AFNOSUPPORT | Errno::OPNOTSUPP | Errno::NOENT)
    )
}
