//! Opening a file of a container from outside of it.
//!
//! What the image or the container has put there is not known before it is open: links are followed within the root alone
//! (openat2(2), RESOLVE_IN_ROOT), opening does not wait (a FIFO without a writer), and only regular files are handed out.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use rustix::path::Arg;

/// Opens a file for reading, links followed as the container will. `None`: there is something at this path, but it is no regular
/// file. Errors are those of openat2(2).
pub(crate) fn open(rootfs: BorrowedFd<'_>, path: impl Arg) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = path.into_c_str()?;
    let fd = loop {
        match openat2(rootfs, &*path, flags, Mode::empty(), resolve) {
            // Something, anywhere on the node, was renamed while the kernel went up through a `..`.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => break other?,
        }
    };
    let kind = FileType::from_raw_mode(fstat(&fd)?.st_mode);
    Ok((kind == FileType::RegularFile).then_some(fd))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_containers_file_is_a_regular_one_below_its_root() {
        let dir = std::env::temp_dir().join(format!("berth-file-{}", std::process::id()));
        fs::create_dir_all(dir.join("root/etc")).unwrap();
        fs::write(dir.join("outside"), "outside").unwrap();
        fs::write(dir.join("root/etc/inside"), "inside").unwrap();
        let at = |name: &str| dir.join("root/etc").join(name);
        for (name, target) in
            [("absolute", "/etc/inside"), ("above", "../../../etc/inside"), ("out", "../../outside")]
        {
            symlink(target, at(name)).unwrap();
        }
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        let root = File::open(dir.join("root")).unwrap();
        for path in ["etc/inside", "/etc/inside", "/etc/absolute", "/etc/above", "/../etc/inside"] {
            let mut text = String::new();
            File::from(open(root.as_fd(), path).unwrap().unwrap()).read_to_string(&mut text).unwrap();
            assert_eq!(text, "inside", "{path}");
        }
        for path in ["/etc", "/etc/fifo"] {
            assert!(open(root.as_fd(), path).unwrap().is_none(), "{path}");
        }
        for (path, error) in [
            ("/etc/out", Errno::NOENT),
            ("/../outside", Errno::NOENT),
            ("/etc/inside/x", Errno::NOTDIR),
            ("/etc/socket", Errno::NXIO),
        ] {
            assert_eq!(open(root.as_fd(), path).unwrap_err(), error, "{path}");
        }
        let node = File::open("/").unwrap();
        assert_eq!(open(node.as_fd(), "/proc/self/exe").unwrap_err(), Errno::LOOP, "a link that is no path");
        fs::remove_dir_all(&dir).unwrap();
    }
}
