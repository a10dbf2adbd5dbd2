//! `kiln create`.

use std::ffi::OsString;

use clap::Args;
use kiln_api::{CreateSandbox, ErrorReport, ExecRequest, MainCommand};

use super::{
    run::first_is_command,
    sandbox_args::SandboxArgs,
    shared::{CommandArgs, Connect},
};
use crate::{Failure, Output, place::Paths, start::Daemon};

/// Create a sandbox without starting it, and print its id
///
/// The command, or the image's own, runs from every start of the sandbox on.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    sandbox: SandboxArgs,
    #[command(flatten)]
    command: CommandArgs,
    /// Run this instead of the image's entrypoint and command; "" runs just COMMAND
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Start it and go into it with a shell
    #[arg(long)]
    connect: bool,
    /// Do not print the id
    #[arg(long, short)]
    quiet: bool,
    /// Image to boot: a name such as alpine:3, a runtime, or the path of a tar, a directory, or an
    /// ext4 or squashfs file
    image: Option<String>,
    /// Command and its arguments; without an image, or with --runtime or --snapshot, after `--`
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    words: Vec<String>,
}

impl CreateArgs {
    /// As for `run`.
    pub(crate) fn tell_image_from_command(&mut self, typed: &[OsString]) {
        if self.sandbox.names_image() || first_is_command(&self.image, &self.words, typed) {
            self.words.splice(..0, self.image.take());
        }
    }

    fn request(self, paths: Paths) -> Result<CreateSandbox, Failure> {
        if self.command.interactive {
            let text = "nobody's input reaches a main command: --interactive is for run and exec";
            return Err(Failure::reported(ErrorReport::new("USAGE", text)));
        }
        let exec = ExecRequest {
            stdin: false,
            ..self.command.request(self.words, false)
        };
        Ok(CreateSandbox {
            command: Some(MainCommand {
                entrypoint: self.entrypoint.map(|program| vec![program]),
                exec,
            }),
            ..self.sandbox.request(self.image, paths)?
        })
    }
}

pub(crate) async fn run(
    args: CreateArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let (connect, quiet) = (args.connect, args.quiet);
    let request = args.request(daemon.paths())?;
    let created = daemon
        .ask(async |client| client.create(&request).await)
        .await?;
    if !connect {
        if !quiet {
            output.line(&created.id);
        }
        output.object(&created);
        return Ok(0);
    }
    output.note(&format!("created {}", created.id));
    daemon
        .ask(async |client| client.start(&created.id).await)
        .await?;
    Connect::to(created.id).run(daemon, output).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};

    fn request(line: &str) -> CreateSandbox {
        match Cli::parse_words(line.split(' ').map(Into::into).collect())
            .unwrap()
            .command
        {
            Command::Create(args) => args.request(Paths::Here).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn b1_1_b1_11_a_sandbox_and_its_command_arrive() {
        let created = request("kiln create --name web --cpus 2 -m 1G -e A=b alpine:3 -- httpd -f");
        assert_eq!(created.name.as_deref(), Some("web"));
        assert_eq!(created.image.as_deref(), Some("alpine:3"));
        assert_eq!((created.vcpus, created.mem_mib), (Some(2), Some(1024)));
        let command = created.command.unwrap();
        assert_eq!(command.exec.argv, ["httpd", "-f"]);
        assert_eq!(command.exec.env, [("A".to_owned(), "b".to_owned())]);
        assert_eq!(created.without, []);
        let bare = request("kiln create -- sleep 5");
        assert_eq!(bare.image, None);
        assert_eq!(bare.command.unwrap().exec.argv, ["sleep", "5"]);
    }

    #[test]
    fn b1_10_each_protection_has_an_opt_out_of_its_own() {
        use kiln_api::Protection::{Cgroup, PidNamespace, Seccomp};
        for (line, without) in [
            ("kiln create --without seccomp -- true", vec![Seccomp]),
            (
                "kiln create --without pid-namespace -- true",
                vec![PidNamespace],
            ),
            (
                "kiln create --without cgroup --without seccomp -- true",
                vec![Cgroup, Seccomp],
            ),
            (
                "kiln create --without cgroup,pid-namespace -- true",
                vec![Cgroup, PidNamespace],
            ),
        ] {
            assert_eq!(request(line).without, without, "{line}");
        }
    }
}
