//! What is shown while something takes its time.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use kiln_api::stream::ProgressStep;

use super::Output;

/// Away from a terminal a step is told of only when it lasts, so that a quick run says nothing.
const LASTS: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(100);

/// Shows progress on standard error; hides it when dropped.
#[derive(Debug)]
pub(crate) struct Shown {
    output: Output,
    bar: Option<ProgressBar>,
    /// A step that is not told of yet.
    untold: Option<(String, Instant)>,
    terminal: bool,
}

impl Shown {
    pub(crate) fn new(output: &Output) -> Self {
        let terminal = std::io::stderr().is_terminal() && !output.is_json();
        Self {
            output: *output,
            bar: None,
            untold: None,
            terminal,
        }
    }

    pub(crate) fn show(&mut self, progress: ProgressStep) {
        if let Some(step) = progress.step {
            self.step(step);
        }
        if let (Some(bytes), Some(bar)) = (progress.bytes, &self.bar) {
            if let Some(total) = bytes.total
                && bar.length() != Some(total)
            {
                bar.set_style(bar_style());
                bar.set_length(total);
            }
            bar.set_position(bytes.done);
        }
        if let Some(note) = progress.note {
            self.aside(|output| output.note(&note));
        }
    }

    /// Prints around what is shown.
    pub(crate) fn aside(&self, print: impl FnOnce(&Output)) {
        match &self.bar {
            Some(bar) => bar.suspend(|| print(&self.output)),
            None => print(&self.output),
        }
    }

    /// When [`Shown::tell`] has something to tell.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.untold.as_ref().map(|(_, begun)| *begun + LASTS)
    }

    /// Tells of a step that lasts.
    pub(crate) fn tell(&mut self) {
        if let Some((step, _)) = self.untold.take() {
            self.output.note(&step);
        }
    }

    /// Takes everything away: the command has the terminal now.
    pub(crate) fn hide(&mut self) {
        self.untold = None;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn step(&mut self, step: String) {
        self.hide();
        if self.terminal {
            let bar = ProgressBar::new_spinner().with_message(step);
            bar.enable_steady_tick(TICK);
            self.bar = Some(bar);
        } else {
            self.untold = Some((step, Instant::now()));
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.hide();
    }
}

fn bar_style() -> ProgressStyle {
    // The template is ours and fixed; should it ever be wrong, a plain bar does as well.
    ProgressStyle::with_template("{spinner} {msg} [{bar:30}] {bytes}/{total_bytes}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
