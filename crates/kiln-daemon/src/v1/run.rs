//! `run`: a sandbox for one command, gone when the command or its client is.

use std::time::Instant;

use axum::{Extension, extract::State, response::Response};
use kiln::{Host, SandboxInfo, SandboxSpec};
use kiln_api::{ExecRequest, MainCommand, RunRequest, Timings, stream::ServerControl};

use super::{App, convert, exec};
use crate::{
    http::{
        Connection,
        extract::Upgrade,
        stream::{self, End, Stream},
    },
    lifetime::Busy,
};

pub(super) async fn run(
    State(app): State<App>,
    Extension(connection): Extension<Connection>,
    Upgrade(upgrade): Upgrade,
) -> Response {
    upgrade.on_upgrade(async move |socket| {
        Run::new(app, Stream::new(socket, connection)).serve().await
    })
}

/// One run on its way.
struct Run {
    app: App,
    stream: Stream,
    begun: Instant,
    timings: Timings,
}

impl Run {
    fn new(app: App, stream: Stream) -> Self {
        Self {
            app,
            stream,
            begun: Instant::now(),
            timings: Timings::default(),
        }
    }

    async fn serve(mut self) {
        let request = match self.stream.request::<RunRequest>().await {
            Ok(request) => request,
            Err(end) => return self.stream.end_with(end).await,
        };
        let (keep, detach) = (request.keep, request.detach);
        let mut spec = match convert::spec(request.sandbox) {
            Ok(spec) => spec,
            Err(refused) => return self.stream.end_with(End::Failed(refused)).await,
        };
        spec.ephemeral = !(keep || detach);
        if !spec.ephemeral {
            // It is that command's sandbox also when it is started again.
            spec.command = Some(convert::main_command(MainCommand {
                entrypoint: request.entrypoint.clone(),
                exec: ExecRequest {
                    stdin: false,
                    ..request.exec.clone()
                },
            }));
        }
        let created = match self.create(spec).await {
            Ok(created) => created,
            Err(end) => return self.stream.end_with(end).await,
        };
        let ephemeral = Ephemeral::new(&self.app, created.id.clone(), keep);
        let end = match self
            .start_and_exec(&created, request.exec, request.entrypoint, detach)
            .await
        {
            Ok(end) | Err(end) => end,
        };
        self.finish(end, ephemeral).await;
    }

    /// Not watched: a row is written in milliseconds, and cut off here its id would be lost.
    async fn create(&self, spec: SandboxSpec) -> Result<SandboxInfo, End> {
        let created = self.app.host.create(spec).await;
        created.map_err(|error| End::Failed(error.into()))
    }

    async fn start_and_exec(
        &mut self,
        created: &SandboxInfo,
        mut request: ExecRequest,
        entrypoint: Option<Vec<String>>,
        detach: bool,
    ) -> Result<End, End> {
        let (id, name) = (created.id.clone(), created.name.clone());
        self.stream
            .say(&ServerControl::Created {
                id: id.clone(),
                name,
            })
            .await?;
        if detach {
            return self.start_detached(&id).await;
        }
        self.start(&id).await?;
        let main = self
            .app
            .host
            .main_command(&id, entrypoint.as_deref(), &request.argv)
            .await
            .map_err(|error| End::Failed(error.into()))?;
        request.argv = main.unwrap_or_default();
        let asked = Instant::now();
        let mut spec = convert::exec_spec(request);
        // Removing the sandbox ends the command anyway, and one that is kept keeps its command.
        spec.kill_on_detach = false;
        spec.main = true;
        let session = self.app.host.exec(&id, &spec).await;
        let session = session.map_err(|error| End::Failed(error.into()))?;
        let end = exec::serve(session, &mut self.stream).await;
        self.timings.exec_us = Some(micros(asked));
        Ok(end)
    }

    async fn start(&mut self, id: &str) -> Result<(), End> {
        let (progress, events) = stream::progress();
        let started = self
            .stream
            .watch(self.app.host.start_without_command(id, progress), events)
            .await?;
        self.tell_of(started).await.map(drop)
    }

    /// The command runs from the start on, and nobody is attached to it.
    async fn start_detached(&mut self, id: &str) -> Result<End, End> {
        let (progress, events) = stream::progress();
        let started = self
            .stream
            .watch(self.app.host.start(id, progress), events)
            .await?;
        if let Some(session) = self.tell_of(started).await? {
            let started = ServerControl::Started { session, pid: None };
            self.stream.say(&started).await?;
        }
        Ok(End::Detached)
    }

    /// Passes on what a start has to say; the session of its command.
    async fn tell_of(&mut self, started: SandboxInfo) -> Result<Option<u64>, End> {
        for message in started.warnings {
            self.stream.say(&ServerControl::Warning { message }).await?;
        }
        self.timings = started.timings.map(convert::timings).unwrap_or_default();
        Ok(started.main_session)
    }

    /// What follows the end of the command: the status first, since the client waits for it, then
    /// the removal, then how long it all took.
    async fn finish(mut self, end: End, ephemeral: Ephemeral) {
        let stays = matches!(end, End::Detached) || self.app.lifetime.is_stopping();
        if let End::Exited(status) = end {
            // A client that is gone by now changes nothing any more.
            drop(self.stream.say(&ServerControl::Exited(status)).await);
        }
        let ended = Instant::now();
        if stays {
            ephemeral.leave();
        } else if let Err(error) = ephemeral.remove().await {
            let report = stream::report(error);
            let message = format!("the sandbox could not be removed: {}", report.message);
            drop(self.stream.say(&ServerControl::Warning { message }).await);
        }
        if !matches!(end, End::Exited(_) | End::Detached) {
            return self.stream.end_with(end).await;
        }
        self.timings.tear_down_us = (!stays).then(|| micros(ended));
        self.timings.total_us = Some(micros(self.begun));
        self.stream
            .end(Some(ServerControl::Timings(self.timings)))
            .await;
    }
}

/// A sandbox that goes when its run does, whatever way that ends: also by a panic, or by the
/// client's death.
#[must_use]
struct Ephemeral {
    host: Host,
    id: Option<String>,
    keep: bool,
    /// The daemon does not end while this is undone.
    busy: Option<Busy>,
}

impl Ephemeral {
    fn new(app: &App, id: String, keep: bool) -> Self {
        let busy = Some(app.lifetime.busy());
        Self {
            host: app.host.clone(),
            id: Some(id),
            keep,
            busy,
        }
    }

    /// Lets it live on.
    fn leave(mut self) {
        self.id = None;
    }

    async fn remove(mut self) -> Result<(), kiln::Error> {
        if self.keep {
            self.id = None;
            return Ok(());
        }
        // Still armed while this waits.
        if let Some(id) = self.id.clone() {
            gone(self.host.remove(&id, true).await)?;
        }
        self.id = None;
        Ok(())
    }
}

impl Drop for Ephemeral {
    fn drop(&mut self) {
        let Some(id) = self.id.take().filter(|_| !self.keep) else {
            return;
        };
        let (host, busy) = (self.host.clone(), self.busy.take());
        tokio::spawn(async move {
            if let Err(error) = gone(host.remove(&id, true).await) {
                tracing::warn!(
                    sandbox = id,
                    error = error.message(),
                    "a run's sandbox stays"
                );
            }
            drop(busy);
        });
    }
}

/// One that somebody else has removed meanwhile is as gone as it should be.
fn gone(removed: Result<(), kiln::Error>) -> Result<(), kiln::Error> {
    match removed {
        Err(error) if error.code() == kiln::ErrorCode::NotFound => Ok(()),
        other => other,
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
