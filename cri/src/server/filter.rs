//! What lists show: all fields of a filter must match; ids by prefix, labels by equality.

use std::collections::BTreeMap;

use engine::Error;
use engine::api::{ContainerView, PodView};

use crate::convert::{selects, view};
use crate::proto;

/// A filter over pods.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    id: String,
    state: Option<proto::PodSandboxState>,
    labels: BTreeMap<String, String>,
}

impl Pods {
    /// Of ListPodSandbox.
    pub fn of_list(filter: Option<proto::PodSandboxFilter>) -> Result<Self, Error> {
        let filter = filter.unwrap_or_default();
        let state = match filter.state {
            Some(v) => Some(crate::convert::known("filter.state.state", v.state)?),
            None => None,
        };
        Ok(Self { id: filter.id, state, labels: filter.label_selector })
    }

    /// Of ListPodSandboxStats.
    pub fn of_stats(filter: Option<proto::PodSandboxStatsFilter>) -> Self {
        let filter = filter.unwrap_or_default();
        Self { id: filter.id, state: None, labels: filter.label_selector }
    }

    /// Whether the pod is shown.
    pub fn shows(&self, pod: &PodView) -> bool {
        pod.id.starts_with(&self.id)
            && self.state.is_none_or(|state| view::pod_state(pod.state) == state)
            && selects(&self.labels, &pod.spec.labels)
    }
}

/// A filter over containers.
#[derive(Clone, Debug, Default)]
pub struct Containers {
    id: String,
    pod: String,
    state: Option<proto::ContainerState>,
    labels: BTreeMap<String, String>,
}

impl Containers {
    /// Of ListContainers.
    pub fn of_list(filter: Option<proto::ContainerFilter>) -> Result<Self, Error> {
        let filter = filter.unwrap_or_default();
        let state = match filter.state {
            Some(v) => Some(crate::convert::known("filter.state.state", v.state)?),
            None => None,
        };
        Ok(Self { id: filter.id, pod: filter.pod_sandbox_id, state, labels: filter.label_selector })
    }

    /// Of ListContainerStats.
    pub fn of_stats(filter: Option<proto::ContainerStatsFilter>) -> Self {
        let filter = filter.unwrap_or_default();
        Self { id: filter.id, pod: filter.pod_sandbox_id, state: None, labels: filter.label_selector }
    }

    /// Whether the container is shown.
    pub fn shows(&self, container: &ContainerView) -> bool {
        container.id.starts_with(&self.id)
            && container.pod.starts_with(&self.pod)
            && self.state.is_none_or(|state| view::container_state(container.state) == state)
            && selects(&self.labels, &container.spec.labels)
    }
}
