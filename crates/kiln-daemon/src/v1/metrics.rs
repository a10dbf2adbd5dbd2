//! Figures in the text format of Prometheus.

use std::fmt::Write;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use kiln::HostMetrics;

use super::App;

pub(super) async fn read(State(app): State<App>) -> Response {
    let kind = "text/plain; version=0.0.4";
    ([(header::CONTENT_TYPE, kind)], render(&app.host.metrics())).into_response()
}

fn render(metrics: &HostMetrics) -> String {
    let mut text = String::new();
    head(&mut text, "kiln_sandboxes", "gauge", "Sandboxes by state.");
    for (state, number) in &metrics.sandboxes {
        line(
            &mut text,
            &format!("kiln_sandboxes{{state=\"{state}\"}}"),
            number,
        );
    }
    let counters = [
        ("kiln_starts_total", "Starts that came up.", metrics.starts),
        (
            "kiln_failed_starts_total",
            "Starts that failed.",
            metrics.failed_starts,
        ),
        (
            "kiln_restarts_total",
            "Restarts by policy.",
            metrics.restarts,
        ),
        (
            "kiln_timed_out_total",
            "Sandboxes stopped at a time-out.",
            metrics.timed_out,
        ),
        (
            "kiln_commands_total",
            "Commands that were run.",
            metrics.commands,
        ),
    ];
    for (name, help, value) in counters {
        head(&mut text, name, "counter", help);
        line(&mut text, name, &value);
    }
    let seconds = metrics.start_time.as_secs_f64();
    head(
        &mut text,
        "kiln_start_seconds",
        "summary",
        "Time that starts took.",
    );
    line(&mut text, "kiln_start_seconds_sum", &seconds);
    line(&mut text, "kiln_start_seconds_count", &metrics.starts);
    text
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a text cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(text: &mut String, name: &str, value: &dyn std::fmt::Display) {
    let _ = writeln!(text, "{name} {value}");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kiln::SandboxState;

    use super::*;

    #[test]
    fn figures_have_names_types_and_help() {
        let metrics = HostMetrics {
            sandboxes: vec![(SandboxState::Running, 2)],
            starts: 3,
            start_time: Duration::from_millis(1500),
            ..HostMetrics::default()
        };
        let text = render(&metrics);
        assert!(
            text.contains("# TYPE kiln_sandboxes gauge\nkiln_sandboxes{state=\"running\"} 2\n")
        );
        assert!(text.contains("kiln_starts_total 3\n"));
        assert!(text.contains("kiln_start_seconds_sum 1.5\nkiln_start_seconds_count 3\n"));
        let helps = text.matches("# HELP").count();
        assert_eq!(helps, text.matches("# TYPE").count());
    }
}
