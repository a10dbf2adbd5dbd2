//! Ending a machine: the polite way first, and always to the end.

use std::time::Duration;

use kiln_vmm::Exit;
use tracing::debug;

use super::driver::Live;
use crate::error::{Error, ErrorCode};
use crate::guest::PowerIntent;

/// Part of the grace period that the agent's own power-off may take before Ctrl-Alt-Del and
/// SIGTERM share the rest.
const AGENT_SHARE: f64 = 0.7;
/// Part of that which processes have to end in before they are killed; the rest is for the disks.
const GUEST_SHARE: f64 = 0.75;
/// SIGTERM is not handled by Firecracker and quick in QEMU: a second of patience is enough.
const TERM_GRACE: Duration = Duration::from_secs(1);

/// Ends the machine: the agent's power-off, Ctrl-Alt-Del where it works, SIGTERM, SIGKILL. With
/// no grace it is killed at once. Returns when nothing of it is left.
pub(crate) async fn stop(live: &Live, grace: Duration) -> Result<(), Error> {
    if !grace.is_zero() {
        ask_politely(live, grace).await;
    }
    clean_up_within(live, grace.min(TERM_GRACE)).await
}

/// Removes what an ended machine left.
pub(crate) async fn clean_up(live: &Live) -> Result<(), Error> {
    clean_up_within(live, Duration::ZERO).await
}

async fn clean_up_within(live: &Live, grace: Duration) -> Result<(), Error> {
    live.link.close().await;
    live.machine.close(grace).await.map_err(|source| {
        Error::new(ErrorCode::Host, "cannot clean up after the machine").with_source(source)
    })?;
    // Last: the VMM sits in its namespace.
    match &live.network {
        Some(network) => network.release().await,
        None => Ok(()),
    }
}

async fn ask_politely(live: &Live, grace: Duration) {
    let share = grace.mul_f64(AGENT_SHARE);
    let asked = tokio::time::timeout(share, async {
        live.link
            .power_off_within(share.mul_f64(GUEST_SHARE))
            .await
            .ok();
        live.machine.wait().await
    });
    if asked.await.is_ok() {
        return;
    }
    debug!("the agent did not power the guest off in time");
    if live.machine.press_ctrl_alt_del().await.is_ok() {
        let rest = grace.saturating_sub(share);
        let _ = tokio::time::timeout(rest, live.machine.wait()).await;
    }
}

/// Why a machine that nobody stopped has ended, in a sentence.
pub(crate) fn reason_of_end(live: &Live, exit: Exit) -> String {
    if let Some(intent) = live.link.power_intent() {
        return match intent {
            PowerIntent::PowerOff => "the guest powered itself off".to_owned(),
            PowerIntent::Reboot => "the guest rebooted; a sandbox is not restarted".to_owned(),
        };
    }
    let console = live.machine.diagnostics().console;
    match last_words(&console) {
        Some(words) => format!("the guest died: {words}"),
        None => match exit {
            Exit::Code(0) => "the guest ended without saying why".to_owned(),
            Exit::Code(code) => format!("the VMM ended with status {code}"),
            Exit::Signal(signal) => format!("the VMM was ended by signal {signal}"),
            Exit::Unknown => "the VMM ended".to_owned(),
        },
    }
}

/// The line of a console that tells why a guest died, if there is one.
pub(crate) fn last_words(console: &str) -> Option<String> {
    let telling =
        |line: &&str| line.contains("kiln-agent: fatal:") || line.contains("Kernel panic");
    let line = console.lines().find(telling)?;
    let words =
        line.trim_start_matches(|c: char| c == '[' || c.is_ascii_digit() || " .]".contains(c));
    Some(
        words
            .chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::last_words;

    #[test]
    fn a_panic_and_a_fatal_agent_are_recognised() {
        let panic = "[    0.9] x\n[    1.000] Kernel panic - not syncing: no init\n";
        assert_eq!(
            last_words(panic).as_deref(),
            Some("Kernel panic - not syncing: no init")
        );
        let fatal = "kiln-agent: fatal: /dev/vda: no such device\r\n";
        assert_eq!(
            last_words(fatal).as_deref(),
            Some("kiln-agent: fatal: /dev/vda: no such device")
        );
        assert_eq!(last_words("login:"), None);
    }
}
