//! Which engine runs a machine: chosen once per preference, then remembered.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_vmm::{
    AdoptError, Engine, EngineKind, EnginePreference, Machine, MachineRecord, SelectError,
    SelectOptions, Selection,
};
use tokio::sync::Mutex;

use crate::config::HostConfig;
use crate::error::{Error, ErrorCode};

/// The engines of a host.
pub(crate) struct Engines {
    options: SelectOptions,
    chosen: Mutex<HashMap<EnginePreference, Chosen>>,
    /// Instead of what the host has.
    #[cfg(test)]
    only: Option<Arc<dyn Engine>>,
}

/// An engine and how it came to be chosen.
#[derive(Clone)]
pub(crate) struct Chosen {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) reason: String,
    pub(crate) findings: Vec<String>,
    pub(crate) warning: Option<String>,
}

impl Engines {
    pub(crate) fn new(config: &HostConfig, cache_dir: PathBuf) -> Self {
        let options = SelectOptions {
            firecracker: config.firecracker.clone(),
            qemu: config.qemu.clone(),
            cache_dir,
            allow_unusable_kvm: false,
        };
        Self {
            options,
            chosen: Mutex::default(),
            #[cfg(test)]
            only: None,
        }
    }

    /// Just this engine, whatever is asked for.
    #[cfg(test)]
    pub(crate) fn only(engine: Arc<dyn Engine>) -> Self {
        let chosen = Chosen {
            engine: Arc::clone(&engine),
            reason: "the only one".to_owned(),
            findings: Vec::new(),
            warning: None,
        };
        Self {
            options: SelectOptions {
                firecracker: None,
                qemu: None,
                cache_dir: PathBuf::new(),
                allow_unusable_kvm: false,
            },
            chosen: Mutex::new([(EnginePreference::Auto, chosen)].into()),
            only: Some(engine),
        }
    }

    /// The engine for a preference. A failure is not remembered: what is missing may be installed
    /// a moment later.
    pub(crate) async fn choose(&self, preference: EnginePreference) -> Result<Chosen, Error> {
        let mut known = self.chosen.lock().await;
        if let Some(chosen) = known.get(&preference) {
            return Ok(chosen.clone());
        }
        let chosen = Chosen::from(kiln_vmm::select(preference, &self.options).await?);
        known.insert(preference, chosen.clone());
        Ok(chosen)
    }

    /// Takes over a machine that an earlier owner started. Nothing is probed: it runs.
    pub(crate) async fn adopt(
        &self,
        record: &MachineRecord,
    ) -> Result<Arc<dyn Machine>, AdoptError> {
        #[cfg(test)]
        if let Some(engine) = &self.only {
            return engine.adopt(record).await.map(Arc::from);
        }
        let preference = match record.engine {
            EngineKind::Firecracker => EnginePreference::Firecracker,
            EngineKind::Qemu => EnginePreference::Qemu,
            EngineKind::Fake => EnginePreference::Auto,
        };
        let options = SelectOptions {
            allow_unusable_kvm: true,
            ..self.options.clone()
        };
        let selection = kiln_vmm::select(preference, &options)
            .await
            .map_err(|error| AdoptError::Unresponsive {
                id: record.id.clone(),
                source: std::io::Error::other(error),
            })?;
        selection.engine.adopt(record).await.map(Arc::from)
    }
}

impl From<Selection> for Chosen {
    fn from(selection: Selection) -> Self {
        let tell = |finding: &kiln_vmm::Finding| {
            let verdict = if finding.usable {
                "usable"
            } else {
                "not usable"
            };
            format!("{}: {verdict}: {}", finding.about, finding.detail)
        };
        Self {
            findings: selection.findings.iter().map(tell).collect(),
            engine: selection.engine,
            reason: selection.reason,
            warning: selection.warning,
        }
    }
}

impl From<SelectError> for Error {
    fn from(error: SelectError) -> Self {
        let code = match &error {
            SelectError::NoFirecracker | SelectError::NoQemu => ErrorCode::BinaryNotFound,
            _ => ErrorCode::NoEngine,
        };
        Self::new(code, "no engine can run this sandbox")
            .with_source(error)
            .with_hint("`kiln info` tells what was found on this host")
    }
}
