//! The count: reads result lines and skips off the output of test programs and sums them up.

use std::fmt;

/// What the tests came to so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    passed: u64,
    pub(super) failed: u64,
    skipped: u64,
    /// Skips that a test program counts among its passed tests.
    passed_by_skipping: u64,
    /// The `SKIPPED:` lines, said again at the end.
    skips: Vec<String>,
    /// What failed outside test programs, or by name inside them.
    failures: Vec<String>,
}

impl Tally {
    /// Takes one line of a test program's output into account.
    pub(super) fn read(&mut self, line: &str) {
        let line = line.trim();
        if let Some(result) = line.strip_prefix("test result: ") {
            self.passed += count(result, "passed");
            self.failed += count(result, "failed");
            self.skipped += count(result, "ignored");
        } else if line.starts_with("SKIPPED:") {
            self.passed_by_skipping += 1;
            self.skip(line.to_owned());
        } else if let Some(name) = failed_test(line) {
            self.failures.push(name.to_owned());
        }
    }

    /// A scenario that ran and held.
    pub(super) fn pass(&mut self) {
        self.passed += 1;
    }

    /// A check or scenario that did not run.
    pub(super) fn skip(&mut self, line: String) {
        self.skipped += 1;
        self.skips.push(line);
    }

    /// A check or scenario that failed.
    pub(super) fn fail(&mut self, how: String) {
        self.failed += 1;
        self.failures.push(how);
    }
}

/// The number before a word in `ok. 3 passed; 0 failed; 1 ignored; …`.
fn count(result: &str, word: &str) -> u64 {
    let parts = result.split([';', '.']).map(str::trim);
    parts
        .filter_map(|part| part.strip_suffix(word))
        .find_map(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

/// The name in `test module::name ... FAILED`.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

impl fmt::Display for Tally {
    /// Skips and failures in full, then the closing line, alone on its line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for skip in &self.skips {
            writeln!(f, "{skip}")?;
        }
        for failure in &self.failures {
            writeln!(f, "FAILED: {failure}")?;
        }
        // A test that skipped itself proved nothing, whatever its program says.
        let passed = self.passed.saturating_sub(self.passed_by_skipping);
        write!(
            f,
            "{passed} passed, {} failed, {} skipped",
            self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally_of(output: &str) -> Tally {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.read(line));
        tally
    }

    #[test]
    fn results_of_all_binaries_are_summed() {
        let tally = tally_of(
            "running 3 tests\n\
             test a::b ... ok\n\
             test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             test c::d ... FAILED\n\
             test result: FAILED. 10 passed; 1 failed; 0 ignored; 0 measured; 2 filtered out; finished in 1.20s\n",
        );
        let text = tally.to_string();
        assert_eq!(text, "FAILED: c::d\n13 passed, 1 failed, 1 skipped");
    }

    #[test]
    fn a_skip_is_no_pass_and_is_said_again_at_the_end() {
        let tally = tally_of(
            "test kvm ... ok\n\
             ---- kvm stdout ----\n\
             SKIPPED: kvm: this host only emulates\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n",
        );
        let text = tally.to_string();
        assert_eq!(
            text,
            "SKIPPED: kvm: this host only emulates\n1 passed, 0 failed, 1 skipped"
        );
    }

    #[test]
    fn other_lines_count_nothing() {
        let tally = tally_of("test result\nok. 3 passed\nthe SKIPPED: word inside a line\n");
        assert_eq!(tally.to_string(), "0 passed, 0 failed, 0 skipped");
    }
}
