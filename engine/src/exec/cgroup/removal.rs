//! Killing and removing cgroups.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::hierarchy::{Hierarchies, read, relative, write};
use crate::error::{Error, Kind};

/// How long a removal waits for members to end and for the kernel to let go.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kills every process of a cgroup and below: atomically on v2, under the freezer on v1.
pub(super) fn kill(node: &Hierarchies, cgroup: &str) -> Result<(), Error> {
    let failed = |e| Error::with(Kind::Internal, format!("kill cgroup {cgroup}"), e);
    if let Some(v2) = &node.v2 {
        let dir = match v2.open(cgroup) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        match write(&dir, "cgroup.kill", "1") {
            Ok(()) => return Ok(()),
            // Before Linux 5.14 there is no such file.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
        return kill_members(&dir).map_err(failed);
    }
    let Some(freezer) = node.v1("freezer").or_else(|| node.v1.first()) else { return Ok(()) };
    let dir = match freezer.open(cgroup) {
        Ok(dir) => dir,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    let _ = write(&dir, "freezer.state", "FROZEN");
    let killed = kill_members(&dir);
    // Whatever happened: a frozen process can neither die nor be waited for.
    let _ = write(&dir, "freezer.state", "THAWED");
    killed.map_err(failed)
}

/// SIGKILL for every member, one by one, here and below.
fn kill_members(dir: &OwnedFd) -> io::Result<()> {
    for child in children(dir)? {
        kill_members(&open(dir, &child)?)?;
    }
    for pid in read(dir, "cgroup.procs")?.lines().filter_map(|l| Pid::from_raw(l.parse().ok()?)) {
        match kill_process(pid, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Pids of a cgroup and of those below.
pub(super) fn members(dir: &OwnedFd) -> io::Result<Vec<i32>> {
    let text = read(dir, "cgroup.procs")?;
    let mut pids: Vec<i32> = text.lines().filter_map(|l| l.parse().ok()).collect();
    for child in children(dir)? {
        pids.extend(members(&open(dir, &child)?)?);
    }
    Ok(pids)
}

/// The cgroup as the freezer has it: v2, also where controllers are on v1; else the v1 freezer.
fn freezer(node: &Hierarchies, cgroup: &str) -> io::Result<(OwnedFd, bool)> {
    if let Some(v2) = &node.v2 {
        return Ok((v2.open(cgroup)?, true));
    }
    let v1 = node.v1("freezer").ok_or(io::ErrorKind::Unsupported)?;
    Ok((v1.open(cgroup)?, false))
}

/// Freezes or thaws. A freeze that does not come about in time is taken back: nothing stays half frozen.
pub(super) fn freeze(node: &Hierarchies, cgroup: &str, frozen: bool) -> Result<(), Error> {
    let what = if frozen { "freeze" } else { "thaw" };
    let failed = |e| Error::with(Kind::Internal, format!("{what} cgroup {cgroup}"), e);
    let (dir, v2) = freezer(node, cgroup).map_err(failed)?;
    let set = |frozen: bool| match (v2, frozen) {
        (true, true) => write(&dir, "cgroup.freeze", "1"),
        (true, false) => write(&dir, "cgroup.freeze", "0"),
        (false, true) => write(&dir, "freezer.state", "FROZEN"),
        (false, false) => write(&dir, "freezer.state", "THAWED"),
    };
    set(frozen).map_err(failed)?;
    let until = Instant::now() + PATIENCE;
    while frozen_now(&dir, v2).map_err(failed)? != frozen {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let _ = set(!frozen);
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
        if v2 {
            let events = openat(&dir, "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            let events = events.map_err(|e| failed(e.into()))?;
            let mut text = [0; 128];
            let length = rustix::io::pread(&events, &mut text, 0).map_err(|e| failed(e.into()))?;
            if is_in(&text[..length], b"frozen 1") != frozen {
                let left =
                    Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
                poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left))
                    .map_err(|e| failed(e.into()))?;
            }
        } else {
            // The v1 freezer has no event, and needs to be told again while processes fork under it.
            std::thread::sleep(Duration::from_millis(1));
            set(frozen).map_err(failed)?;
        }
    }
    Ok(())
}

/// Whether a cgroup is frozen.
pub(super) fn is_frozen(node: &Hierarchies, cgroup: &str) -> bool {
    freezer(node, cgroup).and_then(|(dir, v2)| frozen_now(&dir, v2)).unwrap_or(false)
}

fn frozen_now(dir: &OwnedFd, v2: bool) -> io::Result<bool> {
    if v2 {
        return Ok(is_in(read(dir, "cgroup.events")?.as_bytes(), b"frozen 1"));
    }
    Ok(read(dir, "freezer.state")?.trim() == "FROZEN")
}

/// Whether a line is in a text.
fn is_in(text: &[u8], line: &[u8]) -> bool {
    text.split(|b| *b == b'\n').any(|l| l == line)
}

/// Kills, waits until nobody is left, and removes on every hierarchy.
pub(super) fn remove(node: &Hierarchies, cgroup: &str) -> Result<(), Error> {
    let until = Instant::now() + PATIENCE;
    kill(node, cgroup)?;
    if let Some(dir) = node.v2.as_ref().and_then(|v2| v2.open(cgroup).ok()) {
        let _ = wait_empty(&dir, until);
    }
    for hierarchy in node.all() {
        let failed = |e| {
            Error::with(
                Kind::Internal,
                format!("remove {}/{}", hierarchy.path.display(), relative(cgroup)),
                e,
            )
        };
        let (parent, name) = match relative(cgroup).rsplit_once('/') {
            Some((parent, name)) => (hierarchy.open(parent), name),
            None => (hierarchy.open("."), relative(cgroup)),
        };
        let name = CString::new(name).map_err(|e| failed(e.into()))?;
        match parent.and_then(|parent| remove_tree(&parent, &name, until)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
    }
    Ok(())
}

/// Waits until a v2 cgroup has no process (`populated 0` in cgroup.events, which can be polled).
fn wait_empty(dir: &OwnedFd, until: Instant) -> io::Result<()> {
    let events = openat(dir, "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    loop {
        let mut text = [0; 128];
        let length = rustix::io::pread(&events, &mut text, 0)?;
        if text[..length].starts_with(b"populated 0") {
            return Ok(());
        }
        let left = until.checked_duration_since(Instant::now()).ok_or(io::ErrorKind::TimedOut)?;
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left))?;
    }
}

/// Removes a cgroup directory and those below. The kernel says EBUSY for a moment after the last member has gone.
fn remove_tree(parent: &OwnedFd, name: &CStr, until: Instant) -> io::Result<()> {
    let mut pause = Duration::from_millis(1);
    loop {
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) if Instant::now() < until => {}
            Err(e) => return Err(e.into()),
        }
        let dir = openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let below = children(&dir)?;
        if below.is_empty() {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        for child in below {
            remove_tree(&dir, &child, until)?;
        }
    }
}

/// Names of the cgroups directly below.
fn children(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == rustix::fs::FileType::Directory && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Opens a cgroup below.
fn open(dir: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    Ok(openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}
