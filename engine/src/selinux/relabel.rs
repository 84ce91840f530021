//! Giving a volume the label of the pod that uses it (`Mount.selinux_relabel`; chcon(1), recursively).
//!
//! The tree is another's: whatever container has it mounted can rename and link in it while we walk. Every file is opened once, by its
//! name in an open directory and without following links, and what is labelled is what was opened. File systems mounted below the
//! source are not part of it. What has the label already is not written to.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, StatxFlags, XattrFlags, getxattr, openat, openat2,
    setxattr, statx,
};
use rustix::io::Errno;

/// The attribute that holds a file's label (selinux(8), xattr(7)).
const ATTRIBUTE: &CStr = c"security.selinux";
/// Directories below each other, at most: each holds a descriptor while it is walked.
const MAX_DEPTH: usize = 512;
/// Longest label that is compared; a longer one is not ours.
const MAX_LABEL: usize = 4096;

/// What no pod's label may ever be put on: the node could not run any more, or would be open to the pod.
const SYSTEM: [&str; 28] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/etc/ssl",
    "/home",
    "/lib",
    "/lib32",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/run",
];

/// What a relabelling came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything has the label.
    Labelled,
    /// The file system has no labels, or one for all of its files: nothing was changed.
    Unlabelled,
}

/// The place of the system that a mount's source is, by whatever path or bind it was named; `None`: it may be relabelled.
pub(crate) fn system_place(source: impl AsFd) -> io::Result<Option<&'static str>> {
    let identity = |fd: BorrowedFd<'_>, path: &Path| -> Result<_, Errno> {
        let about = statx(fd, path, AtFlags::EMPTY_PATH, StatxFlags::INO)?;
        Ok((about.stx_dev_major, about.stx_dev_minor, about.stx_ino))
    };
    let ours = identity(source.as_fd(), Path::new(""))?;
    let same = |place: &&&str| identity(rustix::fs::CWD, Path::new(place)).is_ok_and(|theirs| theirs == ours);
    Ok(SYSTEM.iter().find(same).copied())
}

/// Gives a file, or a directory with everything below it, this label: the content first, so that a directory which has the label is
/// done. Errors are those of the kernel; `Unlabelled` comes before anything is changed.
pub(crate) fn tree(source: BorrowedFd<'_>, label: &str) -> io::Result<Outcome> {
    match current(source) {
        Err(Errno::NOTSUP) => return Ok(Outcome::Unlabelled),
        Err(e) => return Err(e.into()),
        Ok(Some(now)) if now == label.as_bytes() && kind(source)? != FileType::Directory => {
            return Ok(Outcome::Labelled);
        }
        Ok(_) => {}
    }
    match whole(source, label.as_bytes(), 0) {
        // Readable but not changeable: a file system that was mounted with one label for everything.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Outcome::Unlabelled),
        other => other.map(|()| Outcome::Labelled),
    }
}

/// Gives a directory of the store and everything below it this label. What is made in it has the label from its parent, so one that has
/// it is done, and never walked again.
pub(super) fn store(directory: BorrowedFd<'_>, label: &str) -> io::Result<()> {
    match current(directory) {
        Ok(Some(now)) if now == label.as_bytes() => Ok(()),
        _ => tree(directory, label).map(drop),
    }
}

/// The label of an open file, without its NUL; `None`: it has none.
pub(crate) fn current(file: BorrowedFd<'_>) -> Result<Option<Vec<u8>>, Errno> {
    let mut bytes = vec![0; MAX_LABEL];
    match getxattr(handle(file), ATTRIBUTE, &mut bytes[..]) {
        Ok(length) => {
            bytes.truncate(length);
            while bytes.last() == Some(&0) {
                bytes.pop();
            }
            Ok(Some(bytes))
        }
        Err(Errno::NODATA | Errno::RANGE) => Ok(None),
        Err(e) => Err(e),
    }
}

/// One file, or one directory behind its content.
fn whole(file: BorrowedFd<'_>, label: &[u8], depth: usize) -> io::Result<()> {
    if kind(file)? == FileType::Directory {
        content(file, label, depth)?;
    }
    if current(file)?.as_deref() == Some(label) {
        return Ok(());
    }
    Ok(setxattr(handle(file), ATTRIBUTE, label, XattrFlags::empty())?)
}

/// Everything in a directory.
fn content(directory: BorrowedFd<'_>, label: &[u8], depth: usize) -> io::Result<()> {
    if depth == MAX_DEPTH {
        return Err(io::Error::other(format!("more than {MAX_DEPTH} directories below each other")));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(directory, c".", flags, Mode::empty())?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match open(directory.as_fd(), name) {
            Ok(file) => whole(file.as_fd(), label, depth + 1).map_err(|e| about(name, &e))?,
            // Gone meanwhile, or another mount.
            Err(Errno::NOENT | Errno::XDEV) => {}
            Err(e) => return Err(about(name, &e.into())),
        }
    }
    Ok(())
}

/// Opens what has this name: a link itself, and nothing that is mounted here.
fn open(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    loop {
        match openat2(
            directory,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        ) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

fn kind(file: BorrowedFd<'_>) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode))
}

/// The path under which calls that take no `O_PATH` descriptor find exactly the file that is open.
fn handle(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// An error with the names on the way to where it was met.
fn about(name: &CStr, error: &io::Error) -> io::Error {
    let text = format!("{}: {error}", name.to_string_lossy());
    error
        .raw_os_error()
        .filter(|code| *code == libc::EOPNOTSUPP)
        .map_or_else(|| io::Error::new(error.kind(), text), io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    /// A directory, and beside it a file that nobody has asked about. The attribute can be set by root where SELinux is off, too.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let place =
                Self(std::env::temp_dir().join(format!("berth-relabel-{name}-{}", std::process::id())));
            fs::create_dir_all(place.0.join("volume/deep/deeper")).unwrap();
            fs::create_dir(place.0.join("outside")).unwrap();
            for file in ["volume/file", "volume/deep/deeper/file", "outside/file"] {
                fs::write(place.0.join(file), "x").unwrap();
            }
            place
        }

        fn open(&self, path: &str) -> OwnedFd {
            rustix::fs::open(self.0.join(path), OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).unwrap()
        }

        fn label(&self, path: &str) -> Option<String> {
            current(self.open(path).as_fd()).unwrap().map(|bytes| String::from_utf8(bytes).unwrap())
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn everything_in_a_volume_gets_the_label_and_nothing_outside_of_it() {
        let place = Place::new("tree");
        symlink("../outside", place.0.join("volume/link")).unwrap();
        symlink(place.0.join("outside/file"), place.0.join("volume/deep/absolute")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, place.0.join("volume/pipe"), FileType::Fifo, Mode::RUSR, 0)
            .unwrap();
        let before = ["outside", "outside/file", ""].map(|path| place.label(path));
        assert_eq!(tree(place.open("volume").as_fd(), LABEL).unwrap(), Outcome::Labelled);
        for path in
            ["volume", "volume/file", "volume/deep", "volume/deep/deeper/file", "volume/link", "volume/pipe"]
        {
            assert_eq!(place.label(path).as_deref(), Some(LABEL), "{path}");
        }
        assert_eq!(["outside", "outside/file", ""].map(|path| place.label(path)), before);
    }

    #[test]
    fn a_file_by_itself_is_labelled_and_what_has_the_label_is_not_written_to() {
        let place = Place::new("file");
        let changed = |path: &str| rustix::fs::fstat(place.open(path)).unwrap().st_ctime_nsec;
        assert_eq!(tree(place.open("volume/file").as_fd(), LABEL).unwrap(), Outcome::Labelled);
        assert_eq!(place.label("volume/file").as_deref(), Some(LABEL));
        let before = changed("volume/file");
        tree(place.open("volume").as_fd(), LABEL).unwrap();
        tree(place.open("volume/file").as_fd(), LABEL).unwrap();
        assert_eq!(changed("volume/file"), before);
        fs::write(place.0.join("volume/later"), "").unwrap();
        store(place.open("volume").as_fd(), LABEL).unwrap();
        assert_eq!(
            place.label("volume/later"),
            None,
            "a directory of the store that has the label is not walked"
        );
        assert_eq!(place.label("volume/deep").as_deref(), Some(LABEL));
    }

    #[test]
    fn a_tree_too_deep_to_walk_is_refused_by_name_and_does_not_eat_the_descriptors() {
        let place = Place::new("depth");
        let mut directory = place.open("volume");
        for _ in 0..=MAX_DEPTH {
            rustix::fs::mkdirat(&directory, "d", Mode::RWXU).unwrap();
            directory = open(directory.as_fd(), c"d").unwrap();
        }
        let refused = tree(place.open("volume").as_fd(), LABEL).unwrap_err().to_string();
        assert!(refused.starts_with("d: d: ") && refused.contains("512"), "{refused:.80}");
        assert_eq!(place.label("volume"), None, "what is not done does not look done");
    }

    #[test]
    fn a_file_system_without_labels_is_left_as_it_is() {
        let proc = rustix::fs::open("/proc/self/task", OFlags::PATH, Mode::empty()).unwrap();
        assert_eq!(tree(proc.as_fd(), LABEL).unwrap(), Outcome::Unlabelled);
    }

    #[test]
    fn the_nodes_own_places_are_known_by_whatever_name() {
        let place = Place::new("system");
        symlink("/etc", place.0.join("link")).unwrap();
        let at =
            |path: &Path| system_place(rustix::fs::open(path, OFlags::PATH, Mode::empty()).unwrap()).unwrap();
        for (path, system) in [
            ("/", "/"),
            ("/etc/", "/etc"),
            ("/usr/../etc", "/etc"),
            ("/var/lib", "/var/lib"),
            ("/etc/passwd", "/etc/passwd"),
        ] {
            assert_eq!(at(Path::new(path)), Some(system), "{path}");
        }
        assert_eq!(at(&place.0.join("link")), Some("/etc"), "by a link");
        assert_eq!(at(&place.0), None);
        assert_eq!(at(&place.0.join("volume/file")), None);
    }
}
