//! Where the suite works: a directory under /tmp, or of a btrfs in a file.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

use crate::support::kernel::run;

/// A directory that ends with its owner.
pub(super) struct Place(pub(super) PathBuf);

impl Place {
    /// For a driver of this name; `None`: what it needs is missing here.
    pub(super) fn of(driver: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let base = if driver == "btrfs" { btrfs()? } else { PathBuf::from("/tmp") };
        let path = base.join(format!("storage-suite-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Some(Self(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A btrfs in a file without a name, mounted nowhere: all of it is gone with this process.
fn btrfs() -> Option<PathBuf> {
    static MOUNT: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let mount = MOUNT.get_or_init(|| match make_btrfs() {
        Ok(mount) => Some(mount),
        Err(error) => {
            assert!(std::env::var_os("STORAGE_SUITE_ALL").is_none(), "no btrfs: {error}");
            eprintln!("skip: the suite on btrfs ({error})");
            None
        }
    });
    // Not `self`: other programs get such paths too.
    mount
        .as_ref()
        .map(|mount| PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), mount.as_raw_fd())))
}

fn make_btrfs() -> io::Result<OwnedFd> {
    let file = format!("/tmp/storage-suite-{}.btrfs", std::process::id());
    std::fs::File::create(&file)?.set_len(1 << 30)?;
    let attached = run("mkfs.btrfs", &["-q", &file]).and_then(|_| run("losetup", &["-f", "--show", &file]));
    std::fs::remove_file(&file)?;
    let device = attached?;
    let mounted = (|| {
        let fs = fsopen("btrfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&fs, "source", device.trim())?;
        fsconfig_create(&fs)?;
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    })();
    // While it is in use this only marks the device to go when the last user does.
    run("losetup", &["-d", device.trim()])?;
    Ok(mounted?)
}
