//! The packages that a list of packages needs.
//!
//! A breadth-first walk over what the archive says of each package. Pure: the archive is a
//! function, so the rules are tested without apt.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::control::Package;

/// Far above any image built from a list; a bound against an archive that goes on for ever.
const MAX_PACKAGES: usize = 1000;

/// Why a list of packages could not be completed.
#[derive(Debug, Error)]
pub(super) enum ResolveError<E: std::error::Error + 'static> {
    /// Nothing in the archive is, or stands for, any of the alternatives.
    #[error("package {needed_by} needs {}, which the archive does not have", .alternatives.join(" or "))]
    Unsatisfiable {
        /// Who asks for it; empty for a package that was asked for by the caller.
        needed_by: String,
        /// What would do.
        alternatives: Vec<String>,
    },
    /// The list grew past any sensible image.
    #[error("the packages asked for need more than {MAX_PACKAGES} others")]
    TooMany,
    /// The archive could not be asked.
    #[error("cannot ask the package archive")]
    Archive(#[source] E),
}

/// What the resolver asks of an archive.
pub(crate) trait Archive {
    /// How asking fails.
    type Error: std::error::Error + 'static;
    /// The candidate version of each of these names; those unknown are absent from the answer.
    fn describe(&self, names: &BTreeSet<String>) -> Result<Vec<Package>, Self::Error>;
    /// Real packages that provide a virtual one, in the archive's order.
    fn providers(&self, name: &str) -> Result<Vec<String>, Self::Error>;
}

/// Completes `wanted` with its dependencies, leaving out `excluded` and what only they need.
///
/// For each requirement: what is already chosen wins, then the first alternative that exists, then
/// the first provider of an alternative. The answer is sorted by name.
///
/// # Errors
/// See [`ResolveError`].
pub(crate) fn resolve<A: Archive>(
    archive: &A,
    wanted: &[&str],
    excluded: &[&str],
) -> Result<Vec<Package>, ResolveError<A::Error>> {
    let mut walk = Walk {
        archive,
        excluded,
        known: BTreeMap::new(),
        chosen: BTreeMap::new(),
    };
    let mut open: Vec<Requirement> = wanted
        .iter()
        .map(|name| Requirement {
            needed_by: String::new(),
            alternatives: vec![(*name).to_owned()],
        })
        .collect();
    while !open.is_empty() {
        walk.learn(&open)?;
        let mut next = Vec::new();
        for requirement in open {
            next.extend(walk.satisfy(requirement)?);
        }
        if walk.chosen.len() > MAX_PACKAGES {
            return Err(ResolveError::TooMany);
        }
        open = next;
    }
    Ok(walk.chosen.into_values().collect())
}

struct Requirement {
    needed_by: String,
    alternatives: Vec<String>,
}

struct Walk<'a, A> {
    archive: &'a A,
    excluded: &'a [&'a str],
    /// Everything asked about so far; `None` means that no real package has the name.
    known: BTreeMap<String, Option<Package>>,
    chosen: BTreeMap<String, Package>,
}

impl<A: Archive> Walk<'_, A> {
    /// Asks the archive about every name of a level at once: one apt call instead of hundreds.
    fn learn(&mut self, requirements: &[Requirement]) -> Result<(), ResolveError<A::Error>> {
        let names = requirements
            .iter()
            .flat_map(|requirement| &requirement.alternatives);
        let unknown = names
            .filter(|name| !self.known.contains_key(*name))
            .cloned()
            .collect();
        self.ask(unknown)
    }

    fn ask(&mut self, names: BTreeSet<String>) -> Result<(), ResolveError<A::Error>> {
        if names.is_empty() {
            return Ok(());
        }
        let described = self
            .archive
            .describe(&names)
            .map_err(ResolveError::Archive)?;
        self.known
            .extend(names.into_iter().map(|name| (name, None)));
        self.known.extend(
            described
                .into_iter()
                .map(|package| (package.name.clone(), Some(package))),
        );
        Ok(())
    }

    /// Chooses a package for one requirement and returns what that package needs in turn.
    fn satisfy(
        &mut self,
        requirement: Requirement,
    ) -> Result<Vec<Requirement>, ResolveError<A::Error>> {
        if self.is_satisfied(&requirement.alternatives) {
            return Ok(Vec::new());
        }
        let package = match self.first_real(&requirement.alternatives) {
            Some(package) => package,
            None => self.first_provider(&requirement)?,
        };
        let requirements = package.depends.iter().map(|dependency| Requirement {
            needed_by: package.name.clone(),
            alternatives: dependency.alternatives.clone(),
        });
        let requirements = requirements.collect();
        self.chosen.insert(package.name.clone(), package);
        Ok(requirements)
    }

    fn is_satisfied(&self, alternatives: &[String]) -> bool {
        let provided = |name: &String| {
            self.chosen
                .values()
                .any(|package| package.provides.contains(name))
        };
        alternatives.iter().any(|name| {
            self.excluded.contains(&name.as_str())
                || self.chosen.contains_key(name)
                || provided(name)
        })
    }

    fn first_real(&self, alternatives: &[String]) -> Option<Package> {
        alternatives
            .iter()
            .find_map(|name| self.known.get(name).cloned().flatten())
    }

    fn first_provider(
        &mut self,
        requirement: &Requirement,
    ) -> Result<Package, ResolveError<A::Error>> {
        for virtual_name in &requirement.alternatives {
            let providers = self
                .archive
                .providers(virtual_name)
                .map_err(ResolveError::Archive)?;
            let unknown = providers
                .iter()
                .filter(|name| !self.known.contains_key(*name));
            self.ask(unknown.cloned().collect())?;
            if let Some(package) = self.first_real(&providers) {
                return Ok(package);
            }
        }
        Err(ResolveError::Unsatisfiable {
            needed_by: requirement.needed_by.clone(),
            alternatives: requirement.alternatives.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::super::control::Dependency;
    use super::*;

    #[derive(Default)]
    struct Fixed(Vec<Package>);

    impl Fixed {
        fn with(mut self, name: &str, depends: &str, provides: &[&str]) -> Self {
            let clauses = depends.split(',').filter(|clause| !clause.is_empty());
            self.0.push(Package {
                name: name.to_owned(),
                version: "1".to_owned(),
                architecture: "all".to_owned(),
                size: 1,
                sha256: String::new(),
                installed_kib: 1,
                depends: clauses
                    .map(|clause| Dependency {
                        alternatives: clause.split('|').map(str::to_owned).collect(),
                    })
                    .collect(),
                provides: provides.iter().map(|name| (*name).to_owned()).collect(),
            });
            self
        }
    }

    impl Archive for Fixed {
        type Error = Infallible;
        fn describe(&self, names: &BTreeSet<String>) -> Result<Vec<Package>, Infallible> {
            Ok(self
                .0
                .iter()
                .filter(|package| names.contains(&package.name))
                .cloned()
                .collect())
        }
        fn providers(&self, name: &str) -> Result<Vec<String>, Infallible> {
            let provides = |package: &&Package| package.provides.iter().any(|item| item == name);
            Ok(self
                .0
                .iter()
                .filter(provides)
                .map(|package| package.name.clone())
                .collect())
        }
    }

    fn names(archive: &Fixed, wanted: &[&str], excluded: &[&str]) -> Vec<String> {
        let packages = resolve(archive, wanted, excluded).unwrap();
        packages.into_iter().map(|package| package.name).collect()
    }

    #[test]
    fn follows_dependencies_even_in_circles() {
        let archive = Fixed::default()
            .with("a", "b", &[])
            .with("b", "c", &[])
            .with("c", "a", &[]);
        assert_eq!(names(&archive, &["a"], &[]), ["a", "b", "c"]);
    }

    #[test]
    fn prefers_what_is_chosen_then_the_first_alternative_then_a_provider() {
        let archive = Fixed::default()
            .with("base", "awk", &[])
            .with("mawk", "", &["awk"])
            .with("gawk", "", &["awk"])
            .with("either", "missing|second|mawk", &[])
            .with("second", "", &[]);
        assert_eq!(names(&archive, &["base"], &[]), ["base", "mawk"]);
        assert_eq!(names(&archive, &["gawk", "base"], &[]), ["base", "gawk"]);
        assert_eq!(names(&archive, &["either"], &[]), ["either", "second"]);
        assert_eq!(
            names(&archive, &["mawk", "either"], &[]),
            ["either", "mawk"]
        );
    }

    #[test]
    fn excluded_packages_bring_nothing_with_them() {
        let archive = Fixed::default()
            .with("a", "debconf|x", &[])
            .with("debconf", "perl", &[])
            .with("x", "", &[]);
        assert_eq!(names(&archive, &["a"], &["debconf"]), ["a"]);
    }

    #[test]
    fn what_is_not_there_is_named_with_who_wants_it() {
        let archive = Fixed::default().with("a", "b|c", &[]);
        let error = resolve(&archive, &["a"], &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "package a needs b or c, which the archive does not have"
        );
    }

    proptest! {
        #[test]
        fn the_answer_is_closed_under_dependencies(
            edges in proptest::collection::vec((0..20_u8, 0..20_u8), 0..60)
        ) {
            let mut archive = Fixed::default();
            for node in 0..20_u8 {
                let targets = edges.iter().filter(|(from, _)| *from == node);
                let depends: Vec<String> = targets.map(|(_, to)| format!("p{to}")).collect();
                archive = archive.with(&format!("p{node}"), &depends.join(","), &[]);
            }
            let chosen = resolve(&archive, &["p0"], &[]).unwrap();
            let names: BTreeSet<&str> =
                chosen.iter().map(|package| package.name.as_str()).collect();
            for package in &chosen {
                for dependency in &package.depends {
                    prop_assert!(names.contains(dependency.alternatives[0].as_str()));
                }
            }
        }
    }
}
