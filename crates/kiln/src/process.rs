//! What a sandbox's image says about the commands that run in it. Pure: no I/O.

use kiln_image::oci::{ImageConfig, Overrides, ProcessError};

use crate::error::{Error, ErrorCode};
use crate::exec::ExecSpec;

/// A command with all that the image says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Completed {
    pub(crate) spec: ExecSpec,
    /// The image wants the directory, and may lack it.
    pub(crate) make_cwd: bool,
    /// Asks the sandbox's main process to end; 0 for others.
    pub(crate) stop_signal: u32,
}

/// The command with environment, user and directory of the image where it names none.
pub(crate) fn complete(config: Option<&ImageConfig>, spec: &ExecSpec) -> Result<Completed, Error> {
    let stop_signal = if spec.main { stop_signal(config) } else { 0 };
    let Some(config) = config else {
        return Ok(Completed {
            spec: spec.clone(),
            make_cwd: false,
            stop_signal,
        });
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
    Ok(Completed {
        make_cwd: spec.cwd.is_none() && !config.working_dir.is_empty(),
        spec: ExecSpec {
            argv: process.argv,
            env: process.env,
            cwd: Some(process.working_dir),
            user: process.user,
            ..spec.clone()
        },
        stop_signal,
    })
}

/// The number of the image's stop signal. One that means nothing is the usual one, as nobody would
/// hear of it before the stop.
fn stop_signal(config: Option<&ImageConfig>) -> u32 {
    let named = config.and_then(|config| config.stop_signal.as_deref());
    named.and_then(signal_number).unwrap_or(TERM)
}

const TERM: u32 = 15;
/// Linux's, which is the same on every processor that Kiln runs on.
const SIGNALS: [(&str, u32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", TERM),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];
/// Real-time signals as programs count them, from both ends.
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

/// `SIGQUIT`, `quit`, `3`, `SIGRTMIN+3`, `RTMAX-1`.
fn signal_number(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| match rest {
        "" => Some(0),
        rest => rest.strip_prefix(['+', '-'])?.parse::<u32>().ok(),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        offset(rest)
            .filter(|_| !rest.starts_with('-'))?
            .checked_add(RTMIN)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        RTMAX.checked_sub(offset(rest).filter(|_| !rest.starts_with('+'))?)
    } else {
        let known = SIGNALS.iter().find(|(known, _)| *known == name);
        known.map(|(_, number)| *number)
    };
    number.filter(|number| (1..=RTMAX).contains(number))
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
    fn b3_5_an_exec_gets_what_it_does_not_name_from_the_image() {
        let bare = ExecSpec {
            argv: words("ls -l"),
            env: vec![("B".into(), "mine".into())],
            stdin: true,
            ..ExecSpec::default()
        };
        let completed = complete(Some(&image()), &bare).expect("complete");
        assert!(completed.make_cwd && completed.stop_signal == 0);
        let spec = completed.spec;
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
        let completed = complete(Some(&image()), &own).expect("complete");
        assert!(!completed.make_cwd, "who names a directory has one");
        let spec = completed.spec;
        let said = (spec.user.as_deref(), spec.cwd.as_deref());
        assert_eq!(said, (Some("0"), Some("/tmp")));
        assert_eq!(complete(None, &bare).expect("as it is").spec, bare);
    }

    #[test]
    fn a_main_process_ends_by_the_images_signal() {
        let main = ExecSpec {
            argv: words("serve"),
            main: true,
            ..ExecSpec::default()
        };
        let signal = |name: Option<&str>| {
            let config = ImageConfig {
                stop_signal: name.map(str::to_owned),
                ..image()
            };
            complete(Some(&config), &main)
                .expect("complete")
                .stop_signal
        };
        assert_eq!(complete(None, &main).expect("complete").stop_signal, 15);
        for (name, number) in [
            (None, 15),
            (Some("SIGQUIT"), 3),
            (Some("winch"), 28),
            (Some("9"), 9),
            (Some("SIGRTMIN+3"), 37),
            (Some("RTMAX-1"), 63),
            (Some("SIGRTMIN"), 34),
            (Some("SIGNONSENSE"), 15),
            (Some("0"), 15),
            (Some("65"), 15),
            (Some("RTMIN-1"), 15),
            (Some("RTMAX+1"), 15),
            (Some("RTMIN+99"), 15),
            (Some(""), 15),
        ] {
            assert_eq!(signal(name), number, "{name:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_signal_or_none(text in "(SIG)?(RTMIN|RTMAX|rt)?[-+0-9a-zé]{0,5}") {
            if let Some(number) = signal_number(&text) {
                proptest::prop_assert!((1..=64).contains(&number));
            }
        }
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
