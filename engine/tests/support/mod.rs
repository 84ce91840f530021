//! A pod for tests: a busybox root in a temporary directory, a supervisor, cgroups of its own; everything is removed at the end and
//! what is left is counted.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

pub mod handlers;
pub mod load;

pub mod bundle;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::exec::{
    Connection, ContainerLaunch, Driver, Event, Exec, ExecLaunch, Exit, PodLaunch, PreparedMount, Process,
    ResolvedUser, Started,
};
use engine::native::{Config, Native};
use engine::spec::{ContainerSpec, NamespaceMode, PodSpec};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use tokio::io::AsyncReadExt;

use handlers::Handler;

/// A running pod.
pub struct Pod {
    pub dir: PathBuf,
    pub driver: Arc<dyn Driver>,
    pub connection: Connection,
    pub spec: PodSpec,
    pub id: String,
    handler: Handler,
    /// Containers whose start was tried.
    tried: Mutex<Vec<String>>,
}

/// A container to be started; change it before [`Pod::start`].
pub struct Container {
    pub id: String,
    pub spec: ContainerSpec,
    pub process: Process,
    pub mounts: Vec<PreparedMount>,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A native driver whose supervisor is this package's own binary.
pub fn driver(cgroup: &str) -> Arc<dyn Driver> {
    driver_of(Path::new(env!("CARGO_BIN_EXE_podd")), cgroup)
}

/// A native driver whose supervisor is this program.
pub fn driver_of(program: &Path, cgroup: &str) -> Arc<dyn Driver> {
    Native::new(config(program, cgroup)).unwrap()
}

/// Settings of a native driver.
pub fn config(program: &Path, cgroup: &str) -> Config {
    Config { program: Some(program.into()), supervisor_cgroup: format!("{cgroup}/podd"), ..Config::default() }
}

/// A private IPC and UTS pod in the node's network.
pub fn pod_spec() -> PodSpec {
    let mut spec = PodSpec { hostname: "test-pod".into(), ..Default::default() };
    spec.security.namespaces.network = NamespaceMode::Pod;
    spec.security.namespaces.pid = NamespaceMode::Container;
    spec
}

/// A detached copy of a directory or file.
pub fn clone_tree(path: &Path) -> OwnedFd {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags).unwrap()
}

/// Number of mounts this process sees below a directory.
pub fn mounts_below(dir: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|l| l.contains(dir.to_str().unwrap())).count()
}

impl Pod {
    pub async fn new() -> Self {
        Self::with(pod_spec()).await
    }

    pub async fn with(spec: PodSpec) -> Self {
        Self::of(&Handler::native(), spec).await
    }

    /// A pod whose containers somebody else may make.
    pub async fn on(handler: &Handler) -> Self {
        Self::of(handler, pod_spec()).await
    }

    pub async fn of(handler: &Handler, spec: PodSpec) -> Self {
        let id = format!("pod{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = PathBuf::from(format!("/tmp/exec-{id}"));
        fs::create_dir_all(dir.join("state")).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        make_root(&dir.join("root"));
        let driver = handler.driver(&id);
        let mut owned = driver.namespaces(&spec).unwrap_or_else(|e| panic!("{}", e.chain()));
        let net = owned.as_mut().and_then(|owned| owned.net.take());
        let netns = net.as_ref().map(AsFd::as_fd);
        let launch = PodLaunch { pod: &id, dir: &dir.join("state"), spec: &spec, netns, owned, label: None };
        let connection = driver.launch(launch).await.unwrap_or_else(|e| panic!("{}", e.chain()));
        let (handler, tried) = (handler.clone(), Mutex::default());
        Self { dir, driver, connection, spec, id, handler, tried }
    }

    /// A container that runs a shell script.
    pub fn container(&self, script: &str) -> Container {
        let id = format!("c{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut spec = ContainerSpec::default();
        spec.security.namespaces.pid = self.spec.security.namespaces.pid;
        Container { id, spec, process: shell(script), mounts: Vec::new() }
    }

    /// Device and inode of the supervisor's program.
    pub fn program(&self) -> (u64, u64) {
        let about = fs::metadata(format!("/proc/{}/exe", self.connection.supervisor.pid())).unwrap();
        (about.dev(), about.ino())
    }

    pub fn cgroup(&self, id: &str) -> String {
        format!("/berth-test-{}/{id}", self.id)
    }

    pub fn log_path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.log"))
    }

    pub async fn try_start(&self, container: Container) -> Result<Started, engine::Error> {
        self.try_start_on(container, clone_tree(&self.dir.join("root"))).await
    }

    pub async fn try_start_on(
        &self,
        container: Container,
        rootfs: OwnedFd,
    ) -> Result<Started, engine::Error> {
        let log = fs::File::options().create(true).append(true).open(self.log_path(&container.id)).unwrap();
        self.tried.lock().unwrap().push(container.id.clone());
        let launch = ContainerLaunch {
            id: &container.id,
            pod: &self.spec,
            spec: &container.spec,
            process: &container.process,
            rootfs,
            mounts: container.mounts,
            cgroup: &self.cgroup(&container.id),
            log: Some(log.into()),
            selinux: None,
        };
        self.connection.supervisor.start(launch).await
    }

    pub async fn start(&self, container: Container) -> Started {
        self.try_start(container).await.unwrap_or_else(|e| panic!("{}", e.chain()))
    }

    /// Waits until so many bytes of a container's log are written.
    pub async fn logged(&self, id: &str, bytes: u64) {
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        let wait = async {
            while fs::metadata(self.log_path(id)).unwrap().len() < bytes {
                tick.tick().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), wait).await.expect("the log does not grow");
    }

    /// Waits for the end of a container.
    pub async fn exit(&mut self, id: &str) -> Exit {
        let [exit] = self.exits([id]).await;
        exit
    }

    /// Waits for the ends of containers, in whatever order they come.
    pub async fn exits<const N: usize>(&mut self, ids: [&str; N]) -> [Exit; N] {
        let mut exits = [const { None }; N];
        let wait = async {
            while exits.contains(&None) {
                let Some(Event::Exited { container, exit }) = self.connection.events.recv().await else {
                    panic!("the supervisor has gone")
                };
                if let Some(at) = ids.iter().position(|id| *id == container) {
                    exits[at] = Some(exit);
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(180), wait).await.expect("not all containers end");
        exits.map(Option::unwrap)
    }

    /// The end of the only container of a pod that was connected to again, which may be over already.
    pub async fn only_exit(&mut self, id: &str) -> Exit {
        match self.connection.survivors[0].exit.clone() {
            Some(exit) => exit,
            None => self.exit(id).await,
        }
    }

    /// Runs a container to its end: exit and log without the time stamps.
    pub async fn run(&mut self, container: Container) -> (Exit, String) {
        let id = container.id.clone();
        self.start(container).await;
        let exit = self.exit(&id).await;
        (exit, self.log(&id))
    }

    /// Output of a script that must succeed.
    pub async fn output(&mut self, script: &str) -> String {
        let container = self.container(script);
        let (exit, log) = self.run(container).await;
        assert_eq!(exit.code, 0, "{log}");
        text(&log)
    }

    /// The log, each record without its time.
    pub fn log(&self, id: &str) -> String {
        let log = fs::read_to_string(self.log_path(id)).unwrap();
        log.lines().map(|l| format!("{}\n", l.split_once(' ').unwrap().1)).collect()
    }

    /// Starts a process in a container, with these of stdin, stdout and stderr. Where only its end matters, that says also
    /// whether it was started.
    pub async fn try_exec(
        &self,
        id: &str,
        spec: &ContainerSpec,
        process: &Process,
        [stdin, stdout, stderr]: [bool; 3],
        until_end: bool,
    ) -> Result<Exec, engine::Error> {
        let (pod, cgroup) = (&self.spec, &self.cgroup(id));
        let launch = ExecLaunch { spec, pod, cgroup, selinux: None, stdin, stdout, stderr, until_end };
        self.connection.supervisor.exec(id, process, launch).await
    }

    /// Why an exec was not started, as one text.
    pub async fn refused_exec(&self, id: &str, spec: &ContainerSpec, process: &Process) -> String {
        match self.try_exec(id, spec, process, [false, true, true], true).await {
            Ok(exec) => exec.exit.await.unwrap_err().chain(),
            Err(e) => e.chain(),
        }
    }

    /// Runs a command in a container: code and standard output.
    pub async fn exec(&self, id: &str, spec: &ContainerSpec, script: &str) -> (Exit, String) {
        let exec = self.try_exec(id, spec, &shell(script), [false, true, true], true).await;
        let exec = exec.unwrap_or_else(|e| panic!("{}", e.chain()));
        let (out, err) = (read_all(exec.stdio.stdout.unwrap()), read_all(exec.stdio.stderr.unwrap()));
        let (exit, out, err) = tokio::join!(exec.exit, out, err);
        (exit.unwrap(), out + &err)
    }

    /// Ends the pod and asserts that nothing of it is left.
    pub async fn end(self) {
        let pid = self.connection.supervisor.pid();
        self.connection.supervisor.shutdown().await.unwrap();
        let path = format!("/berth-test-{}", self.id);
        self.driver.remove_cgroup(&path).await.unwrap();
        assert!(!cgroup_exists(&path), "cgroup {path} is left");
        let tried = std::mem::take(&mut *self.tried.lock().unwrap());
        for id in tried {
            self.driver
                .discard(&id, &self.dir.join("state"))
                .await
                .unwrap_or_else(|e| panic!("{}", e.chain()));
        }
        self.handler.end(&self.id);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        assert!(status.is_empty() || status.contains("State:\tZ"), "supervisor {pid} is left");
        assert_eq!(mounts_below(&self.dir), 0, "mounts are left");
        fs::remove_dir_all(&self.dir).unwrap();
    }

    /// Another driver of the same settings, as a daemon that comes back has it.
    pub fn driver_again(&self) -> Arc<dyn Driver> {
        self.handler.driver(&self.id)
    }

    /// How many mounts the node has more than before the pod.
    pub fn added_mounts(&self) -> usize {
        mounts_below(&self.dir)
    }
}

impl Drop for Pod {
    /// A test that fails must not leave its containers running for ever.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let pid = self.connection.supervisor.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|child| child.parse().ok()).chain([pid]) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// Whether a cgroup exists on any hierarchy.
pub fn cgroup_exists(path: &str) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let roots =
        table.lines().filter(|l| l.contains(" - cgroup")).map(|l| l.split(' ').nth(4).unwrap().to_owned());
    roots.into_iter().any(|root| Path::new(&format!("{root}{path}")).exists())
}

/// Says why a test that ends here cannot run on this machine; `tests/exec` counts it as skipped.
pub fn skip(why: &str) {
    println!("skip: {why}");
}

/// Why what needs a pod with a user namespace cannot run on this kernel.
pub async fn no_user_namespaces() -> Option<&'static str> {
    let cgroup = format!("/berth-test-features-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let driver = driver(&cgroup);
    driver.remove_cgroup(&cgroup).await.unwrap();
    (!driver.features().user_namespaces).then_some("this kernel has no idmapped tmpfs (Linux 6.3)")
}

/// Waits until a process is this program: an external runtime's start ends a moment before its process executes.
pub async fn executed(pid: i32, program: &str) {
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let wait = async {
        while fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() != program {
            tick.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("the program is not executed");
}

/// Descriptors that a process has open, as the node sees them.
pub fn descriptors(pid: i32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut open: Vec<u32> =
        entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    open.sort_unstable();
    open
}

/// A process that runs a script.
pub fn shell(script: &str) -> Process {
    Process {
        args: vec!["/bin/sh".into(), "-c".into(), script.into()],
        env: vec![b"PATH=/bin".to_vec(), b"HOME=/root".to_vec()],
        cwd: "/".into(),
        user: ResolvedUser { uid: 0, gid: 0, groups: vec![0] },
        ..Process::default()
    }
}

/// The texts of records on standard output.
pub fn text(log: &str) -> String {
    log.lines().filter_map(|l| l.strip_prefix("stdout ")).map(|l| format!("{}\n", &l[2..])).collect()
}

/// Reads a pipe to its end.
pub async fn read_all(fd: OwnedFd) -> String {
    let mut bytes = Vec::new();
    let mut file = tokio::fs::File::from_std(fd.into());
    let _ = file.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The numbers that a stream of the log holds, in order; every record must be a whole line.
pub fn numbers(log: &str, stream: &str) -> Vec<u32> {
    let prefix = format!("{stream} F ");
    log.lines().filter_map(|l| l.strip_prefix(&*prefix)).map(|n| n.parse().unwrap()).collect()
}

/// A root with busybox and two users.
pub fn make_root(root: &Path) {
    for dir in ["bin", "etc", "tmp", "root", "proc", "sys", "dev", "data"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy("/usr/bin/busybox", root.join("bin/busybox")).unwrap();
    let list = std::process::Command::new("/usr/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|a| *a != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/data:/bin/sh\n")
        .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\napp:x:1000:\nextra:x:2000:app\n").unwrap();
}

/// Duplicates a descriptor.
pub fn dup(fd: impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().unwrap()
}
