//! The environment of a command: a sane default, and on top of it what the client wants.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use kiln_agent_proto::message::EnvVar;

use super::user::User;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Name and value, in the order in which the process gets them.
pub(crate) type Environment = Vec<(OsString, OsString)>;

/// Builds the environment; the name of the first variable that cannot be one on failure.
pub(crate) fn build(user: &User, tty: bool, wanted: &[EnvVar]) -> Result<Environment, String> {
    let mut env: Environment = [
        ("PATH", PATH),
        ("HOME", &user.home.to_string_lossy()),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", &user.shell),
        ("LANG", "C.UTF-8"),
        ("TERM", if tty { "xterm-256color" } else { "dumb" }),
    ]
    .into_iter()
    .map(|(name, value)| (OsString::from(name), OsString::from(value)))
    .collect();
    for var in wanted {
        if !is_valid(var) {
            return Err(String::from_utf8_lossy(&var.name).into_owned());
        }
        set(&mut env, var);
    }
    Ok(env)
}

fn is_valid(var: &EnvVar) -> bool {
    !var.name.is_empty()
        && !var.name.iter().any(|&b| b == b'=' || b == 0)
        && !var.value.contains(&0)
}

fn set(env: &mut Environment, var: &EnvVar) {
    let name = OsString::from_vec(var.name.clone());
    let value = OsString::from_vec(var.value.clone());
    match env.iter_mut().find(|(n, _)| *n == name) {
        Some(entry) => entry.1 = value,
        None => env.push((name, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn var(name: &str, value: &str) -> EnvVar {
        EnvVar {
            name: name.into(),
            value: value.into(),
        }
    }

    fn root() -> User {
        super::super::Users::of(std::path::Path::new("/nonexistent"))
            .resolve("")
            .unwrap()
    }

    fn get<'a>(env: &'a Environment, name: &str) -> Option<&'a str> {
        env.iter().find(|(n, _)| n == name)?.1.to_str()
    }

    #[test]
    fn wanted_variables_win_and_the_last_of_them_most() {
        let wanted = [var("HOME", "/a"), var("X", ""), var("HOME", "/b=c")];
        let env = build(&root(), true, &wanted).unwrap();
        assert_eq!(get(&env, "HOME"), Some("/b=c"));
        assert_eq!(get(&env, "X"), Some(""));
        assert_eq!(get(&env, "TERM"), Some("xterm-256color"));
        assert_eq!(get(&env, "PATH"), Some(PATH));
    }

    #[test]
    fn impossible_names_are_refused() {
        for bad in [
            var("", "x"),
            var("a=b", "x"),
            var("a\0", "x"),
            var("a", "\0"),
        ] {
            assert!(build(&root(), false, &[bad]).is_err());
        }
    }
}
