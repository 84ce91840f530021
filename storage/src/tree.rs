//! Layers merged into one tree in memory, by the rules of image-spec layer.md.
//!
//! Pure: entries in, tree out, no file touched. Because the merge happens here, once, for every driver, a path of a layer never meets
//! a real symlink: parents are looked up in this tree, symlinks in the middle of a path are followed inside it, and nothing can
//! lead out of it. Drivers write down what comes out.
//!
//! A layer is applied in two passes: first all its whiteouts and opaque marks against what lies below, then its entries. So a
//! mark hides lower content only and its place in the archive does not matter.

use std::collections::BTreeMap;

use crate::layer::LayerError;
use crate::layer::entry::{Entry, Kind, Region};

/// Most symlinks followed in one path, as in the kernel (path_resolution(7)).
const LINKS_MAX: u32 = 40;
/// Deepest directory: through symlinks a layer of a few kilobytes reaches thousands of levels, and whoever writes the tree has one open for each.
const DEPTH_MAX: usize = 1000;
/// Most directories that no layer describes, which cost a layer next to nothing too.
const IMPLIED_MAX: usize = 1_000_000;

/// Why a directory is refused that lies below one of depth [`DEPTH_MAX`].
const TOO_DEEP: &str = "it is deeper than 1000 directories, symbolic links followed";

/// Index of a node in its tree.
pub(crate) type NodeId = usize;

/// What a node is.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    /// `size` bytes at `offset` of layer `layer`'s tar.
    File {
        layer: usize,
        offset: u64,
        size: u64,
    },
    Sparse {
        layer: usize,
        size: u64,
        regions: Vec<Region>,
    },
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// A file of the merged image.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) body: Body,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Number of the layer that wrote it last; [`IMPLIED`]: no layer did, a path only passes through.
    pub(crate) layer: usize,
}

/// See [`Node::layer`].
pub(crate) const IMPLIED: usize = usize::MAX;

/// What one layer took away, for drivers that keep layers apart.
#[derive(Debug, Default)]
pub(crate) struct Hidden {
    /// Directory and name of every whiteout that hid something.
    pub(crate) names: Vec<(NodeId, Box<[u8]>)>,
    /// Directories whose lower children are all hidden.
    pub(crate) opaque: Vec<NodeId>,
}

/// A merged tree; node 0 is the root.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) nodes: Vec<Node>,
    layers: usize,
    /// Directories that no layer described when they were made.
    implied: usize,
}

impl Tree {
    /// The root alone.
    pub(crate) fn new() -> Self {
        Self { nodes: vec![implied()], layers: 0, implied: 0 }
    }

    /// Applies the next layer up.
    pub(crate) fn apply(&mut self, entries: Vec<Entry>) -> Result<Hidden, LayerError> {
        let layer = self.layers;
        self.layers += 1;
        let mut hidden = Hidden::default();
        for entry in entries.iter().filter(|e| matches!(e.kind, Kind::Whiteout | Kind::Opaque)) {
            self.hide(entry, &mut hidden);
        }
        for entry in entries {
            if matches!(entry.kind, Kind::Whiteout | Kind::Opaque) {
                continue;
            }
            let (path, offset) = (entry.path.clone(), entry.at);
            self.place(entry, layer).map_err(|problem| {
                let path = String::from_utf8_lossy(&path).into_owned();
                LayerError::Apply { layer, offset, path, problem }
            })?;
        }
        Ok(hidden)
    }

    /// The children of a directory.
    pub(crate) fn children(&self, id: NodeId) -> Option<&BTreeMap<Box<[u8]>, NodeId>> {
        match &self.nodes[id].body {
            Body::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// A path in the tree, without following a last symlink.
    pub(crate) fn lookup(&self, path: &[u8]) -> Option<NodeId> {
        if path.is_empty() {
            return Some(0);
        }
        let (parent, name) = split(path);
        self.children(self.walk(parent)?)?.get(name).copied()
    }

    fn children_mut(&mut self, id: NodeId) -> Option<&mut BTreeMap<Box<[u8]>, NodeId>> {
        match &mut self.nodes[id].body {
            Body::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// A whiteout of something that is not there hides nothing and is no error.
    fn hide(&mut self, entry: &Entry, hidden: &mut Hidden) {
        if entry.kind == Kind::Opaque {
            let Some(id) = self.walk(&entry.path) else { return };
            if let Some(children) = self.children_mut(id) {
                children.clear();
                hidden.opaque.push(id);
            }
            return;
        }
        let (parent, name) = split(&entry.path);
        let Some(parent) = self.walk(parent) else { return };
        if let Some(children) = self.children_mut(parent)
            && children.remove(name).is_some()
        {
            hidden.names.push((parent, name.into()));
        }
    }

    fn place(&mut self, entry: Entry, layer: usize) -> Result<(), &'static str> {
        if entry.path.is_empty() {
            return match entry.kind {
                Kind::Directory => {
                    self.nodes[0] =
                        Node { body: self.nodes[0].body.clone(), ..node(entry, layer, Body::Fifo) };
                    Ok(())
                }
                _ => Err("the root must be a directory"),
            };
        }
        let (parent, name) = split(&entry.path);
        let name: Box<[u8]> = name.into();
        let (parent, depth) = self.make_parents(parent)?;
        let before = self.children(parent).and_then(|c| c.get(&name).copied());
        let body = match &entry.kind {
            Kind::HardLink { target } => {
                let target = self.lookup(target).ok_or("the hard link's target does not exist")?;
                if self.children(target).is_some() {
                    return Err("a hard link to a directory");
                }
                // The link belongs to this layer now: a driver that keeps layers apart must bring the file along.
                self.nodes[target].layer = layer;
                self.link(parent, name, target);
                return Ok(());
            }
            Kind::Directory => match before {
                // Attributes are replaced, children stay.
                Some(id) if self.children(id).is_some() => {
                    let body = std::mem::replace(&mut self.nodes[id].body, Body::Fifo);
                    self.nodes[id] = node(entry, layer, body);
                    return Ok(());
                }
                _ if depth == DEPTH_MAX => return Err(TOO_DEEP),
                _ => Body::Directory(BTreeMap::new()),
            },
            Kind::File { offset, size } => Body::File { layer, offset: *offset, size: *size },
            Kind::Sparse { size, regions } => Body::Sparse { layer, size: *size, regions: regions.clone() },
            Kind::Symlink { target } => Body::Symlink(target.clone()),
            Kind::Char { major: 0, minor: 0 } => {
                // overlayfs takes it for a whiteout, so no runtime can show it; the name stays hidden below.
                if let Some(children) = self.children_mut(parent) {
                    children.remove(&name);
                }
                return Ok(());
            }
            Kind::Char { major, minor } => Body::Char(*major, *minor),
            Kind::Block { major, minor } => Body::Block(*major, *minor),
            Kind::Fifo => Body::Fifo,
            Kind::Whiteout | Kind::Opaque => return Ok(()),
        };
        self.nodes.push(node(entry, layer, body));
        let id = self.nodes.len() - 1;
        self.link(parent, name, id);
        Ok(())
    }

    fn link(&mut self, parent: NodeId, name: Box<[u8]>, id: NodeId) {
        if let Some(children) = self.children_mut(parent) {
            children.insert(name, id);
        }
    }

    /// The directory at `path`, symlinks followed inside the tree; `None` if it is not there.
    fn walk(&self, path: &[u8]) -> Option<NodeId> {
        let mut todo = components(path);
        let mut stack = vec![0];
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let here = *stack.last()?;
            match name.as_slice() {
                b"" | b"." => {}
                b".." if stack.len() > 1 => drop(stack.pop()),
                b".." => {}
                name => {
                    let id = *self.children(here)?.get(name)?;
                    if let Body::Symlink(target) = &self.nodes[id].body {
                        links += 1;
                        if links > LINKS_MAX {
                            return None;
                        }
                        if target.starts_with(b"/") {
                            stack.truncate(1);
                        }
                        todo.extend(components(target));
                    } else {
                        stack.push(id);
                    }
                }
            }
        }
        stack.pop()
    }

    /// Like [`Self::walk`], creating what is missing; with the depth of the directory, at most [`DEPTH_MAX`].
    fn make_parents(&mut self, path: &[u8]) -> Result<(NodeId, usize), &'static str> {
        let mut todo = components(path);
        let mut stack = vec![0];
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let here = stack.last().copied().unwrap_or(0);
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let children = self.children(here).ok_or("a parent of it is not a directory")?;
            match children.get(name.as_slice()).copied() {
                None => {
                    self.implied += 1;
                    if stack.len() > DEPTH_MAX {
                        return Err(TOO_DEEP);
                    }
                    if self.implied > IMPLIED_MAX {
                        return Err("the image has more than 1000000 directories that no layer describes");
                    }
                    self.nodes.push(implied());
                    let id = self.nodes.len() - 1;
                    self.link(here, name.into(), id);
                    stack.push(id);
                }
                Some(id) => match &self.nodes[id].body {
                    Body::Symlink(target) => {
                        links += 1;
                        if links > LINKS_MAX {
                            return Err("too many symbolic links in its path");
                        }
                        if target.starts_with(b"/") {
                            stack.truncate(1);
                        }
                        todo.extend(components(target));
                    }
                    Body::Directory(_) => stack.push(id),
                    _ => return Err("a parent of it is not a directory"),
                },
            }
        }
        Ok((stack.last().copied().unwrap_or(0), stack.len() - 1))
    }
}

/// A directory nobody described.
fn implied() -> Node {
    Node {
        body: Body::Directory(BTreeMap::new()),
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: 0,
        mtime_nsec: 0,
        xattrs: Vec::new(),
        layer: IMPLIED,
    }
}

fn node(entry: Entry, layer: usize, body: Body) -> Node {
    let mut xattrs = entry.xattrs;
    if matches!(body, Body::Symlink(_)) {
        // xattr(7): user attributes exist on files and directories only.
        xattrs.retain(|(name, _)| !name.starts_with(b"user."));
    }
    // symlink(7): their permissions are never used, and always read as 0777.
    let mode = if matches!(body, Body::Symlink(_)) { 0o777 } else { entry.mode };
    let Entry { uid, gid, mtime, mtime_nsec, .. } = entry;
    Node { body, mode, uid, gid, mtime, mtime_nsec, xattrs, layer }
}

/// Parent path and last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// Components, last first, to be popped.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').rev().map(<[u8]>::to_vec).collect()
}
