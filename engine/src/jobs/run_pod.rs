//! RunPodSandbox.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use netplugins::{Attachment, NetNs};

use crate::engine::{blocking, network_error, new_id};
use crate::exec::{PodLaunch, PodNamespaces, nanos};
use crate::job::{Cx, Job};
use crate::jobs::teardown;
use crate::journal::file;
use crate::pod::{Pod, PodPhase, PodRecord, PodStatus, State, files, policy};
use crate::selinux::Selinux;
use crate::spec::{NamespaceMode, PodSpec};
use crate::{Engine, Error, Kind};

/// Makes a pod: namespaces, network, files, supervisor. A repeat joins, or finds the pod ready.
#[derive(Clone, Debug)]
pub struct RunPod {
    /// The pod as requested.
    pub spec: PodSpec,
}

impl Job for RunPod {
    const NAME: &'static str = "RunPodSandbox";
    type Output = String;

    fn identity(&self, _: &Engine) -> Option<String> {
        let spec = &self.spec;
        Some(format!("{}/{}/{}/{}", spec.namespace, spec.name, spec.uid, spec.attempt))
    }

    fn subject(&self) -> String {
        format!("{}/{}", self.spec.namespace, self.spec.name)
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<String, Error> {
        let driver = engine.driver(&self.spec.handler)?;
        policy::check(&self.spec, driver.features())?;
        policy::cgroup(&self.spec, &engine.config(), "")?;
        if let Some(id) = cx.step("look for a repeat", already_there(&engine, &self.spec)).await? {
            return Ok(id);
        }

        // Intent before kernel objects: from here on a restart knows what to give back, and so does the way back.
        let pod = cx.step("reserve, journal", intend(&engine, self.spec)).await?;
        cx.subject(pod.id());
        cx.undo().push("forget the pod", teardown::forget_or_keep(engine.clone(), pod.clone()));
        cx.undo().push("release the network", teardown::network(engine.clone(), pod.clone()));
        cx.undo().push("end the supervisor", teardown::supervisor(engine.clone(), pod.clone()));

        // The supervisor's process can start before there is a namespace for it, and needs the namespace, but not yet the network
        // in it. Where two steps run side by side both are waited for, even if one fails: undo must not overtake the other.
        let (namespace, prepared) = tokio::join!(
            cx.step("make namespace", make_namespace(&engine, &pod)),
            cx.step("prepare supervisor", prepare(&engine, &pod)),
        );
        let ((netns, owned), ()) = (namespace?, prepared?);
        let spec = Arc::new(effective_spec(&engine, &pod));
        let (attached, launched, grouped) = tokio::join!(
            cx.step("attach network", attach(&engine, &pod, netns.clone(), spec.clone())),
            cx.step("start supervisor", launch(&engine, &pod, &spec, netns.as_deref(), owned)),
            cx.step("make cgroup", make_cgroup(&engine, &pod)),
        );
        let (network, (), ()) = (attached?, launched?, grouped?);

        // From here on List shows it.
        cx.step("publish", publish(&pod, network)).await?;
        Ok(pod.id().to_string())
    }
}

/// The pod a repeated request means. One of the same identity that failed half-way is cleared away first.
async fn already_there(engine: &Arc<Engine>, spec: &PodSpec) -> Result<Option<String>, Error> {
    let same = |other: &PodSpec| {
        (&other.namespace, &other.name, &other.uid, other.attempt)
            == (&spec.namespace, &spec.name, &spec.uid, spec.attempt)
    };
    let pods = engine.all_pods();
    let Some(pod) = pods.iter().find(|pod| same(&pod.snapshot().state.record.spec)) else {
        return Ok(None);
    };
    let state = pod.snapshot().state.clone();
    match state.status.phase {
        PodPhase::Ready => Ok(Some(pod.id().to_string())),
        PodPhase::Stopped | PodPhase::Stopping if !state.containers.is_empty() => Err(Error::new(
            Kind::AlreadyExists,
            format!(
                "pod \"{}\" of this name, uid and attempt has been stopped: remove it or raise attempt",
                pod.id()
            ),
        )),
        _ => teardown::remove(engine, pod).await.map(|()| None),
    }
}

async fn intend(engine: &Arc<Engine>, spec: PodSpec) -> Result<Arc<Pod>, Error> {
    let id = new_id()?;
    let cgroup = policy::cgroup(&spec, &engine.config(), &id)?;
    let mut status = PodStatus::default();
    status.holds.namespace = spec.security.namespaces.network == NamespaceMode::Pod;
    status.holds.supervisor = true;
    let mut record = PodRecord {
        id,
        created_at: nanos(SystemTime::now()),
        boot_id: engine.boot_id.clone(),
        handler: engine.driver(&spec.handler)?.name().to_owned(),
        cgroup,
        spec: Arc::new(spec),
        selinux: None,
    };
    let (network, journal, selinux) =
        (engine.network.clone(), engine.journal.clone(), engine.selinux.clone());
    let endpoint = policy::endpoint(&record)?;
    let first = blocking(move || {
        record.selinux = selinux.as_ref().map(|selinux| selinux.pod(&record.spec)).transpose()?;
        let reserved = if status.holds.namespace { Some(network.reserve(&endpoint)) } else { None };
        status.holds.attachment = reserved.transpose().map_err(|error| {
            release(selinux.as_deref(), &record);
            network_error(error)
        })?;
        let first = State { record: Arc::new(record), status, containers: BTreeMap::new() };
        match journal.save(None, &first) {
            Ok(()) => Ok(first),
            // What cannot be written down cannot be held.
            Err(error) => {
                release(selinux.as_deref(), &first.record);
                if let Some(reserved) = &first.status.holds.attachment {
                    network.abandon(reserved);
                }
                Err(error.into())
            }
        }
    })
    .await?;
    engine.adopt(first)
}

/// Gives back the level of a pod that comes to nothing.
fn release(selinux: Option<&Selinux>, record: &PodRecord) {
    if let (Some(selinux), Some(labels)) = (selinux, &record.selinux) {
        selinux.release(labels);
    }
}

/// The request with the node's defaults, as the supervisor gets it.
fn effective_spec(engine: &Engine, pod: &Pod) -> PodSpec {
    let requested = &pod.snapshot().state.record.spec;
    policy::effective(requested, &engine.node_name, engine.config().unprivileged_ports)
}

/// The pod's directory, and its network namespace, `None` with the node's; before that the user namespace that must own it, if the
/// pod has one.
async fn make_namespace(
    engine: &Arc<Engine>,
    pod: &Arc<Pod>,
) -> Result<(Option<Arc<NetNs>>, Option<PodNamespaces>), Error> {
    let state = pod.snapshot().state.clone();
    let (wanted, driver) = (state.status.holds.namespace, engine.driver(&state.record.handler)?);
    let (network, id, dir) = (engine.network.clone(), pod.id().clone(), engine.state_dir(pod.id()));
    blocking(move || {
        file::make_dir(&dir)?;
        let mut owned = match &state.record.spec.security.namespaces.user {
            Some(user) if user.mode == NamespaceMode::Pod => driver.namespaces(&state.record.spec)?,
            _ => None,
        };
        let made = match owned.as_mut().and_then(|owned| owned.net.take()) {
            _ if !wanted => return Ok((None, owned)),
            Some(made) => network.adopt_namespace(&id, made),
            None => network.create_namespace(&id),
        };
        Ok((Some(Arc::new(made.map_err(network_error)?)), owned))
    })
    .await
}

/// What goes wrong here is tried again, and told, by the launch.
async fn prepare(engine: &Arc<Engine>, pod: &Arc<Pod>) -> Result<(), Error> {
    let driver = engine.driver(&pod.snapshot().state.record.handler)?;
    if let Err(error) = driver.prepare_supervisor(pod.id(), &engine.state_dir(pod.id())).await {
        tracing::debug!(pod = %pod.id(), "its supervisor is left to the launch: {}", error.chain());
    }
    Ok(())
}

/// The cgroup of a pod that has not been given one: its containers need not wait for it then. What fails here is tried again, and told,
/// with the first of them.
async fn make_cgroup(engine: &Arc<Engine>, pod: &Arc<Pod>) -> Result<(), Error> {
    let record = pod.snapshot().state.record.clone();
    if !record.owns_cgroup() {
        return Ok(());
    }
    let driver = engine.driver(&record.handler)?;
    if let Err(error) = driver.prepare_pod_cgroup(&record.cgroup).await {
        tracing::debug!(pod = %pod.id(), "its cgroup is left to its containers: {}", error.chain());
    }
    Ok(())
}

/// Connects the pod and writes the files that tell its containers so. What is made is written down by `publish`: until then the
/// reservation is enough to take it down.
async fn attach(
    engine: &Arc<Engine>,
    pod: &Arc<Pod>,
    netns: Option<Arc<NetNs>>,
    spec: Arc<PodSpec>,
) -> Result<Option<(Attachment, PathBuf)>, Error> {
    let state = pod.snapshot().state.clone();
    let (network, endpoint) = (engine.network.clone(), policy::endpoint(&state.record)?);
    let (dir, config) = (engine.state_dir(pod.id()), engine.config());
    blocking(move || {
        let made = match (netns, state.status.holds.attachment) {
            (Some(ns), Some(reserved)) => {
                let made = network.attach(&ns, &endpoint, reserved).map_err(network_error)?;
                Some((made, ns.path.clone()))
            }
            _ => None,
        };
        files::write(&dir, &config, &spec, &addresses(&made))?;
        Ok(made)
    })
    .await
}

fn addresses(network: &Option<(Attachment, PathBuf)>) -> Vec<IpAddr> {
    network.iter().flat_map(|(made, _)| made.addresses.iter().map(|(ip, _)| *ip)).collect()
}

async fn launch(
    engine: &Arc<Engine>,
    pod: &Arc<Pod>,
    spec: &PodSpec,
    netns: Option<&NetNs>,
    owned: Option<PodNamespaces>,
) -> Result<(), Error> {
    let record = pod.snapshot().state.record.clone();
    let (driver, dir) = (engine.driver(&record.handler)?, engine.state_dir(pod.id()));
    let label = record.selinux.as_ref().map(|labels| &labels.file);
    let netns = netns.map(AsFd::as_fd);
    let launch = PodLaunch { pod: pod.id(), dir: &dir, spec, netns, owned, label };
    pod.supervise(driver.launch(launch).await?);
    Ok(())
}

async fn publish(pod: &Arc<Pod>, network: Option<(Attachment, PathBuf)>) -> Result<(), Error> {
    pod.change(|state| {
        state.status.phase = PodPhase::Ready;
        state.status.ips = addresses(&network);
        if let Some((made, path)) = network {
            state.status.netns = Some(path);
            state.status.holds.attachment = Some(made);
        }
        Ok(())
    })
    .await
}
