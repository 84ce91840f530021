//! UpdatePodSandboxResources.

use std::sync::Arc;

use super::update_container_resources::write;
use crate::job::{Cx, Job};
use crate::spec::Resources;
use crate::{Engine, Error};

/// New overhead and resources of a pod. The limits are written to the pod's cgroup if it is Berth's own; a parent named by
/// the client is the client's to set (the kubelet has done so when it calls), and the numbers are recorded.
#[derive(Clone, Debug)]
pub struct UpdatePodResources {
    /// Pod id or unique prefix.
    pub pod: String,
    /// Overhead of the sandbox.
    pub overhead: Option<Resources>,
    /// Sum of the containers' resources.
    pub resources: Option<Resources>,
}

impl Job for UpdatePodResources {
    const NAME: &'static str = "UpdatePodSandboxResources";
    type Output = ();

    fn subject(&self) -> String {
        self.pod.clone()
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<(), Error> {
        let pod = engine.find_pod(&self.pod)?;
        let state = pod.snapshot().state.clone();
        state.must_be_ready()?;
        let own = state.record.spec.cgroup_parent.trim_end_matches('/').is_empty();
        let started = state.containers.values().any(|container| container.status.started_at != 0);
        if let (true, true, Some(resources)) = (own, started, &self.resources) {
            cx.step("write cgroup", write(&engine, &pod, state.record.cgroup.clone(), resources.clone()))
                .await?;
        }
        let record = pod.change(move |state| {
            state.status.overhead = self.overhead.or(state.status.overhead.take());
            state.status.resources = self.resources.or(state.status.resources.take());
            Ok(())
        });
        cx.step("record", record).await
    }
}
