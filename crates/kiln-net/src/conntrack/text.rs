//! The kernel's list of flows as text: `/proc/net/nf_conntrack`.
//!
//! Walking the table for the text takes 0.15 ms where the same by netlink takes 4 ms or more (262,144
//! buckets): it locks none that is empty. But between two reads, kernels before 6.17 find their
//! place again by counting, and leave out as many flows as have ended meanwhile: there, only a list
//! that one read takes whole is good.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;

use super::Flow;
use crate::netlink::collected;

/// Of the thread, whose network namespace may be another than the process's.
const PATH: &str = "/proc/thread-self/net/nf_conntrack";
/// First kernel that keeps its place between reads.
const STEADY: (u32, u32) = (6, 17);
/// Of more text, netlink's list is faster, which the kernel filters.
const MOST_TEXT: usize = 1 << 20;
const CHUNK: usize = 16 << 10;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The list of one network namespace.
#[derive(Debug)]
pub(super) struct Listing {
    file: File,
    steady: bool,
}

impl Listing {
    /// Of the calling thread's namespace; `None` where this kernel has no such list.
    pub(super) fn open() -> Option<Self> {
        let steady = release(rustix::system::uname().release().to_bytes()) >= Some(STEADY);
        let file = File::open(PATH).ok()?;
        Some(Self { file, steady })
    }

    /// The flows that `wanted` names by who takes part and the mark; `None` when the list is not to
    /// be had this way.
    pub(super) fn flows(&self, wanted: impl Fn(&[Ipv4Addr; 2], u32) -> bool) -> Option<Vec<Flow>> {
        let text = self.text().ok()??;
        let mut flows = Vec::new();
        for line in text.split(|byte| *byte == b'\n') {
            match Line::read(line) {
                Some(line) if wanted(&[line.original.source, line.reply.source], line.mark) => {
                    flows.push(line.flow()?);
                }
                Some(_) => {}
                None if line.starts_with(b"ipv4") => return None,
                None => {}
            }
        }
        Some(flows)
    }

    fn text(&self) -> io::Result<Option<Vec<u8>>> {
        let (mut text, mut reads) = (Vec::new(), 0);
        loop {
            let from = text.len();
            text.resize(from + CHUNK, 0);
            let length = self.file.read_at(&mut text[from..], from as u64)?;
            text.truncate(from + length);
            if length == 0 {
                return Ok((self.steady || reads <= 1).then_some(text));
            }
            reads += 1;
            if text.len() > MOST_TEXT || (!self.steady && reads > 1) {
                return Ok(None);
            }
        }
    }
}

/// `6.18.2-cloud` is (6, 18).
fn release(text: &[u8]) -> Option<(u32, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?))
}

/// One direction.
struct Tuple {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    /// Ports, or type, code and id of an echo.
    rest: [Option<u16>; 3],
}

struct Line {
    protocol: u8,
    original: Tuple,
    reply: Tuple,
    mark: u32,
    zone: u32,
}

impl Line {
    /// `None` for what is no IPv4 flow.
    fn read(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let mut words = line.split_ascii_whitespace();
        if words.next()? != "ipv4" {
            return None;
        }
        let protocol = words.nth(2)?.parse().ok()?;
        let pairs: Vec<(&str, &str)> = words.filter_map(|word| word.split_once('=')).collect();
        let second = pairs.iter().skip(1).position(|(key, _)| *key == "src")? + 1;
        let (original, reply) = pairs.split_at(second);
        let number = |wanted: &str| {
            let (_, value) = reply.iter().find(|(key, _)| *key == wanted)?;
            value.parse::<u32>().ok()
        };
        Some(Self {
            protocol,
            original: Tuple::read(protocol, original)?,
            reply: Tuple::read(protocol, reply)?,
            mark: number("mark")?,
            zone: number("zone").unwrap_or(0),
        })
    }

    /// `None` for one that cannot be named this way, by its protocol or its zone.
    fn flow(&self) -> Option<Flow> {
        if self.zone != 0 {
            return None;
        }
        let has_ports = matches!(self.protocol, TCP | UDP);
        let port = |tuple: &Tuple, place: usize| tuple.rest[place].filter(|_| has_ports);
        Some(Flow {
            original: self.original.attributes(self.protocol)?,
            id: None,
            mark: self.mark,
            from: self.original.source,
            to: self.original.destination,
            answered_by: self.reply.source,
            answered_port: port(&self.reply, 0),
            protocol: self.protocol,
            port: port(&self.original, 1),
        })
    }
}

impl Tuple {
    fn read(protocol: u8, pairs: &[(&str, &str)]) -> Option<Self> {
        let value = |wanted: &str| {
            let found = pairs.iter().find(|(key, _)| *key == wanted);
            found.map(|(_, value)| *value)
        };
        let number = |wanted: &str| value(wanted)?.parse().ok();
        Some(Self {
            source: value("src")?.parse().ok()?,
            destination: value("dst")?.parse().ok()?,
            rest: match protocol {
                ICMP => ["type", "code", "id"].map(number),
                _ => [number("sport"), number("dport"), None],
            },
        })
    }

    /// As netlink names it.
    fn attributes(&self, protocol: u8) -> Option<Vec<u8>> {
        let [first, second, third] = self.rest;
        let (first, second) = (first?, second?);
        let echo = match protocol {
            ICMP => Some((
                u8::try_from(first).ok()?,
                u8::try_from(second).ok()?,
                third?,
            )),
            TCP | UDP => None,
            _ => return None,
        };
        Some(collected(|a| {
            a.nest(1, |ip| {
                ip.bytes(1, &self.source.octets())
                    .bytes(2, &self.destination.octets());
            });
            a.nest(2, |proto| {
                proto.u8(1, protocol);
                match echo {
                    Some((kind, code, id)) => {
                        proto.bytes(4, &id.to_be_bytes()).u8(5, kind).u8(6, code);
                    }
                    None => {
                        proto
                            .bytes(2, &first.to_be_bytes())
                            .bytes(3, &second.to_be_bytes());
                    }
                }
            });
        }))
    }
}

/// For fuzzing.
pub(super) fn hostile(bytes: &[u8]) {
    let _ = Line::read(bytes).map(|line| line.flow());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flow(line: &str) -> Option<Flow> {
        Line::read(line.as_bytes())?.flow()
    }

    #[test]
    fn lines_say_what_netlink_says() {
        let udp = flow(
            "ipv4     2 udp      17 29 src=198.18.1.7 dst=8.8.8.8 sport=43848 dport=53 packets=1 \
             bytes=60 [UNREPLIED] src=198.18.0.1 dst=198.18.1.7 sport=5353 dport=43848 packets=0 \
             bytes=0 mark=1793 zone=0 use=2",
        )
        .unwrap();
        assert_eq!(udp.mark, 0x701);
        assert_eq!(
            (udp.from, udp.to),
            ([198, 18, 1, 7].into(), [8, 8, 8, 8].into())
        );
        assert_eq!(udp.answered_by, Ipv4Addr::new(198, 18, 0, 1));
        assert_eq!((udp.port, udp.answered_port), (Some(53), Some(5353)));
        let tuple = [
            &[
                20, 0, 1, 0x80, 8, 0, 1, 0, 198, 18, 1, 7, 8, 0, 2, 0, 8, 8, 8, 8,
            ][..],
            &[28, 0, 2, 0x80, 5, 0, 1, 0, 17, 0, 0, 0],
            &[6, 0, 2, 0, 0xab, 0x48, 0, 0, 6, 0, 3, 0, 0, 53, 0, 0],
        ];
        assert_eq!(udp.original, tuple.concat());
        let tcp = flow(
            "ipv4     2 tcp      6 431999 ESTABLISHED src=1.2.3.4 dst=5.6.7.8 sport=1 dport=2 \
             src=5.6.7.8 dst=1.2.3.4 sport=2 dport=1 [ASSURED] mark=0 use=1",
        );
        assert_eq!(tcp.unwrap().protocol, 6);
        let echo = flow(
            "ipv4     2 icmp     1 29 src=1.2.3.4 dst=5.6.7.8 type=8 code=0 id=7 src=5.6.7.8 \
             dst=1.2.3.4 type=0 code=0 id=7 mark=9 zone=0 use=2",
        );
        let echo = echo.unwrap();
        assert_eq!((echo.port, echo.answered_port), (None, None));
        for other in [
            "ipv6     10 udp      17 29 src=::1 dst=::1 sport=1 dport=2 src=::1 dst=::1 mark=0",
            "ipv4     2 udp      17 29 src=1.2.3.4 dst=5.6.7.8 sport=1 dport=2 src=5.6.7.8 \
             dst=1.2.3.4 sport=2 dport=1 mark=0 zone=3 use=1",
            "ipv4     2 gre      47 29 src=1.2.3.4 dst=5.6.7.8 srckey=0x0 dstkey=0x0 src=5.6.7.8 \
             dst=1.2.3.4 srckey=0x0 dstkey=0x0 mark=0 use=1",
            "",
        ] {
            assert_eq!(flow(other), None, "{other}");
        }
    }

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(release(b"6.1.0-56-cloud-amd64"), Some((6, 1)));
        assert!(release(b"6.17.3").unwrap() >= STEADY && release(b"6.9").unwrap() < STEADY);
        assert_eq!(release(b"next"), None);
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), tail in ".{0,200}") {
            hostile(&bytes);
            hostile(format!("ipv4 2 udp 17 29 src=1.2.3.4 dst=1.2.3.4 {tail}").as_bytes());
        }
    }
}
