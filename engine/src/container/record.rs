//! What is known of a container.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::api::{ContainerState, ContainerView, Rendering};
use crate::cdi::Edits;
use crate::exec::{Exit, Process, ResolvedUser};
use crate::selinux::ContainerLabels;
use crate::spec::{ContainerSpec, Resources};

/// The immutable half of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// 64 hex digits.
    pub id: Arc<str>,
    /// Pod id.
    pub pod: Arc<str>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// As requested.
    pub spec: Arc<ContainerSpec>,
    /// Image id.
    pub image_id: String,
    /// `name@sha256:…`, else the image id.
    pub image_ref: String,
    /// Paths of volumes the image declares.
    pub volumes: Vec<String>,
    /// Request and image merged; without the user, which needs the root file system.
    pub process: Process,
    /// What its CDI devices change; the environment is in `process` already.
    #[serde(default)]
    pub cdi: Edits,
    /// Signal number that stops it.
    pub stop_signal: i32,
    /// Its cgroup.
    pub cgroup: String,
    /// Absolute log path; empty: none.
    pub log_path: PathBuf,
    /// Its SELinux labels; `None`: its pod has none.
    #[serde(default)]
    pub selinux: Option<ContainerLabels>,
}

/// Where a container is in its life; see the diagram of the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerPhase {
    /// CreateContainer is at work.
    #[default]
    Creating,
    /// Ready to start.
    Created,
    /// StartContainer is at work.
    Starting,
    /// Its first process runs.
    Running,
    /// Its first process has ended, or never began.
    Exited,
    /// Being deleted.
    Removing,
}

/// Why a container is Exited; the kubelet shows it verbatim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// Exit code 0.
    Completed,
    /// Any other exit code.
    Error,
    /// The cgroup's memory limit.
    OOMKilled,
    /// It never ran; code 128.
    StartError,
    /// Nobody saw its end; code 255.
    Unknown,
}

/// The mutable half of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStatus {
    /// Phase.
    pub phase: ContainerPhase,
    /// Who it runs as.
    pub user: ResolvedUser,
    /// The user's home directory.
    pub home: String,
    /// Pid on the node; 0: not running.
    pub pid: i32,
    /// Nanoseconds since the epoch; 0: not yet.
    pub started_at: i64,
    /// Its end.
    pub exit: Option<Exit>,
    /// Why it ended.
    pub reason: Option<Reason>,
    /// For a person.
    pub message: String,
    /// Resources in force.
    pub resources: Resources,
}

/// A container in its pod's state.
#[derive(Clone, Debug)]
pub struct Container {
    /// Immutable.
    pub record: Arc<ContainerRecord>,
    /// Mutable.
    pub status: ContainerStatus,
    /// What only this daemon has.
    pub live: Arc<Live>,
}

/// What a container has in this daemon only; made afresh by a restart.
#[derive(Debug, Default)]
pub struct Live {
    /// Held by start, update and remove, which take turns. Stop does not take it: it may overtake a longer stop.
    pub(crate) lane: tokio::sync::Mutex<()>,
    /// The root file system mounted by create, waiting for start.
    rootfs: Mutex<Option<OwnedFd>>,
    /// The stop signal has been sent; it is sent once.
    pub(crate) stopping: AtomicBool,
}

impl Live {
    /// Takes the mounted root file system out.
    pub(crate) fn take_rootfs(&self) -> Option<OwnedFd> {
        self.rootfs.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Keeps a mounted root file system for the start.
    pub(crate) fn keep_rootfs(&self, rootfs: OwnedFd) {
        *self.rootfs.lock().unwrap_or_else(PoisonError::into_inner) = Some(rootfs);
    }
}

impl ContainerPhase {
    /// Whether List and Status show the container.
    pub fn shown(self) -> bool {
        self != Self::Creating
    }

    /// Whether it may have processes.
    pub fn alive(self) -> bool {
        matches!(self, Self::Starting | Self::Running)
    }
}

impl Reason {
    /// The word the kubelet shows.
    pub fn word(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OOMKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::Unknown => "Unknown",
        }
    }
}

impl Container {
    /// A container as its record and status are found.
    pub fn new(record: ContainerRecord, status: ContainerStatus) -> Self {
        Self { record: Arc::new(record), status, live: Arc::default() }
    }

    /// The first process, or one that joins it with other arguments.
    pub fn process(&self) -> Process {
        let mut process = self.record.process.clone();
        process.user = self.status.user.clone();
        process.user.groups.extend(&self.record.cdi.groups);
        super::process::add_default(&mut process.env, "HOME", &self.status.home);
        process
    }

    /// The request as it is launched: with the resources now in force, and what CDI adds.
    pub fn current_spec(&self) -> Arc<ContainerSpec> {
        let mut spec = self.record.spec.clone();
        let cdi = &self.record.cdi;
        let plain = cdi.devices.is_empty() && cdi.mounts.is_empty() && cdi.runtime.is_empty();
        if spec.resources != self.status.resources || !plain {
            let spec = Arc::make_mut(&mut spec);
            spec.resources = self.status.resources.clone();
            spec.devices.extend(
                cdi.devices.iter().map(|device| device.owned_by(self.status.user.uid, self.status.user.gid)),
            );
            spec.mounts.extend(cdi.mounts.iter().cloned());
            spec.runtime_edits = cdi.runtime.clone();
        }
        spec
    }

    /// As List shows it.
    pub fn view(&self) -> ContainerView {
        let (record, status) = (&self.record, &self.status);
        let mut spec = record.spec.clone();
        if spec.resources != status.resources {
            Arc::make_mut(&mut spec).resources = status.resources.clone();
        }
        ContainerView {
            id: record.id.to_string(),
            pod: record.pod.to_string(),
            spec,
            image_id: record.image_id.clone(),
            image_ref: record.image_ref.clone(),
            state: match status.phase {
                ContainerPhase::Creating | ContainerPhase::Created | ContainerPhase::Starting => {
                    ContainerState::Created
                }
                ContainerPhase::Running => ContainerState::Running,
                // A container that never ran is removed as what it is.
                ContainerPhase::Removing if status.exit.is_none() => ContainerState::Created,
                ContainerPhase::Exited | ContainerPhase::Removing => ContainerState::Exited,
            },
            created_at: record.created_at,
            started_at: status.started_at,
            exit: status.exit.clone().filter(|_| !status.phase.alive()),
            reason: status.reason.map_or("", Reason::word),
            message: status.message.clone(),
            log_path: record.log_path.clone(),
            user: status.user.clone(),
            stop_signal: record.stop_signal,
            resources: status.resources.clone(),
            pid: status.pid,
            rendering: Rendering::default(),
        }
    }
}
