//! The part of `cargo metadata` that the rules look at.

use std::collections::{BTreeSet, HashMap};

use serde::Deserialize;

/// `cargo metadata --format-version 1`, tolerant of everything not named here.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
    resolve: Option<Resolve>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) dependencies: Vec<Dependency>,
}

/// A dependency as a manifest declares it.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// `None` for a normal one, else `dev` or `build`.
    pub(crate) kind: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Debug, Deserialize)]
struct EdgeKind {
    kind: Option<String>,
}

impl Edge {
    fn is_linked(&self) -> bool {
        self.dep_kinds.iter().any(|dep| dep.kind.is_none())
    }
}

impl Metadata {
    /// The crates of the workspace.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(|package| self.workspace_members.contains(&package.id))
    }

    /// Every crate of the build, ours and others'.
    pub(crate) fn packages(&self) -> &[Package] {
        &self.packages
    }

    /// The names of all crates linked into a workspace crate, through any number of steps.
    pub(crate) fn linked_into(&self, name: &str) -> BTreeSet<&str> {
        let Some(start) = self.members().find(|member| member.name == name) else {
            return BTreeSet::new();
        };
        let nodes: HashMap<&str, &Node> = self
            .resolve
            .iter()
            .flat_map(|resolve| &resolve.nodes)
            .map(|node| (node.id.as_str(), node))
            .collect();
        let mut seen = BTreeSet::new();
        let mut waiting = vec![start.id.as_str()];
        while let Some(id) = waiting.pop() {
            let Some(node) = nodes.get(id) else { continue };
            for edge in node.deps.iter().filter(|edge| edge.is_linked()) {
                if seen.insert(edge.pkg.as_str()) {
                    waiting.push(&edge.pkg);
                }
            }
        }
        self.packages
            .iter()
            .filter(|package| seen.contains(package.id.as_str()))
            .map(|package| package.name.as_str())
            .collect()
    }
}
