//! Other firewalls of this host: passed where two rules of ours can do that, told where not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_net::{HostNetwork, Obstacle};
use tracing::{info, warn};

use super::host::blocking;

/// What of them is in the way, as far as was looked. To look lists every rule of the host, so it is
/// done now and then, and not for each sandbox. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Firewalls(Arc<Mutex<Vec<String>>>);

impl Firewalls {
    /// Puts two rules of ours, one each way, into chains of others that drop what they do not know,
    /// and notes what is left. Our own table still judges every packet; the rules go with the
    /// host's network.
    pub(super) async fn pass(&self, host: &HostNetwork) {
        let at = host.clone();
        match blocking(move || Ok(at.clear_the_way()?)).await {
            Ok(0) => {}
            Ok(rules) => info!(rules, "other firewalls let sandboxes through now"),
            Err(error) => warn!(error = %error.message(), "other firewalls may be in the way"),
        }
        self.look(host).await;
    }

    /// Looks; what is left, in words.
    pub(super) async fn look(&self, host: &HostNetwork) -> Vec<String> {
        let host = host.clone();
        let found = blocking(move || Ok(host.obstacles()?)).await;
        let told: Vec<String> = found
            .unwrap_or_default()
            .into_iter()
            .map(in_words)
            .collect();
        self.lock().clone_from(&told);
        told
    }

    /// A warning for a sandbox that starts, if anything was left at the last look.
    pub(super) fn warning(&self) -> Option<String> {
        let known = self.lock();
        (!known.is_empty()).then(|| known.join("; "))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_words(obstacle: Obstacle) -> String {
    let Obstacle { chain, stops, hint } = obstacle;
    let told = format!("network: another firewall ({chain}) may stop {stops}");
    match hint {
        Some(hint) => format!("{told}: {hint}"),
        None => told,
    }
}
