//! Writes a merged tree into a directory: all of it, or what one layer changed, in overlayfs' own terms: whiteouts are character devices 0:0, an opaque
//! directory carries `trusted.overlay.opaque` (kernel doc overlayfs.rst).
//!
//! Safe by construction: the tree has real directories only, so every step goes one component down from a directory descriptor with
//! `O_NOFOLLOW`, into a directory that this module has just created.

mod paths;

use std::collections::{BTreeMap, HashMap, HashSet, btree_map};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, fsetxattr, makedev,
};
use rustix::io::Errno;

use crate::Usage;
use crate::error::{FileError, SnapshotError};
use crate::files::DIRECTORY;
use crate::tree::{Body, Hidden, Node, NodeId, Tree};
use paths::{Paths, Spot};

/// Copy buffer, in bytes.
const COPY: usize = 256 << 10;

/// Unpacks what layer `number` changed. `layers` are the directories with the tars.
pub(super) fn layer(
    tree: &Tree,
    number: usize,
    hidden: &Hidden,
    layers: &[PathBuf],
    into: &Path,
) -> Result<Usage, SnapshotError> {
    let paths = Paths::of(tree, into)?;
    let mut unpack = Unpack {
        tree,
        paths: &paths,
        only: Some(number),
        needed: needed(tree, number, hidden),
        hidden: HashMap::new(),
        opaque: hidden.opaque.iter().copied().collect(),
        tars: layers.iter().map(|layer| layer.join("tar")).collect(),
        open: HashMap::new(),
        links: shared(tree),
        usage: Usage::default(),
    };
    for (parent, name) in &hidden.names {
        unpack.hide(*parent, name);
    }
    unpack.run()
}

/// Unpacks the whole tree. `layers` are the directories with the tars.
pub(super) fn whole(tree: &Tree, layers: &[PathBuf], into: &Path) -> Result<Usage, SnapshotError> {
    let paths = Paths::of(tree, into)?;
    let unpack = Unpack {
        tree,
        paths: &paths,
        only: None,
        needed: HashSet::new(),
        hidden: HashMap::new(),
        opaque: HashSet::new(),
        tars: layers.iter().map(|layer| layer.join("tar")).collect(),
        open: HashMap::new(),
        links: shared(tree),
        usage: Usage::default(),
    };
    unpack.run()
}

struct Unpack<'a> {
    tree: &'a Tree,
    paths: &'a Paths<'a>,
    /// Write this layer's nodes alone, or all.
    only: Option<usize>,
    /// Directories on the way to something this layer changed.
    needed: HashSet<NodeId>,
    /// Names to whiten out, by directory.
    hidden: HashMap<NodeId, Vec<Box<[u8]>>>,
    opaque: HashSet<NodeId>,
    tars: Vec<PathBuf>,
    open: HashMap<usize, File>,
    /// Nodes with several names, and where the first of them was written.
    links: HashMap<NodeId, Option<Spot<'a>>>,
    usage: Usage,
}

/// A directory that is being filled.
struct Level<'a> {
    id: NodeId,
    spot: Spot<'a>,
    fd: OwnedFd,
    /// Children whose turn has not come yet.
    left: btree_map::Iter<'a, Box<[u8]>, NodeId>,
}

/// Nodes that have more than one name.
fn shared<'a>(tree: &Tree) -> HashMap<NodeId, Option<Spot<'a>>> {
    let (mut seen, mut shared) = (HashSet::new(), HashMap::new());
    let mut stack = vec![0];
    while let Some(id) = stack.pop() {
        for child in tree.children(id).into_iter().flat_map(|c| c.values()) {
            if tree.children(*child).is_some() {
                stack.push(*child);
            } else if !seen.insert(*child) {
                shared.insert(*child, None);
            }
        }
    }
    shared
}

/// Directories that hold a change, and all above them.
fn needed(tree: &Tree, number: usize, hidden: &Hidden) -> HashSet<NodeId> {
    let mut needed: HashSet<NodeId> = HashSet::new();
    let marks: HashSet<NodeId> =
        hidden.names.iter().map(|(id, _)| *id).chain(hidden.opaque.iter().copied()).collect();
    // Children before parents: a stack of (node, visited).
    let mut stack = vec![(0, false)];
    while let Some((id, visited)) = stack.pop() {
        let Some(children) = tree.children(id) else { continue };
        if visited {
            let holds = children.values().any(|c| tree.nodes[*c].layer == number || needed.contains(c));
            if holds || marks.contains(&id) || tree.nodes[id].layer == number {
                needed.insert(id);
            }
        } else {
            stack.push((id, true));
            stack.extend(children.values().map(|child| (*child, false)));
        }
    }
    needed
}

impl<'a> Unpack<'a> {
    fn run(mut self) -> Result<Usage, SnapshotError> {
        // No recursion: an image's tree may be deeper than a stack.
        let mut levels = vec![self.level(0, self.paths.at(0, b""), self.paths.top()?)];
        while let Some(here) = levels.last_mut() {
            let Some((name, child)) = here.left.next() else {
                if let Some(done) = levels.pop() {
                    self.complete(&done)?;
                }
                continue;
            };
            if !self.wanted(*child) {
                continue;
            }
            let spot = self.paths.at(here.id, name);
            if self.tree.children(*child).is_some() {
                let fd = new_directory(&here.fd, spot)?;
                levels.push(self.level(*child, spot, fd));
            } else {
                self.node(*child, &here.fd, spot)?;
            }
        }
        Ok(self.usage)
    }

    /// A hidden name becomes a whiteout, unless this layer put something else there.
    fn hide(&mut self, parent: NodeId, name: &[u8]) {
        match self.tree.children(parent).and_then(|c| c.get(name)) {
            None => self.hidden.entry(parent).or_default().push(name.into()),
            // A directory made anew must not show the old one's children.
            Some(id) if self.tree.children(*id).is_some() => drop(self.opaque.insert(*id)),
            Some(_) => {}
        }
    }

    fn wanted(&self, id: NodeId) -> bool {
        self.only.is_none_or(|number| self.tree.nodes[id].layer == number) || self.needed.contains(&id)
    }

    fn level(&self, id: NodeId, spot: Spot<'a>, fd: OwnedFd) -> Level<'a> {
        let left = self.tree.children(id).map(BTreeMap::iter).unwrap_or_default();
        Level { id, spot, fd, left }
    }

    /// Gives a directory whose children are there its whiteouts and its attributes.
    fn complete(&mut self, Level { id, spot, fd, .. }: &Level<'_>) -> Result<(), SnapshotError> {
        for name in self.hidden.remove(id).unwrap_or_default() {
            fs::mknodat(fd, &*name, FileType::CharacterDevice, Mode::empty(), 0)
                .map_err(self.paths.at(*id, &name).error("create whiteout"))?;
            self.usage.inodes += 1;
        }
        if self.opaque.contains(id) {
            fsetxattr(fd, "trusted.overlay.opaque", b"y", XattrFlags::empty())
                .map_err(spot.error("mark as opaque"))?;
        }
        attributes(&self.tree.nodes[*id], fd.as_fd(), *spot)?;
        self.count(fd, *spot)
    }

    /// Makes what is no directory.
    fn node(&mut self, id: NodeId, parent: &OwnedFd, spot: Spot<'a>) -> Result<(), SnapshotError> {
        let (node, name) = (&self.tree.nodes[id], spot.name());
        if let Some(Some(first)) = self.links.get(&id) {
            let link = |from: &OwnedFd| fs::linkat(from, first.name(), parent, name, AtFlags::empty());
            let linked = if first.is_beside(spot) {
                link(parent)
            } else {
                first.open_directory().and_then(|from| link(&from))
            };
            return Ok(linked.map_err(spot.error("link"))?);
        }
        let special =
            |kind, device| fs::mknodat(parent, name, kind, Mode::RUSR, device).map_err(spot.error("create"));
        match &node.body {
            Body::File { .. } | Body::Sparse { .. } => self.file(node, parent, spot)?,
            Body::Symlink(target) => {
                fs::symlinkat(&**target, parent, name).map_err(spot.error("create"))?;
            }
            Body::Char(major, minor) => special(FileType::CharacterDevice, makedev(*major, *minor))?,
            Body::Block(major, minor) => special(FileType::BlockDevice, makedev(*major, *minor))?,
            Body::Fifo => special(FileType::Fifo, 0)?,
            Body::Directory(_) => {}
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(parent, name, flags, Mode::empty()).map_err(spot.error("open"))?;
        if !matches!(node.body, Body::File { .. } | Body::Sparse { .. }) {
            special_attributes(node, parent, &fd, spot)?;
        }
        self.count(&fd, spot)?;
        if let Some(first) = self.links.get_mut(&id) {
            *first = Some(spot);
        }
        Ok(())
    }

    fn file(&mut self, node: &Node, parent: &OwnedFd, spot: Spot<'_>) -> Result<(), SnapshotError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            fs::openat(parent, spot.name(), flags, Mode::RUSR | Mode::WUSR).map_err(spot.error("create"))?;
        let file = File::from(fd);
        let write = |tar: &File| match &node.body {
            Body::File { offset, size, .. } => copy(tar, *offset, &file, 0, *size),
            Body::Sparse { size, regions, .. } => {
                file.set_len(*size)?;
                regions.iter().try_for_each(|r| copy(tar, r.stored, &file, r.offset, r.length))
            }
            _ => Ok(()),
        };
        let (Body::File { layer, .. } | Body::Sparse { layer, .. }) = &node.body else { return Ok(()) };
        write(self.tar(*layer)?).map_err(spot.error("write"))?;
        attributes(node, file.as_fd(), spot)
    }

    fn tar(&mut self, layer: usize) -> Result<&File, FileError> {
        use std::collections::hash_map::Entry;
        match self.open.entry(layer) {
            Entry::Occupied(open) => Ok(open.into_mut()),
            Entry::Vacant(slot) => {
                let path = &self.tars[layer];
                Ok(slot.insert(File::open(path).map_err(FileError::at("open", path))?))
            }
        }
    }

    fn count(&mut self, fd: impl AsFd, spot: Spot<'_>) -> Result<(), SnapshotError> {
        let stat = fs::fstat(fd).map_err(spot.error("stat"))?;
        self.usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        self.usage.inodes += 1;
        Ok(())
    }
}

fn new_directory(parent: &OwnedFd, spot: Spot<'_>) -> Result<OwnedFd, FileError> {
    fs::mkdirat(parent, spot.name(), Mode::RWXU).map_err(spot.error("create"))?;
    fs::openat(parent, spot.name(), DIRECTORY, Mode::empty()).map_err(spot.error("open"))
}

fn copy(from: &File, mut offset: u64, to: &File, mut at: u64, mut left: u64) -> io::Result<()> {
    let mut buffer = vec![0; COPY.min(usize::try_from(left).unwrap_or(COPY))];
    while left > 0 {
        let n = buffer.len().min(usize::try_from(left).unwrap_or(COPY));
        from.read_exact_at(&mut buffer[..n], offset)?;
        to.write_all_at(&buffer[..n], at)?;
        (offset, at, left) = (offset + n as u64, at + n as u64, left - n as u64);
    }
    Ok(())
}

fn times(node: &Node) -> Timestamps {
    let time = Timespec { tv_sec: node.mtime, tv_nsec: i64::from(node.mtime_nsec) };
    Timestamps { last_access: time, last_modification: time }
}

/// Owner first (it clears set-id bits and capabilities), then attributes, mode, times.
fn attributes(node: &Node, fd: BorrowedFd<'_>, spot: Spot<'_>) -> Result<(), SnapshotError> {
    let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    fs::fchown(fd, Some(uid), Some(gid)).map_err(spot.error("chown"))?;
    for (name, value) in &node.xattrs {
        match fsetxattr(fd, &**name, value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(error) => return Err(spot.error("set attributes of")(error).into()),
        }
    }
    fs::fchmod(fd, Mode::from_raw_mode(node.mode)).map_err(spot.error("chmod"))?;
    fs::futimens(fd, &times(node)).map_err(spot.error("set times of"))?;
    Ok(())
}

/// The same for what cannot be opened: by name in a directory only we know, never following.
fn special_attributes(
    node: &Node,
    parent: &OwnedFd,
    fd: &OwnedFd,
    spot: Spot<'_>,
) -> Result<(), SnapshotError> {
    let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    fs::chownat(parent, spot.name(), Some(uid), Some(gid), flags).map_err(spot.error("chown"))?;
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(fd));
    if !matches!(node.body, Body::Symlink(_)) {
        for (key, value) in &node.xattrs {
            match fs::setxattr(&*link, &**key, value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
                Err(error) => return Err(spot.error("set attributes of")(error).into()),
            }
        }
        fs::chmod(&*link, Mode::from_raw_mode(node.mode)).map_err(spot.error("chmod"))?;
    }
    fs::utimensat(parent, spot.name(), &times(node), flags).map_err(spot.error("set times of"))?;
    Ok(())
}
