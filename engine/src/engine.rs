//! The engine: drivers, pods, jobs, composed; snapshots for readers.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::broadcast;

use crate::api::{ContainerView, JobView, PodEvent, PodView};
use crate::config::Config;
use crate::container::Container;
use crate::drivers::{Drivers, Execution, Image, Network, Volume};
use crate::exec::Features;
use crate::exec::cgroup::CgroupDriver;
use crate::job::{Durations, Job, Table};
use crate::journal::Journal;
use crate::pod::{Pod, State, Surroundings};
use crate::readiness::Lookout;
use crate::selinux::Selinux;
use crate::stats::Meter;
use crate::{Error, Kind, volume};

/// The engine of a node.
#[derive(Debug)]
pub struct Engine {
    config: ArcSwap<Config>,
    pub(crate) images: Arc<dyn Image>,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) volumes: Arc<dyn Volume>,
    pub(crate) exec: Vec<Arc<dyn Execution>>,
    pub(crate) journal: Arc<Journal>,
    /// `None`: SELinux is off, here or by the configuration.
    pub(crate) selinux: Option<Arc<Selinux>>,
    pub(crate) meter: Meter,
    pub(crate) lookout: Arc<Lookout>,
    pub(crate) boot_id: String,
    pub(crate) node_name: String,
    jobs: Arc<Table>,
    events: broadcast::Sender<PodEvent>,
    pods: RwLock<Index>,
    /// The pods of the index, by id, for lists. These wait for no lock: whoever holds it may have lost its processor to a container.
    all: ArcSwap<Vec<Arc<Pod>>>,
}

/// Who is who. Locked only to look up or to put in one entry, never across work.
#[derive(Debug, Default)]
struct Index {
    pods: BTreeMap<Arc<str>, Arc<Pod>>,
    /// Container id to its pod.
    containers: BTreeMap<Arc<str>, Arc<Pod>>,
}

impl Engine {
    /// Opens the engine on a node: with these drivers, and volumes of the node itself.
    pub async fn open(
        config: Config,
        store: Arc<dyn Image>,
        network: Arc<dyn Network>,
        exec: Vec<Arc<dyn Execution>>,
    ) -> Result<Arc<Self>, Error> {
        let volumes = Arc::new(volume::Local::new(store.clone(), config.create_missing_host_paths));
        Self::compose(config, Drivers { images: store, network, exec, volumes }, boot_id()?).await
    }

    /// Opens the engine: reads the journal, finds the supervisors of a previous daemon, settles what was half done and
    /// sweeps what has no record. Jobs run in the runtime that this is called in.
    /// `boot_id` tells one life of the kernel from the next.
    pub async fn compose(config: Config, drivers: Drivers, boot_id: String) -> Result<Arc<Self>, Error> {
        let Drivers { images, network, exec, volumes } = drivers;
        if exec.is_empty() {
            return Err(Error::invalid("exec", "no execution driver was given"));
        }
        let journal = Arc::new(Journal::open(&config.root)?);
        let selinux = config.selinux.as_ref().map(Selinux::probe).transpose()?.flatten().map(Arc::new);
        crate::journal::file::make_dir(&config.state.join("pods"))?;
        let engine = Arc::new(Self {
            images,
            network,
            volumes,
            exec,
            journal,
            selinux,
            meter: Meter::default(),
            lookout: Arc::default(),
            boot_id,
            node_name: crate::pod::files::node_name(),
            jobs: Arc::new(Table::new(config.recent_jobs, Handle::current())),
            events: broadcast::Sender::new(config.event_queue),
            pods: RwLock::default(),
            all: ArcSwap::default(),
            config: ArcSwap::from_pointee(config),
        });
        crate::restore::restore(&engine).await?;
        Ok(engine)
    }

    /// Runs a job, or joins the running job of the same identity.
    pub async fn run<J: Job>(
        self: &Arc<Self>,
        job: J,
        deadline: Option<Instant>,
    ) -> Result<J::Output, Error> {
        self.jobs.run(self, job, deadline).await
    }

    // === snapshots: none of these waits for a job ===

    /// All pods, by id.
    pub fn pods(&self) -> Vec<Arc<PodView>> {
        let pods = self.all_pods();
        let snapshots = pods.iter().map(|pod| pod.snapshot());
        snapshots.filter(|s| s.state.status.phase.shown()).map(|s| s.pod.clone()).collect()
    }

    /// One pod, by id or unique prefix.
    pub fn pod(&self, id: &str) -> Result<Arc<PodView>, Error> {
        Ok(self.find_pod(id)?.snapshot().pod.clone())
    }

    /// All containers, by pod and id.
    pub fn containers(&self) -> Vec<Arc<ContainerView>> {
        let mut containers = Vec::new();
        for pod in self.all_pods().iter() {
            containers.extend(pod.snapshot().containers.values().cloned());
        }
        containers
    }

    /// One container, by id or unique prefix.
    pub fn container(&self, id: &str) -> Result<Arc<ContainerView>, Error> {
        let (pod, id) = self.find_container(id)?;
        let view = pod.snapshot().containers.get(&id).cloned();
        view.ok_or_else(|| Error::not_found("container", &id))
    }

    /// Containers of a pod; none for an unknown pod.
    pub fn containers_of(&self, pod: &str) -> Vec<Arc<ContainerView>> {
        let pod = self.find_pod(pod).ok();
        pod.map(|pod| pod.snapshot().containers.values().cloned().collect()).unwrap_or_default()
    }

    /// The image store.
    pub fn store(&self) -> &Arc<dyn Image> {
        &self.images
    }

    /// The image store itself, for what only administrators ask of it.
    ///
    /// # Errors
    /// The image driver is another one.
    pub fn local_store(&self) -> Result<Arc<storage::Store>, Error> {
        crate::image::local(self)
    }

    /// The network driver.
    pub fn network(&self) -> &Arc<dyn Network> {
        &self.network
    }

    /// What a handler can do; `""` is the default one.
    pub fn features(&self, handler: &str) -> Option<Features> {
        self.driver(handler).ok().map(|driver| driver.features())
    }

    /// Names of the handlers, the default one first.
    pub fn handlers(&self) -> Vec<String> {
        self.exec.iter().map(|driver| driver.name().to_owned()).collect()
    }

    /// The threads that do the work; who waits for a call may be on another.
    pub(crate) fn workers(&self) -> &Handle {
        self.jobs.runtime()
    }

    /// Running jobs, then recent ones.
    pub fn jobs(&self) -> Vec<JobView> {
        self.jobs.views()
    }

    /// How long ended jobs and their steps took.
    pub fn durations(&self) -> Durations {
        self.jobs.durations()
    }

    /// Takes over the settings that may change while pods run: the node's files, unprivileged ports, and every time limit
    /// ([`Config::retuned`]). Jobs that run keep what they have begun with.
    pub fn reconfigure(&self, new: &Config) {
        self.config.rcu(|now| now.retuned(new));
    }

    /// Events from now on. A subscriber that lags is told so by the channel, and goes on from [`Engine::pods`].
    pub fn events(&self) -> broadcast::Receiver<PodEvent> {
        self.events.subscribe()
    }

    // === for jobs ===

    /// Who makes the cgroups of pods and containers.
    pub fn cgroup_driver(&self) -> CgroupDriver {
        self.config().cgroup_driver
    }

    /// The settings as they are now.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// The daemon ends: pods go on, what the drivers have beside them goes with it. Blocking, a second at most.
    pub fn leave(&self) {
        self.exec.iter().for_each(|driver| driver.leave());
    }

    /// The execution driver of a handler.
    pub(crate) fn driver(&self, handler: &str) -> Result<Arc<dyn Execution>, Error> {
        let driver = match handler {
            "" => self.exec.first(),
            name => self.exec.iter().find(|driver| driver.name() == name),
        };
        driver.cloned().ok_or_else(|| {
            let known = self.handlers().join(", ");
            Error::invalid("runtime_handler", format!("\"{handler}\" is not configured; known: {known}"))
        })
    }

    /// The supervisor's directory of a pod.
    pub(crate) fn state_dir(&self, pod: &str) -> PathBuf {
        self.config.load().state.join("pods").join(pod)
    }

    /// Takes a pod into the index and starts its task.
    pub(crate) fn adopt(&self, state: State) -> Result<Arc<Pod>, Error> {
        let around = Surroundings {
            journal: self.journal.clone(),
            events: self.events.clone(),
            news: self.meter.news(),
            exec: self.driver(&state.record.handler)?,
            dir: self.state_dir(&state.record.id),
        };
        let containers: Vec<Arc<str>> = state.containers.keys().cloned().collect();
        let pod = Pod::start(state, around);
        let mut index = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        index.pods.insert(pod.id().clone(), pod.clone());
        for container in containers {
            index.containers.insert(container, pod.clone());
        }
        self.list(&index);
        Ok(pod)
    }

    /// Shows lists the pods of the index.
    fn list(&self, index: &Index) {
        self.all.store(Arc::new(index.pods.values().cloned().collect()));
    }

    /// Makes a container findable.
    pub(crate) fn index_container(&self, container: &Arc<str>, pod: &Arc<Pod>) {
        let mut index = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        index.containers.insert(container.clone(), pod.clone());
    }

    /// Makes it unfindable.
    pub(crate) fn drop_container(&self, container: &str) {
        let mut index = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        index.containers.remove(container);
    }

    /// Forgets a pod: journal, index, directory; its task ends with its last holder.
    pub(crate) async fn forget(&self, pod: &Arc<Pod>) -> Result<(), Error> {
        let (journal, id, dir) = (self.journal.clone(), pod.id().clone(), self.state_dir(pod.id()));
        blocking(move || {
            crate::journal::file::remove_tree(&dir)?;
            Ok(journal.forget(&id)?)
        })
        .await?;
        if let (Some(selinux), Some(labels)) = (&self.selinux, &pod.snapshot().state.record.selinux) {
            selinux.release(labels);
        }
        let mut index = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        index.pods.remove(pod.id());
        index.containers.retain(|_, of| of.id() != pod.id());
        self.list(&index);
        Ok(())
    }

    /// Announces what no snapshot can show any more.
    pub(crate) fn announce(&self, event: PodEvent) {
        let _ = self.events.send(event);
    }

    /// Every pod, also those in the making, by id.
    pub(crate) fn all_pods(&self) -> Arc<Vec<Arc<Pod>>> {
        self.all.load_full()
    }

    /// A pod that is shown, by id or unique prefix.
    pub(crate) fn find_pod(&self, id: &str) -> Result<Arc<Pod>, Error> {
        let index = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let shown = |pod: &Pod| pod.snapshot().state.status.phase.shown();
        unique("pod", id, &index.pods, |_, pod| shown(pod)).map(|(_, pod)| pod)
    }

    /// A container that is shown, by id or unique prefix: its pod and full id.
    pub(crate) fn find_container(&self, id: &str) -> Result<(Arc<Pod>, Arc<str>), Error> {
        let index = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let shown = |id: &str, pod: &Pod| pod.snapshot().containers.contains_key(id);
        unique("container", id, &index.containers, shown).map(|(id, pod)| (pod, id))
    }

    /// A container with its state.
    pub(crate) fn container_state(&self, id: &str) -> Result<(Arc<Pod>, Container), Error> {
        let (pod, id) = self.find_container(id)?;
        let container = pod.container(&id).ok_or_else(|| Error::not_found("container", &id))?;
        Ok((pod, container))
    }

    /// The full id if there is one, for the identity of jobs.
    pub(crate) fn full_container_id(&self, id: &str) -> String {
        self.find_container(id).map_or_else(|_| id.to_owned(), |(_, id)| id.to_string())
    }

    /// The full id if there is one, for the identity of jobs.
    pub(crate) fn full_pod_id(&self, id: &str) -> String {
        self.find_pod(id).map_or_else(|_| id.to_owned(), |pod| pod.id().to_string())
    }
}

/// The one entry whose key is `id` or begins with it.
fn unique(
    what: &str,
    id: &str,
    among: &BTreeMap<Arc<str>, Arc<Pod>>,
    shown: impl Fn(&str, &Pod) -> bool,
) -> Result<(Arc<str>, Arc<Pod>), Error> {
    if id.is_empty() {
        return Err(Error::invalid(&format!("{what} id"), "must not be empty"));
    }
    let from = among
        .range::<str, _>((Bound::Included(id), Bound::Unbounded))
        .take_while(|(key, _)| key.starts_with(id));
    let mut matches = from.filter(|(key, pod)| shown(key, pod));
    match (matches.next(), matches.next()) {
        (None, _) => Err(Error::not_found(what, id)),
        (Some((key, pod)), other) if other.is_none() || &**key == id => Ok((key.clone(), pod.clone())),
        _ => Err(Error::invalid(
            &format!("{what} id"),
            format!("\"{id}\" is the beginning of more than one id"),
        )),
    }
}

/// `Ok(None)` for an absent object: Stop and Remove of it succeed.
pub(crate) fn absent_is_fine<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Runs a blocking call on a blocking thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::with(Kind::Internal, "blocking task", e))?
}

/// 256 random bits as 64 hex digits.
pub(crate) fn new_id() -> Result<Arc<str>, Error> {
    let mut bytes = [0_u8; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::with(Kind::Internal, "getrandom", e))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into())
}

/// The kernel's boot id: a new one after each reboot.
fn boot_id() -> Result<String, Error> {
    let path = "/proc/sys/kernel/random/boot_id";
    let id = std::fs::read_to_string(path).map_err(|e| Error::with(Kind::Internal, path, e))?;
    Ok(id.trim().to_owned())
}

/// The network driver's error as ours.
#[expect(clippy::needless_pass_by_value, reason = "its place is in map_err")]
pub(crate) fn network_error(error: netplugins::Error) -> Error {
    let kind = match error.kind() {
        netplugins::Kind::InvalidArgument => Kind::InvalidArgument,
        netplugins::Kind::Exhausted => Kind::ResourceExhausted,
        netplugins::Kind::Conflict => Kind::AlreadyExists,
        netplugins::Kind::NotReady => Kind::Unavailable,
        netplugins::Kind::Timeout => Kind::DeadlineExceeded,
        netplugins::Kind::Internal => Kind::Internal,
    };
    Error::of(kind, &error)
}
