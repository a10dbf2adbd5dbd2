//! Running commands: what they get and what becomes of them.

use std::time::Duration;

use crate::exec::{ExecExit, ExecInput, ExecOutput, ExecSpec, TerminalSize};
use crate::guest::{GuestError, Refusal};
use crate::process::Completed;

use super::support::{collect, connected, gone, run, shell, spec, until, within};

#[tokio::test]
async fn output_streams_are_separate_and_the_exit_code_is_the_commands() {
    let (_agent, link) = connected(&[]).await;
    let outcome = run(&link, &shell("echo out; echo err >&2; exit 7")).await;
    assert_eq!(outcome.stdout(), "out\n");
    assert_eq!(outcome.stderr(), "err\n");
    assert_eq!(outcome.exit, Some(ExecExit::Code(7)));
}

#[tokio::test]
async fn a_signal_is_told_as_such() {
    let (_agent, link) = connected(&[]).await;
    let outcome = run(&link, &shell("kill -SEGV $$")).await;
    assert_eq!(outcome.exit, Some(ExecExit::Signal(11)));
    assert_eq!(outcome.exit.map(ExecExit::shell_code), Some(139));
}

#[tokio::test]
async fn arguments_environment_and_directory_arrive_as_given() {
    let (agent, link) = connected(&[]).await;
    let dir = agent.dir.path().canonicalize().unwrap();
    let wanted = ExecSpec {
        argv: [
            "sh",
            "-c",
            "printf '%s|' \"$@\"; pwd; echo \"$X $HOME $TERM\"",
            "sh",
            "a b",
            "",
            "ü\n",
        ]
        .map(str::to_owned)
        .to_vec(),
        env: vec![
            ("X".into(), "1=2".into()),
            ("HOME".into(), "/nowhere".into()),
        ],
        cwd: Some(dir.display().to_string()),
        ..ExecSpec::default()
    };
    let outcome = run(&link, &wanted).await;
    let expected = format!("a b||ü\n|{}\n1=2 /nowhere dumb\n", dir.display());
    assert_eq!(outcome.stdout(), expected);
}

#[tokio::test]
async fn a_command_gets_a_clean_environment() {
    let (_agent, link) = connected(&[]).await;
    let outcome = run(&link, &spec(&["env"])).await;
    let mut names: Vec<_> = outcome
        .stdout()
        .lines()
        .filter_map(|line| line.split_once('=').map(|(name, _)| name.to_owned()))
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "USER"]
    );
}

#[tokio::test]
async fn commands_at_fault_are_told_apart() {
    let (agent, link) = connected(&[]).await;
    let plain = agent.dir.path().join("plain");
    std::fs::write(&plain, "not a program").unwrap();
    let bad_interpreter = agent.dir.path().join("script");
    std::fs::write(&bad_interpreter, "#!/no/such/shell\n").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&bad_interpreter, std::fs::Permissions::from_mode(0o755)).unwrap();

    let refused = async |spec: ExecSpec| {
        let error = within(link.exec(&spec)).await.unwrap_err();
        (error.refusal().unwrap(), error.exit_code())
    };
    assert_eq!(
        refused(spec(&["no-such-thing"])).await,
        (Refusal::NotFound, Some(127))
    );
    assert_eq!(
        refused(spec(&["/no/such"])).await,
        (Refusal::NotFound, Some(127))
    );
    let plain = plain.display().to_string();
    assert_eq!(
        refused(spec(&[&plain])).await,
        (Refusal::NotExecutable, Some(126))
    );
    let script = bad_interpreter.display().to_string();
    assert_eq!(
        refused(spec(&[&script])).await,
        (Refusal::NotExecutable, Some(126))
    );
    assert_eq!(
        refused(spec(&["/"])).await,
        (Refusal::NotExecutable, Some(126))
    );
    assert_eq!(refused(spec(&[])).await, (Refusal::BadRequest, None));
    let stranger = ExecSpec {
        user: Some("no-such-user".into()),
        ..spec(&["true"])
    };
    assert_eq!(refused(stranger).await, (Refusal::NoSuchUser, Some(126)));
    let nowhere = ExecSpec {
        cwd: Some("/no/such/directory".into()),
        ..spec(&["true"])
    };
    assert_eq!(refused(nowhere).await, (Refusal::BadCwd, Some(126)));
    let variable = ExecSpec {
        env: vec![("a=b".into(), String::new())],
        ..spec(&["true"])
    };
    assert_eq!(refused(variable).await, (Refusal::BadRequest, None));
    assert_eq!(
        run(&link, &spec(&["true"])).await.exit,
        Some(ExecExit::Code(0))
    );
}

#[tokio::test]
async fn b3_5_a_user_is_taken_on_whole() {
    let (_agent, link) = connected(&[]).await;
    if run(&link, &spec(&["id", "-u"])).await.stdout() != "0\n" {
        eprintln!("SKIPPED: a_user_is_taken_on_whole: not root");
        return;
    }
    let as_user = |user: &str, script: &str| ExecSpec {
        user: Some(user.into()),
        ..shell(script)
    };
    let script = "id -u; id -g; id -G; echo $HOME $USER";
    let named = run(&link, &as_user("daemon", script)).await.stdout();
    assert_eq!(named, "1\n1\n1\n/usr/sbin daemon\n");
    let numbers = run(&link, &as_user("12345:54321", script)).await.stdout();
    assert_eq!(numbers, "12345\n54321\n54321\n/ 12345\n");
    let forbidden = ExecSpec {
        cwd: Some("/root".into()),
        ..as_user("daemon", "true")
    };
    let error = within(link.exec(&forbidden)).await.unwrap_err();
    assert_eq!(error.refusal(), Some(Refusal::BadCwd));
}

#[tokio::test]
async fn stdin_is_binary_and_ends() {
    let (_agent, link) = connected(&[]).await;
    let mut session = within(link.exec(&ExecSpec {
        stdin: true,
        ..spec(&["cat"])
    }))
    .await
    .unwrap();
    let all: Vec<u8> = (0..=255u8).cycle().take(100_000).collect();
    let input = async {
        session
            .input
            .send(ExecInput::Stdin(all.clone().into()))
            .await
            .unwrap();
        session.input.send(ExecInput::StdinEof).await.unwrap();
    };
    let ((), outcome) = tokio::join!(input, collect(&mut session.output));
    assert!(outcome.stdout == all);
    assert_eq!(outcome.exit, Some(ExecExit::Code(0)));
    let late = session.input.send(ExecInput::Stdin("x".into())).await;
    assert!(matches!(late, Err(GuestError::Ended)), "{late:?}");
}

#[tokio::test]
async fn without_stdin_a_command_reads_nothing() {
    let (_agent, link) = connected(&[]).await;
    assert_eq!(
        run(&link, &spec(&["cat"])).await.exit,
        Some(ExecExit::Code(0))
    );
}

#[tokio::test]
async fn input_that_nobody_reads_blocks_no_signal() {
    let (_agent, link) = connected(&[]).await;
    let mut session = within(link.exec(&ExecSpec {
        stdin: true,
        ..spec(&["sleep", "1000"])
    }))
    .await
    .unwrap();
    // All that fits: a window in the agent, and what the pipe takes.
    for _ in 0..8 {
        let chunk = vec![0; 32 * 1024].into();
        within(session.input.send(ExecInput::Stdin(chunk)))
            .await
            .unwrap();
    }
    within(session.input.send(ExecInput::Signal(15)))
        .await
        .unwrap();
    let outcome = collect(&mut session.output).await;
    assert_eq!(outcome.exit, Some(ExecExit::Signal(15)));
}

#[tokio::test]
async fn b3_3_a_terminal_is_one_with_a_size_that_changes() {
    let (_agent, link) = connected(&[]).await;
    let mut session = within(link.exec(&ExecSpec {
        tty: Some(TerminalSize { rows: 30, cols: 100 }),
        stdin: true,
        ..shell("trap 'stty size; echo resized' WINCH; tty; stty size; echo ready; while :; do read line && echo \"<$line>\"; done")
    }))
    .await
    .unwrap();
    let first = until(&mut session.output, "ready").await.stdout();
    assert!(
        first.contains("/dev/pts/") && first.contains("30 100"),
        "{first}"
    );
    let size = TerminalSize {
        rows: 50,
        cols: 132,
    };
    session.input.send(ExecInput::Resize(size)).await.unwrap();
    // The shell runs its trap when its read ends.
    session
        .input
        .send(ExecInput::Stdin("hello\n".into()))
        .await
        .unwrap();
    let then = until(&mut session.output, "<hello>").await.stdout();
    session
        .input
        .send(ExecInput::Stdin("\n".into()))
        .await
        .unwrap();
    let then = then + &until(&mut session.output, "<>").await.stdout();
    assert!(then.contains("50 132"), "{then}");
    // Ctrl-C goes through the terminal: it is its controlling one.
    session
        .input
        .send(ExecInput::Stdin("\x03".into()))
        .await
        .unwrap();
    let outcome = collect(&mut session.output).await;
    assert_eq!(outcome.exit, Some(ExecExit::Signal(2)));
}

#[tokio::test]
async fn the_last_words_on_a_terminal_are_heard() {
    let (_agent, link) = connected(&[]).await;
    let size = TerminalSize { rows: 24, cols: 80 };
    for _ in 0..20 {
        let outcome = run(
            &link,
            &ExecSpec {
                tty: Some(size),
                ..shell("seq 1000; echo the end")
            },
        )
        .await;
        assert!(outcome.stdout().ends_with("1000\r\nthe end\r\n"));
    }
}

#[tokio::test]
async fn the_end_of_a_terminals_input_is_ctrl_d() {
    let (_agent, link) = connected(&[]).await;
    let mut session = within(link.exec(&ExecSpec {
        tty: Some(TerminalSize { rows: 24, cols: 80 }),
        stdin: true,
        ..spec(&["cat"])
    }))
    .await
    .unwrap();
    session
        .input
        .send(ExecInput::Stdin("x\n".into()))
        .await
        .unwrap();
    session.input.send(ExecInput::StdinEof).await.unwrap();
    assert_eq!(
        collect(&mut session.output).await.exit,
        Some(ExecExit::Code(0))
    );
}

#[tokio::test]
async fn b3_3_signals_reach_the_whole_process_group() {
    let (_agent, link) = connected(&[]).await;
    let mut session = within(link.exec(&shell("sleep 1000 & echo $!; wait")))
        .await
        .unwrap();
    let child = until(&mut session.output, "\n").await.stdout();
    session.input.send(ExecInput::Signal(15)).await.unwrap();
    let outcome = collect(&mut session.output).await;
    assert_eq!(outcome.exit, Some(ExecExit::Signal(15)));
    gone(child.trim().parse().unwrap()).await;
}

#[tokio::test]
async fn a_background_process_does_not_hold_the_session_up_and_lives_on() {
    let (_agent, link) = connected(&[]).await;
    // It goes on writing to the pipe that it has inherited.
    let script = "sh -c 'while :; do echo noise; sleep 0.01; done' & echo $!";
    let outcome = run(&link, &shell(script)).await;
    assert_eq!(outcome.exit, Some(ExecExit::Code(0)));
    let text = outcome.stdout();
    let pid: u32 = text.lines().find_map(|l| l.parse().ok()).unwrap();
    // More than the pipe holds: it would be stuck, or dead of SIGPIPE, if nobody read.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(super::support::is_alive(pid));
    let _ = std::process::Command::new("kill")
        .arg(pid.to_string())
        .status();
    gone(pid).await;
}

#[tokio::test]
async fn orphans_are_reaped_and_exit_codes_stay_with_their_sessions() {
    let (agent, link) = connected(&[]).await;
    let mut sessions = Vec::new();
    for n in 0..64 {
        let script = format!("(true &) ; (sleep 0.05 &) ; exit {n}");
        sessions.push(within(link.exec(&shell(&script))).await.unwrap());
    }
    for (n, session) in sessions.iter_mut().enumerate() {
        let outcome = collect(&mut session.output).await;
        assert_eq!(outcome.exit, Some(ExecExit::Code(n as i32)));
    }
    within(async {
        loop {
            let children =
                std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", agent.pid()));
            if children.unwrap().is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_long_command_line_arrives_whole_and_an_endless_one_is_refused() {
    let (_agent, link) = connected(&[]).await;
    let long = "x".repeat(120_000);
    let mut args = vec!["printf", "%s"];
    args.extend(std::iter::repeat_n(long.as_str(), 6));
    let outcome = run(&link, &spec(&args)).await;
    assert_eq!(outcome.stdout.len(), 720_000);
    args.extend(std::iter::repeat_n(long.as_str(), 6));
    let refused = within(link.exec(&spec(&args))).await.unwrap_err();
    assert!(matches!(refused, GuestError::TooLong(_)));
}

#[tokio::test]
async fn a_client_that_reads_nothing_stops_the_command() {
    let (_agent, link) = connected(&[]).await;
    let mut session = within(link.exec(&shell("yes | head -c 4000000; echo done >&2")))
        .await
        .unwrap();
    // Nothing is dropped: what is not read waits.
    let first = within(session.output.next()).await.unwrap().unwrap();
    let ExecOutput::Stdout(first) = first else {
        panic!("{first:?}")
    };
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let info = &link.sessions().await.unwrap()[0];
    assert_eq!(info.exit, None);
    let outcome = collect(&mut session.output).await;
    assert_eq!(first.len() + outcome.stdout.len(), 4_000_000);
    assert_eq!((outcome.lost, outcome.stderr()), (0, "done\n".into()));
}

#[tokio::test]
async fn b1_3_the_images_directory_is_made_where_it_is_missing() {
    let (_agent, link) = connected(&[]).await;
    let temp = tempfile::tempdir().unwrap();
    let missing = temp.path().join("srv/app");
    let in_it = |make_cwd| Completed {
        spec: ExecSpec {
            cwd: Some(missing.display().to_string()),
            ..spec(&["pwd"])
        },
        make_cwd,
        stop_signal: 0,
    };
    let refused = within(link.exec_completed(&in_it(false)))
        .await
        .unwrap_err();
    assert_eq!(refused.refusal(), Some(Refusal::BadCwd));
    let mut session = within(link.exec_completed(&in_it(true))).await.unwrap();
    let outcome = collect(&mut session.output).await;
    assert_eq!(outcome.stdout().trim(), missing.display().to_string());
}

#[tokio::test]
async fn the_main_process_is_asked_to_end_before_the_others_and_by_its_own_signal() {
    let (_agent, link) = connected(&[]).await;
    let mut helper = within(link.exec(&shell("echo $$; exec sleep 1000")))
        .await
        .unwrap();
    let pid = until(&mut helper.output, "\n").await.stdout();
    // Ends only by QUIT, and only well if the helper is still there.
    let script = format!(
        "trap '' TERM; trap 'kill -0 {} && exit 7; exit 8' QUIT; echo up; while :; do sleep 0.05; done",
        pid.trim()
    );
    let main = Completed {
        spec: shell(&script),
        make_cwd: false,
        stop_signal: 3,
    };
    let mut main = within(link.exec_completed(&main)).await.unwrap();
    until(&mut main.output, "up").await;
    within(link.power_off_within(Duration::from_secs(20)))
        .await
        .unwrap();
    let (main, helper) = tokio::join!(collect(&mut main.output), collect(&mut helper.output));
    assert_eq!(main.exit, Some(ExecExit::Code(7)), "{main:?}");
    assert_eq!(helper.exit, Some(ExecExit::Signal(15)), "{helper:?}");
}
