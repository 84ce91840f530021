//! Giving back what a pod holds: shared by undo of RunPodSandbox, by Stop, Remove and the restart.
//!
//! Every function works from the record alone, may be repeated, and clears what it has given back. What a function could
//! not give back stays in the record, so the next Stop or Remove tries again.

use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt;

use crate::api::Happening;
use crate::container::ContainerPhase;
use crate::engine::{blocking, network_error};
use crate::exec::nanos;
use crate::pod::{Pod, PodPhase, Snapshot};
use crate::{Engine, Error, Kind, events};

/// Stops the pod: no process, no network, no supervisor. Keeps the records.
pub(crate) async fn stop(engine: &Arc<Engine>, pod: &Arc<Pod>) -> Result<(), Error> {
    let _turn = pod.teardown.lock().await;
    let state = pod.snapshot().state.clone();
    if state.status.phase == PodPhase::Ready {
        set_phase(pod, PodPhase::Stopping).await?;
    }
    let ids: Vec<Arc<str>> = state.containers.keys().cloned().collect();
    let ends = ids.iter().map(|id| end_container(engine, pod, id));
    first_error(futures_util::future::join_all(ends).await)?;
    // With no container left, supervisor and network do not need each other. Both are tried, whatever happens to one.
    let ends =
        [supervisor(engine.clone(), pod.clone()).boxed(), network(engine.clone(), pod.clone()).boxed()];
    first_error(futures_util::future::join_all(ends).await)?;
    if pod.snapshot().state.status.phase == PodPhase::Stopping {
        set_phase(pod, PodPhase::Stopped).await?;
    }
    Ok(())
}

/// Removes the pod and everything in it, stopping it first.
pub(crate) async fn remove(engine: &Arc<Engine>, pod: &Arc<Pod>) -> Result<(), Error> {
    stop(engine, pod).await?;
    let _turn = pod.teardown.lock().await;
    let state = pod.snapshot().state.clone();
    let shown = state.status.phase.shown();
    if shown {
        set_phase(pod, PodPhase::Removing).await?;
    }
    let removals = state.containers.keys().map(|id| remove_container(engine, pod, id));
    first_error(futures_util::future::join_all(removals).await)?;
    cgroup(engine.clone(), pod.clone()).await?;
    engine.meter.forget(&state.record.cgroup);
    let last = pod.snapshot();
    engine.forget(pod).await?;
    if shown {
        let at = nanos(SystemTime::now());
        engine.announce(events::event(pod.id().to_string(), Happening::Deleted, at, &last));
    }
    Ok(())
}

/// Ends the supervisor and removes its directory.
pub(crate) async fn supervisor(engine: Arc<Engine>, pod: Arc<Pod>) -> Result<(), Error> {
    let snapshot = pod.snapshot();
    if !snapshot.state.status.holds.supervisor {
        return Ok(());
    }
    let (driver, dir) = (engine.driver(&snapshot.state.record.handler)?, engine.state_dir(pod.id()));
    let supervisor = match &snapshot.supervisor {
        Some(supervisor) => Some(supervisor.clone()),
        None => driver.connect(pod.id(), &dir).await?.map(|connection| connection.supervisor),
    };
    if let Some(supervisor) = supervisor {
        pod.unsupervise();
        supervisor.shutdown().await?;
    }
    blocking(move || Ok(crate::journal::file::remove_tree(&dir)?)).await?;
    pod.change(|state| {
        state.status.holds.supervisor = false;
        Ok(())
    })
    .await
}

/// Removes the pod's cgroup, unless somebody else has made it.
pub(crate) async fn cgroup(engine: Arc<Engine>, pod: Arc<Pod>) -> Result<(), Error> {
    let record = pod.snapshot().state.record.clone();
    if !record.owns_cgroup() {
        return Ok(());
    }
    engine.driver(&record.handler)?.remove_cgroup(&record.cgroup).await
}

/// Releases addresses, links and the namespace.
pub(crate) async fn network(engine: Arc<Engine>, pod: Arc<Pod>) -> Result<(), Error> {
    let holds = pod.snapshot().state.status.holds.clone();
    if !holds.namespace {
        return Ok(());
    }
    let (network, id) = (engine.network.clone(), pod.id().clone());
    let attachment = holds.attachment.clone();
    blocking(move || {
        let namespace = network.open_namespace(&id).map_err(network_error)?;
        if let Some(attachment) = &attachment {
            network.detach(namespace.as_ref(), attachment).map_err(network_error)?;
        }
        drop(namespace);
        network.remove_namespace(&id).map_err(network_error)
    })
    .await?;
    pod.change(|state| {
        let holds = &mut state.status.holds;
        (holds.attachment, holds.namespace, state.status.netns) = (None, false, None);
        Ok(())
    })
    .await
}

/// The last step back of a failed RunPodSandbox: nothing is left, or List shows what is.
pub(crate) async fn forget_or_keep(engine: Arc<Engine>, pod: Arc<Pod>) -> Result<(), Error> {
    let nothing = pod.snapshot().state.status.holds.nothing();
    if nothing && cgroup(engine.clone(), pod.clone()).await.is_ok() {
        return engine.forget(&pod).await;
    }
    pod.change(|state| {
        state.status.phase = PodPhase::Stopping;
        state.status.message = "it could not be made, nor all of it be given back; stop or remove it".into();
        Ok(())
    })
    .await
}

/// Kills a container, if it runs, and waits for its end.
pub(crate) async fn end_container(engine: &Arc<Engine>, pod: &Arc<Pod>, id: &str) -> Result<(), Error> {
    let Some(container) = pod.container(id) else { return Ok(()) };
    // A start under way is let finish: it ends in Running or Exited.
    let _turn = container.live.lane.lock().await;
    kill(engine, pod, id).await
}

/// Kills every process of a container and waits until its supervisor has seen the end.
pub(crate) async fn kill(engine: &Arc<Engine>, pod: &Arc<Pod>, id: &str) -> Result<(), Error> {
    if has_ended(&pod.snapshot(), id) {
        return Ok(());
    }
    let killed = match pod.supervisor() {
        Ok(supervisor) => Some(supervisor.kill(id).await),
        Err(_) => None,
    };
    match killed {
        Some(Ok(())) => {}
        Some(Err(e)) if e.kind() != Kind::Unavailable => return Err(e),
        // There is none, or it died and nobody has been told yet: its containers are known by their cgroups.
        Some(Err(_)) | None => {
            let state = pod.snapshot().state.clone();
            let Some(container) = state.containers.get(id) else { return Ok(()) };
            engine.driver(&state.record.handler)?.remove_cgroup(&container.record.cgroup).await?;
        }
    }
    let wait = engine.config().kill_wait;
    match tokio::time::timeout(wait, pod.wait(|snapshot| has_ended(snapshot, id))).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::new(
            Kind::DeadlineExceeded,
            format!(
                "container \"{id}\" has not ended {} s after SIGKILL: a process is stuck in the kernel",
                wait.as_secs()
            ),
        )),
    }
}

/// Whether a container has no processes.
pub(crate) fn has_ended(snapshot: &Snapshot, id: &str) -> bool {
    snapshot.state.containers.get(id).is_none_or(|container| !container.status.phase.alive())
}

/// Removes a container: processes, cgroup, layer, volumes, record.
pub(crate) async fn remove_container(engine: &Arc<Engine>, pod: &Arc<Pod>, id: &str) -> Result<(), Error> {
    let Some(container) = pod.container(id) else { return Ok(()) };
    let _turn = container.live.lane.lock().await;
    if pod.container(id).is_none() {
        return Ok(());
    }
    kill(engine, pod, id).await?;
    let key: Arc<str> = id.into();
    let noted = key.clone();
    pod.change(move |state| {
        let container = state.containers.get_mut(&noted);
        if let Some(container) = container.filter(|c| c.status.phase.shown()) {
            container.status.phase = ContainerPhase::Removing;
        }
        Ok(())
    })
    .await?;
    let driver = engine.driver(&pod.snapshot().state.record.handler)?;
    driver.remove_cgroup(&container.record.cgroup).await?;
    driver.discard(id, &engine.state_dir(pod.id())).await?;
    release(engine, &container.live, &key).await?;
    engine.meter.forget(&container.record.cgroup);
    engine.drop_container(id);
    pod.change(move |state| {
        state.containers.remove(&key);
        Ok(())
    })
    .await
}

/// Gives back a container's root file system.
async fn release(engine: &Arc<Engine>, live: &crate::container::Live, id: &Arc<str>) -> Result<(), Error> {
    drop(live.take_rootfs());
    let (images, id) = (engine.images.clone(), id.clone());
    blocking(move || images.release(&id)).await
}

async fn set_phase(pod: &Arc<Pod>, phase: PodPhase) -> Result<(), Error> {
    pod.change(move |state| {
        state.status.phase = phase;
        Ok(())
    })
    .await
}

/// All were tried; the first error speaks for them.
fn first_error(results: Vec<Result<(), Error>>) -> Result<(), Error> {
    results.into_iter().collect()
}
