//! The host in an HTTP/1 head, and how long the request is. Pure; the bytes are hostile.
//!
//! Strict on purpose: whatever a server might read differently is refused, and one connection
//! carries one request, so that a second one cannot name another host.

use super::Peek;
use crate::policy::DomainName;

const MAX_LEN: usize = 16 << 10;
const END: &[u8] = b"\r\n\r\n";

pub(super) fn peek(bytes: &[u8]) -> Peek {
    let end = bytes.windows(END.len()).position(|window| window == END);
    match end {
        Some(end) => head(bytes, end).unwrap_or(Peek::Refused),
        None if bytes.len() < MAX_LEN => Peek::More,
        None => Peek::Refused,
    }
}

fn head(bytes: &[u8], end: usize) -> Option<Peek> {
    let text = std::str::from_utf8(bytes.get(..end)?).ok()?;
    let mut lines = text.split("\r\n");
    let target = target(lines.next()?)?;
    let (mut host, mut length) = (None, None);
    for line in lines {
        let (name, value) = header(line)?;
        match name.to_ascii_lowercase().as_str() {
            "host" if host.is_none() => host = Some(without_port(value)?),
            "content-length" if length.is_none() => length = Some(decimal(value)?),
            // Given twice, or a body whose end only the server knows.
            "host" | "content-length" | "transfer-encoding" => return None,
            _ => {}
        }
    }
    let host = host?;
    let consistent = target.is_none_or(|target| target == host);
    let head_len = u64::try_from(end + END.len()).ok()?;
    let budget = Some(head_len.checked_add(length.unwrap_or(0))?);
    consistent.then_some(Peek::Named { name: host, budget })
}

/// The host in the request line, if it has one; `None` for a line that is no request.
#[expect(
    clippy::option_option,
    reason = "no request, and a request without a host"
)]
fn target(line: &str) -> Option<Option<DomainName>> {
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, "HTTP/1.1" | "HTTP/1.0"] = words[..] else {
        return None;
    };
    let token = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
    if !token || method == "CONNECT" || has_controls(target) {
        return None;
    }
    if target.starts_with('/') || target == "*" {
        return Some(None);
    }
    let authority = target
        .strip_prefix("http://")?
        .split(['/', '?', '#'])
        .next()?;
    without_port(authority).map(Some)
}

fn header(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once(':')?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let named = !name.is_empty() && name.bytes().all(token);
    (named && !has_controls(value)).then(|| (name, value.trim_matches([' ', '\t'])))
}

fn has_controls(text: &str) -> bool {
    text.bytes()
        .any(|byte| byte.is_ascii_control() && byte != b'\t')
}

fn without_port(authority: &str) -> Option<DomainName> {
    let (host, port) = authority.split_once(':').unwrap_or((authority, "80"));
    DomainName::new(host).filter(|_| port == "80")
}

fn decimal(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(text: &str) -> Option<(String, u64)> {
        match peek(text.as_bytes()) {
            Peek::Named { name, budget } => Some((name.to_string(), budget.unwrap())),
            Peek::More | Peek::Refused => None,
        }
    }

    #[test]
    fn the_host_and_the_length_are_read() {
        let get = "GET /a HTTP/1.1\r\nHost: Shop.Example.com\r\nAccept: */*\r\n\r\n";
        assert_eq!(
            named(get),
            Some(("shop.example.com".to_owned(), get.len() as u64))
        );
        let post =
            "POST http://a.example:80/x HTTP/1.1\r\nhost:a.example\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(
            named(post),
            Some(("a.example".to_owned(), post.len() as u64 + 5))
        );
        assert_eq!(named(&format!("{post}hello")), named(post));
        for cut in 0..get.len() - 1 {
            assert_eq!(peek(&get.as_bytes()[..cut]), Peek::More);
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
            "GET http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.example:8080\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a.example\r\n\r\n",
            "GET / HTTP/1.1\r\nX: y\r\n Host: b.example\r\nHost: a.example\r\n\r\n",
            "GET / HTTP/1.1\r\nX: y\nHost: b.example\r\nHost: a.example\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: +5\r\n\r\n",
            "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\n",
            "get / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        ] {
            assert_eq!(peek(head.as_bytes()), Peek::Refused, "{head}");
        }
        assert_eq!(peek(&vec![b'a'; MAX_LEN]), Peek::Refused);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), tail in "[ -~\r\n]{0,100}") {
            let _ = peek(&bytes);
            let _ = peek(format!("GET / HTTP/1.1\r\n{tail}\r\n\r\n").as_bytes());
        }
    }
}
