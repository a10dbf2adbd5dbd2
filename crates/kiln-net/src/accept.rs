//! Takes connections, at most so many at a time, and gives each to a task of its own. Does not know
//! what is spoken on them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Out of descriptors, most likely: some connections end first.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until it is dropped, and its conversations with it. One that finds no room waits.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    most: usize,
    converse: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(most));
    let mut work = JoinSet::new();
    loop {
        while work.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let conversation = converse(stream, peer);
        work.spawn(async move {
            if let Err(error) = conversation.await {
                tracing::debug!(%peer, %error, "a connection ended");
            }
            drop(permit);
        });
    }
}
