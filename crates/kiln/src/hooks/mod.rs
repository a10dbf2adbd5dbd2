//! Where others take part in a sandbox's life: a trait for embedders, and executables in a directory.
//!
//! A hook is told of a point of a life ([`HookPoint`]) in a [`HookCall`]. Before something is done, a
//! hook whose failures abort can keep it from being done, when somebody asked for it; what a time-out
//! or a crash brings about is not asked for and not kept from happening. All other failures are
//! warnings. Hooks of one call are called one after the other, in their order.

mod executable;

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::error::{Error, ErrorCode};
use crate::network::NetworkInfo;
use crate::sandbox::SandboxInfo;
use crate::snapshot::SnapshotInfo;

pub(crate) use executable::in_directory;

/// A point of a sandbox's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookPoint {
    /// It is about to be created: it has an id, and nothing else.
    BeforeCreate,
    /// It exists.
    AfterCreate,
    /// It is about to be started.
    BeforeStart,
    /// It is up.
    AfterStart,
    /// Somebody wants it stopped.
    BeforeStop,
    /// It is down, for whatever reason.
    AfterStop,
    /// Somebody wants it removed.
    BeforeRemove,
    /// It is gone.
    AfterRemove,
    /// Something failed; [`HookCall::phase`] tells what was being done.
    OnError,
    /// Its network is there; [`HookCall::network`] tells its addresses and published ports.
    NetworkUp,
    /// Its network is gone.
    NetworkDown,
    /// Its network has another policy.
    PolicyChanged,
    /// Somebody wants a snapshot of it.
    BeforeSnapshot,
    /// There is one; [`HookCall::snapshot`] tells of it.
    AfterSnapshot,
}

impl HookPoint {
    /// The word under which an executable is told.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BeforeCreate => "before_create",
            Self::AfterCreate => "after_create",
            Self::BeforeStart => "before_start",
            Self::AfterStart => "after_start",
            Self::BeforeStop => "before_stop",
            Self::AfterStop => "after_stop",
            Self::BeforeRemove => "before_remove",
            Self::AfterRemove => "after_remove",
            Self::OnError => "on_error",
            Self::NetworkUp => "network_up",
            Self::NetworkDown => "network_down",
            Self::PolicyChanged => "policy_changed",
            Self::BeforeSnapshot => "before_snapshot",
            Self::AfterSnapshot => "after_snapshot",
        }
    }
}

/// What a hook is told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HookCall {
    /// Which point it is.
    pub point: HookPoint,
    /// The sandbox, as it is now.
    pub sandbox: SandboxInfo,
    /// What was being done, when something failed: `start`, `stop`, `snapshot`.
    pub phase: Option<&'static str>,
    /// What failed: a stable code and words.
    pub error: Option<(String, String)>,
    /// Its network, at the points that are about it.
    pub network: Option<NetworkInfo>,
    /// The snapshot that was made of it, at the point that is about it.
    pub snapshot: Option<SnapshotInfo>,
}

impl HookCall {
    pub(crate) fn new(point: HookPoint, sandbox: SandboxInfo) -> Self {
        Self {
            point,
            sandbox,
            phase: None,
            error: None,
            network: None,
            snapshot: None,
        }
    }
}

/// What the failure of a hook means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// What it was called before is not done.
    Abort,
    /// It is written down, and nothing else.
    Warn,
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HookError(pub String);

/// Takes part in sandboxes' lives.
///
/// ```
/// use kiln::{Hook, HookCall, HookError, HookPoint, OnFailure};
///
/// struct OnlySmall;
///
/// #[async_trait::async_trait]
/// impl Hook for OnlySmall {
///     fn name(&self) -> &str {
///         "only-small"
///     }
///     fn on_failure(&self) -> OnFailure {
///         OnFailure::Abort
///     }
///     async fn call(&self, call: &HookCall) -> Result<(), HookError> {
///         if call.point == HookPoint::BeforeCreate && call.sandbox.vcpus > 2 {
///             return Err(HookError("two processors are enough".to_owned()));
///         }
///         Ok(())
///     }
/// }
/// ```
#[async_trait]
pub trait Hook: Send + Sync {
    /// For messages.
    fn name(&self) -> &str;

    /// What its failure means.
    fn on_failure(&self) -> OnFailure;

    /// Is called at every point. The sandbox waits meanwhile, so it has a deadline of its own.
    async fn call(&self, call: &HookCall) -> Result<(), HookError>;
}

/// The hooks of a host.
#[derive(Clone, Default)]
pub(crate) struct Hooks(Arc<[Arc<dyn Hook>]>);

impl Hooks {
    pub(crate) fn new(hooks: Vec<Arc<dyn Hook>>) -> Self {
        Self(hooks.into())
    }

    /// Asks whether something that was asked for may be done.
    pub(crate) async fn ask(&self, call: &HookCall) -> Result<(), Error> {
        for hook in self.0.iter() {
            let Err(failure) = hook.call(call).await else {
                continue;
            };
            match hook.on_failure() {
                OnFailure::Abort => return Err(refused(hook.as_ref(), call, failure)),
                OnFailure::Warn => tell(hook.as_ref(), call, &failure),
            }
        }
        Ok(())
    }

    /// Tells of something that is done.
    pub(crate) async fn tell(&self, call: &HookCall) {
        for hook in self.0.iter() {
            if let Err(failure) = hook.call(call).await {
                tell(hook.as_ref(), call, &failure);
            }
        }
    }

    /// Whether there is anybody to call: what a call tells is not gathered for nobody.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn refused(hook: &dyn Hook, call: &HookCall, failure: HookError) -> Error {
    let (name, point) = (hook.name(), call.point.as_str());
    let message = format!("the hook {name} refuses {point}");
    Error::new(ErrorCode::HookRefused, message).with_source(failure)
}

fn tell(hook: &dyn Hook, call: &HookCall, failure: &HookError) {
    warn!(
        hook = hook.name(),
        point = call.point.as_str(),
        sandbox = call.sandbox.id,
        error = %failure,
        "a hook failed"
    );
}
