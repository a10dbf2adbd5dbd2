//! Changing what was asked of a sandbox that exists.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::{RestartPolicy, SandboxSpec};
use crate::error::{Error, ErrorCode};

/// What changes; what is left out stays as it is. `null` takes a project, label or time-out away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxUpdate {
    /// Another name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels to set, or with `None` to take away.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
    /// Another project.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub project: Option<Option<String>>,
    /// Another time-out; of a running sandbox it begins anew now.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<Option<u64>>,
    /// Another idle time-out.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<Option<u64>>,
    /// Another restart policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
    /// Whether it goes when it stops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remove_on_stop: Option<bool>,
    /// Another number of processors; only without a machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// Other memory; only without a machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_mib: Option<u32>,
}

/// A field that is there, `null` or not.
fn given<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

impl SandboxUpdate {
    /// Whether it needs another machine than the one that runs.
    pub(super) fn changes_machine(&self) -> bool {
        self.vcpus.is_some() || self.mem_mib.is_some()
    }

    /// The spec with the changes in it, checked as a new one is.
    pub(super) fn applied(&self, to: &SandboxSpec) -> Result<SandboxSpec, Error> {
        let mut spec = to.clone();
        if let Some(name) = &self.name {
            spec.name = Some(name.clone());
        }
        for (name, value) in &self.labels {
            match value {
                Some(value) => spec.labels.insert(name.clone(), value.clone()),
                None => spec.labels.remove(name),
            };
        }
        if let Some(project) = &self.project {
            spec.project.clone_from(project);
        }
        spec.timeout_ms = self.timeout_ms.unwrap_or(spec.timeout_ms);
        spec.idle_timeout_ms = self.idle_timeout_ms.unwrap_or(spec.idle_timeout_ms);
        spec.restart = self.restart.unwrap_or(spec.restart);
        spec.remove_on_stop = self.remove_on_stop.unwrap_or(spec.remove_on_stop);
        spec.vcpus = self.vcpus.unwrap_or(spec.vcpus);
        spec.mem_mib = self.mem_mib.unwrap_or(spec.mem_mib);
        spec.check()?;
        Ok(spec)
    }
}

/// The refusal of a change that needs another machine.
pub(super) fn needs_rest(id: &str) -> Error {
    let message = format!(
        "processors and memory of sandbox {id} cannot change while it runs, or before it has begun \
         from its snapshot"
    );
    Error::new(ErrorCode::InvalidState, message).with_hint("start and stop it first")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(json: &str) -> SandboxUpdate {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_is_left_out_stays_and_null_takes_away() {
        let before = SandboxSpec {
            project: Some("shop".into()),
            timeout_ms: Some(60_000),
            labels: [
                ("a".to_owned(), "1".to_owned()),
                ("b".to_owned(), "2".to_owned()),
            ]
            .into(),
            ..SandboxSpec::default()
        };
        assert_eq!(update("{}").applied(&before).unwrap(), before);
        let after =
            update(r#"{"project": null, "timeout_ms": null, "labels": {"a": null, "c": "3"}}"#)
                .applied(&before)
                .unwrap();
        assert_eq!((after.project, after.timeout_ms), (None, None));
        assert_eq!(after.labels.keys().collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test]
    fn a_change_is_checked_as_a_new_spec_is() {
        let error = update(r#"{"name": "No Good", "mem_mib": 1}"#)
            .applied(&SandboxSpec::default())
            .unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidSpec);
        assert!(error.message().contains("name") && error.message().contains("mem_mib"));
        assert!(serde_json::from_str::<SandboxUpdate>(r#"{"mem": 1}"#).is_err());
    }
}
