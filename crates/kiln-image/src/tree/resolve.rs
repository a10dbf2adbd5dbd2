//! Looking up directories of an image the way the guest would: symlinks are followed, and neither
//! they nor `..` lead out of the image.

use super::merge::TreeFault;
use super::{Children, Node, NodeId, NodeKind, Tree};
use crate::inode::Attributes;
use crate::limits::Budget;

/// As many as Linux follows.
const MAX_SYMLINKS: u32 = 40;

/// The names of a path, without empty ones and dots; `..` is refused, since no honest archive needs
/// it.
pub(super) fn names(path: &[u8]) -> Result<Vec<&[u8]>, TreeFault> {
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(TreeFault::ParentReference),
            name => names.push(name),
        }
    }
    Ok(names)
}

/// Directory and last name of a path that [`names`] took apart.
pub(super) fn split<'a>(names: &'a [&'a [u8]]) -> Option<(Vec<u8>, &'a [u8])> {
    let (last, parents) = names.split_last()?;
    Some((parents.join(&b'/'), last))
}

impl Tree {
    /// The directory at `path`, which holds neither `.` nor `..`; symlinks in it may.
    pub(super) fn find_directory(
        &mut self,
        path: &[u8],
        budget: &Budget,
    ) -> Result<Option<NodeId>, TreeFault> {
        self.walk(path, false, budget)
    }

    /// The directory at `path`; what is missing is made, what is in the way is replaced.
    pub(super) fn make_directory(
        &mut self,
        path: &[u8],
        budget: &Budget,
    ) -> Result<NodeId, TreeFault> {
        if let Some((last, id)) = &self.last_parent
            && last == path
        {
            return Ok(*id);
        }
        let id = self.walk(path, true, budget)?.unwrap_or(Tree::ROOT);
        self.last_parent = Some((path.to_vec(), id));
        Ok(id)
    }

    fn walk(
        &mut self,
        path: &[u8],
        make: bool,
        budget: &Budget,
    ) -> Result<Option<NodeId>, TreeFault> {
        let mut todo: Vec<Box<[u8]>> = Vec::new();
        push_names(&mut todo, path);
        let mut stack = vec![Tree::ROOT];
        let mut symlinks = 0;
        while let Some(name) = todo.pop() {
            budget.take_step()?;
            if &*name == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let current = stack.last().copied().unwrap_or(Tree::ROOT);
            let found = self
                .children(current)
                .and_then(|children| children.get(&name))
                .copied();
            match found.map(|id| (id, &self.node(id).kind)) {
                Some((id, NodeKind::Directory(_))) => stack.push(id),
                Some((_, NodeKind::Symlink(target))) => {
                    symlinks += 1;
                    if symlinks > MAX_SYMLINKS {
                        return Err(TreeFault::SymlinkLoop);
                    }
                    let target = target.clone();
                    if target.first() == Some(&b'/') {
                        stack.truncate(1);
                    }
                    push_names(&mut todo, &target);
                }
                Some(_) | None if !make => return Ok(None),
                Some(_) | None => stack.push(self.add_directory(current, &name, budget)?),
            }
        }
        Ok(stack.last().copied())
    }

    fn add_directory(
        &mut self,
        parent: NodeId,
        name: &[u8],
        budget: &Budget,
    ) -> Result<NodeId, TreeFault> {
        budget.take_entry()?;
        let id = self.add(Node {
            attributes: Attributes::default(),
            kind: NodeKind::Directory(Children::new()),
        });
        self.link(parent, name, id);
        Ok(id)
    }
}

/// Puts the names of a path on the stack, first on top.
fn push_names(todo: &mut Vec<Box<[u8]>>, path: &[u8]) {
    let names = path.split(|byte| *byte == b'/').rev();
    todo.extend(
        names
            .filter(|name| !name.is_empty() && *name != b".")
            .map(Box::from),
    );
}
