//! The server's name in a TLS hello (RFC 8446 4.1.2, RFC 6066 3). Pure; the bytes are hostile.

use super::Peek;
use crate::policy::DomainName;

/// With post-quantum keys a hello is about 2 KiB.
const MAX_LEN: usize = 16 << 10;
const RECORD_HEADER_LEN: usize = 5;
const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

pub(super) fn peek(bytes: &[u8]) -> Peek {
    match handshake(bytes) {
        Some(message) => match complete(&message) {
            Some(hello) => {
                name(hello).map_or(Peek::Refused, |name| Peek::Named { name, budget: None })
            }
            None if message.first().is_none_or(|kind| *kind == CLIENT_HELLO)
                && bytes.len() < MAX_LEN =>
            {
                Peek::More
            }
            None => Peek::Refused,
        },
        None => Peek::Refused,
    }
}

/// The handshake bytes of the records so far; `None` if they are not handshake records.
fn handshake(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    while let Some(kind) = bytes.first() {
        if *kind != HANDSHAKE_RECORD {
            return None;
        }
        let Some(header) = bytes.get(..RECORD_HEADER_LEN) else {
            break;
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let end = (RECORD_HEADER_LEN + length).min(bytes.len());
        message.extend_from_slice(&bytes[RECORD_HEADER_LEN..end]);
        bytes = &bytes[end..];
    }
    Some(message)
}

/// The hello's body, once all of it is there.
fn complete(message: &[u8]) -> Option<&[u8]> {
    let [CLIENT_HELLO, a, b, c, rest @ ..] = message else {
        return None;
    };
    let length = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).ok()?;
    rest.get(..length)
}

fn name(hello: &[u8]) -> Option<DomainName> {
    const VERSION_AND_RANDOM_LEN: usize = 34;
    let mut rest = Reader(hello.get(VERSION_AND_RANDOM_LEN..)?);
    let _session = rest.short()?;
    let _ciphers = rest.long()?;
    let _compressions = rest.short()?;
    let mut extensions = Reader(rest.long()?);
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let value = extensions.long()?;
        if kind == SERVER_NAME {
            // Two of them could be read differently by the server.
            if found.is_some() {
                return None;
            }
            found = Some(only_host(value)?);
        }
    }
    found
}

fn only_host(extension: &[u8]) -> Option<DomainName> {
    let mut list = Reader(Reader(extension).long()?);
    let [HOST_NAME, rest @ ..] = list.0 else {
        return None;
    };
    list.0 = rest;
    let name = list.long()?;
    let alone = list.0.is_empty();
    DomainName::new(std::str::from_utf8(name).ok()?).filter(|_| alone)
}

/// Vectors with their length before them.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> Option<u16> {
        let [a, b, rest @ ..] = self.0 else {
            return None;
        };
        self.0 = rest;
        Some(u16::from_be_bytes([*a, *b]))
    }

    fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length.into())
    }

    fn short(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first()?;
        self.0 = rest;
        self.take(usize::from(*length))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vector(length_len: usize, value: &[u8]) -> Vec<u8> {
        let length = u32::try_from(value.len()).unwrap().to_be_bytes();
        [&length[4 - length_len..], value].concat()
    }

    /// A hello that names these servers, in one extension each.
    fn hello(names: &[&str]) -> Vec<u8> {
        let mut extensions = vec![0, 10, 0, 2, 0, 0];
        for name in names {
            let entry = [&[0][..], &vector(2, name.as_bytes())].concat();
            extensions.extend([0, 0]);
            extensions.extend(vector(2, &vector(2, &entry)));
        }
        let body = [
            vec![3, 3],
            vec![7; 32],
            vector(1, &[1; 32]),
            vector(2, &[0x13, 1]),
            vector(1, &[0]),
            vector(2, &extensions),
        ]
        .concat();
        let message = [&[1][..], &vector(3, &body)].concat();
        [&[22, 3, 1][..], &vector(2, &message)].concat()
    }

    fn named(name: &str) -> Peek {
        let name = DomainName::new(name).unwrap();
        Peek::Named { name, budget: None }
    }

    #[test]
    fn the_name_is_found_whole_or_in_pieces() {
        let bytes = hello(&["Shop.example.com"]);
        assert_eq!(peek(&bytes), named("shop.example.com"));
        for cut in 0..bytes.len() {
            assert_eq!(peek(&bytes[..cut]), Peek::More, "{cut}");
        }
        // The same message in two records.
        let (first, second) = bytes[5..].split_at(20);
        let split = [
            &[22, 3, 1][..],
            &vector(2, first),
            &[22, 3, 1],
            &vector(2, second),
        ]
        .concat();
        assert_eq!(peek(&split), named("shop.example.com"));
    }

    #[test]
    fn no_name_two_names_and_other_things_are_refused() {
        assert_eq!(peek(&hello(&[])), Peek::Refused);
        assert_eq!(peek(&hello(&["a.example", "b.example"])), Peek::Refused);
        assert_eq!(peek(&hello(&["a.example\0.b"])), Peek::Refused);
        assert_eq!(peek(b"GET / HTTP/1.1\r\n"), Peek::Refused);
        assert_eq!(
            peek(&[22, 3, 1, 0, 4, 2, 0, 0, 0]),
            Peek::Refused,
            "not a client's hello"
        );
        let endless = [
            &[22, 3, 1, 0xff, 0xff, 1, 0xff, 0xff, 0xff][..],
            &vec![0; MAX_LEN],
        ]
        .concat();
        assert_eq!(peek(&endless), Peek::Refused);
    }

    proptest! {
        #[test]
        fn damaged_hellos_never_panic(at in 0usize..200, value in any::<u8>(), cut in 0usize..200) {
            let mut bytes = hello(&["a.example"]);
            let len = bytes.len();
            bytes[at % len] = value;
            let _ = peek(&bytes[..cut % len]);
            let _ = peek(&bytes);
        }
    }
}
