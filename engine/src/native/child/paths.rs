//! Paths inside a root: always from a descriptor, never out of the root, never through a magic link (openat2(2)).
//!
//! Images are hostile: any component may be a symbolic link, may dangle, or may be exchanged by another container that shares a
//! volume while we look. Every open is one openat2 with RESOLVE_IN_ROOT, and everything made is made in an open directory by a name
//! without slashes.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, mkdirat, mknodat, openat2, readlinkat_raw};
use rustix::io::Errno;

use super::{Cause, Detail, plain};

/// Longest path (PATH_MAX).
const MAX: usize = 4096;
/// Most components made and links followed for one path.
const MAX_ROUNDS: usize = 512;

/// What the end of a path is when it has to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaf {
    /// A directory.
    Directory,
    /// An empty file, as a mount point.
    File,
}

/// A path that is edited in place.
struct Path {
    bytes: [u8; MAX + 1],
    length: usize,
}

impl Path {
    fn new(text: &CStr) -> Result<Self, Errno> {
        let mut path = Self { bytes: [0; MAX + 1], length: 0 };
        path.append(text.to_bytes())?;
        Ok(path)
    }

    fn append(&mut self, text: &[u8]) -> Result<(), Errno> {
        let end = self.length + text.len();
        self.bytes
            .get_mut(self.length..end)
            .filter(|_| end < MAX)
            .ok_or(Errno::NAMETOOLONG)?
            .copy_from_slice(text);
        self.bytes[end] = 0;
        self.length = end;
        Ok(())
    }

    /// Calls with the first `end` bytes as a C string; an empty path means the root.
    fn prefix<T>(&mut self, end: usize, call: impl FnOnce(&CStr) -> T) -> T {
        let saved = std::mem::replace(&mut self.bytes[end], 0);
        let result = call(match CStr::from_bytes_until_nul(&self.bytes) {
            Ok(text) if !text.is_empty() => text,
            _ => c".",
        });
        self.bytes[end] = saved;
        result
    }

    /// Start and end of the component that begins at or after `from`.
    fn component(&self, from: usize) -> Option<(usize, usize)> {
        let start = from + self.bytes[from..self.length].iter().position(|b| *b != b'/')?;
        let end =
            self.bytes[start..self.length].iter().position(|b| *b == b'/').map_or(self.length, |n| start + n);
        Some((start, end))
    }
}

/// Opens a path as O_PATH.
pub(super) fn open(root: BorrowedFd<'_>, path: &CStr, more: ResolveFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
    loop {
        match openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // Something was renamed while the kernel looked.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Opens a path, making what is missing of it. A dangling link is followed to where it would point inside the root.
pub(super) fn reach(root: BorrowedFd<'_>, at: &CStr, leaf: Leaf) -> Result<OwnedFd, Cause> {
    let mut path = Path::new(at).map_err(plain)?;
    for _ in 0..MAX_ROUNDS {
        let end = path.length;
        match path.prefix(end, |path| open(root, path, ResolveFlags::empty())) {
            Err(Errno::NOENT) => make_next(root, &mut path, leaf).map_err(plain)?,
            other => return other.map_err(plain),
        }
    }
    Err((Errno::LOOP, Detail::None))
}

/// As [`reach`] for a directory, where no component may be a symbolic link.
pub(super) fn reach_strictly(root: BorrowedFd<'_>, at: &CStr) -> Result<OwnedFd, Cause> {
    let strict = |_| match open(root, at, ResolveFlags::NO_SYMLINKS) {
        Err(Errno::LOOP) => Err((Errno::LOOP, Detail::Symlink)),
        other => other.map_err(plain),
    };
    match strict(()) {
        Err((Errno::NOENT, _)) => reach(root, at, Leaf::Directory).and_then(|_| strict(())),
        other => other,
    }
}

/// Makes the first missing component, or replaces a dangling link by its target in the path.
fn make_next(root: BorrowedFd<'_>, path: &mut Path, leaf: Leaf) -> Result<(), Errno> {
    let mut parent: Option<OwnedFd> = None;
    let mut from = 0;
    while let Some((start, end)) = path.component(from) {
        match path.prefix(end, |path| open(root, path, ResolveFlags::empty())) {
            Ok(fd) => parent = Some(fd),
            Err(Errno::NOENT) => {
                let parent = parent.as_ref().map_or(root, AsFd::as_fd);
                let last = path.component(end).is_none();
                return make_component(parent, path, start, end, if last { leaf } else { Leaf::Directory });
            }
            Err(e) => return Err(e),
        }
        from = end;
    }
    Ok(())
}

/// Makes one component in its open parent.
fn make_component(
    parent: BorrowedFd<'_>,
    path: &mut Path,
    start: usize,
    end: usize,
    leaf: Leaf,
) -> Result<(), Errno> {
    let mut name = [0; 256];
    let length = end - start;
    name.get_mut(..length)
        .filter(|_| length < 256)
        .ok_or(Errno::NAMETOOLONG)?
        .copy_from_slice(&path.bytes[start..end]);
    let name = CStr::from_bytes_until_nul(&name).map_err(|_| Errno::NAMETOOLONG)?;
    let mut target = [0; MAX];
    match readlinkat_raw(parent, name, &mut target[..]) {
        Ok(length) => return splice(path, start, end, &target[..length]),
        Err(Errno::INVAL | Errno::NOENT) => {}
        Err(e) => return Err(e),
    }
    let made = match leaf {
        Leaf::Directory => mkdirat(parent, name, Mode::from_raw_mode(0o755)),
        Leaf::File => mknodat(parent, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0),
    };
    match made {
        // Somebody was quicker; the next round looks at what it is.
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Puts a link's target into the path in place of the link.
fn splice(path: &mut Path, start: usize, end: usize, target: &[u8]) -> Result<(), Errno> {
    let old = Path { bytes: path.bytes, length: path.length };
    path.length = if target.starts_with(b"/") { 0 } else { start };
    path.append(target)?;
    path.append(&old.bytes[end..old.length])
}

/// Opens the parent directory of a path, making it, and hands the last name to `call`.
pub(super) fn in_parent<T>(
    root: BorrowedFd<'_>,
    at: &CStr,
    call: impl FnOnce(BorrowedFd<'_>, &CStr) -> Result<T, Errno>,
) -> Result<T, Cause> {
    let bytes = at.to_bytes_with_nul();
    let cut = bytes.iter().rposition(|b| *b == b'/').map_or(0, |n| n + 1);
    let name = CStr::from_bytes_with_nul(&bytes[cut..]).map_err(|_| (Errno::INVAL, Detail::None))?;
    let mut directory = [0; MAX + 1];
    directory.get_mut(..cut).ok_or((Errno::NAMETOOLONG, Detail::None))?.copy_from_slice(&bytes[..cut]);
    let directory = CStr::from_bytes_until_nul(&directory).map_err(|_| (Errno::NAMETOOLONG, Detail::None))?;
    let parent = reach(root, if directory.is_empty() { c"/" } else { directory }, Leaf::Directory)?;
    call(parent.as_fd(), name).map_err(plain)
}

/// The root directory of the calling process.
pub(super) fn open_root() -> Result<OwnedFd, Errno> {
    rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Writes to a file of a procfs that is not the container's, whose /proc may be anything (CVE-2025-52881).
pub(super) fn write_proc(proc: BorrowedFd<'_>, file: &CStr, text: &[u8]) -> Result<(), Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    let fd = openat2(proc, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    rustix::io::write(&fd, text).map(drop)
}

/// A number as text, in a buffer of the caller's. Not by the standard library's formatting, whose parts lie all over the program: a child
/// would pay for each with a page fault.
pub(super) fn decimal(value: i64, buffer: &mut [u8; 24]) -> &[u8] {
    let (mut left, mut start) = (value.unsigned_abs(), buffer.len());
    loop {
        start -= 1;
        buffer[start] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if value < 0 {
        start -= 1;
        buffer[start] = b'-';
    }
    &buffer[start..]
}

/// Whether the path's end is a directory.
pub(super) fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let stat = rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_the_standard_library_writes_them() {
        for value in [0, 7, -7, 10, -1000, 1000, 998, i64::MAX, i64::MIN] {
            assert_eq!(decimal(value, &mut [0; 24]), value.to_string().as_bytes());
        }
    }

    /// CVE-2025-52881, CVE-2025-62596: writes for a file of procfs are led to another one, or out of it.
    #[test]
    fn a_write_to_proc_ends_in_that_proc_or_fails() {
        let open = |path: &CStr| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).unwrap()
        };
        let (top, proc, own) = (open(c"/"), open(c"/proc"), open(c"/proc/thread-self"));
        let write = |at: &OwnedFd, file: &CStr| write_proc(at.as_fd(), file, b"written");
        assert_eq!(write(&proc, c"thread-self/comm"), Ok(()));
        assert_eq!(write(&top, c"proc/thread-self/comm"), Err(Errno::XDEV), "another mount");
        assert_eq!(write(&own, c"../../../thread-self/comm"), Err(Errno::XDEV), "upwards");
        let victim = rustix::fs::memfd_create("victim", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let link = format!("thread-self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&victim));
        assert_eq!(write(&proc, &std::ffi::CString::new(link).unwrap()), Err(Errno::LOOP), "a magic link");
        assert_eq!(rustix::fs::fstat(&victim).unwrap().st_size, 0);
    }
}
