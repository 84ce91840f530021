//! What the driver and the clients of its supervisors share: facts, caches, and what is made ahead.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::birth::execute;
use super::compile::{self, Facts};
use super::{capabilities, devices, lsm, seccomp, supervisor};
use crate::error::{Error, Kind};
use crate::exec::cgroup::{self, blockio};
use crate::exec::classes::Classes;
use crate::exec::podd::HOLD;
use crate::exec::rdt::Resctrl;
use crate::external::Runtime;
use crate::selinux::ContainerLabels;
use crate::spec::{ContainerSecurity, ContainerSpec, DeviceSpec, PodSpec, Resources};
use crate::sys::thread;

/// What supervisors' clients share.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) facts: Facts,
    /// Who makes the processes, if that is not us.
    pub(crate) runtime: Option<Arc<Runtime>>,
    /// Who makes those that need hooks.
    pub(super) hooks: Option<Arc<Runtime>>,
    /// Who makes cgroups, and the program that holds their places.
    pub(crate) cgroups: cgroup::Manager,
    pub(super) program: Arc<OwnedFd>,
    pub(super) arguments: Vec<OsString>,
    pub(super) classes: Classes,
    pub(super) resctrl: Resctrl,
    pub(crate) filters: seccomp::Cache,
    pub(super) modules: Vec<Box<dyn lsm::Module>>,
    /// What keeps pods going when their supervisors are killed, by pod id.
    pub(super) kept: Mutex<HashMap<String, supervisor::Kept>>,
    /// Cgroups made for containers that have not been started yet, by path.
    pub(super) prepared: Mutex<HashMap<String, Prepared>>,
    /// Supervisors' processes that wait for their pod's namespace, by pod id.
    pub(super) started: Mutex<HashMap<String, Started>>,
    /// The ways into the cgroups of containers started, or entered, last; the newest at the end.
    pub(super) entrances: Mutex<VecDeque<(String, Arc<cgroup::Entrance>)>>,
    /// What the next exec of which only the end matters needs, made ahead.
    pub(super) kit: Mutex<Option<supervisor::Kit>>,
}

/// A supervisor's process that has not been told what to do: its pidfd, and the connection whose end ends it.
pub(super) type Started = (OwnedFd, OwnedFd);

/// So many entrances of cgroups stay open: enough for the probes of a well-filled node, at ten descriptors each.
const ENTRANCES: usize = 128;
/// And no more than one part of this many of the descriptors that the process may have (RLIMIT_NOFILE).
const ENTRANCES_SHARE: usize = 8;

/// A container's cgroup, with its limits, open to be entered.
#[derive(Debug)]
pub(crate) struct Prepared {
    resources: Resources,
    devices: Vec<DeviceSpec>,
    pub(crate) nodes: Vec<compile::Node>,
    pub(crate) entrance: cgroup::Entrance,
    /// The cgroup as the container will see it, on v1.
    pub(crate) views: Vec<OwnedFd>,
    /// To be let go when the container is in there.
    pub(crate) holder: Option<cgroup::Holder>,
}

impl Prepared {
    /// Blocking.
    pub(super) fn make(node: &Node, cgroup: &str, spec: &ContainerSpec) -> Result<Self, Error> {
        let (nodes, rules) = devices::resolve(spec)?;
        let wanted = cgroup::Wanted::new(cgroup, &spec.resources, &rules);
        let made = node.cgroups.create(&wanted, || node.hold(cgroup))?;
        let views = match node.runtime {
            // Another runtime mounts for itself.
            Some(_) => Vec::new(),
            None => cgroup::views(cgroup).or_else(|e| node.cgroups.remove(cgroup).and(Err(e)))?,
        };
        Ok(Self {
            resources: spec.resources.clone(),
            devices: spec.devices.clone(),
            nodes,
            entrance: made.entrance,
            views,
            holder: made.holder,
        })
    }
}

impl Node {
    /// Who makes a container, if that is not us.
    pub(super) fn runtime_of(&self, container: &ContainerSpec) -> Option<&Arc<Runtime>> {
        let hooks = || self.hooks.as_ref().filter(|_| !container.runtime_edits.is_empty());
        self.runtime.as_ref().or_else(hooks)
    }

    /// Lets go of what was kept of a pod.
    pub(super) fn forget(&self, pod: &str) -> Option<supervisor::Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(pod)
    }

    /// The labels of a container's processes; refuses by name what this node's security modules cannot give.
    pub(crate) fn labels(
        &self,
        container: &ContainerSpec,
        selinux: Option<&ContainerLabels>,
    ) -> Result<Vec<lsm::Label>, Error> {
        lsm::labels(&self.modules, &lsm::Request { container, selinux })
    }

    /// The process that was started for this pod; it is given once.
    pub(super) fn take_started(&self, pod: &str) -> Option<Started> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner).remove(pod)
    }

    /// The way into a live container's cgroup: a probe takes the same one every few seconds.
    pub(crate) fn entrance(&self, cgroup: &str) -> Result<Arc<cgroup::Entrance>, Error> {
        let mut entrances = self.entrances.lock().unwrap_or_else(PoisonError::into_inner);
        let at = entrances.iter().position(|(name, _)| name == cgroup);
        if let Some(known) = at.and_then(|at| entrances.remove(at)) {
            let opened = known.1.clone();
            entrances.push_back(known);
            return Ok(opened);
        }
        drop(entrances);
        Ok(self.keep_entrance(cgroup, cgroup::enter(cgroup)?))
    }

    /// Keeps a way into a live container's cgroup that is open already.
    pub(super) fn keep_entrance(&self, cgroup: &str, opened: cgroup::Entrance) -> Arc<cgroup::Entrance> {
        let most = most_entrances(thread::share_of_descriptors(ENTRANCES_SHARE), opened.tasks.len() + 1);
        let opened = Arc::new(opened);
        let mut entrances = self.entrances.lock().unwrap_or_else(PoisonError::into_inner);
        entrances.push_back((cgroup.to_owned(), opened.clone()));
        while entrances.len() > most {
            entrances.pop_front();
        }
        opened
    }

    /// The supervisors' cgroup, made if it is missing.
    pub(super) fn share(&self, cgroup: &str) -> Result<cgroup::Made, Error> {
        self.cgroups.share(cgroup, || self.hold(cgroup))
    }

    /// The `tasks` file of the RDT class that a container asks for. `start`: the class gets its schemata, and its group if that is missing.
    pub(crate) fn rdt(
        &self,
        pod: &PodSpec,
        container: &ContainerSpec,
        start: bool,
    ) -> Result<Option<OwnedFd>, Error> {
        let Some((class, schemata)) = self.classes.rdt(pod, container)? else { return Ok(None) };
        let schemata = if start { schemata } else { &[] };
        let tasks = self.resctrl.group(class, schemata, !schemata.is_empty());
        tasks.map(Some).map_err(|e| e.context(format!("rdt class \"{class}\"")))
    }

    /// What the class of block I/O that a container asks for means here.
    pub(crate) fn blockio(
        &self,
        pod: &PodSpec,
        container: &ContainerSpec,
    ) -> Result<Option<blockio::Both>, Error> {
        let class = self.classes.blockio(pod, container)?;
        class.map(|(class, rules)| blockio::of_class(class, rules)).transpose()
    }

    /// What was prepared for this cgroup; it is given once.
    pub(super) fn take_prepared(&self, cgroup: &str) -> Option<Prepared> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).remove(cgroup)
    }

    /// Starts a process that stands in a cgroup until it is let go. Blocking, about a millisecond.
    pub(super) fn hold(&self, cgroup: &str) -> Result<cgroup::Holder, Error> {
        let failed = |e: std::io::Error| {
            Error::with(Kind::Internal, format!("start the process that holds {cgroup}"), e)
        };
        let (end, line) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let unit = cgroup.rsplit('/').next().unwrap_or_default();
        let started = execute(&self.program, &self.arguments, &[unit, HOLD], &[end.as_fd()], None);
        let (pid, pidfd) = started.map_err(failed)?;
        Ok(cgroup::Holder::new(pid, pidfd, line))
    }

    /// A container's cgroup: the prepared one, if that is what is wanted now.
    pub(crate) async fn cgroup(
        self: &Arc<Self>,
        cgroup: &str,
        spec: &ContainerSpec,
    ) -> Result<Prepared, Error> {
        match self.take_prepared(cgroup) {
            Some(made) if (&made.resources, &made.devices) == (&spec.resources, &spec.devices) => Ok(made),
            other => {
                let (node, cgroup, spec) = (self.clone(), cgroup.to_owned(), spec.clone());
                supervisor::blocking(move || {
                    // Made for other limits or devices than are wanted now.
                    other.map_or(Ok(()), |_| node.cgroups.remove(&cgroup))?;
                    Prepared::make(&node, &cgroup, &spec)
                })
                .await
            }
        }
    }

    /// The seccomp profile of a container for somebody else to compile; as [`Node::filter`].
    pub(crate) fn profile(&self, security: &ContainerSecurity) -> Result<Option<serde_json::Value>, Error> {
        if security.privileged {
            return Ok(None);
        }
        let sets = capabilities::compute(security, self.facts.default_capabilities, self.facts.bounding)?;
        self.filters.document(security.seccomp.as_ref(), sets.main)
    }

    /// The seccomp filter of a container; `None`: unconfined, as privileged containers always are.
    pub(crate) fn filter(&self, security: &ContainerSecurity) -> Result<Option<Arc<seccomp::Filter>>, Error> {
        if security.privileged {
            return Ok(None);
        }
        let sets = capabilities::compute(security, self.facts.default_capabilities, self.facts.bounding)?;
        self.filters.filter(security.seccomp.as_ref(), sets.main)
    }
}

/// How many entrances stay open, of so many descriptors each, where all of them may have this many.
fn most_entrances(share: usize, each: usize) -> usize {
    (share / each).clamp(1, ENTRANCES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entrances_that_are_kept_leave_descriptors_for_everything_else() {
        for (descriptors, each, most) in
            [(1024, 10, 12), (1024, 1, 128), (64, 10, 1), (1 << 20, 10, 128), (usize::MAX, 10, 128)]
        {
            let share = descriptors / ENTRANCES_SHARE;
            assert_eq!(most_entrances(share, each), most, "{descriptors}, {each} each");
        }
    }
}
