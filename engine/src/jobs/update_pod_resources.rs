//! UpdatePodSandboxResources.

use std::sync::Arc;

use crate::engine::blocking;
use crate::job::{Cx, Job};
use crate::spec::Resources;
use crate::{Engine, Error};

/// New overhead and resources of a pod; unset values stay as they are. The limits are written to the cgroup the containers'
/// cgroups are made in, whoever named it: the kubelet has set it before it calls, so the values agree; another client relies
/// on this call alone.
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
        let old = state
            .status
            .resources
            .clone()
            .or_else(|| state.record.spec.resources.clone())
            .unwrap_or_default();
        let new = self.resources.as_ref().map(|change| old.updated(change));
        if let (Some(change), Some(new)) = (self.resources, &new) {
            let driver = engine.driver(&state.record.handler)?;
            let cgroup = state.record.cgroup.clone();
            let change = for_a_pod(change, new);
            cx.step("write cgroup", blocking(move || driver.update_pod_cgroup(&cgroup, &change))).await?;
        }
        let record = pod.change(move |state| {
            state.status.overhead = self.overhead.or(state.status.overhead.take());
            state.status.resources = new.or(state.status.resources.take());
            Ok(())
        });
        cx.step("record", record).await
    }
}

/// What is written to a pod's cgroup. A memory limit without a swap limit keeps a container from swapping its way around
/// it; for a pod nobody has said that, and its containers have limits of their own.
fn for_a_pod(change: Resources, all: &Resources) -> Resources {
    let swap = match (change.memory_swap_limit, all.memory_swap_limit) {
        (0, 0) => -1,
        (0, before) => before,
        (now, _) => now,
    };
    Resources { memory_swap_limit: swap, oom_score_adj: 0, ..change }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_memory_limit_takes_no_swap_from_its_containers() {
        let change = Resources { memory_limit: 1 << 30, ..Resources::default() };
        assert_eq!(for_a_pod(change.clone(), &change).memory_swap_limit, -1);
        let before = Resources { memory_swap_limit: 3 << 30, ..Resources::default() };
        assert_eq!(for_a_pod(change.clone(), &before.updated(&change)).memory_swap_limit, 3 << 30);
    }
}
