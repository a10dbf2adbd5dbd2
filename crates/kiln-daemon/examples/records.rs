//! Takes the samples for `cargo xtask bench load`: a daemon with many sandboxes whose machines are
//! scripted, asked over its socket as any client asks. Prints one JSON object of lists.
//!
//! `records DIRECTORY MANY NETWORKS`: at a tenth of `MANY` sandboxes and at all of them; with
//! `NETWORKS` (`true`), each has a real one of its own, in whatever network namespace this runs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measuring stand: what fails ends it"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use kiln_api::{
    Client, CollectGarbage, CreateSandbox, NetworkMode, NetworkPolicy, NetworkRequest, StopSandbox,
    UpdateSandbox,
};
use kiln_daemon::{Daemon, DaemonLock, HostConfig};

/// Sandboxes beside the crowd on which the verbs are tried.
const TRIED: usize = 20;
/// How often a question is asked.
const ASKED: usize = 20;
/// Clients that fill and empty the host.
const CLIENTS: usize = 16;
/// The kernel takes links down some time after the call.
const SETTLING: Duration = Duration::from_secs(20);
const DRAIN: Duration = Duration::from_secs(5);

type Samples = BTreeMap<String, Vec<f64>>;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [dir, many, networks] = &words[..] else {
        panic!("records DIRECTORY MANY NETWORKS");
    };
    kiln_daemon::descriptors::allow_all();
    let stand = Stand::open(dir.into(), networks.parse().unwrap()).await;
    let mut samples = Samples::new();
    let many = many.parse().unwrap();
    stand.fill(0, many / 10).await;
    stand.measure("few", &mut samples).await;
    stand.fill(many / 10, many).await;
    stand.measure("many", &mut samples).await;
    stand.empty().await;
    samples.insert("left".into(), vec![stand.close().await]);
    println!("{}", serde_json::to_string(&samples).unwrap());
}

struct Stand {
    dir: PathBuf,
    client: Client,
    networks: bool,
    serving: tokio::task::JoinHandle<()>,
}

impl Stand {
    async fn open(dir: PathBuf, networks: bool) -> Self {
        for part in ["image", "programs"] {
            std::fs::create_dir_all(dir.join(part)).unwrap();
        }
        std::fs::write(dir.join("image/hello"), "hello").unwrap();
        std::fs::write(dir.join("vmlinux"), kiln::scripted::kernel()).unwrap();
        let config = HostConfig::new(dir.join("data"), dir.join("run"));
        let lock = DaemonLock::take(&dir.join("run/kiln.sock")).await.unwrap();
        let host = kiln::scripted::open(config, &dir.join("programs")).await;
        let daemon = Daemon::of(host.unwrap(), DRAIN, &lock).await.unwrap();
        let serving = tokio::spawn(async move {
            daemon.serve().await.unwrap();
            drop(lock);
        });
        let client = Client::new(dir.join("run/kiln.sock"));
        Self {
            dir,
            client,
            networks,
            serving,
        }
    }

    fn request(&self, name: &str) -> CreateSandbox {
        let path = |name: &str| Some(self.dir.join(name).display().to_string());
        let mode = if self.networks {
            NetworkMode::Default
        } else {
            NetworkMode::None
        };
        CreateSandbox {
            name: Some(name.to_owned()),
            image: path("image"),
            kernel: path("vmlinux"),
            tmpfs: true,
            network: Some(NetworkRequest {
                mode: Some(mode),
                policy: if self.networks {
                    policy("203.0.113.0/24")
                } else {
                    NetworkPolicy::default()
                },
                ..NetworkRequest::default()
            }),
            labels: [("crowd".to_owned(), "yes".to_owned())].into(),
            ..CreateSandbox::default()
        }
    }

    /// Sandboxes that run, from number `from` up to `to`.
    async fn fill(&self, from: usize, to: usize) {
        let began = Instant::now();
        stream::iter(from..to)
            .for_each_concurrent(CLIENTS, |number| async move {
                let name = format!("crowd-{number}");
                self.client.create(&self.request(&name)).await.unwrap();
                self.client.start(&name).await.unwrap();
            })
            .await;
        eprintln!(
            "{to} sandboxes run after {:.1} s",
            began.elapsed().as_secs_f64()
        );
    }

    async fn measure(&self, when: &str, samples: &mut Samples) {
        let mut watch = Watch { when, samples };
        let names: Vec<String> = (0..TRIED).map(|number| format!("tried-{number}")).collect();
        let mut ids = Vec::new();
        for name in &names {
            let request = self.request(name);
            let made = watch.time("create", self.client.create(&request)).await;
            ids.push(made.unwrap().id);
        }
        for id in &ids {
            watch.time("start", self.client.start(id)).await.unwrap();
        }
        for (id, name) in ids.iter().zip(&names) {
            let client = &self.client;
            watch.time("inspect", client.get(id)).await.unwrap();
            watch.time("by_name", client.get(name)).await.unwrap();
            watch
                .time("by_prefix", client.get(&id[..id.len() - 1]))
                .await
                .unwrap();
            watch.time("stats", client.stats(id)).await.unwrap();
            let update = UpdateSandbox {
                labels: [("tried".to_owned(), Some("yes".to_owned()))].into(),
                ..UpdateSandbox::default()
            };
            watch
                .time("label", client.update(id, &update))
                .await
                .unwrap();
            watch.time("pause", client.pause(id)).await.unwrap();
            watch.time("resume", client.resume(id)).await.unwrap();
            watch.time("network", client.network(id)).await.unwrap();
            if self.networks {
                let other = policy("203.0.113.0/25");
                watch
                    .time("policy", client.update_network(id, &other))
                    .await
                    .unwrap();
            }
        }
        self.questions(&mut watch).await;
        for id in &ids {
            let at_once = StopSandbox { grace_ms: Some(0) };
            watch
                .time("stop", self.client.stop(id, at_once))
                .await
                .unwrap();
        }
        for id in &ids {
            watch
                .time("rm", self.client.remove(id, false))
                .await
                .unwrap();
        }
    }

    /// What is asked of the host as a whole.
    async fn questions(&self, watch: &mut Watch<'_>) {
        let filter = ["name=crowd-7".to_owned()];
        for _ in 0..ASKED {
            watch.time("ls", self.client.list(&[])).await.unwrap();
            watch
                .time("ls_one", self.client.list(&filter))
                .await
                .unwrap();
            watch.time("events", self.events()).await;
            watch.time("info", self.client.info()).await.unwrap();
            watch.time("metrics", self.client.metrics()).await.unwrap();
            let look = CollectGarbage { dry_run: true };
            watch
                .time("gc", self.client.collect_garbage(look))
                .await
                .unwrap();
        }
    }

    /// All events that are kept.
    async fn events(&self) {
        let mut events = self.client.events(0, false).await.unwrap();
        while events.next().await.unwrap().is_some() {}
    }

    async fn empty(&self) {
        let all = self.client.list(&[]).await.unwrap();
        stream::iter(all)
            .for_each_concurrent(CLIENTS, |sandbox| async move {
                self.client.remove(&sandbox.id, true).await.unwrap();
            })
            .await;
    }

    /// Ends the daemon; how many things are left of the sandboxes.
    async fn close(mut self) -> f64 {
        self.client.shutdown().await.unwrap();
        (&mut self.serving).await.unwrap();
        let deadline = Instant::now() + SETTLING;
        loop {
            let left = self.left();
            if left.is_empty() || Instant::now() > deadline {
                left.iter().for_each(|it| eprintln!("left: {it}"));
                return left.len() as f64;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for dir in ["data/sandboxes", "run/vm"] {
            left.extend(names(&self.dir.join(dir)));
        }
        left.extend(
            names(Path::new("/sys/class/net"))
                .into_iter()
                .filter(|it| it.starts_with("kln")),
        );
        if self.networks {
            let told = Command::new("nft").args(["list", "tables"]).output();
            let tables = told.map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
            left.extend(tables.iter().flat_map(|it| it.lines()).map(str::to_owned));
        }
        left
    }
}

/// Takes times.
struct Watch<'a> {
    when: &'a str,
    samples: &'a mut Samples,
}

impl Watch<'_> {
    async fn time<T>(&mut self, verb: &str, work: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let done = work.await;
        let took = began.elapsed().as_secs_f64() * 1000.0;
        let key = format!("{verb}_{}", self.when);
        self.samples.entry(key).or_default().push(took);
        done
    }
}

fn policy(cidr: &str) -> NetworkPolicy {
    NetworkPolicy {
        allowed_cidrs: vec![cidr.to_owned()],
        allowed_domains: vec!["*.example.com".to_owned()],
        ..NetworkPolicy::default()
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|it| it.file_name().to_string_lossy().into_owned())
        .collect()
}
