//! Which engine runs a machine: chosen once per preference, then remembered.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_image::Progress;
use kiln_vmm::{
    AdoptError, Engine, EngineKind, EnginePreference, Machine, MachineRecord, SelectError,
    SelectOptions, Selection,
};
use tokio::sync::Mutex;

use crate::config::{Directories, HostConfig};
use crate::error::{Error, ErrorCode};
use crate::firecracker::{FirecrackerRelease, Releases};

/// The engines of a host.
pub(crate) struct Engines {
    options: SelectOptions,
    releases: Releases,
    chosen: Mutex<HashMap<EnginePreference, Chosen>>,
    /// Instead of what the host has.
    #[cfg(test)]
    only: Option<Arc<dyn Engine>>,
}

/// An engine and how it came to be chosen.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) reason: String,
    pub(crate) findings: Vec<String>,
    pub(crate) warning: Option<String>,
}

impl Engines {
    pub(crate) fn new(config: &HostConfig, directories: &Directories) -> Self {
        let options = SelectOptions {
            firecracker: config.firecracker.clone(),
            qemu: config.qemu.clone(),
            cache_dir: directories.cache(),
            allow_unusable_kvm: false,
            seccomp_filters: config.seccomp_filters.clone(),
        };
        Self {
            options,
            releases: Releases::new(config, directories),
            chosen: Mutex::default(),
            #[cfg(test)]
            only: None,
        }
    }

    /// Just this engine, whatever is asked for.
    #[cfg(test)]
    pub(crate) fn only(engine: Arc<dyn Engine>, config: &HostConfig) -> Self {
        let chosen = Chosen {
            engine: Arc::clone(&engine),
            reason: "the only one".to_owned(),
            findings: Vec::new(),
            warning: None,
        };
        Self {
            chosen: Mutex::new([(EnginePreference::Auto, chosen)].into()),
            only: Some(engine),
            ..Self::new(config, &Directories::new(config))
        }
    }

    /// The engine for a preference. Where that would be Firecracker and there is none, it is
    /// fetched, unless `fetching` is `None`: then nothing is, and what is found is what there is
    /// now. A failure is not remembered: what is missing may be installed a moment later.
    pub(crate) async fn choose(
        &self,
        preference: EnginePreference,
        fetching: Option<&dyn Progress>,
    ) -> Result<Chosen, Error> {
        let first = {
            // Held, so that one of many looks at the host, and given back for the download.
            let mut known = self.chosen.lock().await;
            if let Some(chosen) = known.get(&preference) {
                return Ok(chosen.clone());
            }
            let found = self.look(preference).await;
            if !self.could_be_fetched(&found) {
                let chosen = Chosen::from(found?);
                known.insert(preference, chosen.clone());
                return Ok(chosen);
            }
            found
        };
        match fetching {
            Some(progress) => self.fetched(preference, first, progress).await,
            None => Ok(self.with_note(Chosen::from(first?))),
        }
    }

    /// What there is, with a release that was fetched before.
    async fn look(&self, preference: EnginePreference) -> Result<Selection, SelectError> {
        let found = Box::pin(kiln_vmm::select(preference, &self.options)).await;
        if !lacks_firecracker(&found) {
            return found;
        }
        match self.releases.installed().await {
            Some(release) => self.select_with(preference, release.firecracker).await,
            None => found,
        }
    }

    async fn select_with(
        &self,
        preference: EnginePreference,
        firecracker: PathBuf,
    ) -> Result<Selection, SelectError> {
        let options = SelectOptions {
            firecracker: Some(firecracker),
            ..self.options.clone()
        };
        Box::pin(kiln_vmm::select(preference, &options)).await
    }

    fn could_be_fetched(&self, found: &Result<Selection, SelectError>) -> bool {
        *self.releases.wanted() != FirecrackerRelease::Never && lacks_firecracker(found)
    }

    /// Fetches Firecracker and chooses again; where that fails, another engine will do, if any.
    async fn fetched(
        &self,
        preference: EnginePreference,
        first: Result<Selection, SelectError>,
        progress: &dyn Progress,
    ) -> Result<Chosen, Error> {
        if first.is_ok() && !self.releases.is_worth_a_try() {
            return Ok(self.with_note(Chosen::from(first?)));
        }
        let failure = match self.releases.fetch(progress).await {
            Ok(Some(release)) => {
                let chosen = self.select_with(preference, release.firecracker).await?;
                let mut known = self.chosen.lock().await;
                // Whoever was faster: one engine for all.
                let chosen = known.entry(preference).or_insert_with(|| chosen.into());
                return Ok(chosen.clone());
            }
            Ok(None) => return Ok(first?.into()),
            Err(failure) => Error::from(failure),
        };
        let Ok(selection) = first else {
            return Err(failure);
        };
        let mut chosen = Chosen::from(selection);
        let note = format!("{}: QEMU runs instead", failure.message());
        tracing::warn!("{note}");
        chosen.findings.push(format!("Firecracker: {note}"));
        chosen.warning.get_or_insert(note);
        Ok(chosen)
    }

    fn with_note(&self, mut chosen: Chosen) -> Chosen {
        let wanted = self.releases.wanted();
        chosen.findings.push(format!(
            "Firecracker: {wanted} is fetched when a sandbox first needs it"
        ));
        chosen
    }

    /// Has every engine that was used let go of a snapshot.
    pub(crate) async fn forget_snapshot(&self, dir: &Path) {
        for chosen in self.chosen.lock().await.values() {
            chosen.engine.forget_snapshot(dir);
        }
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
        let mut options = SelectOptions {
            allow_unusable_kvm: true,
            // Those that it runs under were compiled when it started.
            seccomp_filters: None,
            ..self.options.clone()
        };
        let mut selection = Box::pin(kiln_vmm::select(preference, &options)).await;
        if lacks_firecracker(&selection)
            && let Some(release) = self.releases.any_installed().await
        {
            options.firecracker = Some(release.firecracker);
            selection = Box::pin(kiln_vmm::select(preference, &options)).await;
        }
        let selection = selection.map_err(|error| AdoptError::Unresponsive {
            id: record.id.clone(),
            source: std::io::Error::other(error),
        })?;
        selection.engine.adopt(record).await.map(Arc::from)
    }
}

fn lacks_firecracker(found: &Result<Selection, SelectError>) -> bool {
    match found {
        // One that was chosen is not lacked.
        Ok(selection) => {
            selection.engine.kind() != EngineKind::Firecracker && selection.lacks_firecracker()
        }
        Err(error) => error.lacks_firecracker(),
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
        let code = match error.code() {
            kiln_vmm::Code::BinaryNotFound => ErrorCode::BinaryNotFound,
            _ => ErrorCode::NoEngine,
        };
        Self::new(code, "no engine can run this sandbox")
            .with_source(error)
            .with_hint("`kiln info` tells what was found on this host")
    }
}
