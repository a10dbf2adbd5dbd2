//! `kiln run`.

use std::ffi::OsString;

use clap::Args;
use kiln_api::RunRequest;

use super::{sandbox_args::SandboxArgs, shared::CommandArgs};
use crate::{
    Failure, Output,
    place::Paths,
    session::{self, Purpose},
    start::Daemon,
};

/// Create a sandbox, run a command in it, and remove it
///
/// Without a command, runs the image's own, or a shell. Ctrl-C reaches the command; a second one removes the sandbox.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    sandbox: SandboxArgs,
    #[command(flatten)]
    command: CommandArgs,
    /// Leave the sandbox running in the background and print its id
    #[arg(long, short, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Keep the sandbox when the command ends
    #[arg(long)]
    keep: bool,
    /// Print how long each phase took, on standard error
    #[arg(long)]
    timings: bool,
    /// Run this instead of the image's entrypoint and command; "" runs just COMMAND
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Image to boot: a name such as alpine:3, a runtime, or the path of a tar, a directory, or an
    /// ext4 or squashfs file
    image: Option<String>,
    /// Command and its arguments; without an image, or with --runtime, --bundle or --snapshot, after `--`
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    words: Vec<String>,
}

impl RunArgs {
    /// Puts right what clap cannot tell apart: in `run -- true` the first word is no image, nor is
    /// it with `--runtime` or `--bundle`, which name one.
    pub(crate) fn tell_image_from_command(&mut self, typed: &[OsString]) {
        if self.sandbox.names_image() || first_is_command(&self.image, &self.words, typed) {
            self.words.splice(..0, self.image.take());
        }
    }

    fn request(self, paths: Paths) -> Result<RunRequest, Failure> {
        let argv = self.words;
        let shell = argv.is_empty() && !self.detach;
        let mut exec = self.command.request(argv, shell);
        if self.detach {
            exec.stdin = false;
        }
        let sandbox = self.sandbox.request(self.image, paths)?;
        Ok(RunRequest {
            sandbox,
            exec,
            entrypoint: self.entrypoint.map(|program| vec![program]),
            keep: self.keep,
            detach: self.detach,
        })
    }
}

/// Whether the word in the image's place stands behind `--`, and so is the command.
pub(super) fn first_is_command(
    image: &Option<String>,
    words: &[String],
    typed: &[OsString],
) -> bool {
    let Some(image) = image else { return false };
    // All that follows the image is the command, word for word, so it is counted from the end.
    let mut before = typed.iter().rev().skip(words.len());
    let is_image = before
        .next()
        .is_some_and(|word| word.to_str() == Some(image));
    is_image && before.next().is_some_and(|word| word == "--")
}

pub(crate) async fn run(
    args: RunArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let timings = args.timings;
    let request = args.request(daemon.paths())?;
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
    use std::path::Path;

    use super::*;
    use crate::cli::{Cli, Command};

    fn typed(line: &str) -> Result<RunArgs, clap::Error> {
        match Cli::parse_words(line.split(' ').map(Into::into).collect())?.command {
            Command::Run(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    fn request(line: &str) -> RunRequest {
        typed(line).unwrap().request(Paths::Here).unwrap()
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
            "kiln run --ip 172.30.0 img",
            "kiln run --network-policy open",
            "kiln run --rule permit",
            "kiln run --default-action drop",
            "kiln run --timeout 0 img",
            "kiln run --timeout 5x img",
            "kiln run --restart sometimes img",
            "kiln run --label =x img",
        ] {
            assert!(typed(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_option_arrives() {
        let request = request(
            "kiln run --name n --cpus 2 -m 1G --disk 512M -e A=b -w /w -u u:g --hostname h --keep \
             --kernel /k --modules /m --engine qemu --network default --network-policy custom \
             --rule=deny\u{a0}any --rule=allow\u{a0}udp\u{a0}a.b\u{a0}53 --default-action allow \
             --private-networks --allow-domain a.b,c.d --allow-cidr 1.1.1.0/24 --deny-cidr 1.1.1.1 -p 80:8080 \
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
        assert!(policy.private_networks && policy.default_action.is_some());
        let rules: Vec<_> = policy.rules.iter().map(|rule| rule.action).collect();
        assert_eq!(
            rules,
            [kiln_api::RuleAction::Deny, kiln_api::RuleAction::Allow]
        );
        assert_eq!(policy.allowed_domains, ["a.b", "c.d"]);
        assert_eq!(policy.allowed_cidrs, ["1.1.1.0/24"]);
        assert_eq!(policy.denied_cidrs, ["1.1.1.1"]);
        assert_eq!(policy.publish, ["80:8080", "53:53/udp"]);
        assert_eq!(policy.bandwidth.upload.as_deref(), Some("1mbit"));
    }

    #[test]
    fn b1_8_b1_9_time_outs_labels_and_policy_arrive() {
        let sandbox = request(
            "kiln run -d --timeout 2h30m --idle-timeout 10m --label a=b --label c --project p \
             --restart on-failure:3 img",
        )
        .sandbox;
        assert_eq!(sandbox.timeout_ms, Some(9_000_000));
        assert_eq!(sandbox.idle_timeout_ms, Some(600_000));
        assert_eq!(
            (sandbox.labels["a"].as_str(), sandbox.labels["c"].as_str()),
            ("b", "")
        );
        assert_eq!(sandbox.project.as_deref(), Some("p"));
        assert_eq!(sandbox.restart.as_deref(), Some("on-failure:3"));
        assert!(request("kiln run -d --rm img").sandbox.remove_on_stop);
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
        assert_eq!(bundle.sandbox.init, Some(kiln_api::InitSystem::Systemd));
        assert_eq!(bundle.exec.argv, words("true"));
        let bare = request("kiln run --runtime base").exec.argv;
        assert!(bare.is_empty());
    }

    #[test]
    fn b1_7_a_snapshot_takes_the_images_place() {
        for line in [
            "kiln run --snapshot golden -- ls -l",
            "kiln run --name n --snapshot golden -- ls -l",
        ] {
            let request = request(line);
            assert_eq!(request.sandbox.snapshot.as_deref(), Some("golden"));
            assert_eq!(request.sandbox.image, None, "{line}");
            assert_eq!(request.exec.argv, words("ls -l"), "{line}");
        }
        let plain = request("kiln run --snapshot golden ls a").exec.argv;
        assert_eq!(plain, words("ls a"));
        for line in [
            "kiln run --snapshot golden --cpus 2",
            "kiln run --snapshot golden -m 1G",
            "kiln run --snapshot golden --volume a:/b",
            "kiln run --snapshot golden --bundle lts",
            "kiln run --snapshot",
        ] {
            assert!(typed(line).is_err(), "{line}");
        }
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
