//! GetContainerEvents: the engine's events with the complete pod, as they happen.

use std::collections::VecDeque;
use std::sync::Arc;

use engine::Engine;
use engine::api::{ContainerState, Happening, PodEvent, PodState};
use futures_util::stream;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::Service;
use super::batch::Batches;
use crate::convert::view;
use crate::proto::{ContainerEventResponse, ContainerEventType, GetEventsRequest};

pub(super) fn handle(service: &Service, _: &GetEventsRequest) -> Batches<ContainerEventResponse> {
    let source =
        Source { engine: service.engine.clone(), events: service.engine.events(), pending: VecDeque::new() };
    Box::pin(stream::unfold(source, |mut source| async move {
        let event = source.next().await?;
        Some((Ok(encode(&event)), source))
    }))
}

/// One subscriber. Its queue is the engine's bounded channel: who lags gets the present state in place of what was lost.
struct Source {
    engine: Arc<Engine>,
    events: Receiver<PodEvent>,
    pending: VecDeque<PodEvent>,
}

impl Source {
    /// `None` when the engine has ended.
    async fn next(&mut self) -> Option<PodEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            match self.events.recv().await {
                Ok(event) => return Some(event),
                Err(RecvError::Lagged(lost)) => {
                    tracing::info!(lost, "an event subscriber lags; it gets the present state instead");
                    self.pending = present(&self.engine);
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

/// The state of every pod and container, told as the event that led to it.
fn present(engine: &Engine) -> VecDeque<PodEvent> {
    let at = engine::exec::nanos(std::time::SystemTime::now());
    let mut events = VecDeque::new();
    for pod in engine.pods() {
        let containers = engine.containers_of(&pod.id);
        let what = match pod.state {
            PodState::Ready => Happening::Started,
            PodState::NotReady => Happening::Stopped,
        };
        let event = |subject: &str, what| PodEvent {
            subject: subject.to_owned(),
            what,
            at,
            pod: pod.clone(),
            containers: containers.clone(),
        };
        events.push_back(event(&pod.id, what));
        for container in &containers {
            let what = match container.state {
                ContainerState::Created => Happening::Created,
                ContainerState::Running => Happening::Started,
                ContainerState::Exited | ContainerState::Unknown => Happening::Stopped,
            };
            events.push_back(event(&container.id, what));
        }
    }
    events
}

fn encode(event: &PodEvent) -> ContainerEventResponse {
    let kind = match event.what {
        Happening::Created => ContainerEventType::ContainerCreatedEvent,
        Happening::Started => ContainerEventType::ContainerStartedEvent,
        Happening::Stopped => ContainerEventType::ContainerStoppedEvent,
        Happening::Deleted => ContainerEventType::ContainerDeletedEvent,
    };
    ContainerEventResponse {
        container_id: event.subject.clone(),
        container_event_type: kind.into(),
        created_at: event.at,
        pod_sandbox_status: Some(view::pod_status(&event.pod)),
        containers_statuses: event.containers.iter().map(|c| view::container_status(c)).collect(),
    }
}
