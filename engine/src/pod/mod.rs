//! A pod: an immutable record, a mutable status, and one task on which the status changes.
//!
//! ```text
//!              RunPodSandbox                    StopPodSandbox                RemovePodSandbox
//!   (nothing) ──────────────▶ Making ──▶ Ready ───────────────▶ Stopping ──▶ Stopped ─────────▶ Removing ──▶ (nothing)
//!                               │          │                       ▲            ▲
//!              failed, undone   │          └── supervisor lost ────┼────────────┤
//!   (nothing) ◀─────────────────┤              or reboot           │            │
//!                               └── failed, something left ────────┴─ Stopped ──┘
//! ```
//!
//! Ready is the only state the outside calls READY; Making is not shown at all; everything else is NOTREADY and can be
//! stopped and removed. What a pod still holds in the kernel is in [`Holds`]: Stop works from that and from nothing else,
//! so it can be repeated, resumed after a crash, and can finish what a failed RunPodSandbox left.

mod actor;
pub mod files;
pub mod policy;
mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{broadcast, mpsc, watch};

pub use record::{Holds, PodPhase, PodRecord, PodStatus, State};

use crate::api::{ContainerView, PodEvent, PodView};
use crate::container::Container;
use crate::exec::{Connection, Driver, Supervisor};
use crate::journal::Journal;
use crate::stats::News;
use crate::{Error, Kind};
use actor::Message;

/// A pod as jobs hold it: changes are sent to its task, reads look at the last published snapshot.
#[derive(Debug)]
pub struct Pod {
    id: Arc<str>,
    changes: mpsc::UnboundedSender<Message>,
    shown: Arc<Shown>,
    /// Held while the pod is torn down, so that two teardowns take turns.
    pub(crate) teardown: tokio::sync::Mutex<()>,
}

/// What the pod's task publishes.
#[derive(Debug)]
struct Shown {
    snapshot: ArcSwap<Snapshot>,
    version: watch::Sender<u64>,
}

/// One published state of a pod and its containers, complete and immutable.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The state itself.
    pub state: State,
    /// The pod as List shows it.
    pub pod: Arc<PodView>,
    /// Containers as List shows them, by id.
    pub containers: BTreeMap<Arc<str>, Arc<ContainerView>>,
    /// The supervisor, while there is one.
    pub supervisor: Option<Arc<dyn Supervisor>>,
}

/// What a pod's task needs.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    /// Where changes are recorded.
    pub(crate) journal: Arc<Journal>,
    /// Where they are announced.
    pub(crate) events: broadcast::Sender<PodEvent>,
    /// Who reads statistics ahead.
    pub(crate) news: Arc<News>,
    /// Who can find a supervisor again.
    pub(crate) exec: Arc<dyn Driver>,
    /// The supervisor's directory.
    pub(crate) dir: std::path::PathBuf,
}

impl Pod {
    /// Starts the task of a pod whose first state is on disk already.
    pub(crate) fn start(state: State, around: Surroundings) -> Arc<Self> {
        let id = state.record.id.clone();
        let shown = Arc::new(Shown {
            snapshot: ArcSwap::from_pointee(Snapshot::new(state, None, None)),
            version: watch::Sender::new(0),
        });
        let (changes, inbox) = mpsc::unbounded_channel();
        tokio::spawn(actor::Actor::new(shown.clone(), around).run(inbox));
        Arc::new(Self { id, changes, shown, teardown: tokio::sync::Mutex::new(()) })
    }

    /// The pod's id.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// The last published snapshot; never waits.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shown.snapshot.load_full()
    }

    /// A container of the pod.
    pub fn container(&self, id: &str) -> Option<Container> {
        self.snapshot().state.containers.get(id).cloned()
    }

    /// Changes the state on the pod's task and records it: once this returns, the change is in the journal and published.
    /// An error of `change` or of the journal leaves the state as it was.
    pub async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (message, answer) = actor::change(change);
        let gone = || Error::new(Kind::NotFound, format!("pod \"{}\" has been removed", self.id));
        self.changes.send(message).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Hands the pod's supervisor to its task.
    pub(crate) fn supervise(&self, connection: Connection) {
        let _ = self.changes.send(Message::Supervise(connection));
    }

    /// Takes the supervisor away: it was shut down.
    pub(crate) fn unsupervise(&self) {
        let _ = self.changes.send(Message::Unsupervise);
    }

    /// The supervisor, or why there is none.
    pub fn supervisor(&self) -> Result<Arc<dyn Supervisor>, Error> {
        self.snapshot().supervisor.clone().ok_or_else(|| {
            Error::new(
                Kind::FailedPrecondition,
                format!("pod \"{}\" has no supervisor: it is not ready", self.id),
            )
        })
    }

    /// Waits until the published snapshot satisfies `done`.
    pub async fn wait(&self, done: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut version = self.shown.version.subscribe();
        loop {
            version.mark_unchanged();
            let snapshot = self.snapshot();
            if done(&snapshot) {
                return snapshot;
            }
            // The sender lives in `self.shown`: this cannot fail while we are here.
            let _ = version.changed().await;
        }
    }
}

impl Snapshot {
    /// Views of a state; views that did not change are taken over from `old`.
    fn new(state: State, supervisor: Option<Arc<dyn Supervisor>>, old: Option<&Snapshot>) -> Self {
        let pid = supervisor.as_ref().map_or(0, |s| s.pid());
        let shown = state.containers.iter().filter(|(_, c)| c.status.phase.shown());
        let containers = shown
            .map(|(id, container)| {
                let unchanged = old
                    .filter(|old| old.state.containers.get(id).is_some_and(|c| c.status == container.status))
                    .and_then(|old| old.containers.get(id).cloned());
                (id.clone(), unchanged.unwrap_or_else(|| Arc::new(container.view())))
            })
            .collect();
        Self { pod: Arc::new(state.view(pid)), containers, supervisor, state }
    }
}
