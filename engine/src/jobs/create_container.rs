//! CreateContainer.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::SystemTime;

use storage::{IdMap, Image, RootfsOptions};

use crate::cdi::Edits;
use crate::container::{Container, ContainerPhase, ContainerRecord, ContainerStatus, policy, process};
use crate::engine::{blocking, new_id};
use crate::exec::{ResolvedUser, ahead, cgroup, nanos, user};
use crate::job::{Cx, Job};
use crate::jobs::teardown;
use crate::native::userns;
use crate::pod::{Pod, Snapshot};
use crate::selinux::ContainerLabels;
use crate::spec::{ContainerSpec, NamespaceMode};
use crate::{Engine, Error, Kind, cdi};

/// Makes a container in a ready pod: record, layer, identity. A repeat joins, or finds the container created.
#[derive(Clone, Debug)]
pub struct CreateContainer {
    /// Pod id or unique prefix.
    pub pod: String,
    /// The container as requested.
    pub spec: ContainerSpec,
}

impl Job for CreateContainer {
    const NAME: &'static str = "CreateContainer";
    type Output = String;

    fn identity(&self, engine: &Engine) -> Option<String> {
        Some(format!("{}/{}/{}", engine.full_pod_id(&self.pod), self.spec.name, self.spec.attempt))
    }

    fn subject(&self) -> String {
        format!("{} in {}", self.spec.name, self.pod)
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<String, Error> {
        let pod = engine.find_pod(&self.pod)?;
        let snapshot = pod.snapshot();
        if let Some(id) = already_there(&snapshot, &self.spec)? {
            return Ok(id);
        }
        check(&engine, &snapshot, &self.spec)?;
        let image = find_image(&engine, &self.spec.image.image)?;
        let spec = Arc::new(self.spec);
        let edits = cx.step("resolve devices", resolve_devices(&engine, &snapshot, spec.clone())).await?;
        let labels = cx.step("choose labels", choose_labels(&engine, &snapshot, spec.clone())).await?;
        cx.step("check mounts", check_mounts(&engine, spec.clone(), labels.clone())).await?;

        // Intent before the layer exists.
        let container = plan(&engine, &snapshot, &spec, &image, edits, labels)?;
        let (id, live) = (container.record.id.clone(), container.live.clone());
        let _turn = live.lane.lock().await;
        cx.step("journal intent", intend(&engine, &pod, container)).await?;
        cx.subject(&id);
        cx.undo().push("forget the container", forget(engine.clone(), pod.clone(), id.clone()));

        // The user is looked up in the root the container will have; the mount and the cgroup wait for the start.
        let (root, cgroup) = tokio::join!(
            cx.step("mount root, look up user", mount_root(&engine, &pod, &id, image)),
            cx.step("make cgroup", make_cgroup(&engine, &pod, &id)),
        );
        let ((rootfs, user, home), ()) = (root?, cgroup?);
        live.keep_rootfs(rootfs);
        cx.step("publish", publish(&pod, &id, user, home)).await?;
        Ok(id.to_string())
    }
}

/// The container a repeated request means.
fn already_there(snapshot: &Snapshot, spec: &ContainerSpec) -> Result<Option<String>, Error> {
    let same = |c: &&Container| c.record.spec.name == spec.name && c.record.spec.attempt == spec.attempt;
    match snapshot.state.containers.values().find(same) {
        None => Ok(None),
        Some(container) if container.status.phase == ContainerPhase::Created => {
            Ok(Some(container.record.id.to_string()))
        }
        Some(container) => Err(Error::new(
            Kind::AlreadyExists,
            format!(
                "container \"{}\" has this name and attempt already: remove it or raise attempt",
                container.record.id
            ),
        )),
    }
}

fn check(engine: &Engine, snapshot: &Snapshot, spec: &ContainerSpec) -> Result<(), Error> {
    let state = &snapshot.state;
    state.must_be_ready()?;
    let driver = engine.driver(&state.record.handler)?;
    policy::check(spec, &state.record.spec, driver.features())?;
    driver.check(&state.record.spec, spec)?;
    let namespaces = &spec.security.namespaces;
    if namespaces.pid == NamespaceMode::Target {
        let target = state.containers.get(namespaces.target_id.as_str());
        if target.is_none_or(|c| c.status.phase != ContainerPhase::Running) {
            let why = format!(
                "\"{}\" is not a running container of pod \"{}\"",
                namespaces.target_id, state.record.id
            );
            return Err(Error::invalid("target_id", why));
        }
    }
    Ok(())
}

fn find_image(engine: &Engine, name: &str) -> Result<Arc<Image>, Error> {
    let absent =
        || Error::new(Kind::NotFound, format!("image \"{name}\" is not on this node: pull it first"));
    engine.images.find(name).ok_or_else(absent)
}

/// Everything that can be decided before anything is made.
fn plan(
    engine: &Engine,
    snapshot: &Snapshot,
    spec: &Arc<ContainerSpec>,
    image: &Image,
    cdi: Edits,
    selinux: Option<ContainerLabels>,
) -> Result<Container, Error> {
    let pod = &snapshot.state.record;
    let id = new_id()?;
    let hostname = if pod.spec.hostname.is_empty() { &engine.node_name } else { &pod.spec.hostname };
    let log = !spec.log_path.as_os_str().is_empty() && !pod.spec.log_directory.as_os_str().is_empty();
    let mut process = process::merge(spec, &image.config, hostname)?;
    for variable in &cdi.env {
        process::set(&mut process.env, variable.clone().into_bytes());
    }
    let record = ContainerRecord {
        cgroup: cgroup::container(&pod.cgroup, &id),
        pod: pod.id.clone(),
        created_at: nanos(SystemTime::now()),
        image_id: image.id.clone(),
        image_ref: image.repo_digests.first().unwrap_or(&image.id).clone(),
        volumes: image.config.volumes.clone(),
        process,
        cdi,
        stop_signal: process::stop_signal(spec, &image.config)?,
        log_path: if log { pod.spec.log_directory.join(&spec.log_path) } else { Default::default() },
        spec: spec.clone(),
        selinux,
        id,
    };
    let status = ContainerStatus { resources: spec.resources.clone(), ..ContainerStatus::default() };
    Ok(Container::new(record, status))
}

async fn resolve_devices(
    engine: &Engine,
    snapshot: &Snapshot,
    spec: Arc<ContainerSpec>,
) -> Result<Edits, Error> {
    let wanted = cdi::Wanted::of(&spec);
    if wanted.is_empty() {
        return Ok(Edits::default());
    }
    let pod = &snapshot.state.record;
    let driver = engine.driver(&pod.handler)?;
    let runtime = driver.has_runtime();
    let edits = move || cdi::resolve(&cdi::DIRECTORIES.map(Into::into), &wanted, runtime);
    let mut edits = blocking(edits).await?;
    if userns::of(&pod.spec.security.namespaces).is_some() {
        // Such a pod sees the node's own device files.
        edits.devices.iter_mut().for_each(|device| device.node.of_user = false);
    }
    if let Some(device) =
        edits.net_devices.first().filter(|_| pod.spec.security.namespaces.network == NamespaceMode::Node)
    {
        let why = format!(
            "network device \"{}\" takes a pod with a network of its own",
            device.host_interface_name
        );
        return Err(Error::invalid("CDI_devices", why));
    }
    if !edits.runtime.is_empty() {
        driver
            .check(&pod.spec, &ContainerSpec { runtime_edits: edits.runtime.clone(), ..(*spec).clone() })?;
    }
    Ok(edits)
}

/// The SELinux labels of a container; `None`: its pod has none.
async fn choose_labels(
    engine: &Arc<Engine>,
    snapshot: &Snapshot,
    spec: Arc<ContainerSpec>,
) -> Result<Option<ContainerLabels>, Error> {
    let (selinux, pod) = (engine.selinux.clone(), snapshot.state.record.clone());
    if selinux.is_none() || pod.selinux.is_none() {
        return Ok(None);
    }
    blocking(move || match (&selinux, &pod.selinux) {
        (Some(selinux), Some(labels)) => selinux.container(labels, &pod.spec, &spec).map(Some),
        _ => Ok(None),
    })
    .await
}

async fn check_mounts(
    engine: &Arc<Engine>,
    spec: Arc<ContainerSpec>,
    labels: Option<ContainerLabels>,
) -> Result<(), Error> {
    if spec.mounts.is_empty() {
        return Ok(());
    }
    let volumes = engine.volumes.clone();
    blocking(move || {
        let label = labels.as_ref().map(|labels| &labels.file);
        spec.mounts.iter().try_for_each(|mount| volumes.check(mount, label))
    })
    .await
}

async fn intend(engine: &Arc<Engine>, pod: &Arc<Pod>, container: Container) -> Result<(), Error> {
    let id = container.record.id.clone();
    let key = id.clone();
    pod.change(move |state| {
        state.must_be_ready()?;
        state.containers.insert(key, container);
        Ok(())
    })
    .await?;
    engine.index_container(&id, pod);
    Ok(())
}

async fn mount_root(
    engine: &Arc<Engine>,
    pod: &Arc<Pod>,
    id: &Arc<str>,
    image: Arc<Image>,
) -> Result<(OwnedFd, ResolvedUser, String), Error> {
    let (images, id) = (engine.images.clone(), id.clone());
    let user = pod.supervisor()?.user_namespace();
    let container = pod.container(&id).ok_or_else(|| Error::not_found("container", &id))?;
    blocking(move || {
        let spec = &container.record.spec;
        images.prepare(&image.id, &id)?;
        let rootfs = images.mount(&id, &rootfs_options(&container.record, user.as_ref()))?;
        if let Ok(rootfs) = rootfs.try_clone() {
            let container = container.clone();
            // Nobody waits for it: it is to run while the rest is done.
            drop(tokio::task::spawn_blocking(move || ahead::read(rootfs.as_fd(), &container.record.process)));
        }
        let found = user::resolve(rootfs.as_fd(), &spec.security.user, &image.config.user)?;
        let home = user::home(rootfs.as_fd(), found.uid)?;
        Ok((rootfs, found, home))
    })
    .await
}

/// What goes wrong here is tried again, and told, by the start.
async fn make_cgroup(engine: &Arc<Engine>, pod: &Arc<Pod>, id: &Arc<str>) -> Result<(), Error> {
    let Some(container) = pod.container(id) else { return Ok(()) };
    let driver = engine.driver(&pod.snapshot().state.record.handler)?;
    let made = driver.prepare_cgroup(&container.record.cgroup, container.current_spec()).await;
    if let Err(error) = made {
        tracing::debug!(container = %id, "its cgroup is left to the start: {}", error.chain());
    }
    Ok(())
}

/// How the root of a container is mounted; `user`: its pod's user namespace.
pub(crate) fn rootfs_options<'a>(record: &ContainerRecord, user: Option<&'a OwnedFd>) -> RootfsOptions<'a> {
    let idmap = user.map(|user| IdMap { userns: user.as_fd(), apply: userns::map });
    let mount_label = record.selinux.as_ref().map(|labels| labels.file.to_string());
    RootfsOptions { readonly: record.spec.security.readonly_rootfs, idmap, mount_label }
}

async fn publish(pod: &Arc<Pod>, id: &Arc<str>, user: ResolvedUser, home: String) -> Result<(), Error> {
    let id = id.clone();
    pod.change(move |state| {
        state.must_be_ready()?;
        let container = state.containers.get_mut(&id).ok_or_else(|| Error::not_found("container", &id))?;
        container.status.user = user;
        container.status.home = home;
        container.status.phase = ContainerPhase::Created;
        Ok(())
    })
    .await
}

async fn forget(engine: Arc<Engine>, pod: Arc<Pod>, id: Arc<str>) -> Result<(), Error> {
    teardown::remove_container(&engine, &pod, &id).await
}
