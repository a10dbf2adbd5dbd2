//! Loading kernel modules, in the order that the initramfs gives.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::console;

/// Loads `directory/<file>` for each line `file [parameters]` of `directory/order`. Without that
/// file there is nothing to load: everything is built into the kernel.
///
/// A module that does not load is reported, not fatal: if it was needed, what needed it says so.
pub(crate) fn load_all(directory: &Path) {
    let order = fs::read_to_string(directory.join("order")).unwrap_or_default();
    for (file, parameters) in order.lines().filter_map(entry) {
        if let Err(error) = load(&directory.join(file), parameters) {
            console::warn(format_args!("cannot load module {file}: {error}"));
        }
    }
}

fn entry(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let (file, parameters) = line.split_once(' ').unwrap_or((line, ""));
    (!file.is_empty() && !file.starts_with('#')).then(|| (file, parameters.trim()))
}

fn load(path: &Path, parameters: &str) -> io::Result<()> {
    let parameters = CString::new(parameters)?;
    match rustix::system::finit_module(File::open(path)?, &parameters, 0) {
        // Built in after all, or loaded by an alias.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::entry;

    #[test]
    fn lines_of_the_order() {
        assert_eq!(entry("virtio.ko"), Some(("virtio.ko", "")));
        assert_eq!(entry(" a.ko  x=1 y=2 "), Some(("a.ko", "x=1 y=2")));
        assert_eq!(entry(""), None);
        assert_eq!(entry("# why"), None);
    }
}
