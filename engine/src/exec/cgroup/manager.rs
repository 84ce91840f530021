//! Who makes, changes and removes cgroups: we alone, or systemd first and then we.
//!
//! Under systemd a cgroup whose name is a unit's is made by it, gets its limits as properties, and is then treated as any other: what
//! systemd has no property for is written to the files, and so is once more what it rounds. A cgroup with another name is a file
//! system's matter under either driver, so what was made before a node changed its driver can still be removed.

use std::os::fd::{AsFd, OwnedFd};

use super::devices::Rules;
use super::hierarchy::{self, Hierarchies, Hierarchy, read};
use super::limits::Setting;
use super::names::{self, CgroupDriver};
use super::systemd::{CFS_PERIOD, Systemd};
use super::{Entrance, Wanted, change, enter, kill, node, planned, prepare, put_back};
use crate::error::{Error, Kind};
use crate::spec::Resources;
use crate::sys::process;

/// A way to make cgroups. All calls block, up to half a minute if systemd does not answer.
#[derive(Debug)]
pub(crate) enum Manager {
    /// The file systems alone.
    Files,
    /// systemd for units, the file systems for the rest.
    Systemd(Systemd),
}

/// A process that stands in a scope until somebody else does: systemd makes none without a process.
#[derive(Debug)]
pub(crate) struct Holder {
    pid: i32,
    pidfd: OwnedFd,
    /// Its end ends the process, too, should we be killed.
    _line: OwnedFd,
}

impl Holder {
    /// A child of ours that waits for the end of `line`.
    pub(crate) fn new(pid: i32, pidfd: OwnedFd, line: OwnedFd) -> Self {
        Self { pid, pidfd, _line: line }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It sleeps in a read: the wait is a matter of microseconds.
        if process::signal(self.pidfd.as_fd(), libc::SIGKILL).is_ok() {
            let _ = process::wait(&self.pidfd);
        } else {
            let _ = process::try_wait(&self.pidfd);
        }
    }
}

/// A cgroup that was made.
#[derive(Debug)]
pub(crate) struct Made {
    /// The way in.
    pub(crate) entrance: Entrance,
    /// Has to be kept until somebody else is in there.
    pub(crate) holder: Option<Holder>,
}

impl Manager {
    /// The node's.
    pub(crate) fn new(driver: CgroupDriver) -> Self {
        match driver {
            CgroupDriver::Cgroupfs => Self::Files,
            CgroupDriver::Systemd => Self::Systemd(Systemd::usual()),
        }
    }

    /// Systemd, and the unit that the cgroup is, if it is one.
    fn unit<'c>(&self, cgroup: &'c str) -> Option<(&Systemd, &'c str, bool)> {
        let Self::Systemd(systemd) = self else { return None };
        names::unit(cgroup).map(|(unit, scope)| (systemd, unit, scope))
    }

    /// Makes a cgroup with its limits and opens it. On failure nothing that was made here is left.
    pub(crate) fn create(
        &self,
        wanted: &Wanted<'_>,
        hold: impl FnOnce() -> Result<Holder, Error>,
    ) -> Result<Made, Error> {
        hierarchy::check(wanted.cgroup)?;
        let Some((systemd, _, true)) = self.unit(wanted.cgroup) else {
            return super::create(wanted).map(|entrance| Made { entrance, holder: None });
        };
        let node = node()?;
        let plan = planned(node, wanted.resources, wanted.v1, wanted.v2)?;
        let holder = hold()?;
        let made = systemd
            .start_scope(wanted.cgroup, &told(node, &plan), holder.pid, false)
            .and_then(|()| placed(node, wanted.cgroup))
            .and_then(|()| super::create(wanted));
        match made {
            Ok(entrance) => Ok(Made { entrance, holder: Some(holder) }),
            // Somebody else's.
            Err(e) if e.kind() == Kind::AlreadyExists => Err(e),
            Err(e) => {
                drop(holder);
                self.clear_away(wanted.cgroup);
                Err(e)
            }
        }
    }

    /// Opens a cgroup that several share and nobody limits, and makes it if it is missing. Under systemd it is there as long as somebody
    /// is in it: the holder has to be kept.
    pub(crate) fn share(
        &self,
        cgroup: &str,
        hold: impl FnOnce() -> Result<Holder, Error>,
    ) -> Result<Made, Error> {
        hierarchy::check(cgroup)?;
        let holder = match self.unit(cgroup) {
            Some((systemd, _, true)) => {
                let holder = hold()?;
                systemd.start_scope(cgroup, &[], holder.pid, true)?;
                placed(node()?, cgroup)?;
                Some(holder)
            }
            _ => None,
        };
        // What is there may be full of others: only what is missing is made, and taken back if that fails.
        let entrance = enter(cgroup)
            .or_else(|_| super::create(&Wanted::new(cgroup, &Resources::default(), &Rules::All)))?;
        Ok(Made { entrance, holder })
    }

    /// Makes a cgroup that will have no processes of its own, where it does not exist yet.
    pub(crate) fn prepare(&self, cgroup: &str, resources: &Resources) -> Result<(), Error> {
        hierarchy::check(cgroup)?;
        if let Some((systemd, unit, false)) = self.unit(cgroup) {
            systemd.start_slice(unit)?;
        }
        prepare(cgroup, resources)
    }

    /// Changes the limits of a live cgroup, with settings beyond [`Resources`] for controllers on v1 and on v2; unset values stay as
    /// they are. On failure everything already written is put back.
    pub(crate) fn update(
        &self,
        cgroup: &str,
        resources: &Resources,
        v1: &[Setting],
        v2: &[Setting],
    ) -> Result<(), Error> {
        let Some((systemd, unit, _)) = self.unit(cgroup) else {
            return super::update(cgroup, resources, v1, v2);
        };
        hierarchy::check(cgroup)?;
        let node = node()?;
        let plan = planned(node, resources, v1, v2)?;
        let period = period(node, cgroup);
        // The kernel is asked first: it knows best which values it takes.
        let undo = change(node, cgroup, plan.clone())?;
        if let Err(error) = systemd.set(unit, &told(node, &plan), period) {
            put_back(cgroup, &undo);
            return Err(error);
        }
        // And once more: systemd has written its own idea of it, in whole percents of a processor.
        change(node, cgroup, plan).map(drop)
    }

    /// Kills what runs in a cgroup and removes it and everything below on every hierarchy, and its unit; absent is fine.
    pub(crate) fn remove(&self, cgroup: &str) -> Result<(), Error> {
        hierarchy::check(cgroup)?;
        if let Some((systemd, unit, _)) = self.unit(cgroup) {
            kill(cgroup)?;
            // A unit without a process ends by itself: systemd in trouble keeps no pod from going.
            if let Err(error) = systemd.stop(unit) {
                tracing::warn!(cgroup, "the unit is left to itself: {}", error.chain());
            }
        }
        super::remove(cgroup)
    }

    /// Removes what a failure has left.
    fn clear_away(&self, cgroup: &str) {
        if let Err(left) = self.remove(cgroup) {
            tracing::warn!(cgroup, "what is left of a failed start: {}", left.chain());
        }
    }
}

/// Settings as systemd is told of them.
fn told<'p>(node: &Hierarchies, plan: &'p [(&Hierarchy, Setting)]) -> Vec<(bool, &'p Setting)> {
    let is_v2 = |hierarchy: &Hierarchy| node.v2.as_ref().is_some_and(|v2| std::ptr::eq(v2, hierarchy));
    plan.iter().map(|(hierarchy, setting)| (is_v2(hierarchy), setting)).collect()
}

/// A unit has to be where we look for it: a systemd with another root would lead us into a cgroup that it takes away again.
fn placed(node: &Hierarchies, cgroup: &str) -> Result<(), Error> {
    let mut kept = node.v2.iter().chain(node.v1("name=systemd"));
    if kept.any(|hierarchy| hierarchy.open(cgroup).is_ok()) {
        return Ok(());
    }
    let why = format!(
        "systemd has made its unit, but not the cgroup {cgroup}: its cgroups have another root than ours"
    );
    Err(Error::new(Kind::FailedPrecondition, why))
}

/// The CFS period of a v1 cgroup, in microseconds.
fn period(node: &Hierarchies, cgroup: &str) -> u64 {
    let text = node.v1("cpu").and_then(|cpu| read(cpu.open(cgroup).ok()?, "cpu.cfs_period_us").ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(CFS_PERIOD)
}
