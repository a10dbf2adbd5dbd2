//! `--ask`: what can be reached from here, for `kiln network verify`.
//!
//! One word per question on standard output, in the order of the questions: `answered`,
//! `refused` or `silent`. The questions come from the host; the answers from anywhere.

use std::fmt;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};

/// Whoever has not answered by then is silent.
const PATIENCE: Duration = Duration::from_millis(1500);
/// More than any policy asks.
const MOST_QUESTIONS: usize = 256;
const DNS: u16 = 53;

/// Something that can be asked of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Question {
    Tcp(SocketAddrV4),
    Ping(Ipv4Addr),
    Name { resolver: Ipv4Addr, name: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Answered,
    Refused,
    Silent,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Silent => "silent",
        })
    }
}

impl FromStr for Question {
    type Err = String;

    /// `tcp:ADDRESS:PORT`, `ping:ADDRESS` or `name:RESOLVER:NAME`.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("not a question: {text}");
        let (kind, rest) = text.split_once(':').ok_or_else(refused)?;
        match kind {
            "tcp" => rest.parse().map(Self::Tcp).map_err(|_| refused()),
            "ping" => rest.parse().map(Self::Ping).map_err(|_| refused()),
            "name" => {
                let (resolver, name) = rest.split_once(':').ok_or_else(refused)?;
                encode_name(name).ok_or_else(refused)?;
                Ok(Self::Name {
                    resolver: resolver.parse().map_err(|_| refused())?,
                    name: name.to_owned(),
                })
            }
            _ => Err(refused()),
        }
    }
}

/// Asks everything at once and prints the answers.
pub(crate) fn run(questions: &[String]) -> Result<(), String> {
    if questions.len() > MOST_QUESTIONS {
        return Err(format!("more than {MOST_QUESTIONS} questions"));
    }
    let questions: Vec<Question> = questions
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let answers: Vec<Answer> = thread::scope(|scope| {
        let asking: Vec<_> = questions
            .iter()
            .map(|question| scope.spawn(move || ask(question)))
            .collect();
        asking
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Answer::Silent))
            .collect()
    });
    let mut out = io::stdout().lock();
    answers
        .iter()
        .try_for_each(|answer| writeln!(out, "{answer}"))
        .map_err(|error| error.to_string())
}

fn ask(question: &Question) -> Answer {
    let answer = match question {
        Question::Tcp(to) => tcp(*to),
        Question::Ping(to) => ping(*to),
        Question::Name { resolver, name } => resolve(*resolver, name),
    };
    answer.unwrap_or_else(|error| match error.kind() {
        ErrorKind::ConnectionRefused
        | ErrorKind::ConnectionReset
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable => Answer::Refused,
        _ => Answer::Silent,
    })
}

fn tcp(to: SocketAddrV4) -> io::Result<Answer> {
    TcpStream::connect_timeout(&SocketAddr::V4(to), PATIENCE)?;
    Ok(Answer::Answered)
}

/// Marks our echo requests among others'.
const IDENTIFIER: [u8; 2] = [0x4b, 0x41];

fn ping(to: Ipv4Addr) -> io::Result<Answer> {
    const ECHO: u8 = 8;
    let socket: UdpSocket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(ipproto::ICMP),
    )?
    .into();
    let [a, b] = IDENTIFIER;
    // The sum of the other words, which does not overflow.
    let sum = !(u16::from_be_bytes([ECHO, 0]) + u16::from_be_bytes(IDENTIFIER) + 1);
    let [high, low] = sum.to_be_bytes();
    socket.send_to(&[ECHO, 0, high, low, a, b, 0, 1], (to, 0))?;
    let deadline = Instant::now() + PATIENCE;
    let mut packet = [0; 256];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Answer::Silent);
        }
        socket.set_read_timeout(Some(left))?;
        let (length, _) = socket.recv_from(&mut packet)?;
        if is_echo_reply(&packet[..length], to) {
            return Ok(Answer::Answered);
        }
    }
}

fn is_echo_reply(packet: &[u8], from: Ipv4Addr) -> bool {
    let header = packet.first().map_or(0, |byte| usize::from(byte & 15) * 4);
    let icmp = packet.get(header..header + 6);
    packet.get(12..16) == Some(&from.octets())
        && icmp.is_some_and(|icmp| icmp[0] == 0 && icmp[4..6] == IDENTIFIER)
}

/// One question for an address (type A, class IN); recursion desired.
fn resolve(resolver: Ipv4Addr, name: &str) -> io::Result<Answer> {
    let name = encode_name(name).ok_or(ErrorKind::InvalidInput)?;
    let mut id = [0; 2];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut id)?;
    let mut query = vec![id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(name);
    query.extend([0, 1, 0, 1]);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((resolver, DNS))?;
    socket.send(&query)?;
    let mut reply = [0; 4096];
    let length = socket.recv(&mut reply)?;
    Ok(judge_reply(&reply[..length], id))
}

/// Answered when there is no error and at least one answer: the resolver gives addresses only.
fn judge_reply(reply: &[u8], id: [u8; 2]) -> Answer {
    let Some(header) = reply.get(..12).filter(|header| header[..2] == id) else {
        return Answer::Silent;
    };
    let (code, answers) = (header[3] & 15, u16::from_be_bytes([header[6], header[7]]));
    if code == 0 && answers > 0 {
        Answer::Answered
    } else {
        Answer::Refused
    }
}

/// Labels with their lengths, as in a DNS message; `None` for what is no name.
fn encode_name(name: &str) -> Option<Vec<u8>> {
    let mut encoded = Vec::new();
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|n| (1..=63).contains(n))?;
        encoded.push(length);
        encoded.extend(label.as_bytes());
    }
    encoded.push(0);
    (encoded.len() <= 255).then_some(encoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn questions_are_read_strictly() {
        let good = ["tcp:1.2.3.4:80", "ping:1.2.3.4", "name:1.1.1.1:example.com"];
        for text in good {
            text.parse::<Question>().unwrap();
        }
        for text in [
            "",
            "tcp:1.2.3.4",
            "ping:example.com",
            "name:1.1.1.1:",
            "name:x:y",
            "udp:1.2.3.4:5",
        ] {
            assert!(text.parse::<Question>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_open_port_answers_and_a_closed_one_refuses() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let SocketAddr::V4(at) = listener.local_addr().unwrap() else {
            panic!("IPv4")
        };
        assert_eq!(ask(&Question::Tcp(at)), Answer::Answered);
        drop(listener);
        assert_eq!(ask(&Question::Tcp(at)), Answer::Refused);
    }

    #[test]
    fn a_reply_counts_only_with_our_number_and_an_answer() {
        let reply = |code: u8, answers: u8| [7, 7, 0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0];
        assert_eq!(judge_reply(&reply(0, 1), [7, 7]), Answer::Answered);
        assert_eq!(judge_reply(&reply(0, 0), [7, 7]), Answer::Refused);
        assert_eq!(judge_reply(&reply(3, 0), [7, 7]), Answer::Refused);
        assert_eq!(judge_reply(&reply(0, 1), [7, 8]), Answer::Silent);
    }

    proptest! {
        #[test]
        fn strange_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..64), text in ".{0,80}") {
            let _ = judge_reply(&bytes, [0, 0]);
            let _ = is_echo_reply(&bytes, Ipv4Addr::LOCALHOST);
            let _ = text.parse::<Question>();
        }
    }
}
