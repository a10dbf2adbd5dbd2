//! How long a command takes for a program that uses the API: from the request to the end of the
//! stream. `cargo xtask bench boot` runs it.
//!
//! `exec_round_trip SOCKET SANDBOX COUNT PAUSE_MS PROGRAM` prints one line per command, in
//! microseconds.

use std::error::Error;
use std::io::Write as _;
use std::time::{Duration, Instant};

use kiln_api::client::ServerMessage;
use kiln_api::stream::ServerControl;
use kiln_api::{Client, ExecRequest, ExitStatus};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, sandbox, count, pause, program] = words.as_slice() else {
        return Err("exec_round_trip SOCKET SANDBOX COUNT PAUSE_MS PROGRAM".into());
    };
    let client = Client::new(socket);
    let request = ExecRequest {
        argv: vec![program.clone()],
        ..ExecRequest::default()
    };
    let pause = Duration::from_millis(pause.parse()?);
    for _ in 0..count.parse()? {
        tokio::time::sleep(pause).await;
        let started = Instant::now();
        let status = run(&client, sandbox, &request).await?;
        let took = started.elapsed();
        if status != ExitStatus::Code(0) {
            return Err(format!("{program} ended with {status:?}").into());
        }
        writeln!(std::io::stdout(), "{}", took.as_micros())?;
    }
    Ok(())
}

/// Runs one command to its end.
async fn run(
    client: &Client,
    sandbox: &str,
    request: &ExecRequest,
) -> Result<ExitStatus, Box<dyn Error>> {
    let mut stream = client.exec(sandbox, request).await?;
    while let Some(message) = stream.receiver.next().await? {
        match message {
            ServerMessage::Control(ServerControl::Exited(status)) => return Ok(status),
            ServerMessage::Control(ServerControl::Error(report)) => {
                return Err(format!("{}: {}", report.code, report.message).into());
            }
            ServerMessage::Control(_) | ServerMessage::Output(..) => {}
        }
    }
    Err("the stream ended without a status".into())
}
