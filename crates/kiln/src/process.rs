//! What a sandbox's image says about the commands that run in it. Pure: no I/O.

use kiln_image::oci::{ImageConfig, Overrides, ProcessError};

use crate::error::{Error, ErrorCode};
use crate::exec::ExecSpec;

/// The command with environment, user and directory of the image where it names none.
pub(crate) fn complete(config: Option<&ImageConfig>, spec: &ExecSpec) -> Result<ExecSpec, Error> {
    let Some(config) = config else {
        return Ok(spec.clone());
    };
    let wanted = Overrides {
        command: spec.argv.clone(),
        env: spec
            .env
            .iter()
            .map(|(name, value)| (name.clone(), Some(value.clone())))
            .collect(),
        user: spec.user.clone(),
        working_dir: spec.cwd.clone(),
        ..Overrides::default()
    };
    let process = config.exec(&wanted).map_err(refused)?;
    Ok(ExecSpec {
        argv: process.argv,
        env: process.env,
        cwd: Some(process.working_dir),
        user: process.user,
        ..spec.clone()
    })
}

/// The main process of an image with these words; `None` when nobody says what it is.
pub(crate) fn main_command(
    config: Option<&ImageConfig>,
    entrypoint: Option<&[String]>,
    words: &[String],
) -> Option<Vec<String>> {
    let wanted = Overrides {
        entrypoint: entrypoint.map(<[String]>::to_vec),
        command: words.to_vec(),
        ..Overrides::default()
    };
    let process = config.cloned().unwrap_or_default().process(&wanted);
    // Without variables or a directory of the caller's, a missing command is all that can fail.
    process.ok().map(|process| process.argv)
}

fn refused(error: ProcessError) -> Error {
    Error::new(ErrorCode::ExecFailed, "the command cannot be run").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: words("/entry -x"),
            cmd: words("serve"),
            env: vec![("A".into(), "image".into()), ("B".into(), "image".into())],
            user: "app".into(),
            working_dir: "/srv".into(),
            ..ImageConfig::default()
        }
    }

    #[test]
    fn an_exec_gets_what_it_does_not_name_from_the_image() {
        let bare = ExecSpec {
            argv: words("ls -l"),
            env: vec![("B".into(), "mine".into())],
            stdin: true,
            ..ExecSpec::default()
        };
        let spec = complete(Some(&image()), &bare).expect("complete");
        assert_eq!(spec.argv, words("ls -l"), "no entrypoint");
        assert_eq!(spec.user.as_deref(), Some("app"));
        assert_eq!(spec.cwd.as_deref(), Some("/srv"));
        assert!(spec.env.contains(&("A".into(), "image".into())));
        assert!(spec.env.contains(&("B".into(), "mine".into())));
        assert!(spec.stdin);
        let own = ExecSpec {
            user: Some("0".into()),
            cwd: Some("/tmp".into()),
            ..bare.clone()
        };
        let spec = complete(Some(&image()), &own).expect("complete");
        let said = (spec.user.as_deref(), spec.cwd.as_deref());
        assert_eq!(said, (Some("0"), Some("/tmp")));
        assert_eq!(complete(None, &bare).expect("as it is"), bare);
    }

    #[test]
    fn the_main_process_is_put_together_as_docker_does() {
        let main = |entrypoint: Option<&[String]>, text: &str| {
            main_command(Some(&image()), entrypoint, &words(text))
        };
        assert_eq!(main(None, ""), Some(words("/entry -x serve")));
        assert_eq!(main(None, "a b"), Some(words("/entry -x a b")));
        assert_eq!(main(Some(&words("/bin/y")), "z"), Some(words("/bin/y z")));
        assert_eq!(main(Some(&[]), ""), None);
        assert_eq!(main_command(None, None, &[]), None);
        assert_eq!(main_command(None, None, &words("ls")), Some(words("ls")));
    }

    #[test]
    fn a_relative_directory_is_refused() {
        let spec = ExecSpec {
            argv: words("ls"),
            cwd: Some("x".into()),
            ..ExecSpec::default()
        };
        let error = complete(Some(&image()), &spec).expect_err("relative");
        assert_eq!(error.code(), ErrorCode::ExecFailed);
    }
}
