//! Commands in a sandbox that is up.

use axum::{Extension, Json, extract::State, http::StatusCode, response::Response};
use kiln::ExecSession;
use kiln_api::{AttachRequest, ExecRequest, Session, stream::ServerControl};

use super::{App, convert};
use crate::http::{
    Connection,
    error::ApiError,
    extract::{Named, Upgrade},
    stream::{End, Stream},
};

pub(super) async fn sessions(
    State(app): State<App>,
    Named(key): Named<String>,
) -> Result<Json<Vec<Session>>, ApiError> {
    let sessions = app.host.sessions(&key).await?;
    Ok(Json(sessions.into_iter().map(convert::session).collect()))
}

pub(super) async fn kill(
    State(app): State<App>,
    Named((key, session)): Named<(String, u64)>,
) -> Result<StatusCode, ApiError> {
    app.host.kill(&key, session).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn exec(
    State(app): State<App>,
    Extension(connection): Extension<Connection>,
    Named(key): Named<String>,
    Upgrade(upgrade): Upgrade,
) -> Response {
    upgrade.on_upgrade(async move |socket| {
        let mut stream = Stream::new(socket, connection);
        let end = exec_on(&app, &key, &mut stream).await;
        stream.end_with(end).await;
    })
}

async fn exec_on(app: &App, key: &str, stream: &mut Stream) -> End {
    let request = match stream.request::<ExecRequest>().await {
        Ok(request) => request,
        Err(end) => return end,
    };
    match app.host.exec(key, &convert::exec_spec(request)).await {
        Ok(session) => serve(session, stream).await,
        Err(error) => End::Failed(error.into()),
    }
}

pub(super) async fn attach(
    State(app): State<App>,
    Extension(connection): Extension<Connection>,
    Named((key, session)): Named<(String, u64)>,
    Upgrade(upgrade): Upgrade,
) -> Response {
    upgrade.on_upgrade(async move |socket| {
        let mut stream = Stream::new(socket, connection);
        let end = attach_on(&app, &key, session, &mut stream).await;
        stream.end_with(end).await;
    })
}

async fn attach_on(app: &App, key: &str, session: u64, stream: &mut Stream) -> End {
    if let Err(end) = stream.request::<AttachRequest>().await {
        return end;
    }
    match app.host.attach(key, session).await {
        Ok(session) => serve(session, stream).await,
        Err(error) => End::Failed(error.into()),
    }
}

/// Tells that it runs, then connects the client with it.
pub(super) async fn serve(session: ExecSession, stream: &mut Stream) -> End {
    let started = ServerControl::Started {
        session: session.id,
        pid: Some(session.pid),
    };
    match stream.say(&started).await {
        Ok(()) => stream.connect(session).await,
        Err(end) => end,
    }
}
