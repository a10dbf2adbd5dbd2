//! Writing the few entries of the generated layer as a tar stream.

const BLOCK: usize = 512;

/// A tar stream in memory; times are zero, so that the same entries give the same bytes.
pub(super) struct TarWriter {
    bytes: Vec<u8>,
}

/// Owner and permissions of an entry.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub(super) mode: u32,
    pub(super) group: u32,
}

impl Access {
    pub(super) const FILE: Self = Self::root(0o644);
    pub(super) const DIRECTORY: Self = Self::root(0o755);

    pub(super) const fn root(mode: u32) -> Self {
        Self { mode, group: 0 }
    }
}

impl TarWriter {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    pub(super) fn directory(&mut self, name: &str, access: Access) {
        self.header(&format!("./{name}/"), b'5', access, 0, "");
    }

    pub(super) fn file(&mut self, name: &str, access: Access, content: &[u8]) {
        self.header(&format!("./{name}"), b'0', access, content.len(), "");
        self.bytes.extend_from_slice(content);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(BLOCK), 0);
    }

    pub(super) fn symlink(&mut self, name: &str, target: &str) {
        self.header(&format!("./{name}"), b'2', Access::root(0o777), 0, target);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }

    fn header(&mut self, name: &str, kind: u8, access: Access, size: usize, target: &str) {
        // Every name is written in this crate.
        debug_assert!(name.len() <= 100 && target.len() <= 100, "{name}");
        let mut header = [0; BLOCK];
        let mut put = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, name);
        put(100, &format!("{:07o}", access.mode));
        put(108, "0000000");
        put(116, &format!("{:07o}", access.group));
        put(124, &format!("{size:011o}"));
        put(136, "00000000000");
        put(148, "        ");
        put(157, target);
        put(257, "ustar\x0000");
        header[156] = kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
    }
}
