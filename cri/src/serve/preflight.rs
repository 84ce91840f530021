//! What must be so before anything is touched; every refusal says what to do.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Oldest kernel with all that is relied upon everywhere: clone3 into a cgroup (5.7), openat2 (5.6), pidfd_open (5.3),
/// mount_setattr (5.12), and idmapped mounts on the usual file systems (5.15).
pub const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// Why the daemon refuses to start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not root.
    #[error("must run as root: namespaces, mounts and cgroups need it; try `sudo berth serve`")]
    NotRoot,
    /// The kernel is too old.
    #[error(
        "this kernel is {found}, the oldest that will do is {}.{}: mount_setattr, idmapped mounts, clone3 into a \
         cgroup and openat2 are needed; boot a newer kernel",
        OLDEST_KERNEL.0, OLDEST_KERNEL.1
    )]
    Kernel {
        /// Its release.
        found: String,
    },
    /// A file system is not mounted.
    #[error("{path} is missing: {what} must be mounted")]
    Missing {
        /// Where it should be.
        path: &'static str,
        /// What it is.
        what: &'static str,
    },
    /// A directory cannot be used.
    #[error("{path}: cannot be made or used as a private directory")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another daemon is there.
    #[error("{dir} is in use by another berth daemon{holder}; end it, or choose another --root and --state")]
    InUse {
        /// The contested directory.
        dir: PathBuf,
        /// ` (pid N)` when it can be told.
        holder: String,
    },
}

/// Held while the daemon lives: nobody else uses its directories.
#[derive(Debug)]
pub struct Guard(#[expect(dead_code, reason = "closing the files gives up the locks")] [File; 2]);

/// Checks identity, kernel (`release` as uname(2) says it) and surroundings, makes the two directories (0700) and takes
/// them.
pub fn check(release: &str, root: &Path, state: &Path) -> Result<Guard, Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    if !new_enough(release) {
        return Err(Error::Kernel { found: release.to_owned() });
    }
    for (path, what) in [("/proc/self/ns/net", "procfs"), ("/sys/fs/cgroup", "the cgroup file system")] {
        if !Path::new(path).exists() {
            return Err(Error::Missing { path, what });
        }
    }
    Ok(Guard([take(root)?, take(state)?]))
}

/// Whether a release such as `6.18.0-1-amd64` is new enough; one that cannot be read is let pass.
fn new_enough(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST_KERNEL,
        _ => true,
    }
}

/// Tries something for as long as a daemon that was killed may go on to hold what it held: a process it was just making has
/// all its descriptors until it runs its own program (execve(2)). `held`: an error that says so; every other one is final.
pub(super) fn in_time<T, E>(
    held: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    const LIMIT: Duration = Duration::from_secs(1);
    const PAUSE: Duration = Duration::from_millis(5);
    let end = Instant::now() + LIMIT;
    loop {
        match attempt() {
            Err(error) if held(&error) && Instant::now() < end => std::thread::sleep(PAUSE),
            outcome => return outcome,
        }
    }
}

/// Makes a directory and locks `daemon.pid` in it.
fn take(dir: &Path) -> Result<File, Error> {
    let failed = |source: std::io::Error| Error::Directory { path: dir.into(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let path = dir.join("daemon.pid");
    let mut options = OpenOptions::new();
    let mut file =
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
    let lock = || flock(&file, FlockOperation::NonBlockingLockExclusive);
    if in_time(|error| *error == Errno::WOULDBLOCK, lock).is_err() {
        let mut pid = String::new();
        let _ = (&file).take(16).read_to_string(&mut pid);
        let holder = match pid.trim() {
            "" => String::new(),
            pid => format!(" (pid {pid})"),
        };
        return Err(Error::InUse { dir: dir.into(), holder });
    }
    file.set_len(0).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_told_apart() {
        for (release, expected) in
            [("5.14.0-427.el9", false), ("4.19.0", false), ("5.15.0", true), ("6.1", true), ("10.0.0", true)]
        {
            assert_eq!(new_enough(release), expected, "{release}");
        }
    }

    #[test]
    fn on_an_old_kernel_nothing_is_touched_and_the_refusal_says_what_is_needed() {
        let dir = std::env::temp_dir().join(format!("berth-old-kernel-{}", std::process::id()));
        let error = check("5.14.0-427.el9.x86_64", &dir.join("root"), &dir.join("state")).unwrap_err();
        let text = error.to_string();
        for word in ["5.14.0-427.el9.x86_64", "5.15", "boot a newer kernel"] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
        assert!(!dir.exists());
    }

    #[test]
    fn a_second_daemon_is_refused_and_told_the_pid_of_the_first() {
        let dir = std::env::temp_dir().join(format!("berth-preflight-{}", std::process::id()));
        let guard = take(&dir).unwrap();
        let error = take(&dir).unwrap_err().to_string();
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        drop(guard);
        take(&dir).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_a_killed_daemon_holds_for_a_moment_longer_is_waited_for() {
        let dir = std::env::temp_dir().join(format!("berth-killed-{}", std::process::id()));
        let guard = take(&dir).unwrap();
        let inherited = guard.try_clone().unwrap();
        drop(guard);
        let exec = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(inherited);
        });
        take(&dir).unwrap();
        exec.join().unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }
}
