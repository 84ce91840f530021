//! Events are not raised by hand: they are the difference between two published snapshots of a pod.

use std::sync::Arc;
use std::time::SystemTime;

use crate::api::{ContainerState, ContainerView, Happening, PodEvent};
use crate::exec::nanos;
use crate::pod::{PodPhase, Snapshot};

/// What happened between two snapshots, in order.
pub(crate) fn between(old: &Snapshot, new: &Snapshot) -> Vec<PodEvent> {
    let mut happened = pod(old.state.status.phase, new.state.status.phase)
        .iter()
        .map(|what| (new.pod.id.clone(), *what))
        .collect::<Vec<_>>();
    for (id, now) in &new.containers {
        let was = old.containers.get(id);
        happened.extend(container(was.map(|c| &**c), now).into_iter().map(|what| (id.to_string(), what)));
    }
    let gone = old.containers.keys().filter(|id| !new.containers.contains_key(*id));
    happened.extend(gone.map(|id| (id.to_string(), Happening::Deleted)));
    let at = nanos(SystemTime::now());
    happened.into_iter().map(|(subject, what)| event(subject, what, at, new)).collect()
}

/// An event with the complete pod.
pub(crate) fn event(subject: String, what: Happening, at: i64, snapshot: &Snapshot) -> PodEvent {
    let containers: Vec<Arc<ContainerView>> = snapshot.containers.values().cloned().collect();
    PodEvent { subject, what, at, pod: snapshot.pod.clone(), containers }
}

fn pod(old: PodPhase, new: PodPhase) -> &'static [Happening] {
    use Happening::{Created, Started, Stopped};
    use PodPhase::{Making, Ready, Removing, Stopping};
    match (old, new) {
        (Making, Making) => &[],
        (Making, Ready) => &[Created, Started],
        (Making, _) => &[Created, Stopped],
        (Ready, Stopping | PodPhase::Stopped | Removing) => &[Stopped],
        _ => &[],
    }
}

fn container(old: Option<&ContainerView>, new: &ContainerView) -> Vec<Happening> {
    use Happening::{Created, Started, Stopped};
    let mut happened = Vec::new();
    if old.is_none() {
        happened.push(Created);
    }
    if new.started_at != 0 && old.is_none_or(|old| old.started_at == 0) {
        happened.push(Started);
    }
    if new.state == ContainerState::Exited && old.is_none_or(|old| old.state != ContainerState::Exited) {
        happened.push(Stopped);
    }
    happened
}
