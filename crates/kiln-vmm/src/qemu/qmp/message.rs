//! What QEMU says on its control socket, one JSON object per line.

use serde::Deserialize;
use serde_json::{Map, Value};

/// Longest line that is accepted; replies to our commands are far shorter.
pub const MAX_LINE_BYTES: usize = 1024 * 1024;

/// One line from QEMU.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The first line of a connection.
    Greeting {
        /// `major.minor.micro` of QEMU.
        version: String,
    },
    /// A command succeeded.
    Return {
        /// Number that the command carried.
        id: Option<u64>,
        /// Its answer.
        value: Value,
    },
    /// A command failed.
    Error {
        /// Number that the command carried.
        id: Option<u64>,
        /// QEMU's words.
        message: String,
    },
    /// Something happened.
    Event(Event),
}

/// Something that happened in the machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name: `STOP`, `RESUME`, `SHUTDOWN`, ….
    pub name: String,
    /// Its particulars.
    pub data: Map<String, Value>,
}

/// A line that is no message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not the JSON of a message.
    #[error("not a QMP message")]
    Json(#[from] serde_json::Error),
    /// An object of none of the four kinds.
    #[error("a QMP message of an unknown kind")]
    Kind,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Greeting>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Failure>,
    event: Option<String>,
    #[serde(default)]
    data: Map<String, Value>,
    #[serde(default)]
    id: Value,
}

#[derive(Deserialize)]
struct Greeting {
    version: Version,
}

#[derive(Deserialize)]
struct Version {
    qemu: Triple,
}

#[derive(Deserialize)]
struct Triple {
    major: u32,
    minor: u32,
    micro: u32,
}

#[derive(Deserialize)]
struct Failure {
    #[serde(default)]
    desc: String,
}

impl Message {
    /// Reads one line, with or without its line end.
    ///
    /// # Errors
    /// It is no message.
    pub fn parse(line: &[u8]) -> Result<Self, MessageError> {
        let line: Line = serde_json::from_slice(line)?;
        let id = line.id.as_u64();
        if let Some(Greeting { version }) = line.greeting {
            let Triple {
                major,
                minor,
                micro,
            } = version.qemu;
            Ok(Self::Greeting {
                version: format!("{major}.{minor}.{micro}"),
            })
        } else if let Some(name) = line.event {
            Ok(Self::Event(Event {
                name,
                data: line.data,
            }))
        } else if let Some(Failure { desc }) = line.error {
            Ok(Self::Error { id, message: desc })
        } else if let Some(value) = line.value {
            Ok(Self::Return { id, value })
        } else {
            Err(MessageError::Kind)
        }
    }
}

/// Cuts a stream of bytes into lines of bounded length.
#[derive(Debug, Default)]
pub struct LineSplitter {
    pending: Vec<u8>,
    /// How much of `pending` is known to hold no line end.
    searched: usize,
}

/// A line without end.
#[derive(Debug, thiserror::Error)]
#[error("a line of more than {MAX_LINE_BYTES} bytes")]
pub struct LineTooLong;

impl LineSplitter {
    /// Adds what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    ///
    /// # Errors
    /// [`LineTooLong`] when what is there exceeds every line: the connection is of no use then.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, LineTooLong> {
        let end = self.pending[self.searched..]
            .iter()
            .position(|byte| *byte == b'\n')
            .map(|position| self.searched + position);
        if end.unwrap_or(self.pending.len()) > MAX_LINE_BYTES {
            return Err(LineTooLong);
        }
        let Some(end) = end else {
            self.searched = self.pending.len();
            return Ok(None);
        };
        let mut line: Vec<u8> = self.pending.drain(..=end).collect();
        self.searched = 0;
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_four_kinds_are_told_apart() {
        let greeting = br#"{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":""},"capabilities":["oob"]}}"#;
        assert_eq!(
            Message::parse(greeting).unwrap(),
            Message::Greeting {
                version: "7.2.22".into()
            }
        );
        assert_eq!(
            Message::parse(br#"{"return":{"status":"running"},"id":3}"#).unwrap(),
            Message::Return {
                id: Some(3),
                value: json!({"status":"running"})
            }
        );
        assert_eq!(
            Message::parse(br#"{"error":{"class":"GenericError","desc":"no"},"id":4}"#).unwrap(),
            Message::Error {
                id: Some(4),
                message: "no".into()
            }
        );
        assert!(matches!(
            Message::parse(br#"{"timestamp":{"seconds":1},"event":"STOP"}"#).unwrap(),
            Message::Event(event) if event.name == "STOP"
        ));
        assert!(Message::parse(b"{}").is_err());
        assert!(Message::parse(b"HTTP/1.1 200 OK").is_err());
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_memory() {
        let mut splitter = LineSplitter::default();
        splitter.push(&vec![b'x'; MAX_LINE_BYTES]);
        assert!(splitter.next_line().unwrap().is_none());
        splitter.push(b"x");
        assert!(splitter.next_line().is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::parse(&bytes);
        }

        #[test]
        fn lines_do_not_depend_on_how_they_arrive(
            lines in proptest::collection::vec("[ -~]{0,20}", 0..8),
            cut in 1_usize..7,
        ) {
            let stream: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            let mut splitter = LineSplitter::default();
            let mut seen = Vec::new();
            for piece in stream.as_bytes().chunks(cut) {
                splitter.push(piece);
                while let Some(line) = splitter.next_line().unwrap() {
                    seen.push(String::from_utf8(line).unwrap());
                }
            }
            prop_assert_eq!(seen, lines);
        }
    }
}
