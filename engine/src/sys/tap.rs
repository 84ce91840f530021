//! Tap links: the ioctls of linux/if_tun.h.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;

use super::check;

/// `IFF_TAP`, `IFF_NO_PI`, `IFF_MULTI_QUEUE`, `IFF_TUN_EXCL`.
const TAP: u16 = 0x2;
const NO_PACKET_INFORMATION: u16 = 0x1000;
const MULTI_QUEUE: u16 = 0x100;
const NEW: u16 = 0x8000;

/// `_IOW('T', number, int)`.
const fn request(number: libc::c_ulong) -> libc::c_ulong {
    (1 << 30) | (4 << 16) | (0x54 << 8) | number
}

const TUNSETIFF: libc::c_ulong = request(202);
const TUNSETPERSIST: libc::c_ulong = request(203);
const TUNSETOWNER: libc::c_ulong = request(204);
const TUNSETGROUP: libc::c_ulong = request(206);

/// `struct ifreq`, as far as `TUNSETIFF` reads it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    unused: [u8; 22],
}

/// Makes a tap link in the calling thread's network namespace. It stays until it is deleted; `owner` and `group` may open it, or,
/// without either, whoever has CAP_NET_ADMIN over the namespace.
///
/// # Errors
/// The name is no link name, or taken; the kernel has no `/dev/net/tun`.
pub fn make(name: &str, multi_queue: bool, owner: Option<u32>, group: Option<u32>) -> io::Result<()> {
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let queues = if multi_queue { MULTI_QUEUE } else { 0 };
    let mut wanted =
        Request { name: [0; 16], flags: TAP | NO_PACKET_INFORMATION | NEW | queues, unused: [0; 22] };
    let room = wanted.name.get_mut(..name.len()).filter(|_| !name.is_empty() && name.len() < 16);
    room.ok_or(io::ErrorKind::InvalidFilename)?.copy_from_slice(name.as_bytes());
    // SAFETY: the kernel reads and writes a `struct ifreq`, whose size and layout `Request` has, initialised in full, its name
    // ended by a NUL; it outlives the call.
    let made = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF as _, std::ptr::from_mut(&mut wanted)) };
    check(made.into())?;
    // Until the last of these the link ends with the descriptor: all or nothing.
    let settings = owner.map(|id| (TUNSETOWNER, id)).into_iter().chain(group.map(|id| (TUNSETGROUP, id)));
    for (setting, value) in settings.chain([(TUNSETPERSIST, 1)]) {
        // SAFETY: these requests take their argument by value.
        let set = unsafe { libc::ioctl(tun.as_raw_fd(), setting as _, libc::c_ulong::from(value)) };
        check(set.into())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_stays_with_its_owner_and_names_are_taken_once() {
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            match make("tap0", true, Some(64_242), Some(64_243)) {
                // No tun in this kernel, with or without its file.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => return,
                made => made.unwrap(),
            }
            let shown =
                std::process::Command::new("ip").args(["-d", "link", "show", "tap0"]).output().unwrap();
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            for word in ["type tap", "multi_queue", "persist on", "user 64242", "group 64243"] {
                assert!(shown.contains(word), "{word}: {shown}");
            }
            assert_eq!(make("tap0", true, None, None).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
            assert!(make("a-name-of-sixteen", false, None, None).is_err());
            assert!(make("", false, None, None).is_err());
        })
        .join()
        .unwrap();
    }
}
