//! The native driver: one supervisor per pod, one plan per process, no other program involved.
//!
//! In reading order: this file (the driver: finding supervisors), [`birth`] (starting them), [`node`] (what is shared), [`supervisor`]
//! (calls to one), [`compile`] (what is asked for → plan; pure), [`plan`] (its format), [`child`] (its interpreter), [`failure`] (what went wrong, for a person),
//! [`renewal`] (supervisors of an older program), [`capabilities`], [`seccomp`], [`listener`], [`lsm`], [`sysctls`], [`devices`],
//! [`userns`].
//!
//! Tasks spawned: per supervisor one that reads its messages, and one that reaps it if it is our child.

mod birth;
pub(crate) mod capabilities;
pub(crate) mod child;
pub(crate) mod compile;
mod devices;
pub(crate) mod failure;
pub(crate) mod listener;
pub(crate) mod lsm;
mod node;
pub(crate) mod plan;
mod renewal;
pub mod seccomp;
mod supervisor;
pub(crate) mod sysctls;
pub(crate) mod userns;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use self::birth::{Nursery, connect_in};
use self::compile::Facts;
use self::node::Started;
pub(crate) use self::node::{Node, Prepared};
use self::supervisor::Supervisor;
use crate::error::{Error, Kind};
use crate::exec::cgroup::CgroupDriver;
use crate::exec::classes::Classes;
use crate::exec::podd::record;
use crate::exec::rdt::Resctrl;
use crate::exec::wire::{self, HAS_NETNS, HAS_USER, Message, POD_PID, Tag};
use crate::exec::{Call, Connection, Driver, Exit, Features, PodLaunch, PodNamespaces, cgroup};
use crate::external;
use crate::spec::{ContainerSpec, NamespaceMode, PodSpec, Resources};
use crate::sys::{footprint, memory, mount, process};

/// How long a supervisor may take to set its pod up.
const SETUP_TIME: Duration = Duration::from_secs(20);

/// Settings of the native driver.
#[derive(Clone, Debug)]
pub struct Config {
    /// Handler name under which it is offered.
    pub name: String,
    /// Program that becomes the supervisor; `None`: the running executable. It is copied once into a sealed memfd.
    pub program: Option<PathBuf>,
    /// Arguments that make that program a supervisor; the pod id follows them.
    pub arguments: Vec<OsString>,
    /// Cgroup the supervisors share, in cgroupfs spelling, outside of all pod limits; under systemd a scope.
    pub supervisor_cgroup: String,
    /// Who makes cgroups.
    pub cgroup_driver: CgroupDriver,
    /// Capabilities of a container that asks for nothing, with or without `CAP_`; `None`: the usual fourteen.
    pub default_capabilities: Option<Vec<String>>,
    /// What pods may ask for by name.
    pub classes: Classes,
    /// Our own OCI command line: it makes the containers whose devices ask for hooks. `None`: such devices are refused.
    pub hooks: Option<external::Config>,
}

impl Config {
    /// What of it could never be, by the name of the field.
    pub fn check(&self) -> Result<(), Error> {
        capabilities::default_set(self.default_capabilities.as_deref()).map(drop)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "native".into(),
            program: None,
            arguments: vec!["podd".into()],
            supervisor_cgroup: "/berth/podd".into(),
            cgroup_driver: CgroupDriver::default(),
            default_capabilities: None,
            classes: Classes::default(),
            hooks: None,
        }
    }
}

/// The native driver.
#[derive(Debug)]
pub struct Native {
    config: Config,
    features: Features,
    /// The supervisor's program.
    program: Arc<OwnedFd>,
    nursery: Arc<Nursery>,
    /// What is known of the programs of supervisors found running.
    programs: Arc<renewal::Programs>,
    /// The supervisors' cgroup, until somebody removes that.
    shared: Mutex<Option<Shared>>,
    node: Arc<Node>,
}

/// The supervisors' cgroup: the way in, and under systemd the process that keeps it while there is no supervisor.
#[derive(Debug)]
struct Shared {
    entrance: Arc<cgroup::Entrance>,
    _holder: Option<cgroup::Holder>,
}

impl Native {
    /// Probes the kernel, seals the supervisor's program and makes its cgroup. Fails when the kernel is too old or we are not root.
    #[allow(clippy::new_ret_no_self, reason = "a driver is only ever used as one")]
    pub fn new(config: Config) -> Result<Arc<dyn Driver>, Error> {
        Ok(Arc::new(Self::own(config)?))
    }

    /// The native driver, and behind it one for each external runtime. Fails also when one of these does not run.
    pub fn with_runtimes(
        config: Config,
        runtimes: Vec<external::Config>,
    ) -> Result<Vec<Arc<dyn Driver>>, Error> {
        let native = Self::own(config)?;
        let others = runtimes.into_iter().map(|config| native.with_runtime(config));
        let others = others.collect::<Result<Vec<_>, _>>()?;
        let all = std::iter::once(native).chain(others);
        Ok(all.map(|driver| Arc::new(driver) as Arc<dyn Driver>).collect())
    }

    /// A driver of the same settings, supervisor and node whose processes an external runtime makes.
    fn with_runtime(&self, runtime: external::Config) -> Result<Self, Error> {
        let config = Config { name: runtime.name.clone(), hooks: None, ..self.config.clone() };
        if config.name.is_empty() || config.name == self.config.name {
            return Err(Error::invalid("handler", format!("\"{}\" cannot be its name", config.name)));
        }
        let runtime = Arc::new(external::Runtime::open(runtime)?);
        // Its process would belong to a user namespace that the pod's supervisor holds, and its root be mapped twice.
        let features =
            Features { user_namespaces: false, user_namespaces_host_network: false, ..self.features };
        Self::over(config, features, self.program.clone(), self.nursery.clone(), Some(runtime))
    }

    fn own(config: Config) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::new(Kind::FailedPrecondition, "containers can only be run as root"));
        }
        let program = Arc::new(seal_program(&config)?);
        let hierarchies = cgroup::node()?.directories();
        let nursery = Arc::new(Nursery::new(program.clone(), config.arguments.clone(), hierarchies));
        Self::over(config, features(), program, nursery, None)
    }

    fn over(
        config: Config,
        features: Features,
        program: Arc<OwnedFd>,
        nursery: Arc<Nursery>,
        runtime: Option<Arc<external::Runtime>>,
    ) -> Result<Self, Error> {
        let facts = facts(&config)?;
        let filters = seccomp::Cache::new(seccomp::Node { kernel: kernel() });
        let kit = if runtime.is_none() { supervisor::Kit::new().ok() } else { None };
        let driver = Self {
            features,
            nursery,
            program: program.clone(),
            programs: Arc::default(),
            shared: Mutex::default(),
            node: Arc::new(Node {
                facts,
                runtime,
                hooks: config.hooks.clone().map(|own| Arc::new(external::Runtime::own(own))),
                cgroups: cgroup::Manager::new(config.cgroup_driver),
                program,
                arguments: config.arguments.clone(),
                classes: config.classes.clone(),
                resctrl: Resctrl::default(),
                filters,
                modules: lsm::probe(),
                kept: Mutex::default(),
                prepared: Mutex::default(),
                started: Mutex::default(),
                entrances: Mutex::default(),
                kit: Mutex::new(kit),
            }),
            config,
        };
        driver.share(driver.node.share(&driver.config.supervisor_cgroup)?);
        Ok(driver)
    }

    async fn launch(&self, launch: PodLaunch<'_>) -> Result<Connection, Error> {
        let entrance = self.entrance().await?;
        let launched = self.launch_into(launch, entrance).await;
        if launched.is_err() {
            self.shared.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        launched
    }

    /// The way into the supervisors' cgroup; one that did not work is not tried twice.
    async fn entrance(&self) -> Result<Arc<cgroup::Entrance>, Error> {
        if let Some(shared) = &*self.shared.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(shared.entrance.clone());
        }
        self.fresh_entrance().await
    }

    /// The same, opened anew.
    async fn fresh_entrance(&self) -> Result<Arc<cgroup::Entrance>, Error> {
        let (node, cgroup) = (self.node.clone(), self.config.supervisor_cgroup.clone());
        let made = supervisor::blocking(move || node.share(&cgroup)).await?;
        Ok(self.share(made))
    }

    /// Keeps the supervisors' cgroup.
    fn share(&self, made: cgroup::Made) -> Arc<cgroup::Entrance> {
        let entrance = Arc::new(made.entrance);
        let shared = Shared { entrance: entrance.clone(), _holder: made.holder };
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(shared);
        entrance
    }

    async fn launch_into(
        &self,
        mut launch: PodLaunch<'_>,
        entrance: Arc<cgroup::Entrance>,
    ) -> Result<Connection, Error> {
        let owned = launch.owned.take();
        let setup = setup_message(&launch, &entrance, owned)?;
        let (pidfd, connection) = match self.node.take_started(launch.pod) {
            Some(started) => started,
            None => self.start(launch.pod, launch.dir, entrance).await?,
        };
        let result =
            Supervisor::begin(launch.pod, launch.dir, connection, self.node.clone(), setup, SETUP_TIME).await;
        let result = result.map(supervisor::connection);
        if result.is_err() {
            let _ = process::signal(pidfd.as_fd(), libc::SIGKILL);
        }
        result
    }

    /// Starts a supervisor's process.
    async fn start(&self, pod: &str, dir: &Path, entrance: Arc<cgroup::Entrance>) -> Result<Started, Error> {
        let (nursery, pod, dir) = (self.nursery.clone(), pod.to_owned(), dir.to_owned());
        let started = supervisor::blocking(move || nursery.bear(&entrance, &pod, &dir)).await?;
        supervisor::reap(&started.0)?;
        Ok(started)
    }

    async fn prepare_supervisor(&self, pod: &str, dir: &Path) -> Result<(), Error> {
        let started = self.start(pod, dir, self.entrance().await?).await?;
        self.node.started.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.to_owned(), started);
        Ok(())
    }

    async fn connect(&self, pod: &str, dir: &Path) -> Result<Option<Connection>, Error> {
        // One that was never told what to do has nothing to be asked for: it ends with its connection.
        drop(self.node.take_started(pod));
        let connection = match File::open(dir).and_then(|directory| connect_in(&directory)) {
            Ok(connection) => connection,
            // Nobody listens, or the pod never got that far.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ECONNREFUSED | libc::ENOENT)) => {
                return self.adopt(pod, dir).await;
            }
            Err(e) => {
                return Err(Error::with(
                    Kind::Internal,
                    format!("connect to the supervisor of pod {pod}"),
                    e,
                ));
            }
        };
        match Supervisor::resume(pod, dir, connection, self.node.clone()).await {
            // It was dying already: the kernel let the connection wait at a socket that was about to close.
            Err(e) if e.kind() == Kind::Unavailable => self.adopt(pod, dir).await,
            Err(e) => Err(e),
            Ok(resumed) => {
                self.renew(pod, &resumed.0).await;
                Ok(Some(supervisor::connection(resumed)))
            }
        }
    }
}

impl Native {
    /// Starts another supervisor over what was kept of a dead one's pod; `None`: nothing was.
    async fn adopt(&self, pod: &str, dir: &Path) -> Result<Option<Connection>, Error> {
        let Some(supervisor::Kept { pod: Some(mut adopt), containers }) = self.node.forget(pod) else {
            return Ok(None);
        };
        let entrance = self.fresh_entrance().await?;
        adopt.fds.extend(entrance.copies()?);
        let (_, connection) = self.start(pod, dir, entrance).await?;
        let fresh = Supervisor::resume(pod, dir, connection, self.node.clone()).await?.0;
        fresh.call(adopt, SETUP_TIME).await?;
        for container in containers.into_values() {
            fresh.call(container, SETUP_TIME).await?;
        }
        drop(fresh);
        tracing::warn!(pod, "its supervisor was killed; another one has taken over");
        // A connection of its own, so that everything taken over is told as to any daemon that comes back.
        let directory =
            File::open(dir).map_err(|e| Error::with(Kind::Internal, format!("open {}", dir.display()), e))?;
        let connection = connect_in(&directory).map_err(|e| {
            Error::with(Kind::Internal, format!("connect to the new supervisor of pod {pod}"), e)
        })?;
        let resumed = Supervisor::resume(pod, dir, connection, self.node.clone()).await;
        resumed.map(|resumed| Some(supervisor::connection(resumed)))
    }
}

impl Driver for Native {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn features(&self) -> Features {
        self.features
    }

    fn has_runtime(&self) -> bool {
        self.node.runtime.is_some() || self.node.hooks.is_some()
    }

    fn check(&self, pod: &PodSpec, container: &ContainerSpec) -> Result<(), Error> {
        self.node.labels(container, None)?;
        if let Some((class, _)) = self.node.classes.rdt(pod, container)? {
            if container.runtime_edits.intel_rdt.is_some() {
                let why = format!("a device's intelRdt and the RDT class \"{class}\" exclude each other");
                return Err(Error::new(Kind::FailedPrecondition, format!("CDI_devices: {why}")));
            }
            self.node.resctrl.check()?;
        }
        self.node.blockio(pod, container)?;
        match self.node.runtime_of(container) {
            Some(_) if userns::of(&pod.security.namespaces).is_some() => {
                let why = "CDI_devices: hooks and intelRdt are not built for pods with a user namespace";
                Err(Error::new(Kind::Unimplemented, why))
            }
            Some(_) => self.node.profile(&container.security).map(drop),
            None => self.node.filter(&container.security).map(drop),
        }
    }

    fn namespaces(&self, pod: &PodSpec) -> Result<Option<PodNamespaces>, Error> {
        userns::make(pod)
    }

    fn launch<'a>(&'a self, launch: PodLaunch<'a>) -> Call<'a, Connection> {
        Box::pin(self.launch(launch))
    }

    fn connect<'a>(&'a self, pod: &'a str, dir: &'a Path) -> Call<'a, Option<Connection>> {
        Box::pin(self.connect(pod, dir))
    }

    fn recorded_exits(&self, dir: &Path) -> BTreeMap<String, Exit> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let read = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let exit = record::parse(&std::fs::read_to_string(entry.path()).ok()?)?;
            Some((name.strip_prefix(record::PREFIX)?.to_owned(), exit))
        };
        entries.filter_map(read).collect()
    }

    fn prepare_supervisor<'a>(&'a self, pod: &'a str, dir: &'a Path) -> Call<'a, ()> {
        Box::pin(self.prepare_supervisor(pod, dir))
    }

    fn prepare_cgroup<'a>(&'a self, cgroup: &'a str, spec: Arc<ContainerSpec>) -> Call<'a, ()> {
        let (node, cgroup) = (self.node.clone(), cgroup.to_owned());
        Box::pin(supervisor::blocking(move || {
            let made = Prepared::make(&node, &cgroup, &spec)?;
            node.prepared.lock().unwrap_or_else(PoisonError::into_inner).insert(cgroup, made);
            Ok(())
        }))
    }

    fn prepare_pod_cgroup<'a>(&'a self, cgroup: &'a str) -> Call<'a, ()> {
        let (node, cgroup) = (self.node.clone(), cgroup.to_owned());
        Box::pin(supervisor::blocking(move || node.cgroups.prepare(&cgroup, &Resources::default())))
    }

    fn remove_cgroup<'a>(&'a self, cgroup: &'a str) -> Call<'a, ()> {
        let prepared = self.node.take_prepared(cgroup);
        self.node.entrances.lock().unwrap_or_else(PoisonError::into_inner).retain(|(name, _)| name != cgroup);
        let (node, cgroup) = (self.node.clone(), cgroup.to_owned());
        Box::pin(supervisor::blocking(move || {
            drop(prepared);
            node.cgroups.remove(&cgroup)
        }))
    }

    fn discard<'a>(&'a self, container: &'a str, dir: &'a Path) -> Call<'a, ()> {
        let own = || self.node.hooks.as_ref().filter(|own| own.knows(container));
        let Some(runtime) = self.node.runtime.as_ref().or_else(own).cloned() else {
            return Box::pin(std::future::ready(Ok(())));
        };
        let (container, dir) = (container.to_owned(), dir.to_owned());
        Box::pin(supervisor::blocking(move || runtime.delete(&container, &dir)))
    }

    fn update_cgroup(&self, cgroup: &str, resources: &Resources) -> Result<(), Error> {
        self.node.cgroups.update(cgroup, resources, &[], &[])
    }

    fn update_pod_cgroup(&self, cgroup: &str, resources: &Resources) -> Result<(), Error> {
        self.node.cgroups.prepare(cgroup, resources)?;
        self.node.cgroups.update(cgroup, resources, &[], &[])
    }

    fn leave(&self) {
        self.nursery.close();
    }
}

/// What this kernel lets the driver do, found by trying.
fn features() -> Features {
    let (attributes, users) = (mount::can_set_attributes(), userns::works());
    Features {
        recursive_readonly_mounts: attributes,
        mount_options: attributes,
        supplemental_groups_policy: true,
        user_namespaces: users,
        user_namespaces_host_network: users,
    }
}

/// Major and minor version of the running kernel.
pub(crate) fn kernel() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What the plan compiler has to know of this node.
pub(crate) fn facts(config: &Config) -> Result<Facts, Error> {
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|e| Error::with(Kind::Internal, "read /proc/self/status", e))?;
    let hierarchies = cgroup::node()?;
    let options = |h: &cgroup::hierarchy::Hierarchy| {
        let mut out = Vec::new();
        for controller in &h.controllers {
            let (key, value) = controller.split_once('=').unwrap_or((controller, ""));
            if key == "name" {
                out.extend_from_slice(b"none\0\0");
            }
            out.extend_from_slice(format!("{key}\0{value}\0").as_bytes());
        }
        out
    };
    Ok(Facts {
        bounding: capabilities::bounding_set(&status),
        default_capabilities: capabilities::default_set(config.default_capabilities.as_deref())?,
        cgroup_v1: hierarchies.v1.iter().map(|h| (h.name(), options(h))).collect(),
        cgroup_v2: hierarchies.v2.is_some(),
    })
}

/// Copies the supervisor's program into a sealed memfd, so that no container can ever write to what runs as root on the node
/// (CVE-2019-5736). Where the node forbids executing memfds, the file itself serves.
fn seal_program(config: &Config) -> Result<OwnedFd, Error> {
    let path = config.program.clone().unwrap_or_else(|| "/proc/self/exe".into());
    let failed =
        |e| Error::with(Kind::Internal, format!("copy the supervisor's program {}", path.display()), e);
    let mut file = File::open(&path).map_err(failed)?;
    match memory::seal_program("berth-podd", &mut file) {
        Ok(sealed) => {
            if config.program.is_none() {
                let places = child::places().into_iter().filter_map(footprint::place_in_program);
                memory::hold_together(sealed.as_fd(), places);
            }
            Ok(sealed)
        }
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            tracing::warn!(
                "vm.memfd_noexec forbids the sealed copy of the supervisor; {} is used instead",
                path.display()
            );
            Ok(file.into())
        }
        Err(e) => Err(failed(e)),
    }
}

/// The first message to a supervisor.
fn setup_message(
    launch: &PodLaunch<'_>,
    entrance: &cgroup::Entrance,
    owned: Option<PodNamespaces>,
) -> Result<Message, Error> {
    let namespaces = &launch.spec.security.namespaces;
    if userns::of(namespaces).is_some() && owned.is_none() {
        return Err(Error::new(Kind::Internal, "the pod's user namespace was not made"));
    }
    let own_pids = namespaces.pid == NamespaceMode::Pod;
    let has = if launch.netns.is_some() { HAS_NETNS } else { 0 } | if own_pids { POD_PID } else { 0 };
    let has = has | if owned.is_some() { HAS_USER } else { 0 };
    let mut message = Message::new(wire::Kind::Setup, 0)
        .number(Tag::Has, has)
        .number(Tag::Flags, pod_flags(launch.spec))
        .put(Tag::Hostname, launch.spec.hostname.as_bytes());
    if let Some(label) = launch.label {
        message = message.put(Tag::MountLabel, label.to_string().as_bytes());
    }
    for (key, value) in sysctls::check(launch.spec)? {
        message = message.put(Tag::Sysctl, format!("{key}={value}").as_bytes());
    }
    let netns = launch.netns.map(|fd| fd.try_clone_to_owned()).transpose();
    message.fds.extend(netns.map_err(|e| Error::with(Kind::Internal, "duplicate the network namespace", e))?);
    message.fds.extend(owned.into_iter().flat_map(|owned| [owned.user, owned.uts, owned.ipc]));
    message.fds.extend(entrance.copies()?);
    Ok(message)
}

/// Namespaces that the supervisor makes for the pod. With the node's network comes the node's host name.
fn pod_flags(spec: &PodSpec) -> u64 {
    let namespaces = &spec.security.namespaces;
    let uts = if namespaces.network == NamespaceMode::Node { 0 } else { libc::CLONE_NEWUTS };
    let ipc = if namespaces.ipc == NamespaceMode::Node { 0 } else { libc::CLONE_NEWIPC };
    wire::int(uts | ipc)
}
