//! The quick start of an embedder: open a host, boot a machine, look at it, end it.
//!
//! ```sh
//! cargo run -p kiln --example quick_start -- /var/lib/kiln /run/kiln
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::Arc;
use std::time::Duration;

use kiln::{Host, HostConfig, SandboxSpec, Silent};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut places = std::env::args().skip(1);
    let (Some(data), Some(runtime)) = (places.next(), places.next()) else {
        return Err("give a data directory and a runtime directory".into());
    };
    let host = Host::open(HostConfig::new(data, runtime)).await?;
    let created = host
        .create(SandboxSpec {
            name: Some("quick-start".to_owned()),
            mem_mib: 256,
            tmpfs: true,
            ..SandboxSpec::default()
        })
        .await?;
    let running = host.start(&created.id, Arc::new(Silent)).await?;
    println!("{} is {}", running.id, running.state);
    let paused = host.pause(&created.id).await?;
    println!("{} is {}", paused.id, paused.state);
    host.resume(&created.id).await?;
    let stats = host.stats(&created.id).await?;
    println!("its guest has {} MiB", stats.guest.mem_total_kib / 1024);
    let stopped = host.stop(&created.id, Duration::from_secs(10)).await?;
    println!("{} is {}", stopped.id, stopped.state);
    host.remove(&created.id, false).await?;
    host.close().await;
    Ok(())
}
