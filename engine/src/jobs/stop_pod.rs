//! StopPodSandbox.

use std::sync::Arc;

use crate::engine::absent_is_fine;
use crate::job::{Cx, Job};
use crate::jobs::teardown;
use crate::{Engine, Error};

/// Kills what runs in a pod and gives back its network. Absent or stopped already: fine.
#[derive(Clone, Debug)]
pub struct StopPod {
    /// Pod id or unique prefix.
    pub pod: String,
}

impl Job for StopPod {
    const NAME: &'static str = "StopPodSandbox";
    type Output = ();

    fn identity(&self, engine: &Engine) -> Option<String> {
        Some(engine.full_pod_id(&self.pod))
    }

    fn subject(&self) -> String {
        self.pod.clone()
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<(), Error> {
        let Some(pod) = absent_is_fine(engine.find_pod(&self.pod))? else { return Ok(()) };
        cx.step("tear down", teardown::stop(&engine, &pod)).await
    }
}
