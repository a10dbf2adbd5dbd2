//! A guest's console.

use std::collections::VecDeque;

use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use kiln::{ConsoleReader, Host};
use serde::Deserialize;

use super::App;
use crate::{
    http::{
        Connection,
        error::ApiError,
        extract::{Named, Options},
    },
    lifetime::Lifetime,
};

/// Most lines that can be asked for: where each begins is remembered while the console is read.
const MAX_TAIL: usize = 100_000;

/// What can be asked of a console.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogOptions {
    #[serde(default)]
    follow: bool,
    tail: Option<usize>,
}

pub(super) async fn read(
    State(app): State<App>,
    axum::Extension(connection): axum::Extension<Connection>,
    Named(key): Named<String>,
    Options(options): Options<LogOptions>,
) -> Result<Response, ApiError> {
    let skip = match options.tail {
        None => 0,
        Some(lines) if lines > MAX_TAIL => {
            return Err(ApiError::invalid(format!(
                "tail is {lines}, more than {MAX_TAIL}"
            )));
        }
        Some(lines) => bytes_before_tail(&app.host, &key, lines).await?,
    };
    let reader = app.host.console(&key, options.follow).await?;
    let tail = Tail {
        reader,
        skip,
        lifetime: app.lifetime,
        _connection: connection,
    };
    let body = Body::from_stream(stream::unfold(tail, Tail::next));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// How many bytes come before the last lines. The console is read twice, since it does not fit
/// into memory.
async fn bytes_before_tail(host: &Host, key: &str, lines: usize) -> Result<u64, ApiError> {
    let mut reader = host.console(key, false).await?;
    let mut starts = LineStarts::new(lines);
    while let Some(bytes) = reader.next().await? {
        starts.read(&bytes);
    }
    Ok(starts.first())
}

/// Where the last lines begin, without keeping the lines.
#[derive(Debug)]
struct LineStarts {
    starts: VecDeque<u64>,
    lines: usize,
    read: u64,
    at_line_start: bool,
}

impl LineStarts {
    fn new(lines: usize) -> Self {
        Self {
            starts: VecDeque::new(),
            lines,
            read: 0,
            at_line_start: true,
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.at_line_start {
                self.starts.push_back(self.read);
                if self.starts.len() > self.lines {
                    self.starts.pop_front();
                }
            }
            self.at_line_start = *byte == b'\n';
            self.read += 1;
        }
    }

    fn first(&self) -> u64 {
        self.starts.front().copied().unwrap_or(self.read)
    }
}

/// A console from some byte on, until its end, or the daemon's.
struct Tail {
    reader: ConsoleReader,
    skip: u64,
    lifetime: Lifetime,
    _connection: Connection,
}

impl Tail {
    async fn next(mut self) -> Option<(Result<Bytes, std::io::Error>, Self)> {
        loop {
            let read = tokio::select! {
                read = self.reader.next() => read,
                () = self.lifetime.stopping() => return None,
            };
            match read {
                Ok(None) => return None,
                Err(error) => return Some((Err(std::io::Error::other(error.message())), self)),
                Ok(Some(mut bytes)) => {
                    let skipped = bytes
                        .len()
                        .min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                    self.skip -= skipped as u64;
                    let rest = bytes.split_off(skipped);
                    if !rest.is_empty() {
                        return Some((Ok(rest), self));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LineStarts;

    fn tail(text: &str, lines: usize) -> &str {
        let mut starts = LineStarts::new(lines);
        for piece in text.as_bytes().chunks(3) {
            starts.read(piece);
        }
        &text[usize::try_from(starts.first()).unwrap()..]
    }

    #[test]
    fn the_tail_is_whole_lines() {
        assert_eq!(tail("one\ntwo\nthree\n", 2), "two\nthree\n");
        assert_eq!(tail("one\ntwo\nlogin: ", 2), "two\nlogin: ");
        assert_eq!(tail("one\n", 9), "one\n");
        assert_eq!(tail("one\n", 0), "");
        assert_eq!(tail("", 2), "");
        assert_eq!(tail("\n\n\n", 2), "\n\n");
    }
}
