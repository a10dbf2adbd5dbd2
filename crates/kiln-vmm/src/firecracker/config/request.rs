//! What all requests have in common: where they go, which features they use, how long they take.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;

use crate::firecracker::version::Feature;

/// How a resource is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Sets it whole.
    Put,
    /// Changes what is named.
    Patch,
    /// Takes it away.
    Delete,
}

/// How long Firecracker may take for a call that only configures. A dead one is noticed at once,
/// so this is for one that hangs; a loaded machine gets its time.
pub const CONFIGURE: Duration = Duration::from_secs(20);
/// How long it may take to start, pause or resume the guest.
pub const CHANGE: Duration = Duration::from_secs(60);

/// A typed request.
pub trait Request: Serialize + Sync {
    /// What is done.
    fn verb(&self) -> Verb;

    /// To which resource.
    fn path(&self) -> Cow<'static, str>;

    /// What the version of Firecracker must have for it.
    fn needs(&self) -> Vec<Feature>;

    /// How long the answer may take.
    fn deadline(&self) -> Duration;
}

/// Writes the implementation of [`Request`] for a type whose path is known or ends in an id.
macro_rules! request {
    ($type:ty, $verb:ident, $path:literal $(, needs |$this:ident| $needs:expr)?) => {
        request!(@ $type, $verb, |_it| $path.into(), CONFIGURE $(, |$this| $needs)?);
    };
    ($type:ty, $verb:ident, $path:literal, within $deadline:expr) => {
        request!(@ $type, $verb, |_it| $path.into(), $deadline);
    };
    ($type:ty, $verb:ident, $path:literal / $id:ident $(, needs |$this:ident| $needs:expr)?) => {
        request!(@ $type, $verb, |it| format!(concat!($path, "/{}"), it.$id).into(), CONFIGURE
            $(, |$this| $needs)?);
    };
    (@ $type:ty, $verb:ident, |$it:ident| $path:expr, $deadline:expr $(, |$this:ident| $needs:expr)?) => {
        impl Request for $type {
            fn verb(&self) -> Verb {
                Verb::$verb
            }

            fn path(&self) -> Cow<'static, str> {
                let $it = self;
                $path
            }

            fn needs(&self) -> Vec<Feature> {
                #[allow(unused_mut, reason = "some types need nothing")]
                let mut needs: Vec<Feature> = Vec::new();
                $(
                    let $this = self;
                    for (used, feature) in $needs {
                        if used {
                            needs.push(feature);
                        }
                    }
                )?
                needs
            }

            fn deadline(&self) -> Duration {
                $deadline
            }
        }
    };
}

pub(super) use request;
