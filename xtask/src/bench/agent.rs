//! The least that a host has to say to an agent to run one command: handshake, hello, exec.

use std::future::poll_fn;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use futures_util::io::{AsyncReadExt as _, ReadHalf, WriteHalf};
use kiln_agent_proto::frame::{FrameError, FrameReader, FrameWriter};
use kiln_agent_proto::handshake::{self, AckScanner};
use kiln_agent_proto::message::{
    Exec, Exited, Hello, Reply, Request, SessionOutput, reply, request, session_output,
};
use kiln_agent_proto::version::VersionRange;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};

/// Why the command did not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error("the connection to the agent failed")]
    Connection(#[source] io::Error),
    #[error("the agent's session failed")]
    Session(#[source] yamux::ConnectionError),
    #[error("the agent breaks the protocol")]
    Frame(#[from] FrameError),
    #[error("the agent said {0} where something else was due")]
    Unexpected(String),
    #[error("the command ended with {0:?}")]
    Command(Exited),
    #[error("the agent had not answered after {} s", DEADLINE.as_secs())]
    Deadline,
}

/// A boot under emulation on a busy machine takes seconds.
const DEADLINE: Duration = Duration::from_secs(120);

/// Any number will do: there is one session on this connection.
const NONCE: u64 = 0x6b69_6c6e;

/// Runs a command through the agent at the other end and demands that it succeeds.
pub(super) fn run(stream: UnixStream, command: &[&str]) -> Result<(), AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AgentError::Connection)?;
    let session = async {
        tokio::time::timeout(DEADLINE, talk(stream, command))
            .await
            .unwrap_or(Err(AgentError::Deadline))
    };
    runtime.block_on(session)
}

async fn talk(stream: UnixStream, command: &[&str]) -> Result<(), AgentError> {
    stream
        .set_nonblocking(true)
        .map_err(AgentError::Connection)?;
    let mut stream = tokio::net::UnixStream::from_std(stream).map_err(AgentError::Connection)?;
    shake_hands(&mut stream)
        .await
        .map_err(AgentError::Connection)?;
    let mut multiplexer = yamux::Connection::new(
        stream.compat(),
        yamux::Config::default(),
        yamux::Mode::Client,
    );
    greet(&mut multiplexer).await?;
    exec(&mut multiplexer, command).await
}

/// The hello waits in the socket until the agent opens its port, so it is said once.
async fn shake_hands(stream: &mut tokio::net::UnixStream) -> io::Result<()> {
    stream.write_all(&handshake::hello(NONCE)).await?;
    let mut scanner = AckScanner::new(NONCE);
    loop {
        // Byte by byte: what follows the acknowledgement is the session's.
        let byte = stream.read_u8().await?;
        if scanner.push(&[byte]).is_some() {
            return Ok(());
        }
    }
}

type Multiplexer = yamux::Connection<Compat<tokio::net::UnixStream>>;

async fn greet(multiplexer: &mut Multiplexer) -> Result<(), AgentError> {
    let hello = Hello {
        min_version: VersionRange::OURS.min,
        max_version: VersionRange::OURS.max,
        ..Hello::default()
    };
    let mut stream = open(multiplexer).await?;
    let operation = stream.ask(request::Kind::Hello(hello));
    match driven(multiplexer, operation).await? {
        reply::Kind::Hello(_) => Ok(()),
        other => Err(AgentError::Unexpected(format!("{other:?}"))),
    }
}

async fn exec(multiplexer: &mut Multiplexer, command: &[&str]) -> Result<(), AgentError> {
    let argv = command
        .iter()
        .map(|word| word.as_bytes().to_vec())
        .collect();
    let exec = Exec {
        argv,
        ..Exec::default()
    };
    let mut stream = open(multiplexer).await?;
    let operation = async {
        match stream.ask(request::Kind::Exec(exec)).await? {
            reply::Kind::Started(_) => stream.exited().await,
            other => Err(AgentError::Unexpected(format!("{other:?}"))),
        }
    };
    let exited = driven(multiplexer, operation).await?;
    if exited.code == 0 && exited.signal == 0 {
        Ok(())
    } else {
        Err(AgentError::Command(exited))
    }
}

/// One operation's stream.
#[derive(Debug)]
struct Stream {
    reader: FrameReader<ReadHalf<yamux::Stream>>,
    writer: FrameWriter<WriteHalf<yamux::Stream>>,
}

impl Stream {
    async fn ask(&mut self, request: request::Kind) -> Result<reply::Kind, AgentError> {
        kiln_agent_proto::request::send(&mut self.writer, &Request::of(request)).await?;
        let reply: Option<Reply> = self.reader.next().await?;
        reply
            .and_then(|reply| reply.kind)
            .ok_or_else(|| AgentError::Unexpected("nothing".into()))
    }

    /// Reads the command's output away until its end.
    async fn exited(&mut self) -> Result<Exited, AgentError> {
        while let Some(output) = self.reader.next::<SessionOutput>().await? {
            match output.kind {
                Some(session_output::Kind::Exited(exited)) => return Ok(exited),
                Some(session_output::Kind::Error(error)) => {
                    return Err(AgentError::Unexpected(error.message));
                }
                _ => {}
            }
        }
        Err(AgentError::Unexpected("the end".into()))
    }
}

async fn open(multiplexer: &mut Multiplexer) -> Result<Stream, AgentError> {
    let stream = poll_fn(|context| multiplexer.poll_new_outbound(context))
        .await
        .map_err(AgentError::Session)?;
    let (reader, writer) = stream.split();
    Ok(Stream {
        reader: FrameReader::new(reader),
        writer: FrameWriter::new(writer),
    })
}

/// Drives the connection, which has no task of its own, while an operation runs on it.
async fn driven<T>(
    multiplexer: &mut Multiplexer,
    operation: impl Future<Output = Result<T, AgentError>>,
) -> Result<T, AgentError> {
    let mut operation = std::pin::pin!(operation);
    poll_fn(|context| {
        if let std::task::Poll::Ready(outcome) = operation.as_mut().poll(context) {
            return std::task::Poll::Ready(outcome);
        }
        match multiplexer.poll_next_inbound(context) {
            std::task::Poll::Ready(Some(Err(error))) => {
                std::task::Poll::Ready(Err(AgentError::Session(error)))
            }
            std::task::Poll::Ready(None) => std::task::Poll::Ready(Err(AgentError::Connection(
                io::ErrorKind::UnexpectedEof.into(),
            ))),
            // The agent opens no streams; one that it does open is dropped, and so reset.
            std::task::Poll::Ready(Some(Ok(_))) => {
                context.waker().wake_by_ref();
                std::task::Poll::Pending
            }
            std::task::Poll::Pending => std::task::Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use kiln_agent_proto::handshake::{HelloScanner, Step};
    use kiln_agent_proto::message::{HelloReply, Started};

    use super::*;

    /// An agent on the other end of the pair, on a thread of its own, whose command ends with
    /// `code` after some output.
    fn agent(code: i32) -> (UnixStream, std::thread::JoinHandle<()>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            theirs.set_nonblocking(true).unwrap();
            runtime.block_on(serve(theirs, code));
        };
        (ours, std::thread::spawn(serve))
    }

    async fn serve(stream: UnixStream, code: i32) {
        let mut stream = tokio::net::UnixStream::from_std(stream).unwrap();
        let mut hello = [0; handshake::TOKEN];
        stream.read_exact(&mut hello).await.unwrap();
        let Step::Acknowledge(nonce) = HelloScanner::default().push(&hello) else {
            panic!("no hello")
        };
        stream.write_all(&handshake::ack(nonce)).await.unwrap();
        let config = yamux::Config::default();
        let mut multiplexer = yamux::Connection::new(stream.compat(), config, yamux::Mode::Server);
        let tasks = tokio::task::LocalSet::new();
        let all = async {
            while let Some(Ok(stream)) =
                poll_fn(|context| multiplexer.poll_next_inbound(context)).await
            {
                tokio::task::spawn_local(answer(stream, code));
            }
        };
        tasks.run_until(all).await;
    }

    async fn answer(stream: yamux::Stream, code: i32) {
        let (reader, writer) = stream.split();
        let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
        let request = kiln_agent_proto::request::receive(&mut reader)
            .await
            .unwrap()
            .unwrap();
        match request.kind.unwrap() {
            request::Kind::Hello(_) => {
                let hello = HelloReply {
                    version: 1,
                    ..HelloReply::default()
                };
                writer
                    .send(&Reply::of(reply::Kind::Hello(hello)))
                    .await
                    .unwrap();
            }
            request::Kind::Exec(exec) => {
                assert_eq!(exec.argv, [b"true".to_vec()]);
                let started = Started { session: 1, pid: 2 };
                writer
                    .send(&Reply::of(reply::Kind::Started(started)))
                    .await
                    .unwrap();
                let outputs = [
                    session_output::Kind::Stdout(b"noise".to_vec()),
                    session_output::Kind::Exited(Exited {
                        code,
                        signal: 0,
                        timed_out: false,
                    }),
                ];
                for output in outputs {
                    writer.send(&SessionOutput::of(output)).await.unwrap();
                }
            }
            other => panic!("unexpected {other:?}"),
        }
        writer.close().await.unwrap();
    }

    #[test]
    fn a_command_that_succeeds_ends_the_talk() {
        let (stream, agent) = agent(0);
        run(stream, &["true"]).unwrap();
        agent.join().unwrap();
    }

    #[test]
    fn a_command_that_fails_is_no_sample() {
        let (stream, agent) = agent(3);
        let error = run(stream, &["true"]).unwrap_err();
        assert!(
            matches!(error, AgentError::Command(Exited { code: 3, .. })),
            "{error}"
        );
        agent.join().unwrap();
    }

    #[test]
    fn an_agent_that_goes_away_is_an_error_at_once() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(matches!(
            run(ours, &["true"]),
            Err(AgentError::Connection(_))
        ));
    }
}
