//! Images on their way in, with progress, and archives on their way out.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use kiln_api::{
    ClientError, ErrorReport,
    client::{ExecStream, LogStream, ServerMessage},
    stream::ServerControl,
};
use tokio::time;

use super::shown::short;
use crate::{Failure, Output, output::progress::Shown};

const WRITE: &str = "write the archive";

/// Shows progress until the images are there.
pub(super) async fn follow(mut stream: ExecStream, output: &Output) -> Result<u8, Failure> {
    let images = receive(&mut stream, output, |message| match message {
        ServerControl::Images { images } => Some(images),
        _ => None,
    })
    .await?;
    for image in &images {
        let name = image.names.first().map_or("-", String::as_str);
        output.line(&format!("{name} {}", short(&image.id)));
    }
    output.object(&images);
    Ok(0)
}

/// Shows progress until `last` takes the message that it waits for.
pub(super) async fn receive<T>(
    stream: &mut ExecStream,
    output: &Output,
    mut last: impl FnMut(ServerControl) -> Option<T>,
) -> Result<T, Failure> {
    let mut shown = Shown::new(output);
    loop {
        let due = shown.due();
        // Both cancel-safe.
        let message = tokio::select! {
            message = stream.receiver.next() => message?,
            () = until(due) => {
                shown.tell();
                continue;
            }
        };
        match message {
            None => return Err(ClientError::Lost(None).into()),
            Some(ServerMessage::Control(ServerControl::Error(report))) => {
                shown.hide();
                return Err(Failure::reported(report));
            }
            Some(ServerMessage::Control(ServerControl::Progress(step))) => shown.show(step),
            Some(ServerMessage::Control(ServerControl::Warning { message })) => {
                shown.aside(|output| output.warning(&message));
            }
            Some(ServerMessage::Control(message)) => {
                if let Some(answer) = last(message) {
                    return Ok(answer);
                }
            }
            Some(_) => {}
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Refuses to fill a terminal with an archive.
pub(super) fn check_target(target: Option<&Path>) -> Result<(), Failure> {
    if target.is_none() && io::stdout().is_terminal() {
        let report = ErrorReport::new("USAGE", "an archive is nothing for a terminal")
            .with_hint("name a file with --output, or redirect standard output");
        return Err(Failure::reported(report));
    }
    Ok(())
}

/// Writes an archive out as it comes. A file appears under its name when it is whole.
pub(super) async fn write(archive: LogStream, target: Option<&Path>) -> Result<u8, Failure> {
    let Some(target) = target else {
        copy(archive, &mut io::stdout().lock()).await?;
        return Ok(0);
    };
    let partial = beside(target);
    let mut file = File::create(&partial).map_err(Failure::io("create the file"))?;
    let written = copy(archive, &mut file).await;
    let kept =
        written.and_then(|()| fs::rename(&partial, target).map_err(Failure::io("name the file")));
    if kept.is_err() {
        // Best effort: what matters is told already.
        drop(fs::remove_file(&partial));
    }
    kept.map(|()| 0)
}

async fn copy(mut archive: LogStream, out: &mut impl Write) -> Result<(), Failure> {
    while let Some(bytes) = archive.next().await? {
        out.write_all(&bytes).map_err(Failure::io(WRITE))?;
    }
    out.flush().map_err(Failure::io(WRITE))
}

fn beside(target: &Path) -> PathBuf {
    let mut name = OsString::from(target);
    name.push(".partial");
    name.into()
}
