//! Any driver, with failures played from a script.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use netplugins::{Attachment, Endpoint, InterfaceStats, Inventory, NetNs};
use storage::{Credentials, Image, PullProgress, RootfsOptions, Usage};
use tokio::sync::watch;

use super::script::{Act, Script};
use crate::exec::{
    Call, Connection, ContainerLaunch, Driver, Exec, ExecLaunch, Exit, Features, PodLaunch, PreparedMount,
    Process, Started, Stdio, Supervisor,
};
use crate::selinux::Context;
use crate::spec::{ContainerSpec, MountSpec, PodSpec, Resources};
use crate::volume::Request;
use crate::{Error, Kind, image, volume};

/// A driver that does what the script says, and else what `D` does.
#[derive(Clone, Debug)]
pub struct Failing<D: ?Sized> {
    inner: Arc<D>,
    script: Script,
}

impl<D: ?Sized> Failing<D> {
    /// Wraps a driver.
    pub fn new(inner: Arc<D>, script: Script) -> Arc<Self> {
        Arc::new(Self { inner, script })
    }

    /// A blocking call under the script.
    fn block<T, E>(
        &self,
        call: &str,
        fail: impl Fn(String) -> E,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let scripted = || fail(format!("scripted failure of {call}"));
        match self.script.enter(call) {
            Act::Pass => work(),
            Act::Fail => Err(scripted()),
            Act::FailAfter => work().and_then(|_| Err(scripted())),
            Act::Hang => {
                self.script.hang();
                work()
            }
            Act::HangAfter => {
                let result = work();
                self.script.hang();
                result
            }
        }
    }
}

/// An asynchronous call under the script.
async fn play<T>(
    script: &Script,
    call: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match script.enter(call) {
        Act::Pass => work.await,
        Act::Fail => Err(scripted(call)),
        Act::FailAfter => work.await.and_then(|_| Err(scripted(call))),
        Act::Hang => {
            script.hang_async().await;
            work.await
        }
        Act::HangAfter => {
            let result = work.await;
            script.hang_async().await;
            result
        }
    }
}

fn scripted(call: &str) -> Error {
    ours(format!("scripted failure of {call}"))
}

fn ours(text: String) -> Error {
    Error::new(Kind::Internal, text)
}

fn nets(text: String) -> netplugins::Error {
    netplugins::Error::NotReady(text)
}

// === impl Network ===

impl<D: netplugins::Driver + ?Sized> netplugins::Driver for Failing<D> {
    fn status(&self) -> Result<(), String> {
        self.block("status", |why| why, || self.inner.status())
    }

    fn set_pod_cidrs(&self, cidrs: &[String]) -> Result<(), netplugins::Error> {
        self.block("set_pod_cidrs", nets, || self.inner.set_pod_cidrs(cidrs))
    }

    fn adopt_namespace(&self, id: &str, made: OwnedFd) -> Result<NetNs, netplugins::Error> {
        self.block("create_namespace", nets, || self.inner.adopt_namespace(id, made))
    }

    fn create_namespace(&self, id: &str) -> Result<NetNs, netplugins::Error> {
        self.block("create_namespace", nets, || self.inner.create_namespace(id))
    }

    fn open_namespace(&self, id: &str) -> Result<Option<NetNs>, netplugins::Error> {
        self.block("open_namespace", nets, || self.inner.open_namespace(id))
    }

    fn remove_namespace(&self, id: &str) -> Result<(), netplugins::Error> {
        self.block("remove_namespace", nets, || self.inner.remove_namespace(id))
    }

    fn give_device(&self, ns: &NetNs, device: &str, name: &str) -> Result<(), netplugins::Error> {
        self.block("give_device", nets, || self.inner.give_device(ns, device, name))
    }

    fn reserve(&self, endpoint: &Endpoint) -> Result<Attachment, netplugins::Error> {
        let held = std::cell::Cell::new(None);
        let reserve =
            || self.inner.reserve(endpoint).inspect(|attachment| held.set(Some(attachment.clone())));
        let result = self.block("reserve", nets, reserve);
        // A reservation that fails holds nothing: that is the contract.
        if let (Err(_), Some(attachment)) = (&result, held.take()) {
            self.inner.abandon(&attachment);
        }
        result
    }

    fn abandon(&self, attachment: &Attachment) {
        self.inner.abandon(attachment);
    }

    fn attach(
        &self,
        ns: &NetNs,
        endpoint: &Endpoint,
        reserved: Attachment,
    ) -> Result<Attachment, netplugins::Error> {
        self.block("attach", nets, || self.inner.attach(ns, endpoint, reserved))
    }

    fn detach(&self, ns: Option<&NetNs>, attachment: &Attachment) -> Result<(), netplugins::Error> {
        self.block("detach", nets, || self.inner.detach(ns, attachment))
    }

    fn restore(&self, live: &[Attachment]) -> Result<Vec<String>, netplugins::Error> {
        self.block("restore", nets, || self.inner.restore(live))
    }

    fn stats(
        &self,
        ids: &[&str],
    ) -> Result<Vec<Result<Vec<InterfaceStats>, netplugins::Error>>, netplugins::Error> {
        self.block("stats", nets, || self.inner.stats(ids))
    }

    fn check(&self, ns: &NetNs, attachment: &Attachment) -> Result<(), netplugins::Error> {
        self.block("check", nets, || self.inner.check(ns, attachment))
    }

    fn wait_gone(&self, links: &[String], deadline: Instant) -> Result<Vec<String>, netplugins::Error> {
        self.inner.wait_gone(links, deadline)
    }

    fn inventory(&self) -> Result<Inventory, netplugins::Error> {
        self.inner.inventory()
    }

    fn retire(&self) -> Result<(), netplugins::Error> {
        self.block("retire", nets, || self.inner.retire())
    }
}

// === impl Image ===

impl<D: image::Driver + ?Sized + 'static> image::Driver for Failing<D> {
    fn pull(
        self: Arc<Self>,
        image: String,
        credentials: Option<Credentials>,
        progress: watch::Sender<PullProgress>,
    ) -> BoxFuture<'static, Result<Arc<Image>, Error>> {
        let work = self.inner.clone().pull(image, credentials, progress);
        async move { play(&self.script, "pull", work).await }.boxed()
    }

    fn images(&self) -> Vec<Arc<Image>> {
        self.inner.images()
    }

    fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.inner.find(name)
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        self.block("remove_image", ours, || self.inner.remove(name))
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn root(&self) -> &Path {
        self.inner.root()
    }

    fn driver_name(&self) -> &'static str {
        self.inner.driver_name()
    }

    fn prepare(&self, image_id: &str, container: &str) -> Result<(), Error> {
        self.block("prepare", ours, || self.inner.prepare(image_id, container))
    }

    fn mount(&self, container: &str, options: &RootfsOptions<'_>) -> Result<OwnedFd, Error> {
        self.block("mount", ours, || self.inner.mount(container, options))
    }

    fn release(&self, container: &str) -> Result<(), Error> {
        self.block("release", ours, || self.inner.release(container))
    }

    fn retain(&self, live: &dyn Fn(&str) -> bool) -> Vec<String> {
        self.inner.retain(live)
    }

    fn container_usage(&self, container: &str) -> Option<Usage> {
        self.inner.container_usage(container)
    }

    fn mount_image(&self, image_id: &str, sub_path: &str, label: Option<&Context>) -> Result<OwnedFd, Error> {
        self.block("mount_image", ours, || self.inner.mount_image(image_id, sub_path, label))
    }
}

// === impl Volume ===

impl<D: volume::Driver + ?Sized> volume::Driver for Failing<D> {
    fn check(&self, mount: &MountSpec, label: Option<&Context>) -> Result<(), Error> {
        self.block("check_mount", ours, || self.inner.check(mount, label))
    }

    fn prepare(&self, request: &Request<'_>) -> Result<Vec<PreparedMount>, Error> {
        self.block("prepare_volumes", ours, || self.inner.prepare(request))
    }
}

// === impl Execution ===

impl<D: Driver + ?Sized> Failing<D> {
    fn wrap(&self, connection: Connection) -> Connection {
        let supervisor =
            Arc::new(FailingSupervisor { inner: connection.supervisor, script: self.script.clone() });
        Connection { supervisor, ..connection }
    }
}

impl<D: Driver + ?Sized> Driver for Failing<D> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn features(&self) -> Features {
        self.inner.features()
    }

    fn namespaces(&self, pod: &PodSpec) -> Result<Option<crate::exec::PodNamespaces>, Error> {
        self.inner.namespaces(pod)
    }

    fn check(&self, pod: &PodSpec, container: &ContainerSpec) -> Result<(), Error> {
        self.inner.check(pod, container)
    }

    fn launch<'a>(&'a self, launch: PodLaunch<'a>) -> Call<'a, Connection> {
        async move { Ok(self.wrap(play(&self.script, "launch", self.inner.launch(launch)).await?)) }.boxed()
    }

    fn connect<'a>(&'a self, pod: &'a str, dir: &'a Path) -> Call<'a, Option<Connection>> {
        let work = self.inner.connect(pod, dir);
        async move { Ok(play(&self.script, "connect", work).await?.map(|connection| self.wrap(connection))) }
            .boxed()
    }

    fn recorded_exits(&self, dir: &Path) -> BTreeMap<String, Exit> {
        self.inner.recorded_exits(dir)
    }

    fn prepare_supervisor<'a>(&'a self, pod: &'a str, dir: &'a Path) -> Call<'a, ()> {
        self.inner.prepare_supervisor(pod, dir)
    }

    fn prepare_pod_cgroup<'a>(&'a self, cgroup: &'a str) -> Call<'a, ()> {
        self.inner.prepare_pod_cgroup(cgroup)
    }

    fn prepare_cgroup<'a>(&'a self, cgroup: &'a str, spec: Arc<crate::spec::ContainerSpec>) -> Call<'a, ()> {
        self.inner.prepare_cgroup(cgroup, spec)
    }

    fn remove_cgroup<'a>(&'a self, cgroup: &'a str) -> Call<'a, ()> {
        play(&self.script, "remove_cgroup", self.inner.remove_cgroup(cgroup)).boxed()
    }

    fn discard<'a>(&'a self, container: &'a str, dir: &'a Path) -> Call<'a, ()> {
        play(&self.script, "discard", self.inner.discard(container, dir)).boxed()
    }

    fn update_cgroup(&self, cgroup: &str, resources: &Resources) -> Result<(), Error> {
        self.block("update_cgroup", ours, || self.inner.update_cgroup(cgroup, resources))
    }

    fn update_pod_cgroup(&self, cgroup: &str, resources: &Resources) -> Result<(), Error> {
        self.block("update_pod_cgroup", ours, || self.inner.update_pod_cgroup(cgroup, resources))
    }
}

/// A supervisor under the script of its driver.
#[derive(Debug)]
struct FailingSupervisor {
    inner: Arc<dyn Supervisor>,
    script: Script,
}

impl Supervisor for FailingSupervisor {
    fn pid(&self) -> i32 {
        self.inner.pid()
    }

    fn start<'a>(&'a self, launch: ContainerLaunch<'a>) -> Call<'a, Started> {
        play(&self.script, "start", self.inner.start(launch)).boxed()
    }

    fn exec<'a>(
        &'a self,
        container: &'a str,
        process: &'a Process,
        launch: ExecLaunch<'a>,
    ) -> Call<'a, Exec> {
        play(&self.script, "exec", self.inner.exec(container, process, launch)).boxed()
    }

    fn signal<'a>(&'a self, container: &'a str, signal: i32) -> Call<'a, ()> {
        play(&self.script, "signal", self.inner.signal(container, signal)).boxed()
    }

    fn kill<'a>(&'a self, container: &'a str) -> Call<'a, ()> {
        play(&self.script, "kill", self.inner.kill(container)).boxed()
    }

    fn kill_exec<'a>(&'a self, container: &'a str, exec: u64) -> Call<'a, ()> {
        play(&self.script, "kill_exec", self.inner.kill_exec(container, exec)).boxed()
    }

    fn reopen_log<'a>(&'a self, container: &'a str, log: OwnedFd) -> Call<'a, ()> {
        play(&self.script, "reopen_log", self.inner.reopen_log(container, log)).boxed()
    }

    fn resize<'a>(&'a self, container: &'a str, exec: Option<u64>, columns: u16, rows: u16) -> Call<'a, ()> {
        self.inner.resize(container, exec, columns, rows)
    }

    fn attach<'a>(&'a self, container: &'a str, stdin: bool, stdout: bool, stderr: bool) -> Call<'a, Stdio> {
        play(&self.script, "attach_streams", self.inner.attach(container, stdin, stdout, stderr)).boxed()
    }

    fn shutdown(&self) -> Call<'_, ()> {
        play(&self.script, "shutdown", self.inner.shutdown()).boxed()
    }
}
