//! Where the controllers are: one v2 hierarchy, several v1 ones, or both, found per controller.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};

use crate::error::{Error, Kind};

/// A mounted hierarchy.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    /// Controllers in the kernel's spelling; for v1 also `name=systemd`.
    pub(crate) controllers: Vec<String>,
    /// Where it is mounted.
    pub(crate) path: PathBuf,
    /// Its root directory.
    pub(crate) dir: OwnedFd,
}

/// Where a container of a hybrid node finds the v2 hierarchy, among those of v1.
pub(crate) const V2_DIRECTORY: &str = "unified";

/// All hierarchies of the node.
#[derive(Debug)]
pub(crate) struct Hierarchies {
    /// v1, in mount order.
    pub(crate) v1: Vec<Hierarchy>,
    /// v2; on a hybrid node it may have few controllers or none and still kills, freezes and reports pressure.
    pub(crate) v2: Option<Hierarchy>,
}

impl Hierarchies {
    /// Reads the mount table of this process.
    pub(crate) fn find() -> Result<Self, Error> {
        let table = std::fs::read_to_string("/proc/self/mountinfo")
            .map_err(|e| Error::with(Kind::Internal, "read /proc/self/mountinfo", e))?;
        let mut found = Self { v1: Vec::new(), v2: None };
        for (version, path, controllers) in cgroup_mounts(&table) {
            let dir = File::open(&path)
                .map_err(|e| Error::with(Kind::Internal, format!("open {}", path.display()), e))?;
            let mut hierarchy = Hierarchy { controllers, path, dir: dir.into() };
            if version == 2 {
                hierarchy.controllers = words(&hierarchy, "cgroup.controllers");
                found.v2.get_or_insert(hierarchy);
            } else if !found.v1.iter().any(|h| h.controllers == hierarchy.controllers) {
                found.v1.push(hierarchy);
            }
        }
        if found.v1.is_empty() && found.v2.is_none() {
            return Err(Error::new(
                Kind::FailedPrecondition,
                "no cgroup hierarchy is mounted (mount cgroup2 on /sys/fs/cgroup)",
            ));
        }
        Ok(found)
    }

    /// The v1 hierarchy of a controller.
    pub(crate) fn v1(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1.iter().find(|h| h.has(controller))
    }

    /// The v2 hierarchy, if it has the controller.
    pub(crate) fn v2(&self, controller: &str) -> Option<&Hierarchy> {
        self.v2.as_ref().filter(|h| h.has(controller))
    }

    /// Names of the directories in which a container finds hierarchies, where it is one for each.
    pub(crate) fn directories(&self) -> Vec<String> {
        if self.v1.is_empty() {
            return Vec::new();
        }
        let v2 = self.v2.as_ref().map(|_| V2_DIRECTORY.to_owned());
        self.v1.iter().map(Hierarchy::name).chain(v2).collect()
    }

    /// All hierarchies.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Hierarchy> {
        self.v1.iter().chain(&self.v2)
    }
}

impl Hierarchy {
    /// The name of its mount point.
    pub(crate) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Whether it has a controller.
    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }

    /// A cgroup's directory.
    pub(crate) fn open(&self, cgroup: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat(&self.dir, relative(cgroup), flags, Mode::empty())?)
    }

    /// A file of a cgroup.
    pub(crate) fn open_file(&self, cgroup: &str, file: &str, access: OFlags) -> io::Result<OwnedFd> {
        let path = format!("{}/{file}", relative(cgroup));
        Ok(openat(&self.dir, path, access | OFlags::CLOEXEC, Mode::empty())?)
    }
}

/// A cgroup's path without leading slashes; `.` is the root.
pub(crate) fn relative(cgroup: &str) -> &str {
    match cgroup.trim_matches('/') {
        "" => ".",
        path => path,
    }
}

/// Cgroup paths come from the client: absolute, no dots, printable, and not the root itself.
pub(crate) fn check(cgroup: &str) -> Result<(), Error> {
    let sound = cgroup.starts_with('/')
        && !cgroup.trim_matches('/').is_empty()
        && !cgroup.contains(|c: char| c.is_control())
        && cgroup.trim_matches('/').split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if sound {
        Ok(())
    } else {
        Err(Error::invalid("cgroup_parent", format!("{cgroup:?} is not an absolute cgroup path")))
    }
}

/// The words of a small file.
fn words(hierarchy: &Hierarchy, file: &str) -> Vec<String> {
    read(&hierarchy.dir, file).unwrap_or_default().split_whitespace().map(Into::into).collect()
}

/// Reads a small file of a cgroup.
pub(crate) fn read(dir: impl AsFd, file: &str) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let fd = openat(dir, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    File::from(fd).take(1 << 20).read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a value with one write(2), as cgroup files want it.
pub(crate) fn write(dir: impl AsFd, file: &str, value: &str) -> io::Result<()> {
    let fd = openat(dir, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&fd, value.as_bytes())?;
    Ok(())
}

/// Version, mount point and v1 controllers of each whole cgroup hierarchy in a mount table (proc(5), mountinfo).
fn cgroup_mounts(table: &str) -> Vec<(u8, PathBuf, Vec<String>)> {
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let (mut left, mut right) = (left.split(' ').skip(3), right.split(' '));
        let (root, path) = (left.next()?, left.next()?);
        let (kind, options) = (right.next()?, right.nth(1)?);
        let version = match kind {
            "cgroup2" => 2,
            "cgroup" => 1,
            _ => return None,
        };
        let generic = ["rw", "ro", "noprefix", "xattr", "clone_children", "cpuset_v2_mode", "favordynmods"];
        let controllers =
            options.split(',').filter(|o| !generic.contains(o) && !o.starts_with("release_agent="));
        (root == "/").then(|| (version, Path::new(path).to_owned(), controllers.map(Into::into).collect()))
    };
    table.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_in_every_layout() {
        let hybrid = "30 29 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                      31 29 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                      32 29 0:28 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
                      33 29 0:28 /kubepods /mnt rw - cgroup2 cgroup2 rw\n\
                      34 29 0:29 / /proc rw - proc proc rw\n";
        let found = cgroup_mounts(hybrid);
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[0].2, ["cpu", "cpuacct"]);
        assert_eq!(found[1].2, ["name=systemd"]);
        assert_eq!((found[2].0, found[2].1.as_path()), (2, Path::new("/sys/fs/cgroup/unified")));
    }

    #[test]
    fn a_cgroup_path_cannot_leave_its_parent() {
        check("/kubepods/burstable/pod1/abc").unwrap();
        for bad in ["", "/", "relative", "/a/../b", "/a/./b", "/a//b", "/a\nb"] {
            check(bad).unwrap_err();
        }
    }
}
