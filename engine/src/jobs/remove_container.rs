//! RemoveContainer.

use std::sync::Arc;

use crate::engine::absent_is_fine;
use crate::job::{Cx, Job};
use crate::jobs::teardown;
use crate::{Engine, Error};

/// Removes a container, killing it first if it runs. Its log file stays: it is the kubelet's. Absent: fine.
#[derive(Clone, Debug)]
pub struct RemoveContainer {
    /// Container id or unique prefix.
    pub container: String,
}

impl Job for RemoveContainer {
    const NAME: &'static str = "RemoveContainer";
    type Output = ();

    fn identity(&self, engine: &Engine) -> Option<String> {
        Some(engine.full_container_id(&self.container))
    }

    fn subject(&self) -> String {
        self.container.clone()
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<(), Error> {
        let Some((pod, id)) = absent_is_fine(engine.find_container(&self.container))? else { return Ok(()) };
        cx.step("remove", teardown::remove_container(&engine, &pod, &id)).await
    }
}
