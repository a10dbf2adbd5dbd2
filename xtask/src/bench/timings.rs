//! The timing breakdown that `kiln run --timings --json` prints.

use serde::Deserialize;
use serde_json::Value;

/// Phases of one run, in microseconds; a phase that was not gone through is absent.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Timings {
    pub(super) prepare_us: Option<u64>,
    pub(super) vmm_spawn_us: Option<u64>,
    pub(super) configure_us: Option<u64>,
    pub(super) kernel_us: Option<u64>,
    pub(super) agent_us: Option<u64>,
    pub(super) exec_us: Option<u64>,
    pub(super) tear_down_us: Option<u64>,
    pub(super) total_us: Option<u64>,
}

impl Timings {
    /// The last JSON object in the output that has a total, at its top or under `timings`.
    pub(super) fn in_output(output: &str) -> Option<Self> {
        output.lines().rev().find_map(|line| {
            let value: Value = serde_json::from_str(line.trim()).ok()?;
            let timings = value.get("timings").unwrap_or(&value);
            timings.get("total_us")?;
            Self::deserialize(timings).ok()
        })
    }

    /// Host-side time outside the VMM: from the request to the VMM's execution, plus what lies
    /// between the phases, the answer to the client above all.
    ///
    /// All of the spawn counts: it ends when the VMM has been executed, so the jail is in it. (Of
    /// Firecracker's a part is the VMM's own.)
    pub(super) fn host_us(&self) -> Option<u64> {
        let phases = [
            self.configure_us,
            self.kernel_us,
            self.agent_us,
            self.exec_us,
            self.tear_down_us,
        ];
        let in_the_machine: u64 = phases.into_iter().flatten().sum();
        self.prepare_us?;
        self.total_us?.checked_sub(in_the_machine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timings_are_found_among_other_lines() {
        let output = "warning: QEMU without KVM is slow\n\
             {\"type\":\"progress\"}\n\
             {\"exit_code\":0,\"timings\":{\"prepare_us\":7000,\"vmm_spawn_us\":40000,\"kernel_us\":900000,\"total_us\":950000}}\n";
        let timings = Timings::in_output(output).unwrap();
        assert_eq!(timings.prepare_us, Some(7000));
        assert_eq!(timings.host_us(), Some(50_000));
    }

    #[test]
    fn no_total_no_timings() {
        assert_eq!(Timings::in_output("{\"prepare_us\":1}\nnot json\n"), None);
    }

    #[test]
    fn phases_longer_than_the_total_give_no_figure() {
        let line = r#"{"prepare_us":1,"kernel_us":10,"total_us":5}"#;
        assert_eq!(Timings::in_output(line).unwrap().host_us(), None);
    }
}
