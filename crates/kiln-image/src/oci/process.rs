//! What a process of an image is started with: the image's config and what the caller wants
//! otherwise, combined as `docker run` combines them.

use super::config::ImageConfig;

/// What images without a `PATH` get, as Docker gives it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_STOP_SIGNAL: &str = "SIGTERM";

/// What the caller wants otherwise than the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--entrypoint`: replaces the image's, and its command with it. One empty word, or none at
    /// all, means no entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// The words behind the image: replace its command if there are any.
    pub command: Vec<String>,
    /// `-e NAME=value`, in order; `None` takes the variable away.
    pub env: Vec<(String, Option<String>)>,
    /// `-u`.
    pub user: Option<String>,
    /// `-w`.
    pub working_dir: Option<String>,
    /// `--stop-signal`.
    pub stop_signal: Option<String>,
}

/// How to start the main process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSpec {
    /// Program and arguments; never empty.
    pub argv: Vec<String>,
    /// Environment, each name once.
    pub env: Vec<(String, String)>,
    /// Where it starts: an absolute path.
    pub working_dir: String,
    /// As the agent takes it: `name`, `uid`, `name:group` or `uid:gid`; `None` for root.
    pub user: Option<String>,
    /// What asks it to end.
    pub stop_signal: String,
}

/// Why nothing can be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// Neither the image nor the caller says what to run.
    #[error("the image says nothing about what to run: give a command")]
    NoCommand,
    /// `NAME` of a variable that cannot be one.
    #[error("`{0}` is not the name of an environment variable")]
    Variable(String),
    /// `-w` with a relative path.
    #[error("the working directory `{0}` is not an absolute path")]
    RelativeDirectory(String),
}

impl ImageConfig {
    /// The main process of an image, run with these overrides.
    ///
    /// # Errors
    /// [`ProcessError`].
    pub fn process(&self, overrides: &Overrides) -> Result<ProcessSpec, ProcessError> {
        let user = overrides.user.as_ref().unwrap_or(&self.user);
        let signal = overrides.stop_signal.as_ref().or(self.stop_signal.as_ref());
        Ok(ProcessSpec {
            argv: self.argv(overrides)?,
            env: self.environment(&overrides.env)?,
            working_dir: self.directory(overrides)?,
            user: Some(user.clone()).filter(|user| !user.is_empty()),
            stop_signal: signal
                .map_or(DEFAULT_STOP_SIGNAL, String::as_str)
                .to_owned(),
        })
    }

    /// The environment and place of one more process in a running machine: `docker exec` knows
    /// neither entrypoint nor command.
    ///
    /// # Errors
    /// [`ProcessError`]; [`ProcessError::NoCommand`] if `overrides` has no command.
    pub fn exec(&self, overrides: &Overrides) -> Result<ProcessSpec, ProcessError> {
        let bare = Overrides {
            entrypoint: Some(Vec::new()),
            ..overrides.clone()
        };
        self.process(&bare)
    }

    fn argv(&self, overrides: &Overrides) -> Result<Vec<String>, ProcessError> {
        let (entrypoint, default_command) = match &overrides.entrypoint {
            Some(words) if words.iter().all(String::is_empty) => (&[][..], &[][..]),
            Some(words) => (&words[..], &[][..]),
            None => (&self.entrypoint[..], &self.cmd[..]),
        };
        let command = match &overrides.command[..] {
            [] => default_command,
            words => words,
        };
        let argv = [entrypoint, command].concat();
        match argv.first() {
            Some(program) if !program.is_empty() => Ok(argv),
            _ => Err(ProcessError::NoCommand),
        }
    }

    fn environment(
        &self,
        overrides: &[(String, Option<String>)],
    ) -> Result<Vec<(String, String)>, ProcessError> {
        let mut env: Vec<(String, String)> = Vec::new();
        let known = self.env.iter().any(|(name, _)| name == "PATH");
        if !known {
            env.push(("PATH".to_owned(), DEFAULT_PATH.to_owned()));
        }
        // The image's own may be malformed: what has no name cannot be set.
        for (name, value) in self.env.iter().filter(|(name, _)| !name.is_empty()) {
            set(&mut env, name, value);
        }
        for (name, value) in overrides {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(ProcessError::Variable(name.escape_debug().collect()));
            }
            match value {
                Some(value) => set(&mut env, name, value),
                None => env.retain(|(existing, _)| existing != name),
            }
        }
        Ok(env)
    }

    fn directory(&self, overrides: &Overrides) -> Result<String, ProcessError> {
        if let Some(directory) = &overrides.working_dir {
            if !directory.starts_with('/') {
                return Err(ProcessError::RelativeDirectory(
                    directory.escape_debug().collect(),
                ));
            }
            return Ok(directory.clone());
        }
        // Docker takes an image's relative path from the root.
        Ok(match self.working_dir.as_str() {
            absolute if absolute.starts_with('/') => absolute.to_owned(),
            relative => format!("/{relative}"),
        })
    }
}

/// Later wins, at the place of the earlier.
fn set(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    match env.iter_mut().find(|(existing, _)| existing == name) {
        Some((_, old)) => value.clone_into(old),
        None => env.push((name.to_owned(), value.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn image(entrypoint: &str, cmd: &str) -> ImageConfig {
        ImageConfig {
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            ..ImageConfig::default()
        }
    }

    fn argv(
        image: &ImageConfig,
        entrypoint: Option<&str>,
        command: &str,
    ) -> Result<String, ProcessError> {
        let overrides = Overrides {
            entrypoint: entrypoint.map(words),
            command: words(command),
            ..Overrides::default()
        };
        image
            .process(&overrides)
            .map(|process| process.argv.join(" "))
    }

    #[test]
    fn commands_combine_as_docker_combines_them() {
        let both = image("/entry", "serve fast");
        assert_eq!(argv(&both, None, ""), Ok("/entry serve fast".into()));
        assert_eq!(argv(&both, None, "sh"), Ok("/entry sh".into()));
        // A new entrypoint takes the image's command away.
        assert_eq!(argv(&both, Some("/bin/x"), ""), Ok("/bin/x".into()));
        assert_eq!(argv(&both, Some("/bin/x"), "y z"), Ok("/bin/x y z".into()));
        assert_eq!(argv(&both, Some(""), "sh -c"), Ok("sh -c".into()));
        assert_eq!(argv(&both, Some(""), ""), Err(ProcessError::NoCommand));
        assert_eq!(argv(&image("", "sh"), None, ""), Ok("sh".into()));
        assert_eq!(argv(&image("", ""), None, ""), Err(ProcessError::NoCommand));
        let exec = Overrides {
            command: words("ls -l"),
            ..Overrides::default()
        };
        assert_eq!(both.exec(&exec).unwrap().argv, ["ls", "-l"]);
    }

    #[test]
    fn environments_combine_by_name() {
        let mut image = image("", "sh");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            image.process(&Overrides::default()).unwrap().env,
            [pair("PATH", DEFAULT_PATH)]
        );
        image.env = vec![
            pair("PATH", "/bin"),
            pair("A", "1"),
            pair("B", "2"),
            pair("", "x"),
        ];
        let overrides = Overrides {
            env: vec![
                ("A".into(), Some("3".into())),
                ("B".into(), None),
                ("C".into(), Some("a=b".into())),
            ],
            ..Overrides::default()
        };
        let env = image.process(&overrides).unwrap().env;
        assert_eq!(
            env,
            [pair("PATH", "/bin"), pair("A", "3"), pair("C", "a=b")]
        );
        let wrong = Overrides {
            env: vec![("A=B".into(), None)],
            ..Overrides::default()
        };
        assert!(matches!(
            image.process(&wrong),
            Err(ProcessError::Variable(_))
        ));
    }

    #[test]
    fn user_directory_and_signal_have_defaults_and_overrides() {
        let mut image = image("", "sh");
        let plain = image.process(&Overrides::default()).unwrap();
        assert_eq!(
            (
                plain.working_dir.as_str(),
                plain.user,
                plain.stop_signal.as_str()
            ),
            ("/", None, "SIGTERM")
        );
        image.user = "app:staff".into();
        image.working_dir = "srv".into();
        image.stop_signal = Some("SIGQUIT".into());
        let own = image.process(&Overrides::default()).unwrap();
        assert_eq!(
            (own.working_dir.as_str(), own.user.as_deref()),
            ("/srv", Some("app:staff"))
        );
        assert_eq!(own.stop_signal, "SIGQUIT");
        let overrides = Overrides {
            user: Some("1000:1000".into()),
            working_dir: Some("/tmp".into()),
            stop_signal: Some("9".into()),
            ..Overrides::default()
        };
        let other = image.process(&overrides).unwrap();
        assert_eq!(
            (other.working_dir.as_str(), other.user.as_deref()),
            ("/tmp", Some("1000:1000"))
        );
        assert_eq!(other.stop_signal, "9");
        let relative = Overrides {
            working_dir: Some("x".into()),
            ..Overrides::default()
        };
        assert!(matches!(
            image.process(&relative),
            Err(ProcessError::RelativeDirectory(_))
        ));
    }
}
