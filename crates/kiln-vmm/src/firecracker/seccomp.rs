//! System call filters of the user's own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// Compiling takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(20);

/// Filters that cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The compiler cannot be run.
    #[error("cannot run {compiler}")]
    Run {
        /// Its path.
        compiler: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It refuses them.
    #[error("{filters} are no filters: {output}")]
    Refused {
        /// Their file.
        filters: PathBuf,
        /// The compiler's words.
        output: String,
    },
}

/// Compiles `filters`; `compiled` appears whole or not at all.
pub(super) async fn compile(
    filters: &Path,
    compiler: &Path,
    compiled: &Path,
) -> Result<(), FilterError> {
    let run = |source| FilterError::Run {
        compiler: compiler.to_owned(),
        source,
    };
    let mut partial = compiled.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let mut command = Command::new(compiler);
    command
        .arg("--input-file")
        .arg(filters)
        .args(["--target-arch", std::env::consts::ARCH, "--output-file"])
        .arg(&partial)
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(DEADLINE, command.output())
        .await
        .map_err(|_| run(std::io::ErrorKind::TimedOut.into()))?
        .map_err(run)?;
    if !output.status.success() || !partial.is_file() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(FilterError::Refused {
            filters: filters.to_owned(),
            output: words.trim().chars().take(400).collect(),
        });
    }
    std::fs::rename(&partial, compiled).map_err(run)
}
