//! RemovePodSandbox.

use std::sync::Arc;

use crate::engine::absent_is_fine;
use crate::job::{Cx, Job};
use crate::jobs::teardown;
use crate::{Engine, Error};

/// Stops a pod, removes its containers and forgets it. Absent: fine.
#[derive(Clone, Debug)]
pub struct RemovePod {
    /// Pod id or unique prefix.
    pub pod: String,
}

impl Job for RemovePod {
    const NAME: &'static str = "RemovePodSandbox";
    type Output = ();

    fn identity(&self, engine: &Engine) -> Option<String> {
        Some(engine.full_pod_id(&self.pod))
    }

    fn subject(&self) -> String {
        self.pod.clone()
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<(), Error> {
        let Some(pod) = absent_is_fine(engine.find_pod(&self.pod))? else { return Ok(()) };
        cx.step("remove", teardown::remove(&engine, &pod)).await
    }
}
