//! Hash of names in indexed directories: half MD4 over unsigned characters, as the kernel's.

const ROUND_2: u32 = 0x5A82_7999;
const ROUND_3: u32 = 0x6ED9_EBA1;
/// Marks the end of a directory for readers; no name may hash to it.
const END: u32 = 0x7fff_ffff << 1;

/// The hash under which the kernel looks for `name`. The lowest bit is always clear.
pub(super) fn name_hash(name: &[u8], seed: &[u32; 4]) -> u32 {
    let mut state = *seed;
    let mut rest = name;
    loop {
        half_md4(&mut state, &words(rest));
        match rest.get(32..) {
            Some(next) if !next.is_empty() => rest = next,
            _ => break,
        }
    }
    let hash = state[1] & !1;
    if hash == END { END - 2 } else { hash }
}

/// Up to 32 characters as words, most significant first, padded with the remaining length.
fn words(text: &[u8]) -> [u32; 8] {
    let length = text.len() as u32;
    let pad = length | (length << 8);
    let pad = pad | (pad << 16);
    let mut words = [pad; 8];
    let text = &text[..text.len().min(32)];
    for (word, characters) in words.iter_mut().zip(text.chunks(4)) {
        *word = characters
            .iter()
            .fold(pad, |word, c| (word << 8).wrapping_add(u32::from(*c)));
    }
    words
}

fn half_md4(state: &mut [u32; 4], input: &[u32; 8]) {
    type Mix = fn(u32, u32, u32) -> u32;
    let choose: Mix = |x, y, z| z ^ (x & (y ^ z));
    let majority: Mix = |x, y, z| (x & y).wrapping_add((x ^ y) & z);
    let parity: Mix = |x, y, z| x ^ y ^ z;
    let rounds: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (choose, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (majority, ROUND_2, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
        (parity, ROUND_3, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let mut s = *state;
    for (mix, constant, order, shifts) in rounds {
        for (step, at) in order.into_iter().enumerate() {
            // The register that is written goes a, d, c, b, a, …
            let a = (4 - step % 4) % 4;
            let mixed = mix(s[(a + 1) % 4], s[(a + 2) % 4], s[(a + 3) % 4]);
            let sum = s[a]
                .wrapping_add(mixed)
                .wrapping_add(input[at])
                .wrapping_add(constant);
            s[a] = sum.rotate_left(shifts[step % 4]);
        }
    }
    for (state, s) in state.iter_mut().zip(s) {
        *state = state.wrapping_add(s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `debugfs -R "dx_hash -h half_md4 …"` (e2fsprogs 1.47.0); the signed and the
    /// unsigned hash agree on ASCII. `e2fsck` checks the rest on whole images.
    #[test]
    fn matches_e2fsprogs() {
        let seed = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
        assert_eq!(name_hash(b"hello", &seed), 0x1746_da32);
        let long = "a-rather-long-name-of-more-than-thirty-two-characters.txt";
        assert_eq!(name_hash(long.as_bytes(), &seed), 0x33c8_d4d8);
    }
}
