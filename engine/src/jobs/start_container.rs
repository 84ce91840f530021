//! StartContainer.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::container::{Container, ContainerPhase};
use crate::engine::{blocking, network_error};
use crate::exec::{ContainerLaunch, PreparedMount, Started};
use crate::job::{Cx, Job};
use crate::jobs::create_container::rootfs_options;
use crate::pod::Pod;
use crate::volume::{self, Request};
use crate::{Engine, Error, Kind};

/// Starts a created container. Running already: fine. A failure ends the container: StartError, code 128.
#[derive(Clone, Debug)]
pub struct StartContainer {
    /// Container id or unique prefix.
    pub container: String,
}

impl Job for StartContainer {
    const NAME: &'static str = "StartContainer";
    type Output = ();

    fn identity(&self, engine: &Engine) -> Option<String> {
        Some(engine.full_container_id(&self.container))
    }

    fn subject(&self) -> String {
        self.container.clone()
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<(), Error> {
        let (pod, container) = engine.container_state(&self.container)?;
        let _turn = container.live.lane.lock().await;
        if !cx.step("journal intent", intend(&pod, &container)).await? {
            return Ok(());
        }
        match launch(&engine, &cx, &pod, &container).await {
            // No step: the process runs, so it is published even if the deadline has passed meanwhile.
            Ok(started) => publish(&engine, &pod, &container, started).await,
            Err(error) => {
                fail(&pod, &container, &error).await?;
                Err(error)
            }
        }
    }
}

/// Claims the start; false: it runs already.
async fn intend(pod: &Arc<Pod>, container: &Container) -> Result<bool, Error> {
    let id = container.record.id.clone();
    pod.change(move |state| {
        state.must_be_ready()?;
        let container = state.containers.get_mut(&id).ok_or_else(|| Error::not_found("container", &id))?;
        match container.status.phase {
            ContainerPhase::Running => Ok(false),
            ContainerPhase::Created => {
                container.status.phase = ContainerPhase::Starting;
                Ok(true)
            }
            phase => {
                let why = if phase == ContainerPhase::Exited { "has ended" } else { "is being removed" };
                Err(Error::new(Kind::FailedPrecondition, format!("container \"{id}\" {why}: make a new one")))
            }
        }
    })
    .await
}

/// What the process needs is opened side by side, then the supervisor clones.
async fn launch(
    engine: &Arc<Engine>,
    cx: &Cx,
    pod: &Arc<Pod>,
    container: &Container,
) -> Result<Started, Error> {
    let supervisor = pod.supervisor()?;
    let (rootfs, opened, given) = tokio::join!(
        cx.step("mount root", rootfs(engine, pod, container)),
        cx.step("open volumes and log", open(engine, pod, container)),
        give_devices(engine, cx, pod, container),
    );
    let (mounts, log) = opened?;
    given?;
    let spec = container.current_spec();
    let snapshot = pod.snapshot();
    let launch = ContainerLaunch {
        id: &container.record.id,
        pod: &snapshot.state.record.spec,
        spec: &spec,
        process: &container.process(),
        rootfs: rootfs?,
        mounts,
        cgroup: &container.record.cgroup,
        log,
        selinux: container.record.selinux.as_ref(),
    };
    cx.step("start process", supervisor.start(launch)).await
}

/// The mount left by CreateContainer, or a new one after a restart.
async fn rootfs(engine: &Arc<Engine>, pod: &Arc<Pod>, container: &Container) -> Result<OwnedFd, Error> {
    if let Some(rootfs) = container.live.take_rootfs() {
        return Ok(rootfs);
    }
    let (images, record) = (engine.images.clone(), container.record.clone());
    let user = pod.supervisor()?.user_namespace();
    blocking(move || images.mount(&record.id, &rootfs_options(&record, user.as_ref()))).await
}

/// Moves the network devices that CDI gives the container into its pod.
async fn give_devices(
    engine: &Arc<Engine>,
    cx: &Cx,
    pod: &Arc<Pod>,
    container: &Container,
) -> Result<(), Error> {
    if container.record.cdi.net_devices.is_empty() {
        return Ok(());
    }
    let (network, record, id) = (engine.network.clone(), container.record.clone(), pod.id().to_owned());
    let give = move || {
        let ns = network.open_namespace(&id).map_err(network_error)?;
        let ns = ns.ok_or_else(|| Error::not_found("network namespace", &id))?;
        let mut devices = record.cdi.net_devices.iter();
        devices
            .try_for_each(|one| network.give_device(&ns, &one.host_interface_name, one.name()))
            .map_err(network_error)
    };
    cx.step("move network devices", blocking(give)).await
}

async fn open(
    engine: &Arc<Engine>,
    pod: &Arc<Pod>,
    container: &Container,
) -> Result<(Vec<PreparedMount>, Option<OwnedFd>), Error> {
    let (volumes, images) = (engine.volumes.clone(), engine.images.clone());
    let (record, spec) = (container.record.clone(), container.current_spec());
    let own = engine.journal.container_dir(pod.id(), &record.id);
    let files = engine.state_dir(pod.id());
    let user = pod.supervisor()?.user_namespace();
    let pod_record = pod.snapshot().state.record.clone();
    blocking(move || {
        let image = images.find(&record.image_id);
        let request = Request {
            spec: &spec,
            image_id: image.as_ref().map_or(record.image_id.as_str(), |image| image.id.as_str()),
            image_volumes: &record.volumes,
            directory: &own,
            pod_files: &files,
            user: user.as_ref().zip(pod_record.spec.security.namespaces.user.as_ref()),
            labels: record.selinux.as_ref().map(|labels| &labels.file).zip(pod_record.selinux.as_ref()),
        };
        let mounts = volumes.prepare(&request)?;
        let logs = !record.log_path.as_os_str().is_empty();
        let log = logs.then(|| volume::log::open(&pod_record.spec.log_directory, &record.spec.log_path));
        Ok((mounts, log.transpose()?))
    })
    .await
}

/// The process runs, so it must be recorded or ended.
async fn publish(
    engine: &Arc<Engine>,
    pod: &Arc<Pod>,
    container: &Container,
    started: Started,
) -> Result<(), Error> {
    let id = container.record.id.clone();
    let key = id.clone();
    let noted = pod.change(move |state| {
        let container = state.containers.get_mut(&key).ok_or_else(|| Error::not_found("container", &key))?;
        container.status.started(started);
        Ok(())
    });
    container.live.stopping.store(false, Ordering::Relaxed);
    if let Err(error) = noted.await {
        crate::jobs::teardown::kill(engine, pod, &id).await?;
        return Err(error);
    }
    Ok(())
}

async fn fail(pod: &Arc<Pod>, container: &Container, error: &Error) -> Result<(), Error> {
    let (id, error) = (container.record.id.clone(), error.clone());
    pod.change(move |state| {
        if let Some(container) = state.containers.get_mut(&id) {
            container.status.start_failed(&error);
        }
        Ok(())
    })
    .await
}
