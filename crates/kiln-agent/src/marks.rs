//! When the agent reached the steps of its start: the guest's part of a boot's timings.

use kiln_agent_proto::message::Mark;

use crate::stats::uptime;

/// The steps so far.
#[derive(Debug, Default)]
pub(crate) struct Marks(Vec<Mark>);

impl From<Vec<Mark>> for Marks {
    fn from(marks: Vec<Mark>) -> Self {
        Self(marks)
    }
}

impl Marks {
    /// This step is reached now.
    pub(crate) fn set(&mut self, name: &str) {
        self.0.push(Mark {
            name: name.to_owned(),
            uptime_us: uptime().as_micros() as u64,
        });
    }

    /// All of them.
    pub(crate) fn into_vec(self) -> Vec<Mark> {
        self.0
    }
}
