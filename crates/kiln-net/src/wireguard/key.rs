//! A WireGuard key: never printed, wiped when dropped.

use std::fmt;

/// 32 bytes that are nobody's business.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// Read the usual base64 form.
    pub fn new(text: &str) -> Option<Self> {
        let digits = text.strip_suffix('=')?;
        if digits.len() != 43 {
            return None;
        }
        let (mut key, mut filled) = (Self([0; 32]), 0);
        let (mut bits, mut held) = (0_u32, 0);
        for digit in digits.bytes() {
            bits = (bits << 6) | u32::from(value(digit)?);
            held += 6;
            if held >= 8 {
                held -= 8;
                *key.0.get_mut(filled)? = (bits >> held).to_le_bytes()[0];
                filled += 1;
                bits &= (1 << held) - 1;
            }
        }
        // 43 digits carry two bits too many; they must be zero.
        (filled == 32 && bits == 0).then_some(key)
    }

    /// The bytes, for the kernel.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn value(digit: u8) -> Option<u8> {
    match digit {
        b'A'..=b'Z' => Some(digit - b'A'),
        b'a'..=b'z' => Some(digit - b'a' + 26),
        b'0'..=b'9' => Some(digit - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // Best effort: copies that the compiler made are not reached.
        std::hint::black_box(&mut self.0).fill(0);
    }
}
