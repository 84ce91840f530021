//! StopContainer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::container::Container;
use crate::engine::absent_is_fine;
use crate::job::{Cx, Job};
use crate::jobs::teardown;
use crate::pod::Pod;
use crate::{Engine, Error};

/// Stops a container: its stop signal once, SIGKILL after the grace. Absent or not running: fine.
///
/// Several stops may wait at once, each by its own grace: the shortest one ends the container for all of them.
#[derive(Clone, Debug)]
pub struct StopContainer {
    /// Container id or unique prefix.
    pub container: String,
    /// Time between stop signal and SIGKILL; zero: SIGKILL at once.
    pub grace: Duration,
}

impl Job for StopContainer {
    const NAME: &'static str = "StopContainer";
    type Output = ();

    fn subject(&self) -> String {
        self.container.clone()
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<(), Error> {
        let Some((pod, container)) = absent_is_fine(engine.container_state(&self.container))? else {
            return Ok(());
        };
        let id = container.record.id.clone();
        cx.step("let a start finish", started(&pod, &id)).await?;
        if teardown::has_ended(&pod.snapshot(), &id) {
            return Ok(());
        }
        if !self.grace.is_zero() {
            cx.step("send the stop signal", signal(&pod, &container)).await?;
            if cx.step("wait for the end", grace(&cx, &pod, &id, self.grace)).await? {
                return Ok(());
            }
        }
        cx.step("kill", teardown::kill(&engine, &pod, &id)).await
    }
}

/// A container that is being started runs or has failed soon.
async fn started(pod: &Arc<Pod>, id: &str) -> Result<(), Error> {
    use crate::container::ContainerPhase::Starting;
    pod.wait(|snapshot| snapshot.state.containers.get(id).is_none_or(|c| c.status.phase != Starting)).await;
    Ok(())
}

async fn signal(pod: &Arc<Pod>, container: &Container) -> Result<(), Error> {
    if container.live.stopping.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let sent = pod.supervisor()?.signal(&container.record.id, container.record.stop_signal).await;
    // Not sent: the next stop may try.
    sent.inspect_err(|_| container.live.stopping.store(false, Ordering::Relaxed))
}

/// Whether it ended within its grace.
async fn grace(cx: &Cx, pod: &Arc<Pod>, id: &str, grace: Duration) -> Result<bool, Error> {
    tokio::select! {
        _ = pod.wait(|snapshot| teardown::has_ended(snapshot, id)) => Ok(true),
        () = tokio::time::sleep(grace) => Ok(false),
        late = cx.ended(None) => Err(late),
    }
}
