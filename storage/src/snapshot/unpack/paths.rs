//! Where in the file system a name of the tree is: told when an error or a hard link asks, and never kept as a path. The paths of a deep
//! tree are much longer together than the tree is, and some are longer than the kernel takes.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{self, Mode, OFlags};
use rustix::io::fcntl_dupfd_cloexec;

use crate::error::FileError;
use crate::files::DIRECTORY;
use crate::tree::{NodeId, Tree};

/// Longest path the kernel takes, with the byte that ends it.
const PATH_MAX: usize = 4096;

/// The directories of a tree that is written to `into`.
pub(super) struct Paths<'a> {
    tree: &'a Tree,
    into: &'a Path,
    top: OwnedFd,
    /// See [`Self::parents`].
    parents: OnceCell<Parents>,
}

/// Of each directory but the root: the one it is in, and its name.
type Parents = HashMap<NodeId, (NodeId, Box<[u8]>)>;

/// A name in a directory of the tree.
#[derive(Clone, Copy)]
pub(super) struct Spot<'a> {
    paths: &'a Paths<'a>,
    directory: NodeId,
    name: &'a [u8],
}

impl<'a> Paths<'a> {
    pub(super) fn of(tree: &'a Tree, into: &'a Path) -> Result<Self, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = fs::open(into, flags, Mode::empty()).map_err(FileError::at("open", into))?;
        Ok(Self { tree, into, top, parents: OnceCell::new() })
    }

    /// Found when the first path is asked for: for most trees none ever is.
    fn parents(&self) -> &Parents {
        self.parents.get_or_init(|| {
            let (mut parents, mut stack) = (HashMap::new(), vec![0]);
            while let Some(id) = stack.pop() {
                for (name, child) in self.tree.children(id).into_iter().flatten() {
                    if self.tree.children(*child).is_some() {
                        parents.insert(*child, (id, name.clone()));
                        stack.push(*child);
                    }
                }
            }
            parents
        })
    }

    /// A descriptor of the root.
    pub(super) fn top(&self) -> Result<OwnedFd, FileError> {
        fcntl_dupfd_cloexec(&self.top, 0).map_err(FileError::at("open", self.into))
    }

    /// The root itself has no name.
    pub(super) fn at(&'a self, directory: NodeId, name: &'a [u8]) -> Spot<'a> {
        Spot { paths: self, directory, name }
    }

    /// Names of the directories that lead to this one, the root's left out.
    fn names(&self, mut directory: NodeId) -> Vec<&[u8]> {
        let mut names = Vec::new();
        while let Some((above, name)) = self.parents().get(&directory) {
            names.push(&**name);
            directory = *above;
        }
        names.reverse();
        names
    }
}

impl<'a> Spot<'a> {
    pub(super) fn name(self) -> &'a [u8] {
        self.name
    }

    /// In the same directory.
    pub(super) fn is_beside(self, other: Self) -> bool {
        self.directory == other.directory
    }

    /// The directory the name is in, opened in steps that the kernel takes. Every component is a directory we made, in a place nobody
    /// else knows.
    pub(super) fn open_directory(self) -> rustix::io::Result<OwnedFd> {
        let mut at = fcntl_dupfd_cloexec(&self.paths.top, 0)?;
        let mut step = Vec::new();
        for name in self.paths.names(self.directory) {
            if step.len() + 1 + name.len() >= PATH_MAX {
                at = fs::openat(&at, &*step, DIRECTORY, Mode::empty())?;
                step.clear();
            }
            if !step.is_empty() {
                step.push(b'/');
            }
            step.extend_from_slice(name);
        }
        if step.is_empty() { Ok(at) } else { fs::openat(&at, &*step, DIRECTORY, Mode::empty()) }
    }

    /// Like [`FileError::at`], for `map_err`.
    pub(super) fn error<E: Into<io::Error>>(self, what: &'static str) -> impl FnOnce(E) -> FileError {
        move |error| {
            let mut path = self.paths.into.to_owned();
            let name = Some(self.name).filter(|name| !name.is_empty());
            path.extend(self.paths.names(self.directory).into_iter().chain(name).map(OsStr::from_bytes));
            FileError::at(what, path)(error)
        }
    }
}
