//! `kiln run`.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use kiln_api::{CreateSandbox, InitSystem, RunRequest};

use super::{image::Pull, network::RunNetworkArgs, shared::CommandArgs, volume::Mount};
use crate::{
    Failure, Output,
    cli::Engine,
    output::size::Mebibytes,
    place::{PlaceError, absolute},
    session::{self, Purpose},
    start::Daemon,
};

/// Create a sandbox, run a command in it, and remove it
///
/// Without a command, runs the image's own, or a shell. Ctrl-C reaches the command; a second one removes the sandbox.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Name to find the sandbox by
    #[arg(long)]
    name: Option<String>,
    /// Virtual processors
    #[arg(long, value_name = "N")]
    cpus: Option<u8>,
    /// Memory: MiB, or with a unit: 512M, 2G
    #[arg(long, short, value_name = "SIZE")]
    memory: Option<Mebibytes>,
    /// Size of the sandbox's own disk: MiB, or with a unit
    #[arg(long, value_name = "SIZE")]
    disk: Option<Mebibytes>,
    /// Keep what the guest writes in its memory instead of on a disk
    #[arg(long, conflicts_with = "disk")]
    tmpfs: bool,
    #[command(flatten)]
    command: CommandArgs,
    /// The guest's host name
    #[arg(long)]
    hostname: Option<String>,
    /// Leave the sandbox running in the background and print its id
    #[arg(long, short, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Keep the sandbox when the command ends
    #[arg(long)]
    keep: bool,
    /// Boot this kernel (vmlinux or bzImage)
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Modules of that kernel
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// Run although the VMM cannot be confined as it should be
    #[arg(long)]
    allow_insecure_vmm: bool,
    /// Engine to run it on
    #[arg(long, value_enum, env = "KILN_ENGINE")]
    engine: Option<Engine>,
    #[command(flatten)]
    network: RunNetworkArgs,
    /// Print how long each phase took, on standard error
    #[arg(long)]
    timings: bool,
    /// A volume, and where the guest has it; of several sandboxes with `:ro`
    #[arg(long, value_name = "NAME:/PATH[:ro]")]
    volume: Vec<Mount>,
    /// When to ask the registry for the image
    #[arg(long, value_enum, value_name = "WHEN")]
    pull: Option<Pull>,
    /// Boot the image of this runtime: base, node22, node24, python3.13, or one of images.json
    #[arg(long, value_name = "NAME")]
    runtime: Option<String>,
    /// Boot a base image, kernel and all: latest, lts, hosted, debian, or the id of one that is here
    #[arg(long, value_name = "PRESET|ID", conflicts_with_all = ["runtime", "kernel"])]
    bundle: Option<String>,
    /// Which of the image's builds, such as linux/amd64
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// Process 1 of the guest: Kiln's agent, or the image's own init, be it systemd or another
    #[arg(long, value_enum, value_name = "WHO")]
    init: Option<Init>,
    /// Run this instead of the image's entrypoint and command; "" runs just COMMAND
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Image to boot: a name such as alpine:3, a runtime, or the path of a tar, a directory, or an
    /// ext4 or squashfs file
    image: Option<String>,
    /// Command and its arguments; without an image, or with --runtime or --bundle, after `--`
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    words: Vec<String>,
}

/// Process 1 of a guest.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Init {
    /// Kiln's agent.
    Kiln,
    /// The image's own.
    Systemd,
}

impl From<Init> for InitSystem {
    fn from(init: Init) -> Self {
        match init {
            Init::Kiln => Self::Kiln,
            Init::Systemd => Self::Systemd,
        }
    }
}

impl RunArgs {
    /// Puts right what clap cannot tell apart: in `run -- true` the first word is no image, nor is
    /// it with `--runtime` or `--bundle`, which name one.
    pub(crate) fn tell_image_from_command(&mut self, typed: &[OsString]) {
        if self.runtime.is_some() || self.bundle.is_some() {
            self.words.splice(..0, self.image.take());
            return;
        }
        let Some(image) = &self.image else { return };
        // All that follows the image is the command, word for word, so it is counted from the end.
        let mut before = typed.iter().rev().skip(self.words.len());
        let is_image = before
            .next()
            .is_some_and(|word| word.to_str() == Some(image));
        let after_dashes = before.next().is_some_and(|word| word == "--");
        if is_image && after_dashes {
            self.words.splice(..0, self.image.take());
        }
    }

    fn request(self) -> Result<RunRequest, PlaceError> {
        let argv = self.words;
        let shell = argv.is_empty() && !self.detach;
        let mut exec = self.command.request(argv, shell);
        if self.detach {
            exec.stdin = false;
        }
        let sandbox = CreateSandbox {
            name: self.name,
            image: self.image.map(image).transpose()?,
            runtime: self.runtime,
            bundle: self.bundle,
            platform: self.platform,
            init: self.init.map(Into::into),
            pull: self.pull.map(Into::into),
            engine: self.engine.map(Into::into),
            vcpus: self.cpus,
            mem_mib: self.memory.map(Mebibytes::as_u32),
            disk_mib: self.disk.map(Mebibytes::as_u64),
            tmpfs: self.tmpfs,
            volumes: self.volume.into_iter().map(Into::into).collect(),
            kernel: self.kernel.as_deref().map(host_path).transpose()?,
            modules: self.modules.as_deref().map(host_path).transpose()?,
            hostname: self.hostname,
            allow_insecure_vmm: self.allow_insecure_vmm,
            network: Some(self.network.request()),
        };
        Ok(RunRequest {
            sandbox,
            exec,
            entrypoint: self.entrypoint.map(|program| vec![program]),
            keep: self.keep,
            detach: self.detach,
        })
    }
}

/// What looks like a path is one, also to the daemon, which stands elsewhere.
fn image(image: String) -> Result<String, PlaceError> {
    let path = Path::new(&image);
    if image.starts_with('.') || path.exists() {
        host_path(path)
    } else {
        Ok(image)
    }
}

fn host_path(path: &Path) -> Result<String, PlaceError> {
    Ok(absolute(path)?.to_string_lossy().into_owned())
}

pub(crate) async fn run(
    args: RunArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let timings = args.timings;
    let request = args.request()?;
    let purpose = if request.detach {
        Purpose::Detach
    } else {
        Purpose::Run
    };
    let stream = daemon
        .ask(async |client| client.run(&request).await)
        .await?;
    session::drive(stream, purpose, &request.exec, timings, output).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};

    fn typed(line: &str) -> Result<RunArgs, clap::Error> {
        match Cli::parse_words(line.split(' ').map(Into::into).collect())?.command {
            Command::Run(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    fn request(line: &str) -> RunRequest {
        typed(line).unwrap().request().unwrap()
    }

    fn image_and_command(line: &str) -> (Option<String>, Vec<String>) {
        let request = request(line);
        (request.sandbox.image, request.exec.argv)
    }

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn image_and_command_are_told_apart() {
        let image = |name: &str| Some(name.to_owned());
        assert_eq!(image_and_command("kiln run"), (None, vec![]));
        assert_eq!(image_and_command("kiln run -- true"), (None, words("true")));
        assert_eq!(
            image_and_command("kiln run -- ls -l --x"),
            (None, words("ls -l --x"))
        );
        assert_eq!(image_and_command("kiln run img"), (image("img"), vec![]));
        assert_eq!(
            image_and_command("kiln run img ls -l"),
            (image("img"), words("ls -l"))
        );
        assert_eq!(
            image_and_command("kiln run img -- ls -l"),
            (image("img"), words("ls -l"))
        );
        assert_eq!(
            image_and_command("kiln run img env -- a"),
            (image("img"), words("env -- a"))
        );
        assert_eq!(
            image_and_command("kiln run img ls --cpus 3 --json"),
            (image("img"), words("ls --cpus 3 --json"))
        );
    }

    #[test]
    fn an_unknown_flag_is_never_eaten() {
        for line in [
            "kiln run --cpu 2",
            "kiln run --no-net img",
            "kiln run img --bogus",
            "kiln run -x img true",
            "kiln run img --bogus -- true",
            "kiln --bogus run",
            "kiln run --cpus=x",
            "kiln run --cpus 2 --cpus 3 -- true",
            "kiln run --memory 1Q",
            "kiln run --tmpfs --disk 1G",
            "kiln run --modules /m",
            "kiln run -d -i img",
            "kiln run --engine vmware",
            "kiln run -e =x",
            "kiln run --pull sometimes img",
            "kiln run --volume data img",
            "kiln run --entrypoint",
            "kiln run --bundle lts --kernel /k",
            "kiln run --bundle lts --runtime base",
            "kiln run --init upstart",
            "kiln run --network bridge",
            "kiln run --network-policy open",
            "kiln run --verify-hosts",
        ] {
            assert!(typed(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_option_arrives() {
        let request = request(
            "kiln run --name n --cpus 2 -m 1G --disk 512M -e A=b -w /w -u u:g --hostname h --keep \
             --kernel /k --modules /m --engine qemu --network default --network-policy custom \
             --allow-domain a.b,c.d --allow-cidr 1.1.1.0/24 --deny-cidr 1.1.1.1 -p 80:8080 \
             --publish 53:53/udp --bandwidth 5mbit/1mbit img -- c",
        );
        let sandbox = request.sandbox;
        assert_eq!(sandbox.name.as_deref(), Some("n"));
        assert_eq!(
            (sandbox.vcpus, sandbox.mem_mib, sandbox.disk_mib),
            (Some(2), Some(1024), Some(512))
        );
        assert_eq!(sandbox.kernel.as_deref(), Some("/k"));
        assert_eq!(sandbox.modules.as_deref(), Some("/m"));
        assert_eq!(sandbox.hostname.as_deref(), Some("h"));
        assert_eq!(sandbox.engine, Some(kiln_api::EnginePreference::Qemu));
        assert_eq!(request.exec.env, [("A".to_owned(), "b".to_owned())]);
        assert_eq!(request.exec.cwd.as_deref(), Some("/w"));
        assert_eq!(request.exec.user.as_deref(), Some("u:g"));
        assert!(request.keep && !request.detach);
        let network = sandbox.network.unwrap();
        assert_eq!(network.mode, Some(kiln_api::NetworkMode::Default));
        let policy = network.policy;
        assert_eq!(policy.mode, Some(kiln_api::PolicyMode::Custom));
        assert_eq!(policy.allowed_domains, ["a.b", "c.d"]);
        assert_eq!(policy.allowed_cidrs, ["1.1.1.0/24"]);
        assert_eq!(policy.denied_cidrs, ["1.1.1.1"]);
        assert_eq!(policy.publish, ["80:8080", "53:53/udp"]);
        assert_eq!(policy.bandwidth.upload.as_deref(), Some("1mbit"));
    }

    #[test]
    fn pull_runtime_and_entrypoint_arrive() {
        let of_image = request("kiln run --pull always --entrypoint /bin/x img a");
        assert_eq!(of_image.sandbox.pull, Some(kiln_api::PullPolicy::Always));
        assert_eq!(of_image.entrypoint, Some(words("/bin/x")));
        assert_eq!(of_image.exec.argv, words("a"));
        for line in [
            "kiln run --runtime python3.13 python x",
            "kiln run --runtime python3.13 -- python x",
        ] {
            let request = request(line);
            assert_eq!(request.sandbox.runtime.as_deref(), Some("python3.13"));
            assert_eq!(request.sandbox.image, None, "{line}");
            assert_eq!(request.exec.argv, words("python x"), "{line}");
        }
        let dashed = request("kiln run --runtime base -- ls -l").exec.argv;
        assert_eq!(dashed, words("ls -l"));
        let bundle = request("kiln run --bundle lts --platform linux/amd64 --init systemd true");
        assert_eq!(bundle.sandbox.bundle.as_deref(), Some("lts"));
        assert_eq!(bundle.sandbox.platform.as_deref(), Some("linux/amd64"));
        assert_eq!(bundle.sandbox.init, Some(InitSystem::Systemd));
        assert_eq!(bundle.exec.argv, words("true"));
        let bare = request("kiln run --runtime base").exec.argv;
        assert!(bare.is_empty());
    }

    #[test]
    fn a_path_means_the_same_to_the_daemon() {
        let image = request("kiln run ./x.tar").sandbox.image.unwrap();
        assert!(Path::new(&image).is_absolute());
        assert_eq!(
            request("kiln run debian:12").sandbox.image.as_deref(),
            Some("debian:12")
        );
    }
}
