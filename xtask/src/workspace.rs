//! Where things lie in the checkout: its root, the target directory, the built `kiln`.

use std::path::PathBuf;

/// The root of the checkout that this xtask was built from.
pub(crate) fn root() -> PathBuf {
    let xtask = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    xtask
        .parent()
        .map_or_else(|| PathBuf::from("."), PathBuf::from)
}

/// Cargo's target directory, which `CARGO_TARGET_DIR` may have moved.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => root().join(dir),
        _ => root().join("target"),
    }
}

/// The debug build of `kiln`.
pub(crate) fn debug_kiln() -> PathBuf {
    target().join("debug/kiln")
}

/// The release build of `kiln`.
pub(crate) fn release_kiln() -> PathBuf {
    target().join("release/kiln")
}
