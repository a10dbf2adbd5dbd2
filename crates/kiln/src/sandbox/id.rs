//! Names of sandboxes that nobody has to think of.

use crate::error::{Error, ErrorCode};

/// Characters of an id: 36^12 ids, so a collision among a million is one in 10^7.
const LENGTH: usize = 12;
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// A new random id, `[a-z][a-z0-9]{11}`: a host name, a file name and an instance id alike.
pub(crate) fn random_id() -> Result<String, Error> {
    let mut bytes = [0u8; LENGTH];
    getrandom::fill(&mut bytes).map_err(|source| {
        Error::new(ErrorCode::Host, "the kernel gives no random bytes").with_source(source)
    })?;
    let letter = |(place, byte): (usize, &u8)| {
        let choices = if place == 0 { 26 } else { ALPHABET.len() };
        char::from(ALPHABET[usize::from(*byte) % choices])
    };
    Ok(bytes.iter().enumerate().map(letter).collect())
}

/// Whether a text looks like one.
pub(crate) fn is_sandbox_id(text: &str) -> bool {
    text.len() == LENGTH && text.bytes().all(|byte| ALPHABET.contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_and_differ() {
        let (one, two) = (random_id().expect("id"), random_id().expect("id"));
        assert_ne!(one, two);
        assert!(one.len() == LENGTH && one.bytes().all(|b| ALPHABET.contains(&b)));
        assert!(is_sandbox_id(&one) && !is_sandbox_id("snapshot-one"));
        assert!(one.starts_with(|c: char| c.is_ascii_lowercase()));
    }
}
