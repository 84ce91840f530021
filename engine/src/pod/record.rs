//! What is known of a pod: the record, written once, and the status, which changes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use netplugins::Attachment;
use serde::{Deserialize, Serialize};

use crate::api::{PodState, PodView, Rendering};
use crate::container::Container;
use crate::selinux::PodLabels;
use crate::spec::{PodSpec, Resources};

/// The immutable half of a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodRecord {
    /// 64 hex digits.
    pub id: Arc<str>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Boot in which its kernel objects were made.
    pub boot_id: String,
    /// Name of the execution driver.
    pub handler: String,
    /// Cgroup under which the containers' cgroups are made.
    pub cgroup: String,
    /// As requested.
    pub spec: Arc<PodSpec>,
    /// Its SELinux labels, with the categories that are its own; `None`: SELinux was off when it was made.
    #[serde(default)]
    pub selinux: Option<PodLabels>,
}

impl PodRecord {
    /// Whether the cgroup is ours to make and to remove.
    pub(crate) fn owns_cgroup(&self) -> bool {
        self.spec.cgroup_parent.trim_end_matches('/').is_empty()
    }
}

/// Where a pod is in its life; see the diagram of the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodPhase {
    /// RunPodSandbox is at work.
    #[default]
    Making,
    /// Everything is up.
    Ready,
    /// Being torn down, or to be.
    Stopping,
    /// Holds nothing.
    Stopped,
    /// Being deleted.
    Removing,
}

/// What a pod holds outside the journal. Each is noted before it is made and cleared after it is gone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Holds {
    /// A network namespace of its own.
    pub namespace: bool,
    /// Addresses and links.
    pub attachment: Option<Attachment>,
    /// Files and a supervisor below the state directory.
    pub supervisor: bool,
}

/// The mutable half of a pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    /// Phase.
    pub phase: PodPhase,
    /// What is to be given back.
    pub holds: Holds,
    /// Addresses; kept when the pod is stopped.
    pub ips: Vec<IpAddr>,
    /// Network namespace path.
    pub netns: Option<PathBuf>,
    /// Overhead in force, if updated.
    pub overhead: Option<Resources>,
    /// Resources in force, if updated.
    pub resources: Option<Resources>,
    /// Why it is not ready, for a person.
    pub message: String,
}

/// All that can change about a pod, owned by its task.
#[derive(Clone, Debug)]
pub struct State {
    /// Immutable.
    pub record: Arc<PodRecord>,
    /// Mutable.
    pub status: PodStatus,
    /// Its containers by id.
    pub containers: BTreeMap<Arc<str>, Container>,
}

impl PodPhase {
    /// Whether List and Status show the pod.
    pub fn shown(self) -> bool {
        self != Self::Making
    }
}

impl Holds {
    /// Nothing is left to be given back.
    pub fn nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl State {
    /// The pod as List shows it.
    pub fn view(&self, pid: i32) -> PodView {
        let state = if self.status.phase == PodPhase::Ready { PodState::Ready } else { PodState::NotReady };
        PodView {
            id: self.record.id.to_string(),
            spec: self.current_spec(),
            state,
            created_at: self.record.created_at,
            ips: self.status.ips.clone(),
            pid,
            netns: self.status.netns.clone(),
            rendering: Rendering::default(),
        }
    }

    /// Whether there is nothing to write down: records never change, so what can differ is status and who is there.
    pub(crate) fn same(&self, other: &Self) -> bool {
        let same = |(id, container): (&Arc<str>, &Container)| {
            other.containers.get(id).is_some_and(|c| c.status == container.status)
        };
        self.status == other.status
            && self.containers.len() == other.containers.len()
            && self.containers.iter().all(same)
    }

    /// The request with the resources now in force.
    fn current_spec(&self) -> Arc<PodSpec> {
        let status = &self.status;
        if status.overhead.is_none() && status.resources.is_none() {
            return self.record.spec.clone();
        }
        let mut spec = (*self.record.spec).clone();
        spec.overhead = status.overhead.clone().or(spec.overhead);
        spec.resources = status.resources.clone().or(spec.resources);
        Arc::new(spec)
    }
}
