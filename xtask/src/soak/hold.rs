//! What must hold: after each round, and more of it at rest.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::act;
use super::world::World;
use crate::kiln::Kiln;
use crate::traces::{self, Size, Traces, TracesError};

/// A daemon gives memory back once it was left alone for a second.
const IDLE: Duration = Duration::from_secs(4);
/// What it may have more of after the same work. Arenas of threads that were never used before are
/// no growth; one MiB for each rest would be.
const GROWTH_MIB: f64 = 8.0;
/// The connection of a client that is just leaving.
const MORE_FILES: usize = 1;

/// Looks at a `kiln`.
pub(super) struct Watch<'k> {
    kiln: &'k Kiln,
    before: Traces,
    /// The first look at rest at each daemon.
    first: BTreeMap<i32, Size>,
    rests: u32,
    most: f64,
}

impl<'k> Watch<'k> {
    /// From what is there now, with no sandbox.
    pub(super) fn new(kiln: &'k Kiln) -> Result<Self, TracesError> {
        Ok(Self {
            kiln,
            before: Traces::of(kiln)?,
            first: BTreeMap::new(),
            rests: 0,
            most: 0.0,
        })
    }

    /// Every sandbox is there and in its state, no other is, and the store holds together.
    pub(super) fn after_round(&self, world: &World) -> Result<(), String> {
        let told = act::sandboxes(self.kiln)?;
        let mut there: Vec<(&str, &str)> = told
            .iter()
            .map(|it| {
                let text = |key: &str| it[key].as_str().unwrap_or_default();
                (text("name"), text("state"))
            })
            .collect();
        let mut wanted: Vec<(&str, &str)> = world
            .sandboxes
            .iter()
            .map(|it| (it.name.as_str(), it.state.word()))
            .collect();
        there.sort_unstable();
        wanted.sort_unstable();
        if there != wanted {
            return Err(format!(
                "kiln ps should tell {wanted:?} and tells {there:?}"
            ));
        }
        let finding = traces::store(self.kiln).map_err(|error| error.to_string())?;
        if traces::is_consistent(&finding) {
            return Ok(());
        }
        Err(format!("the store: {finding}"))
    }

    /// Nothing is left, and the daemon has not grown since its first rest.
    pub(super) fn at_rest(&mut self) -> Result<(), String> {
        let left = Traces::left(self.kiln, &self.before).map_err(|error| error.to_string())?;
        if !left.is_empty() {
            return Err(format!("left at rest: {}", left.join(", ")));
        }
        std::thread::sleep(IDLE);
        let pid = self
            .kiln
            .info()
            .map_err(|error| error.to_string())?
            .daemon_pid;
        let now = Size::of_daemon(self.kiln).map_err(|error| error.to_string())?;
        self.rests += 1;
        self.most = self.most.max(now.resident_mib);
        let first = *self.first.entry(pid).or_insert(now);
        grown(first, now)
    }
}

fn grown(first: Size, now: Size) -> Result<(), String> {
    if now.files > first.files + MORE_FILES {
        return Err(format!(
            "the daemon had {} files open and has {}",
            first.files, now.files
        ));
    }
    if now.resident_mib > first.resident_mib + GROWTH_MIB {
        let (was, is) = (first.resident_mib, now.resident_mib);
        return Err(format!("the daemon had {was:.1} MiB and has {is:.1} MiB"));
    }
    Ok(())
}

impl fmt::Display for Watch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rests, most, first, ..
        } = self;
        let daemons = first.len();
        write!(
            f,
            "{rests} rests of {daemons} daemons, at most {most:.1} MiB each, nothing left"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_memory_may_not_climb() {
        let size = |resident_mib, files| Size {
            resident_mib,
            files,
        };
        assert!(grown(size(15.0, 20), size(20.0, 21)).is_ok());
        assert!(grown(size(15.0, 20), size(15.0, 22)).is_err());
        assert!(grown(size(15.0, 20), size(24.0, 20)).is_err());
        assert!(grown(size(15.0, 20), size(9.0, 12)).is_ok());
    }
}
