//! Reading what a guest printed on its console, and what it prints from now on.

use std::path::Path;

use bytes::Bytes;
use kiln_vmm::Machine;
use kiln_vmm::console::{Chunk, ConsoleEnd, ConsoleLog};
use tokio::sync::watch;

use crate::error::{Error, ErrorCode};

/// Bytes that one read takes at most.
const CHUNK: usize = 64 * 1024;

/// A guest's console, from the oldest byte that is kept.
#[derive(Debug)]
pub struct ConsoleReader {
    source: Source,
    offset: u64,
}

#[derive(Debug)]
enum Source {
    /// A machine that runs; `growth` is there if its end is waited for.
    Live {
        log: ConsoleLog,
        growth: Option<watch::Receiver<ConsoleEnd>>,
    },
    /// A machine that has ended.
    Ended(Option<kiln_vmm::console::ConsoleReader>),
}

impl ConsoleReader {
    pub(crate) fn open(
        path: &Path,
        machine: Option<&dyn Machine>,
        follow: bool,
    ) -> Result<Self, Error> {
        let source = match machine {
            Some(machine) => {
                let log = machine.console();
                let growth = follow.then(|| log.follow());
                Source::Live { log, growth }
            }
            None => Source::Ended(Some(
                kiln_vmm::console::ConsoleReader::open(path).map_err(unreadable)?,
            )),
        };
        Ok(Self { source, offset: 0 })
    }

    /// The next bytes; `None` at the end, which a followed console has when its machine has.
    ///
    /// # Errors
    /// The console's file cannot be read.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let closed = self.is_closed();
            let chunk = self.read().await?;
            if !chunk.bytes.is_empty() {
                self.offset = chunk.end();
                return Ok(Some(Bytes::from(chunk.bytes)));
            }
            let Source::Live {
                growth: Some(growth),
                ..
            } = &mut self.source
            else {
                return Ok(None);
            };
            if closed || growth.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    /// Whether nothing will follow; asked before the read that finds nothing.
    fn is_closed(&mut self) -> bool {
        match &mut self.source {
            Source::Live {
                growth: Some(growth),
                ..
            } => growth.borrow_and_update().closed,
            _ => true,
        }
    }

    async fn read(&mut self) -> Result<Chunk, Error> {
        let offset = self.offset;
        let outcome = match &mut self.source {
            Source::Live { log, .. } => {
                let log = log.clone();
                tokio::task::spawn_blocking(move || log.read(offset, CHUNK)).await
            }
            Source::Ended(slot) => {
                // The reader comes back with its answer; after a failed read there is none.
                let Some(reader) = slot.take() else {
                    return Ok(Chunk::default());
                };
                let read = move || (reader.read(offset, CHUNK), reader);
                tokio::task::spawn_blocking(read)
                    .await
                    .map(|(chunk, reader)| {
                        *slot = Some(reader);
                        chunk
                    })
            }
        };
        outcome
            .map_err(std::io::Error::other)
            .and_then(|read| read)
            .map_err(unreadable)
    }
}

fn unreadable(source: std::io::Error) -> Error {
    Error::new(ErrorCode::Host, "cannot read the console").with_source(source)
}
