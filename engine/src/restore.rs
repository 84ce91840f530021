//! What happens after a restart of the daemon, or of the node.
//!
//! Read the journal; put right what a reboot has undone; take every pod into the index; find its supervisor again, or take
//! its recorded exits; hold the addresses that are in records; sweep what no record names; finish what was half done. Each
//! thing found and changed is one line in the log.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use netplugins::Attachment;

use crate::container::{Container, ContainerPhase, policy};
use crate::engine::{blocking, network_error};
use crate::jobs::teardown;
use crate::journal::{Loaded, file};
use crate::pod::{Pod, PodPhase, State};
use crate::{Engine, Error};

/// Brings the engine to where the last one was.
pub(crate) async fn restore(engine: &Arc<Engine>) -> Result<(), Error> {
    let journal = engine.journal.clone();
    let (loaded, report) = blocking(move || Ok(journal.load()?)).await?;
    report.iter().for_each(|line| tracing::warn!("journal: {line}"));

    let mut pods = Vec::new();
    for pod in loaded {
        let state = resume(pod, &engine.boot_id);
        if let (Some(selinux), Some(labels)) = (&engine.selinux, &state.record.selinux) {
            selinux.hold(labels);
        }
        match engine.adopt(state.clone()) {
            Ok(pod) => pods.push(pod),
            // Its handler is not configured any more: it can be neither run nor removed until it is.
            Err(error) => tracing::error!(pod = %state.record.id, error = %error.chain(), "cannot restore"),
        }
    }
    futures_util::future::join_all(pods.iter().map(|pod| reconnect(engine, pod))).await;
    hold_addresses(engine, &pods).await?;
    sweep(engine).await?;
    for pod in pods {
        finish(engine.clone(), pod);
    }
    Ok(())
}

/// The state of a pod as it must be now, from what was written then.
fn resume(loaded: Loaded, boot_id: &str) -> State {
    let Loaded { record, mut status, containers } = loaded;
    let rebooted = record.boot_id != boot_id;
    if rebooted && status.phase == PodPhase::Ready {
        status.phase = PodPhase::Stopping;
        status.message = "the node was restarted".into();
    }
    let containers = containers.into_iter().map(|(id, (record, mut status))| {
        match status.phase {
            // A start was under way. Whether it came to anything, the supervisor knows.
            ContainerPhase::Starting => status.phase = ContainerPhase::Running,
            _ if rebooted && status.phase == ContainerPhase::Running => {}
            _ => {}
        }
        (Arc::from(id), Container::new(record, status))
    });
    let mut state = State { containers: containers.collect(), record: Arc::new(record), status };
    if rebooted {
        policy::lost(&mut state, &BTreeMap::new(), "the node was restarted");
    }
    state
}

/// Finds the supervisor of a pod, or settles that there is none.
async fn reconnect(engine: &Arc<Engine>, pod: &Arc<Pod>) {
    let state = pod.snapshot().state.clone();
    if !state.status.holds.supervisor || state.record.boot_id != engine.boot_id {
        return;
    }
    let id = pod.id();
    let Ok(driver) = engine.driver(&state.record.handler) else { return };
    let dir = engine.state_dir(id);
    match driver.connect(id, &dir).await {
        Ok(Some(connection)) => {
            tracing::info!(pod = %id, containers = connection.survivors.len(), "found its supervisor");
            pod.supervise(connection);
        }
        other => {
            let why = other.err().map_or_else(|| "it is dead".into(), |error| error.chain());
            tracing::warn!(pod = %id, "no supervisor: {why}");
            let exits = driver.recorded_exits(&dir);
            let settled = pod.change(move |state| {
                if state.status.phase == PodPhase::Ready {
                    state.status.phase = PodPhase::Stopping;
                    state.status.message = "the pod's supervisor died".into();
                }
                policy::lost(state, &exits, "the pod's supervisor died");
                Ok(())
            });
            if let Err(error) = settled.await {
                tracing::error!(pod = %id, error = %error.chain(), "cannot record that its supervisor died");
            }
        }
    }
}

/// Tells the network which attachments are live; everything else of ours is removed there.
async fn hold_addresses(engine: &Arc<Engine>, pods: &[Arc<Pod>]) -> Result<(), Error> {
    let held = pods.iter().filter_map(|pod| pod.snapshot().state.status.holds.attachment.clone());
    let (network, live): (_, Vec<Attachment>) = (engine.network.clone(), held.collect());
    let removed = blocking(move || network.restore(&live).map_err(network_error)).await?;
    removed.iter().for_each(|line| tracing::warn!("network: removed {line}, which no pod owns"));
    Ok(())
}

/// Removes layers and supervisors of pods that have no record.
async fn sweep(engine: &Arc<Engine>) -> Result<(), Error> {
    let pods = engine.all_pods();
    let live: HashSet<Arc<str>> = pods
        .iter()
        .flat_map(|pod| pod.snapshot().state.containers.keys().cloned().collect::<Vec<_>>())
        .collect();
    let images = engine.images.clone();
    let swept = blocking(move || Ok(images.retain(&|id| live.contains(id)))).await?;
    swept.iter().for_each(|line| tracing::warn!("images: removed {line}, which no container owns"));

    let known: HashSet<&str> = pods.iter().map(|pod| &**pod.id()).collect();
    for id in
        file::names(&engine.config().state.join("pods"))?.iter().filter(|id| !known.contains(id.as_str()))
    {
        let dir = engine.state_dir(id);
        for driver in &engine.exec {
            if let Ok(Some(connection)) = driver.connect(id, &dir).await {
                connection.supervisor.shutdown().await?;
            }
        }
        file::remove_tree(&dir)?;
        tracing::warn!("supervisor: removed {id}, which no pod owns");
    }
    Ok(())
}

/// Finishes in the background what was half done when the last daemon ended.
fn finish(engine: Arc<Engine>, pod: Arc<Pod>) {
    tokio::spawn(async move {
        let state = pod.snapshot().state.clone();
        let (what, done) = match state.status.phase {
            PodPhase::Making => ("a pod half made", teardown::remove(&engine, &pod).await),
            PodPhase::Removing => ("a pod half removed", teardown::remove(&engine, &pod).await),
            _ => {
                let half = |phase| matches!(phase, ContainerPhase::Creating | ContainerPhase::Removing);
                let ids =
                    state.containers.iter().filter(|(_, c)| half(c.status.phase)).map(|(id, _)| id.clone());
                for id in ids.collect::<Vec<_>>() {
                    log(
                        &id,
                        "a container half made or half removed",
                        &teardown::remove_container(&engine, &pod, &id).await,
                    );
                }
                return;
            }
        };
        log(pod.id(), what, &done);
    });
}

fn log(id: &str, what: &str, done: &Result<(), Error>) {
    match done {
        Ok(()) => tracing::warn!(id, "removed {what}"),
        Err(error) => tracing::error!(id, error = %error.chain(), "{what} is left; stop or remove it"),
    }
}
