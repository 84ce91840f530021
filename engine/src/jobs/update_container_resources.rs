//! UpdateContainerResources.

use std::sync::Arc;

use crate::container::ContainerPhase;
use crate::engine::blocking;
use crate::job::{Cx, Job};
use crate::pod::Pod;
use crate::spec::{Labels, Resources};
use crate::{Engine, Error, Kind};

/// Changes the limits of a created or running container. Unset values stay as they are.
#[derive(Clone, Debug)]
pub struct UpdateContainerResources {
    /// Container id or unique prefix.
    pub container: String,
    /// New limits.
    pub resources: Resources,
    /// Free-form; for information only.
    pub annotations: Labels,
}

impl Job for UpdateContainerResources {
    const NAME: &'static str = "UpdateContainerResources";
    type Output = ();

    fn subject(&self) -> String {
        self.container.clone()
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<(), Error> {
        let (_, container) = engine.container_state(&self.container)?;
        let _turn = container.live.lane.lock().await;
        // Again, now that nobody else starts, updates or removes it.
        let (pod, container) = engine.container_state(&container.record.id)?;
        let old = container.status.resources.clone();
        let new = old.updated(&self.resources);
        match container.status.phase {
            ContainerPhase::Created => {}
            ContainerPhase::Running => {
                let cgroup = container.record.cgroup.clone();
                let undo = (engine.clone(), pod.clone(), cgroup.clone(), old);
                cx.undo().push("put the old limits back", async move {
                    let (engine, pod, cgroup, old) = undo;
                    write(&engine, &pod, cgroup, old).await
                });
                cx.step("write cgroup", write(&engine, &pod, cgroup, self.resources)).await?;
            }
            _ => {
                let why = format!("container \"{}\" is neither created nor running", container.record.id);
                return Err(Error::new(Kind::FailedPrecondition, why));
            }
        }
        let id = container.record.id.clone();
        let record = pod.change(move |state| {
            if let Some(container) = state.containers.get_mut(&id) {
                container.status.resources = new;
            }
            Ok(())
        });
        cx.step("record", record).await
    }
}

/// Writes the limits of a live cgroup.
pub(super) async fn write(
    engine: &Arc<Engine>,
    pod: &Arc<Pod>,
    cgroup: String,
    resources: Resources,
) -> Result<(), Error> {
    let driver = engine.driver(&pod.snapshot().state.record.handler)?;
    blocking(move || driver.update_cgroup(&cgroup, &resources)).await
}

impl Resources {
    /// These limits with `change` applied: what is set there replaces what is here.
    #[must_use]
    pub fn updated(&self, change: &Self) -> Self {
        let number = |new: i64, old: i64| if new == 0 { old } else { new };
        let text = |new: &String, old: &String| if new.is_empty() { old.clone() } else { new.clone() };
        let mut unified = self.unified.clone();
        unified.extend(change.unified.clone());
        Self {
            cpu_period: number(change.cpu_period, self.cpu_period),
            cpu_quota: number(change.cpu_quota, self.cpu_quota),
            cpu_shares: number(change.cpu_shares, self.cpu_shares),
            memory_limit: number(change.memory_limit, self.memory_limit),
            oom_score_adj: number(change.oom_score_adj, self.oom_score_adj),
            cpuset_cpus: text(&change.cpuset_cpus, &self.cpuset_cpus),
            cpuset_mems: text(&change.cpuset_mems, &self.cpuset_mems),
            hugepage_limits: if change.hugepage_limits.is_empty() {
                self.hugepage_limits.clone()
            } else {
                change.hugepage_limits.clone()
            },
            unified,
            memory_swap_limit: number(change.memory_swap_limit, self.memory_swap_limit),
        }
    }
}
