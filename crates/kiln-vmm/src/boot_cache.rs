//! What was measured about this host, kept until the next boot.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::process::boot_id;

#[derive(Serialize, Deserialize)]
struct Entry<T> {
    boot_id: String,
    /// Whatever else the value depends on.
    depends_on: String,
    value: T,
}

/// Reads `name` from `dir`. Anything but a whole entry of this boot is no entry.
pub(crate) fn read<T: DeserializeOwned>(dir: &Path, name: &str, depends_on: &str) -> Option<T> {
    let bytes = std::fs::read(dir.join(name)).ok()?;
    let entry: Entry<T> = serde_json::from_slice(&bytes).ok()?;
    let current = entry.boot_id == boot_id().ok()? && entry.depends_on == depends_on;
    current.then_some(entry.value)
}

/// Keeps `value`. A cache that cannot be written only costs the next start some time.
pub(crate) fn write<T: Serialize>(dir: &Path, name: &str, depends_on: &str, value: T) {
    if let Err(error) = try_write(dir, name, depends_on, value) {
        tracing::debug!(%error, dir = %dir.display(), name, "cannot keep a measurement");
    }
}

fn try_write<T: Serialize>(
    dir: &Path,
    name: &str,
    depends_on: &str,
    value: T,
) -> std::io::Result<()> {
    let entry = Entry {
        boot_id: boot_id().map_err(std::io::Error::other)?,
        depends_on: depends_on.to_owned(),
        value,
    };
    std::fs::create_dir_all(dir)?;
    // Published by rename: another process may be reading.
    let partial = dir.join(format!(".{name}.{}", std::process::id()));
    std::fs::write(&partial, serde_json::to_vec(&entry)?)?;
    std::fs::rename(&partial, dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_holds_for_its_boot_and_its_dependency_only() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "n", "a", 7_u32);
        assert_eq!(read::<u32>(dir.path(), "n", "a"), Some(7));
        assert_eq!(read::<u32>(dir.path(), "n", "b"), None);

        let text = std::fs::read_to_string(dir.path().join("n")).unwrap();
        let other_boot = text.replace(&boot_id().unwrap(), "another boot");
        std::fs::write(dir.path().join("n"), other_boot).unwrap();
        assert_eq!(read::<u32>(dir.path(), "n", "a"), None);

        std::fs::write(dir.path().join("n"), &text[..text.len() / 2]).unwrap();
        assert_eq!(read::<u32>(dir.path(), "n", "a"), None);
    }
}
