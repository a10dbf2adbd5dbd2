//! What an answer proves. Pure.

use serde::{Deserialize, Serialize};

use super::{Expected, Observed};

/// Whether the policy is kept, as far as one question shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// As the policy says.
    Holds,
    /// Not as the policy says.
    Broken,
    /// The host gets no answer either (or nothing listens in the guest): nothing is shown.
    Unproven,
}

/// `control` asks the same from the host; only where it matters.
pub(super) fn from_guest(
    expected: Expected,
    observed: Observed,
    control: impl FnOnce() -> Observed,
) -> Finding {
    if observed == Observed::Answered {
        return match expected {
            Expected::Open => Finding::Holds,
            Expected::Closed => Finding::Broken,
        };
    }
    match (control(), expected) {
        (Observed::Answered, Expected::Open) => Finding::Broken,
        (Observed::Answered, Expected::Closed) => Finding::Holds,
        _ => Finding::Unproven,
    }
}

/// The host's own resets look like the guest's, so they show nothing.
pub(super) fn from_host(expected: Expected, observed: Observed) -> Finding {
    match (expected, observed) {
        (Expected::Open, Observed::Answered) => Finding::Holds,
        (Expected::Closed, Observed::Answered) => Finding::Broken,
        (Expected::Closed, _) => Finding::Holds,
        (Expected::Open, _) => Finding::Unproven,
    }
}

#[cfg(test)]
mod tests {
    use super::Expected::{Closed, Open};
    use super::Observed::{Answered, Refused, Silent};
    use super::*;

    #[test]
    fn silence_proves_something_only_where_the_host_is_answered() {
        let guest = |expected, observed, control| from_guest(expected, observed, || control);
        for silence in [Silent, Refused] {
            assert_eq!(guest(Closed, silence, Answered), Finding::Holds);
            assert_eq!(guest(Closed, silence, Silent), Finding::Unproven);
            assert_eq!(guest(Open, silence, Answered), Finding::Broken);
            assert_eq!(guest(Open, silence, Silent), Finding::Unproven);
        }
        assert_eq!(guest(Open, Answered, Silent), Finding::Holds);
        assert_eq!(guest(Closed, Answered, Silent), Finding::Broken);
        assert_eq!(from_host(Open, Refused), Finding::Unproven);
        assert_eq!(from_host(Closed, Answered), Finding::Broken);
    }
}
