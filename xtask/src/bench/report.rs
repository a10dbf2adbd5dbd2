//! How figures are shown: a table for people, one flat JSON object for programs.

use serde_json::{Map, Value, json};

use super::stats::Samples;

/// Figures in the order in which they were taken.
#[derive(Debug, Default)]
pub(super) struct Report {
    rows: Vec<Row>,
    missing: Vec<(&'static str, String)>,
}

#[derive(Debug)]
struct Row {
    key: &'static str,
    what: &'static str,
    value: f64,
    spread: String,
    limit: Option<Limit>,
}

/// What a figure has to keep to.
#[derive(Debug, Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Limit {
    fn verdict(self, value: f64) -> String {
        match self {
            Limit::AtMost(limit) if value <= limit => format!("within {limit}"),
            Limit::AtMost(limit) => format!("OVER {limit}"),
            Limit::AtLeast(limit) if value >= limit => format!("reaches {limit}"),
            Limit::AtLeast(limit) => format!("UNDER {limit}"),
        }
    }
}

impl Report {
    /// A figure that is the median of samples.
    pub(super) fn median(&mut self, key: &'static str, what: &'static str, samples: &Samples) {
        match (samples.median(), samples.min(), samples.max()) {
            (Some(value), Some(min), Some(max)) => {
                let spread = format!("{min:.1} to {max:.1}, n = {}", samples.count());
                self.rows.push(Row {
                    key,
                    what,
                    value,
                    spread,
                    limit: limit(key),
                });
            }
            _ => self.missing(key, "no sample was taken"),
        }
    }

    /// A figure taken once.
    pub(super) fn single(&mut self, key: &'static str, what: &'static str, value: f64) {
        self.rows.push(Row {
            key,
            what,
            value,
            spread: String::new(),
            limit: limit(key),
        });
    }

    /// A figure taken once, of a subject that holds it to another bound than others do.
    pub(super) fn bounded(&mut self, key: &'static str, what: &'static str, value: f64, most: f64) {
        self.single(key, what, value);
        if let Some(row) = self.rows.last_mut() {
            row.limit = Some(Limit::AtMost(most));
        }
    }

    /// How much longer the baseline took than ours, by their medians.
    pub(super) fn ratio(
        &mut self,
        key: &'static str,
        what: &'static str,
        baseline: &Samples,
        ours: &Samples,
    ) {
        match (baseline.median(), ours.median()) {
            (Some(baseline), Some(ours)) => self.single(key, what, baseline / ours),
            _ => self.missing(key, "no sample was taken"),
        }
    }

    /// Prints the figures on standard output.
    pub(super) fn show(&self, as_json: bool) {
        if as_json {
            println!("{}", self.json());
            self.gaps().for_each(|gap| eprintln!("{gap}"));
        } else {
            print!("{}", self.table());
        }
    }

    /// A figure that could not be taken.
    pub(super) fn missing(&mut self, key: &'static str, why: impl Into<String>) {
        self.missing.push((key, why.into()));
    }

    /// The figures that were taken, by key; nothing else.
    pub(super) fn json(&self) -> String {
        let figures = self
            .rows
            .iter()
            .map(|row| (row.key.to_owned(), json!(rounded(row.value))));
        Value::Object(figures.collect::<Map<_, _>>()).to_string()
    }

    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let limit = row
                .limit
                .map_or_else(String::new, |limit| limit.verdict(row.value));
            let Row {
                key,
                what,
                value,
                spread,
                ..
            } = row;
            text.push_str(&format!(
                "{key:<16}{value:>10.2}  {limit:<14}{what:<52}{spread}\n"
            ));
        }
        for (key, why) in &self.missing {
            text.push_str(&format!("{key:<16}{:>10}  {why}\n", "-"));
        }
        text
    }

    /// What was not measured, a line each.
    pub(super) fn gaps(&self) -> impl Iterator<Item = String> {
        self.missing
            .iter()
            .map(|(key, why)| format!("SKIPPED: {key}: {why}"))
    }
}

/// What the figures are held to.
fn limit(key: &str) -> Option<Limit> {
    use Limit::{AtLeast, AtMost};
    Some(match key {
        "run_ratio" => AtMost(1.25),
        "host_ms" => AtMost(15.0),
        "daemon_rss_mib" => AtMost(20.0),
        "agent_rss_mib" => AtMost(4.0),
        "initramfs_mib" => AtMost(6.0),
        "burst_failed" => AtMost(0.0),
        "exec_ms" => AtMost(5.0),
        "transfer_daemon_mib" | "transfer_client_mib" | "transfer_agent_mib" => AtMost(8.0),
        "setup_speedup" => AtLeast(10.0),
        "setup_ms" => AtMost(8.0),
        "teardown_ms" => AtMost(2.0),
        "scale_ratio" => AtMost(1.5),
        "throughput_ratio" => AtLeast(0.95),
        "update_ms" => AtMost(5.0),
        "tar_speedup" => AtLeast(3.0),
        "mke2fs_speedup" => AtLeast(8.0),
        "rss_mib" => AtMost(100.0),
        "pull_ratio" => AtMost(1.3),
        "disk_ms" => AtMost(2.0),
        "spawn_extra_ms" => AtMost(3.0),
        "jail_extra_ms" => AtMost(10.0),
        "load_ratio" => AtMost(1.2),
        "qemu_restore_ms" => AtMost(250.0),
        "leaks" | "errors" | "above_linear" => AtMost(0.0),
        "ls_ms" => AtMost(20.0),
        "create_ms" => AtMost(15.0),
        "rss_growth_mib" => AtMost(1.0),
        _ => return None,
    })
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_holds_what_was_measured_and_nothing_else() {
        let mut report = Report::default();
        report.median(
            "run_ms",
            "run",
            &[1100.0, 1200.0, 1300.12345].into_iter().collect(),
        );
        report.single("burst_failed", "failed", 0.0);
        report.missing("run_ratio", "no QEMU");
        report.median("exec_ms", "exec", &Samples::default());
        assert_eq!(report.json(), r#"{"burst_failed":0.0,"run_ms":1200.0}"#);
        let gaps: Vec<String> = report.gaps().collect();
        assert_eq!(
            gaps,
            [
                "SKIPPED: run_ratio: no QEMU",
                "SKIPPED: exec_ms: no sample was taken"
            ]
        );
    }

    #[test]
    fn the_table_says_what_is_under_its_limit() {
        let mut report = Report::default();
        report.single("setup_speedup", "faster", 9.5);
        report.single("throughput_ratio", "of one", 0.96);
        let table = report.table();
        assert!(
            table.lines().next().unwrap().contains("UNDER 10"),
            "{table}"
        );
        assert!(
            table.lines().nth(1).unwrap().contains("reaches 0.95"),
            "{table}"
        );
    }

    #[test]
    fn the_table_says_what_is_over_its_limit() {
        let mut report = Report::default();
        report.single("host_ms", "host", 15.5);
        report.single("agent_rss_mib", "agent", 1.25);
        let table = report.table();
        assert!(table.lines().next().unwrap().contains("OVER 15"), "{table}");
        assert!(
            table.lines().nth(1).unwrap().contains("within 4"),
            "{table}"
        );
    }

    #[test]
    fn speed_ups_are_held_to_a_least_value() {
        let mut report = Report::default();
        let samples = |sample: f64| [sample].into_iter().collect::<Samples>();
        report.ratio("tar_speedup", "tar", &samples(9.0), &samples(2.0));
        report.ratio("mke2fs_speedup", "mke2fs", &samples(9.0), &samples(2.0));
        report.ratio("disk_speedup", "disk", &samples(9.0), &Samples::default());
        let table = report.table();
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].contains("4.50  reaches 3"), "{table}");
        assert!(lines[1].contains("UNDER 8"), "{table}");
        assert!(lines[2].contains("no sample"), "{table}");
    }
}
