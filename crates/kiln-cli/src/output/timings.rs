//! How long it took, phase by phase.

use kiln_api::Timings;

use super::table;

/// A table of the phases that were gone through.
pub(crate) fn render(timings: &Timings) -> String {
    let phases = [
        ("prepare", timings.prepare_us),
        ("VMM spawn", timings.vmm_spawn_us),
        ("configure", timings.configure_us),
        ("kernel", timings.kernel_us),
        ("agent", timings.agent_us),
        ("exec", timings.exec_us),
        ("tear-down", timings.tear_down_us),
        ("total", timings.total_us),
    ];
    let rows: Vec<_> = phases
        .into_iter()
        .filter_map(|(name, us)| us.map(|us| [name.to_owned(), milliseconds(us)]))
        .collect();
    table::align(&rows)
}

fn milliseconds(us: u64) -> String {
    format!("{:>6}.{:01} ms", us / 1000, us % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_listed_in_order() {
        let timings = Timings {
            prepare_us: Some(1_234),
            kernel_us: Some(987_654),
            exec_us: Some(50),
            ..Timings::default()
        };
        assert_eq!(
            render(&timings),
            "prepare       1.2 ms\nkernel      987.6 ms\nexec          0.0 ms"
        );
    }
}
