//! What names an archive by its plain bytes.

use sha2::Digest as _;

/// Which digest to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hashing {
    /// OCI's own, for layers: their diff id.
    Sha256,
    /// Ours, for what nobody else names: as strong, and several times faster.
    Blake3,
}

impl Hashing {
    pub(crate) fn start(self) -> Hasher {
        match self {
            Hashing::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
            Hashing::Blake3 => Hasher::Blake3(Box::default()),
        }
    }
}

/// A digest on its way.
pub(crate) enum Hasher {
    Sha256(sha2::Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Blake3(hasher) => drop(hasher.update(bytes)),
        }
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        match self {
            Hasher::Sha256(hasher) => hasher.finalize().into(),
            Hasher::Blake3(hasher) => hasher.finalize().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(hashing: Hashing, pieces: &[&[u8]]) -> String {
        let mut hasher = hashing.start();
        pieces.iter().for_each(|piece| hasher.update(piece));
        hex::encode(hasher.finish())
    }

    /// Known answers: FIPS 180-4's example, and the BLAKE3 paper's for no input.
    #[test]
    fn digests_are_the_published_ones_however_the_bytes_come() {
        assert_eq!(
            digest(Hashing::Sha256, &[b"a", b"bc"]),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            digest(Hashing::Blake3, &[]),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
        let bytes = vec![7; 70_000];
        assert_eq!(
            digest(Hashing::Blake3, &[&bytes]),
            digest(
                Hashing::Blake3,
                &[&bytes[..1], &bytes[1..66_000], &bytes[66_000..]]
            )
        );
    }
}
