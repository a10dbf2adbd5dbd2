//! Places where a test has the process die, as by `kill -9`. In release builds there are none.

/// Names a step that was just done. Where the file that `KILN_FAILPOINT` names holds this name, the
/// process dies here; the file is removed first, so that the next one does not.
#[cfg(debug_assertions)]
pub fn reach(name: &str) {
    let Some(path) = std::env::var_os("KILN_FAILPOINT") else {
        return;
    };
    if std::fs::read_to_string(&path).is_ok_and(|it| it.trim() == name) {
        let _ = std::fs::remove_file(&path);
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
pub fn reach(_: &str) {}
