//! What the agent says where no host listens yet: on the guest's console.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write as _;

/// Something is missing, but the guest may do without.
pub(crate) fn warn(text: impl Display) {
    line("warning", &text);
}

/// The guest cannot go on. One line, which the host finds in the console's tail.
pub(crate) fn fatal(text: impl Display) {
    line("fatal", &text);
}

fn line(level: &str, text: &dyn Display) {
    let line = format!("kiln-agent: {level}: {text}\n");
    let console = OpenOptions::new().write(true).open("/dev/console");
    // Nobody is left to tell when neither works.
    let _ = match (rustix::process::getpid().is_init(), console) {
        (true, Ok(mut console)) => {
            let written = console.write_all(line.as_bytes());
            // A machine that is switched off next would swallow what is still on its way.
            written.and_then(|()| Ok(rustix::termios::tcdrain(&console)?))
        }
        _ => std::io::stderr().write_all(line.as_bytes()),
    };
}
