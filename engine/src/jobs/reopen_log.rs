//! ReopenContainerLog.

use std::sync::Arc;

use crate::container::ContainerPhase;
use crate::engine::blocking;
use crate::job::{Cx, Job};
use crate::{Engine, Error, Kind, volume};

/// Opens the log file anew and switches both streams to it. For running containers only; on an error no file is made.
#[derive(Clone, Debug)]
pub struct ReopenLog {
    /// Container id or unique prefix.
    pub container: String,
}

impl Job for ReopenLog {
    const NAME: &'static str = "ReopenContainerLog";
    type Output = ();

    fn subject(&self) -> String {
        self.container.clone()
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<(), Error> {
        let (pod, container) = engine.container_state(&self.container)?;
        let id = container.record.id.clone();
        if container.status.phase != ContainerPhase::Running {
            return Err(Error::new(Kind::FailedPrecondition, format!("container \"{id}\" is not running")));
        }
        if container.record.log_path.as_os_str().is_empty() {
            return Ok(());
        }
        let supervisor = pod.supervisor()?;
        let directory = pod.snapshot().state.record.spec.log_directory.clone();
        let record = container.record.clone();
        let log = cx
            .step("open log", blocking(move || volume::log::open(&directory, &record.spec.log_path)))
            .await?;
        cx.step("switch", supervisor.reopen_log(&id, log)).await
    }
}
