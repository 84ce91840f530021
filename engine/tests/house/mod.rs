//! A whole node for tests: the engine over the real execution driver and the real network, and a directory as the image.
//! Everything has names of its own; what is left at the end is counted.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use engine::jobs::{CreateContainer, RemovePod, RunPod, StartContainer};
use engine::native::{self, Native};
use engine::spec::{ContainerSpec, ImageSpec, NamespaceMode, PodSpec};
use engine::{Config, Engine, Error, Kind, external, image, selinux};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, open_tree,
};
use storage::{Credentials, Image, ImageConfig, PullProgress, RootfsOptions, Usage};
use tokio::sync::watch;

/// Directories and names of one test.
pub struct House {
    pub dir: PathBuf,
    pub name: String,
    images: Arc<Directory>,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl House {
    pub fn new() -> Self {
        let name = format!("{:x}{:x}", std::process::id() & 0xfff, COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = PathBuf::from(format!("/tmp/core-{name}"));
        make_root(&dir.join("root"));
        // What the store does with its directories where SELinux is on.
        fs::create_dir_all(dir.join("layers")).unwrap();
        if let Some(label) = ok(selinux::image_label(&selinux::Place::default())) {
            for name in ["root", "layers"] {
                (label.apply)(fs::File::open(dir.join(name)).unwrap().as_fd(), &label.text).unwrap();
            }
        }
        let images = Arc::new(Directory { root: dir.join("root"), layers: Mutex::default() });
        Self { dir, name, images }
    }

    /// Starts a daemon's engine on the node.
    pub async fn engine(&self) -> Arc<Engine> {
        self.engine_with(|_, _| ()).await
    }

    /// The same with external runtimes beside the native driver.
    pub async fn engine_of(&self, runtimes: Vec<external::Config>) -> Arc<Engine> {
        self.engine_and(runtimes, |_, _| ()).await
    }

    /// The same with other settings.
    pub async fn engine_with(&self, change: impl FnOnce(&mut native::Config, &mut Config)) -> Arc<Engine> {
        self.engine_and(Vec::new(), change).await
    }

    async fn engine_and(
        &self,
        runtimes: Vec<external::Config>,
        change: impl FnOnce(&mut native::Config, &mut Config),
    ) -> Arc<Engine> {
        let mut native = native::Config {
            program: Some(env!("CARGO_BIN_EXE_podd").into()),
            supervisor_cgroup: format!("/core-{}/podd", self.name),
            ..native::Config::default()
        };
        let network = netplugins::open(netplugins::Config {
            pod_cidrs: vec![format!("10.{}.{}.0/24", 100 + self.number() / 256, self.number() % 256)],
            conf_dir: self.dir.join("cni"),
            max_networks: 1,
            bin_dirs: Vec::new(),
            netns_dir: self.dir.join("netns"),
            state_dir: self.dir.join("net"),
            link_prefix: format!("k{}", self.name),
            tap: netplugins::no_tap,
        })
        .unwrap();
        let mut config = Config {
            root: self.dir.join("lib"),
            state: self.dir.join("run"),
            cgroup_parent: format!("/core-{}", self.name),
            ..Config::default()
        };
        change(&mut native, &mut config);
        let exec = Native::with_runtimes(native, runtimes).unwrap_or_else(|e| panic!("{}", e.chain()));
        Engine::open(config, self.images.clone(), network, exec)
            .await
            .unwrap_or_else(|e| panic!("{}", e.chain()))
    }

    fn number(&self) -> u32 {
        u32::from_str_radix(&self.name, 16).unwrap() % 25_000
    }

    pub fn pod(&self, name: &str) -> PodSpec {
        let mut spec = PodSpec {
            name: name.into(),
            namespace: "default".into(),
            uid: format!("uid-{name}"),
            hostname: name.into(),
            log_directory: self.dir.join("logs").join(name),
            ..PodSpec::default()
        };
        spec.security.namespaces.pid = NamespaceMode::Container;
        spec
    }

    pub fn shell(&self, name: &str, script: &str) -> ContainerSpec {
        let mut spec = ContainerSpec {
            name: name.into(),
            image: ImageSpec { image: "busybox:1".into(), ..ImageSpec::default() },
            command: ["/bin/sh", "-c", script].map(Into::into).into(),
            log_path: format!("{name}/0.log").into(),
            ..ContainerSpec::default()
        };
        spec.security.namespaces.pid = NamespaceMode::Container;
        spec
    }

    /// A directory of the node to be a volume.
    pub fn data(&self) -> PathBuf {
        let data = self.dir.join("data");
        fs::create_dir_all(&data).unwrap();
        data
    }

    /// The node's mount table, without what other tests have put into it.
    pub fn mount_table(&self) -> BTreeSet<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let (ours, anybodys) = (format!("{}/", self.dir.display()), "/tmp/core-");
        let keep = |line: &&str| line.contains(&ours) || !line.contains(anybodys);
        table.lines().filter(keep).map(str::to_owned).collect()
    }

    /// The text of a container's log, without time stamps.
    pub fn log(&self, pod: &str, container: &str) -> String {
        let path = self.dir.join("logs").join(pod).join(container).join("0.log");
        let text = fs::read_to_string(&path).unwrap_or_default();
        text.lines().map(|line| format!("{}\n", line.split_once(' ').unwrap().1)).collect()
    }

    /// Removes all pods, retires the network, and asserts that nothing is left.
    pub async fn close(self, engine: Arc<Engine>) {
        for pod in engine.pods() {
            ok(engine.run(RemovePod { pod: pod.id.clone() }, None).await);
        }
        let network = engine.network().clone();
        drop(engine);
        // The kernel dismantles a pod's link a moment after its namespace has died.
        let links = network.inventory().unwrap().links;
        let left = network.wait_gone(&links, Instant::now() + Duration::from_secs(20)).unwrap();
        assert_eq!(left, Vec::<String>::new(), "links are left");
        network.retire().unwrap();
        let inventory = network.inventory().unwrap();
        assert!(inventory.elements.is_empty() && inventory.addresses == 0, "{inventory:?}");
        assert_eq!(mounts_below(&self.dir), 0, "mounts are left");
        assert_eq!(names(&self.dir.join("lib/pods")), Vec::<String>::new());
        assert_eq!(names(&self.dir.join("run/pods")), Vec::<String>::new());
        assert_eq!(names(&self.dir.join("netns")), Vec::<String>::new());
        assert!(self.images.layers.lock().unwrap().is_empty());
        for hierarchy in cgroup_roots() {
            let left: Vec<String> = names(&hierarchy.join(format!("core-{}", self.name)));
            let pods: Vec<&String> = left.iter().filter(|name| name.len() == 64).collect();
            assert!(pods.is_empty(), "{pods:?} in {}", hierarchy.display());
        }
    }
}

impl Drop for House {
    fn drop(&mut self) {
        for hierarchy in cgroup_roots() {
            let own = hierarchy.join(format!("core-{}", self.name));
            let _ = fs::remove_dir(own.join("podd"));
            let _ = fs::remove_dir(own);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

pub fn ok<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|e| panic!("{}", e.chain()))
}

pub async fn run_pod(engine: &Arc<Engine>, spec: PodSpec) -> String {
    ok(engine.run(RunPod { spec }, None).await)
}

pub async fn start(engine: &Arc<Engine>, pod: &str, spec: ContainerSpec) -> String {
    let id = ok(engine.run(CreateContainer { pod: pod.into(), spec }, None).await);
    ok(engine.run(StartContainer { container: id.clone() }, None).await);
    id
}

fn cgroup_roots() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroups = table.lines().filter(|line| line.contains(" - cgroup"));
    cgroups.filter_map(|line| line.split(' ').nth(4).map(PathBuf::from)).collect()
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}

fn mounts_below(dir: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(&format!("{}/", dir.display()))).count()
}

pub fn make_root(root: &Path) {
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "srv"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy("/usr/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in [
        "sh", "echo", "cat", "sleep", "ls", "wget", "httpd", "true", "id", "hostname", "touch", "mount",
        "seq", "nc",
    ] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
        .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\napp:x:1000:\n").unwrap();
}

/// One image, `busybox:1`, whose root is a directory that all containers share.
#[derive(Debug)]
struct Directory {
    root: PathBuf,
    layers: Mutex<BTreeSet<String>>,
}

impl Directory {
    fn tree(&self) -> Result<OwnedFd, Error> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, &self.root, flags).map_err(|e| Error::with(Kind::Internal, "open_tree", e))
    }
}

impl Directory {
    /// A writable layer over the directory, in which everything has this SELinux label: a directory by itself cannot be given one.
    fn labelled(&self, container: &str, label: &str) -> Result<OwnedFd, rustix::io::Errno> {
        let layer = self.root.with_file_name("layers").join(container);
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        [&upper, &work].into_iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
        let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, directory) in [("lowerdir", &self.root), ("upperdir", &upper), ("workdir", &work)] {
            fsconfig_set_string(&overlay, key, directory)?;
        }
        fsconfig_set_string(&overlay, "context", label)?;
        fsconfig_create(&overlay)?;
        fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    }
}

impl image::Driver for Directory {
    fn pull(
        self: Arc<Self>,
        image: String,
        _: Option<Credentials>,
        _: watch::Sender<PullProgress>,
    ) -> BoxFuture<'static, Result<Arc<Image>, Error>> {
        async move { self.find(&image).ok_or_else(|| Error::not_found("image", &image)) }.boxed()
    }

    fn images(&self) -> Vec<Arc<Image>> {
        let id = format!("sha256:{}", "ab".repeat(32));
        vec![Arc::new(Image {
            repo_tags: vec!["busybox:1".into()],
            repo_digests: vec![format!("busybox@{id}")],
            id,
            size: 1,
            config: ImageConfig { env: vec!["PATH=/bin".into()], ..ImageConfig::default() },
            pinned: false,
            annotations: Default::default(),
            pulled_at: SystemTime::UNIX_EPOCH,
        })]
    }

    fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.images().into_iter().find(|image| image.id == name || image.repo_tags[0] == name)
    }

    fn remove(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn driver_name(&self) -> &'static str {
        "directory"
    }

    fn prepare(&self, _: &str, container: &str) -> Result<(), Error> {
        self.layers.lock().unwrap().insert(container.into());
        Ok(())
    }

    fn mount(&self, container: &str, options: &RootfsOptions<'_>) -> Result<OwnedFd, Error> {
        if let Some(label) = &options.mount_label {
            return self
                .labelled(container, label)
                .map_err(|e| Error::with(Kind::Internal, "overlay with a label", e));
        }
        let tree = self.tree()?;
        if let Some(idmap) = &options.idmap {
            (idmap.apply)(tree.as_fd(), idmap.userns).map_err(|e| Error::with(Kind::Internal, "idmap", e))?;
        }
        Ok(tree)
    }

    fn release(&self, container: &str) -> Result<(), Error> {
        let _ = fs::remove_dir_all(self.root.with_file_name("layers").join(container));
        self.layers.lock().unwrap().remove(container);
        Ok(())
    }

    fn retain(&self, live: &dyn Fn(&str) -> bool) -> Vec<String> {
        let mut layers = self.layers.lock().unwrap();
        let gone = layers.iter().filter(|id| !live(id)).cloned().collect();
        layers.retain(|id| live(id));
        gone
    }

    fn container_usage(&self, _: &str) -> Option<Usage> {
        None
    }

    fn mount_image(&self, _: &str, _: &str, _: Option<&selinux::Context>) -> Result<OwnedFd, Error> {
        self.tree()
    }
}
