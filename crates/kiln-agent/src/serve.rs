//! The connection to the host: dialled again for ever, and what is asked over it.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use kiln_agent_proto::frame::{FrameError, FrameReader};
use kiln_agent_proto::gathered::Gathered;
use kiln_agent_proto::handshake::{HelloScanner, Step, ack};
use kiln_agent_proto::limits::MAX_STREAMS;
use kiln_agent_proto::message::{
    Attach, Done, ErrorCode, Event, Exec, Hello, HelloReply, Kill, ListFiles, Mark,
    Power as PowerOff, PowerMode, RemoveFile, Reply, SessionList, Wait, Waited, event, reply,
    request,
};
use kiln_agent_proto::prefixed::Prefixed;
use kiln_agent_proto::request::receive;
use kiln_agent_proto::version::{VersionRange, negotiate};

use crate::fd::{Failure, Fd};
use crate::files;
use crate::forward;
use crate::identity;
use crate::marks::Marks;
use crate::power::{Power, PowerRequest};
use crate::session::Sessions;
use crate::session::client::{Client, Reader, Writer, split};
use crate::stats;
use crate::transport::Transport;
use crate::watch::{self, Directories};

/// Between two dials: so long after a success, doubling up to the other after failures.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// A connection whose host says nothing for so long is given up.
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);
/// Sessions in one message of a list.
const LISTED: usize = 16;
/// More than a host opens: those that it has closed may still be seen here for a moment.
const STREAMS: usize = 4 * MAX_STREAMS;
/// What a stream is granted by the multiplexer at least.
const STREAM_WINDOW: usize = 256 * 1024;

/// Everything that requests are about.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) sessions: Rc<Sessions>,
    pub(crate) power: Rc<Power>,
    /// Random number of this agent's life.
    pub(crate) instance: u64,
    /// Whether the guest's clock, name and random pool are the agent's to set.
    pub(crate) owns_identity: bool,
    pub(crate) marks: Vec<Mark>,
    /// Directories that hosts watch.
    pub(crate) watched: Directories,
}

/// Serves the host for ever: whenever a connection breaks, the next is dialled.
pub(crate) async fn serve(service: Rc<Service>, transport: Transport) -> Infallible {
    let mut pause = FIRST_PAUSE;
    loop {
        pause = match connection(&service, &transport).await {
            Ok(()) => FIRST_PAUSE,
            Err(_) => (pause * 2).min(LONGEST_PAUSE),
        };
        tokio::time::sleep(pause).await;
    }
}

/// One connection; an error when it did not come to a session.
async fn connection(service: &Rc<Service>, transport: &Transport) -> io::Result<()> {
    let fd = transport.dial().await?;
    let failure = Failure::of(&fd)?;
    tokio::select! {
        outcome = session(service, transport, fd) => outcome,
        error = failure.happened() => Err(error),
    }
}

async fn session(service: &Rc<Service>, transport: &Transport, mut fd: Fd) -> io::Result<()> {
    let rest = handshake(&mut fd, transport).await?;
    let mut config = yamux::Config::default();
    // No window grows beyond the first one: memory is bounded by the number of streams.
    config
        .set_max_num_streams(STREAMS)
        .set_max_connection_receive_window(Some(STREAMS * STREAM_WINDOW));
    let stream = Gathered::new(Prefixed::new(rest, fd));
    let mut mux = yamux::Connection::new(stream, config, yamux::Mode::Server);
    let greeted = Rc::new(Cell::new(false));
    while let Some(Ok(stream)) = std::future::poll_fn(|cx| mux.poll_next_inbound(cx)).await {
        let operation = operation(Rc::clone(service), Rc::clone(&greeted), stream);
        tokio::task::spawn_local(operation);
    }
    Ok(())
}

async fn handshake(fd: &mut Fd, transport: &Transport) -> io::Result<Vec<u8>> {
    let scan = async {
        let mut scanner = HelloScanner::default();
        let mut buffer = vec![0; 4096];
        loop {
            let n = fd.read(&mut buffer).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match scanner.push(&buffer[..n]) {
                Step::Wait => {}
                Step::Acknowledge(nonce) => fd.write_all(&ack(nonce)).await?,
                Step::Session => return Ok(scanner.into_session()),
            }
        }
    };
    match transport {
        // Closing the port would throw away a hello that is under way.
        Transport::Virtio => scan.await,
        Transport::ConnectUnix(_) => tokio::time::timeout(HELLO_TIMEOUT, scan)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?,
    }
}

/// One operation on a stream of its own. Its errors are its stream's: nobody else hears of them.
async fn operation(service: Rc<Service>, greeted: Rc<Cell<bool>>, stream: yamux::Stream) {
    let (reader, writer) = split(stream);
    let _ = dispatch(&service, &greeted, reader, writer).await;
}

async fn dispatch(
    service: &Service,
    greeted: &Cell<bool>,
    mut reader: Reader,
    writer: Writer,
) -> Result<(), FrameError> {
    let Some(request) = receive(&mut reader).await? else {
        return Ok(());
    };
    let hello = matches!(request.kind, Some(request::Kind::Hello(_)));
    if !hello && !greeted.get() {
        let text = "an operation before the hello";
        return answer(writer, Reply::error(ErrorCode::NoHello, text)).await;
    }
    match request.kind {
        Some(request::Kind::Hello(hello)) => {
            let reply = service.greet(&hello, greeted);
            answer(writer, reply).await
        }
        Some(request::Kind::Exec(exec)) => service.exec(exec, reader, writer).await,
        Some(request::Kind::Attach(attach)) => service.attach(attach, reader, writer).await,
        Some(request::Kind::Sessions(_)) => service.list(writer).await,
        Some(request::Kind::Kill(kill)) => answer(writer, service.kill(kill)).await,
        Some(request::Kind::Wait(wait)) => service.wait(wait, reader, writer).await,
        Some(request::Kind::Power(power)) => service.power_off(power, writer).await,
        Some(request::Kind::Stats(_)) => {
            let stats = stats::take(&service.sessions);
            answer(writer, Reply::of(reply::Kind::Stats(stats))).await
        }
        Some(request::Kind::Events(_)) => service.events(reader, writer).await,
        Some(request::Kind::Connect(connect)) => forward::serve(connect, reader, writer).await,
        Some(request::Kind::StatFile(request)) => {
            let reply = files::stat(&request).unwrap_or_else(files::FileError::reply);
            answer(writer, reply).await
        }
        Some(request::Kind::ListFiles(request)) => list_files(&request, writer).await,
        Some(request::Kind::MakeDirectory(request)) => {
            answer(writer, outcome(files::make_directory(&request))).await
        }
        Some(request::Kind::MoveFile(request)) => {
            answer(writer, outcome(files::rename(&request))).await
        }
        Some(request::Kind::RemoveFile(request)) => remove_file(request, writer).await,
        Some(request::Kind::Upload(request)) => files::tree::upload(request, reader, writer).await,
        Some(request::Kind::Download(request)) => files::tree::download(request, writer).await,
        Some(request::Kind::Watch(request)) => {
            watch::serve(request, service.watched.clone(), reader, writer).await
        }
        Some(request::Kind::Part(_)) | None => {
            let text = "this agent does not know the request";
            answer(writer, Reply::error(ErrorCode::BadRequest, text)).await
        }
    }
}

async fn answer(mut writer: Writer, reply: Reply) -> Result<(), FrameError> {
    writer.send(&reply).await?;
    writer.close().await
}

fn outcome(done_or_not: Result<(), files::FileError>) -> Reply {
    match done_or_not {
        Ok(()) => done(),
        Err(error) => error.reply(),
    }
}

async fn list_files(request: &ListFiles, mut writer: Writer) -> Result<(), FrameError> {
    let mut entries = match files::list(request) {
        Ok(entries) => entries,
        Err(error) => return answer(writer, error.reply()).await,
    };
    loop {
        let piece: Vec<_> = entries.by_ref().take(files::LISTED).collect();
        if piece.is_empty() {
            return answer(writer, files::listed(piece, true)).await;
        }
        writer.send(&files::listed(piece, false)).await?;
    }
}

/// On a thread of its own: a large tree takes its time, and others are served meanwhile.
async fn remove_file(request: RemoveFile, writer: Writer) -> Result<(), FrameError> {
    let removed = tokio::task::spawn_blocking(move || files::remove(&request)).await;
    let reply = match removed {
        Ok(removed) => outcome(removed),
        Err(error) => Reply::error(ErrorCode::Internal, error.to_string()),
    };
    answer(writer, reply).await
}

fn done() -> Reply {
    Reply::of(reply::Kind::Done(Done {}))
}

fn no_such_session(id: u64) -> Reply {
    let text = format!("no session {id} in the guest");
    Reply::error(ErrorCode::NoSuchSession, text)
}

impl Service {
    fn greet(&self, hello: &Hello, greeted: &Cell<bool>) -> Reply {
        let host = VersionRange {
            min: hello.min_version,
            max: hello.max_version,
        };
        let version = match negotiate(host, VersionRange::OURS) {
            Ok(version) => version,
            Err(refused) => return Reply::error(ErrorCode::Version, refused.to_string()),
        };
        if self.owns_identity {
            identity::apply(hello);
        }
        greeted.set(true);
        Reply::of(reply::Kind::Hello(HelloReply {
            version,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.instance,
            marks: self.marks_until_now(),
        }))
    }

    /// The steps of the start, and this hello.
    fn marks_until_now(&self) -> Vec<Mark> {
        let mut marks = Marks::from(self.marks.clone());
        marks.set("hello");
        marks.into_vec()
    }

    async fn exec(&self, exec: Exec, reader: Reader, mut writer: Writer) -> Result<(), FrameError> {
        let session = match self.sessions.start(exec) {
            Ok(session) => session,
            Err(error) => return answer(writer, Reply::error(error.code, error.message)).await,
        };
        if let Some(client) = Client::attach(session, 0) {
            // Queued, not sent: when the stream is gone already, the client still has to be
            // served, to be found lost.
            writer.queue(&Reply::of(client.started()))?;
            client.serve(reader, writer).await;
        }
        Ok(())
    }

    async fn attach(
        &self,
        attach: Attach,
        reader: Reader,
        mut writer: Writer,
    ) -> Result<(), FrameError> {
        let Some(session) = self.sessions.get(attach.session) else {
            return answer(writer, no_such_session(attach.session)).await;
        };
        let Some(client) = Client::attach(session, attach.from_offset) else {
            let text = format!("the session has no output at {} yet", attach.from_offset);
            return answer(writer, Reply::error(ErrorCode::BadRequest, text)).await;
        };
        writer.queue(&Reply::of(client.attached()))?;
        client.serve(reader, writer).await;
        Ok(())
    }

    async fn list(&self, mut writer: Writer) -> Result<(), FrameError> {
        let all = self.sessions.list();
        for chunk in all.chunks(LISTED) {
            let list = SessionList {
                sessions: chunk.to_vec(),
                last: false,
            };
            writer.send(&Reply::of(reply::Kind::Sessions(list))).await?;
        }
        let end = SessionList {
            sessions: Vec::new(),
            last: true,
        };
        answer(writer, Reply::of(reply::Kind::Sessions(end))).await
    }

    fn kill(&self, kill: Kill) -> Reply {
        match self.sessions.get(kill.session) {
            Some(session) => {
                session.kill();
                done()
            }
            None => no_such_session(kill.session),
        }
    }

    async fn wait(&self, wait: Wait, mut reader: Reader, writer: Writer) -> Result<(), FrameError> {
        let Some(session) = self.sessions.get(wait.session) else {
            return answer(writer, no_such_session(wait.session)).await;
        };
        tokio::select! {
            exit = session.ended() => {
                let age_ms = session.age().as_millis() as u64;
                let waited = Waited { exit, age_ms };
                answer(writer, Reply::of(reply::Kind::Waited(waited))).await
            }
            gone = ended(&mut reader) => gone,
        }
    }

    async fn power_off(&self, request: PowerOff, writer: Writer) -> Result<(), FrameError> {
        let mode = PowerMode::try_from(request.mode).unwrap_or(PowerMode::PowerOff);
        answer(writer, done()).await?;
        self.power
            .request(PowerRequest::by_host(mode, request.grace_ms));
        Ok(())
    }

    async fn events(&self, mut reader: Reader, mut writer: Writer) -> Result<(), FrameError> {
        writer.send(&done()).await?;
        loop {
            tokio::select! {
                event = self.power.next_event() => {
                    let kind = Some(event::Kind::PowerIntent(event));
                    writer.send(&Event { kind }).await?;
                    self.power.told();
                }
                gone = ended(&mut reader) => return gone,
            }
        }
    }
}

/// Who only listens says nothing; it ends its stream.
pub(crate) async fn ended<R: futures_util::io::AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
) -> Result<(), FrameError> {
    while reader.next::<Event>().await?.is_some() {}
    Ok(())
}
