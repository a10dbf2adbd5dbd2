//! How long a sandbox lives and how it is found: what `run`, `create` and `update` take alike.

use std::str::FromStr;

use clap::Args;
use kiln_api::CreateSandbox;

use crate::output::span::Millis;

/// Labels, project, time-outs and restarts of a sandbox that is made.
#[derive(Debug, Args)]
pub(crate) struct LifetimeArgs {
    /// A word to find the sandbox by
    #[arg(long, value_name = "NAME[=VALUE]")]
    label: Vec<Label>,
    /// Project that the sandbox belongs to
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// Stop the sandbox this long after it came up: 90s, 30m, 2h30m; interactive use begins it anew
    #[arg(long, value_name = "SPAN")]
    timeout: Option<Millis>,
    /// Stop the sandbox when nobody has used it for this long and no command runs in it
    #[arg(long, value_name = "SPAN")]
    idle_timeout: Option<Millis>,
    /// Remove the sandbox when it stops
    #[arg(long, conflicts_with = "restart")]
    rm: bool,
    /// Start it again when its machine or its command ends by itself: no, on-failure, on-failure:3,
    /// always
    #[arg(long, value_name = "POLICY", value_parser = restart_policy)]
    restart: Option<String>,
}

impl LifetimeArgs {
    pub(super) fn apply(self, request: CreateSandbox) -> CreateSandbox {
        CreateSandbox {
            labels: self.label.into_iter().map(Label::into_pair).collect(),
            project: self.project,
            timeout_ms: self.timeout.map(Millis::get),
            idle_timeout_ms: self.idle_timeout.map(Millis::get),
            remove_on_stop: self.rm,
            restart: self.restart,
            ..request
        }
    }
}

/// A label as it is typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    name: String,
    value: String,
}

impl Label {
    pub(super) fn into_pair(self) -> (String, String) {
        (self.name, self.value)
    }
}

impl FromStr for Label {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        if name.is_empty() {
            return Err("the name is empty");
        }
        Ok(Self {
            name: name.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// Refuses a misspelt policy before anything is asked.
pub(super) fn restart_policy(text: &str) -> Result<String, &'static str> {
    let times = text.strip_prefix("on-failure:");
    let known = matches!(text, "no" | "on-failure" | "always")
        || times.is_some_and(|times| times.parse::<u32>().is_ok());
    if known {
        Ok(text.to_owned())
    } else {
        Err("write no, on-failure, on-failure:3 or always")
    }
}
