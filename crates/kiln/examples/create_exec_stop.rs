//! Create a sandbox, run a command in it, copy a file out, stop it; with a hook that watches.
//!
//! ```sh
//! cargo run -p kiln --example create_exec_stop -- /var/lib/kiln /run/kiln
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::Arc;
use std::time::Duration;

use kiln::{
    ExecOutput, ExecSpec, Hook, HookCall, HookError, Host, HostConfig, OnFailure, SandboxSpec,
    Silent,
};

/// Tells of every point of a sandbox's life.
struct Watch;

#[async_trait::async_trait]
impl Hook for Watch {
    fn name(&self) -> &str {
        "watch"
    }

    fn on_failure(&self) -> OnFailure {
        OnFailure::Warn
    }

    async fn call(&self, call: &HookCall) -> Result<(), HookError> {
        println!("hook: {} {}", call.point.as_str(), call.sandbox.state);
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut places = std::env::args().skip(1);
    let (Some(data), Some(runtime)) = (places.next(), places.next()) else {
        return Err("give a data directory and a runtime directory".into());
    };
    let config = HostConfig::new(data, runtime);
    let host = Host::open_with_hooks(config, vec![Arc::new(Watch)]).await?;
    let spec = SandboxSpec {
        labels: [("example".to_owned(), "yes".to_owned())].into(),
        // Whatever happens to this program, the machine does not outlive this.
        timeout_ms: Some(10 * 60 * 1000),
        remove_on_stop: true,
        ..SandboxSpec::default()
    };
    let id = host.create(spec).await?.id;
    host.start(&id, Arc::new(Silent)).await?;
    let command = ExecSpec {
        argv: [
            "sh",
            "-c",
            "echo from $(uname -s) > /tmp/said; cat /tmp/said",
        ]
        .map(str::to_owned)
        .to_vec(),
        timeout_ms: Some(60_000),
        ..ExecSpec::default()
    };
    let mut session = host.exec(&id, &command).await?;
    while let Some(output) = session.output.next().await? {
        match output {
            ExecOutput::Stdout(bytes) => print!("{}", String::from_utf8_lossy(&bytes)),
            ExecOutput::Exited(exit) => println!("exit code {}", exit.shell_code()),
            _ => {}
        }
    }
    let said = host.stat(&id, "/tmp/said", false).await?;
    println!("{} has {} bytes", said.name, said.size);
    host.stop(&id, Duration::from_secs(10)).await?;
    println!("sandboxes left: {}", host.list(&[]).await?.len());
    host.close().await;
    Ok(())
}
