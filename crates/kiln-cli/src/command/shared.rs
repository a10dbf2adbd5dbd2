//! What `run` and `exec` take alike, and doing one thing to several sandboxes.

use std::{io::IsTerminal, str::FromStr};

use clap::Args;
use kiln_api::{ClientError, ExecRequest, StopSandbox};
use serde::Serialize;

use crate::{
    Failure, Output,
    session::{self, Purpose, terminal},
    start::Daemon,
};

/// How sandboxes are stopped.
#[derive(Debug, Args)]
pub(crate) struct StopHow {
    /// Seconds that the guest has to power off before its machine is ended
    #[arg(long, short, value_name = "SECONDS")]
    time: Option<u32>,
}

impl StopHow {
    pub(crate) fn request(&self) -> StopSandbox {
        StopSandbox {
            grace_ms: self.time.map(|seconds| u64::from(seconds) * 1000),
        }
    }
}

/// How a command runs.
#[derive(Debug, Args)]
pub(crate) struct CommandArgs {
    /// Set a variable of the environment; NAME alone takes its value from here
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<Variable>,
    /// Working directory
    #[arg(long, short, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User, by name or number, and group: USER[:GROUP]
    #[arg(long, short, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Pass standard input on even from a terminal; a pipe or a file is always passed on
    /// (`</dev/null` keeps it out)
    #[arg(long, short)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,
}

/// A variable of the environment, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variable {
    name: String,
    value: Option<String>,
}

impl FromStr for Variable {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() {
            return Err("the name is empty");
        }
        Ok(Self {
            name: name.to_owned(),
            value,
        })
    }
}

impl Variable {
    /// With its value; nothing when it should come from here and is not set.
    fn resolve(self) -> Option<(String, String)> {
        let value = self.value.or_else(|| std::env::var(&self.name).ok())?;
        Some((self.name, value))
    }
}

impl CommandArgs {
    /// What is asked of the daemon. `shell` says that a terminal at both ends is reason enough to
    /// give the command one too.
    pub(crate) fn request(self, argv: Vec<String>, shell: bool) -> ExecRequest {
        let at_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let tty = self.tty || (shell && at_terminal);
        let mut env: Vec<_> = self.env.into_iter().filter_map(Variable::resolve).collect();
        if tty && let Ok(term) = std::env::var("TERM") {
            // First, so that one that was typed wins.
            env.insert(0, ("TERM".to_owned(), term));
        }
        ExecRequest {
            argv,
            env,
            cwd: self.workdir,
            user: self.user,
            tty: tty.then(terminal::size),
            stdin: self.interactive || tty || terminal::stdin_is_data(),
            kill_on_detach: true,
            keep_timeout: false,
            timeout_ms: None,
            limits: None,
        }
    }
}

/// A shell in a sandbox that is up.
#[derive(Debug)]
pub(super) struct Connect {
    pub(super) sandbox: String,
    pub(super) user: Option<String>,
    pub(super) workdir: Option<String>,
    pub(super) keep_timeout: bool,
}

impl Connect {
    pub(super) fn to(sandbox: String) -> Self {
        Self {
            sandbox,
            user: None,
            workdir: None,
            keep_timeout: false,
        }
    }

    pub(super) async fn run(self, daemon: &Daemon<'_>, output: &Output) -> Result<u8, Failure> {
        let command = CommandArgs {
            env: Vec::new(),
            workdir: self.workdir,
            user: self.user,
            interactive: false,
            tty: false,
        };
        let request = ExecRequest {
            keep_timeout: self.keep_timeout,
            ..command.request(Vec::new(), true)
        };
        let stream = daemon
            .ask(async |client| client.exec(&self.sandbox, &request).await)
            .await?;
        session::drive(stream, Purpose::Exec, &request, false, output).await
    }
}

/// What became of one of several.
#[derive(Debug, Serialize)]
struct Outcome<'a, T> {
    sandbox: &'a str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<T>,
}

/// Does something to each; tells every failure and goes on.
pub(crate) async fn for_each(
    keys: &[String],
    output: &Output,
    action: impl AsyncFn(&str) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let outcomes = all(keys, output, |key, ()| key.to_owned(), action).await;
    let shown: Vec<_> = outcomes
        .told
        .iter()
        .map(|(key, result)| Outcome::<()> {
            sandbox: key,
            ok: result.is_some(),
            result: None,
        })
        .collect();
    output.object(&shown);
    outcomes.conclude(output)
}

/// What became of a path.
#[derive(Debug, Serialize)]
struct PathOutcome<'a> {
    path: &'a str,
    ok: bool,
}

/// As [`for_each`], with paths of one sandbox.
pub(crate) async fn for_each_path(
    paths: &[String],
    output: &Output,
    action: impl AsyncFn(&str) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let outcomes = all(paths, output, |path, ()| path.to_owned(), action).await;
    let shown = outcomes.told.iter().map(|(path, result)| PathOutcome {
        path,
        ok: result.is_some(),
    });
    output.object(&shown.collect::<Vec<_>>());
    outcomes.conclude(output)
}

/// As [`for_each`], and shows what came of each.
pub(crate) async fn for_each_with<T: Serialize>(
    keys: &[String],
    output: &Output,
    line: impl Fn(&str, &T) -> String,
    action: impl AsyncFn(&str) -> Result<T, Failure>,
) -> Result<u8, Failure> {
    let outcomes = all(keys, output, |key, result| line(key, result), action).await;
    let shown: Vec<_> = outcomes
        .told
        .iter()
        .map(|(key, result)| Outcome {
            sandbox: key,
            ok: result.is_some(),
            result: result.as_ref(),
        })
        .collect();
    output.object(&shown);
    outcomes.conclude(output)
}

/// What became of all, and the last failure, which is not told yet.
struct Outcomes<'a, T> {
    told: Vec<(&'a str, Option<T>)>,
    last: Option<Failure>,
}

async fn all<'a, T>(
    keys: &'a [String],
    output: &Output,
    line: impl Fn(&str, &T) -> String,
    action: impl AsyncFn(&str) -> Result<T, Failure>,
) -> Outcomes<'a, T> {
    let mut outcomes = Outcomes {
        told: Vec::with_capacity(keys.len()),
        last: None,
    };
    for key in keys {
        let result = match action(key).await {
            Ok(result) => {
                output.line(&line(key, &result));
                Some(result)
            }
            Err(failure) => {
                // The last is told by main; so a single one is told once.
                if let Some(earlier) = outcomes.last.replace(failure) {
                    output.failure(&Failure::report(&earlier));
                }
                None
            }
        };
        outcomes.told.push((key, result));
    }
    outcomes
}

impl<T> Outcomes<'_, T> {
    fn conclude(self, output: &Output) -> Result<u8, Failure> {
        let asked = self.told.len();
        let failed = self
            .told
            .iter()
            .filter(|(_, result)| result.is_none())
            .count();
        match self.last {
            None => Ok(0),
            Some(only) if failed == 1 => Err(only),
            Some(last) => {
                output.failure(&last.report());
                Err(Failure::Several { failed, asked })
            }
        }
    }
}

/// Whether a failure says that there is no daemon.
pub(crate) fn is_not_running(error: &ClientError) -> bool {
    error.is_not_running()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_split_at_the_first_equals_sign() {
        let typed = |text: &str| text.parse::<Variable>();
        let set = |name: &str, value: &str| Variable {
            name: name.into(),
            value: Some(value.into()),
        };
        assert_eq!(typed("A=b=c"), Ok(set("A", "b=c")));
        assert_eq!(typed("A="), Ok(set("A", "")));
        assert_eq!(
            typed("A"),
            Ok(Variable {
                name: "A".into(),
                value: None
            })
        );
        assert!(typed("=b").is_err());
    }
}
