//! The plan compiler: from what is asked for to the steps of a child. Pure: what it needs to know of the node is in [`Facts`].

use std::ffi::{CStr, CString};
use std::path::PathBuf;

use super::capabilities::{self, Sets};
use super::child::template;
use super::listener::Guard;
use super::lsm::Label;
use super::plan::{self, Step, Writer};
use super::userns;
use crate::error::Error;
use crate::exec::cgroup::hierarchy::V2_DIRECTORY;
use crate::exec::wire::int;
use crate::exec::{PreparedMount, Process};
use crate::selinux::Context;
use crate::spec::{ContainerSpec, NamespaceMode, Namespaces, Propagation, UserNamespace};

const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;

/// What the compiler has to know of the node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Our own bounding set.
    pub(crate) bounding: u64,
    /// Capabilities of a container that asks for nothing.
    pub(crate) default_capabilities: u64,
    /// v1 hierarchies: directory name and mount options (`key\0value\0…`).
    pub(crate) cgroup_v1: Vec<(String, Vec<u8>)>,
    /// There is a v2 hierarchy.
    pub(crate) cgroup_v2: bool,
}

/// A device node to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Path in the container.
    pub(crate) path: String,
    /// Type and permissions.
    pub(crate) mode: u32,
    /// Major and minor number.
    pub(crate) device: (u32, u32),
    /// Owner on the node.
    pub(crate) owner: (u32, u32),
    /// Path on the node; `None`: there need not be one.
    pub(crate) host: Option<PathBuf>,
}

/// Everything a container's plan depends on.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    /// Container id.
    pub(crate) id: &'a str,
    /// The request.
    pub(crate) spec: &'a ContainerSpec,
    /// The process.
    pub(crate) process: &'a Process,
    /// Mounts in order; the descriptors follow the root's.
    pub(crate) mounts: &'a [PreparedMount],
    /// Devices beyond the usual.
    pub(crate) devices: &'a [Node],
    /// Compiled filter.
    pub(crate) seccomp: Option<Guard<'a>>,
    /// Labels of security modules.
    pub(crate) labels: &'a [Label],
    /// SELinux label of the file systems mounted for it; `None`: SELinux is off.
    pub(crate) mount_label: Option<&'a Context>,
    /// Number of v1 `tasks` files.
    pub(crate) tasks: usize,
    /// The node's /dev/shm is attached behind the mounts.
    pub(crate) node_shm: bool,
    /// The pod's user namespace, attached behind that; then, with the node's network, a copy of the node's /sys. Last come the mounts of its
    /// cgroups, one for each v1 hierarchy.
    pub(crate) user: Option<User<'a>>,
}

/// A pod's user namespace, as plans depend on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User<'a> {
    /// Its mapping.
    pub(crate) map: &'a UserNamespace,
    /// The pod has a network of its own, so that a sysfs can be mounted in it.
    pub(crate) own_network: bool,
}

impl Container<'_> {
    /// Index of the user namespace.
    fn user_fd(&self) -> u64 {
        (self.tasks + 1 + self.mounts.len() + usize::from(self.node_shm)) as u64
    }

    /// Index of the first of the cgroups' mounts.
    fn cgroups_fd(&self) -> u64 {
        self.user_fd() + self.user.map_or(0, |user| 1 + u64::from(!user.own_network))
    }

    /// Index behind all descriptors of the daemon.
    fn last_fd(&self, facts: &Facts) -> u64 {
        self.cgroups_fd() + facts.cgroup_v1.len() as u64
    }
}

/// Everything an exec's plan depends on.
#[derive(Debug)]
pub(crate) struct Exec<'a> {
    /// The container's request.
    pub(crate) spec: &'a ContainerSpec,
    /// The process.
    pub(crate) process: &'a Process,
    /// Compiled filter.
    pub(crate) seccomp: Option<Guard<'a>>,
    /// Labels of security modules.
    pub(crate) labels: &'a [Label],
    /// Number of v1 `tasks` files.
    pub(crate) tasks: usize,
    /// Which standard streams follow them, in the order stdin, stdout, stderr.
    pub(crate) streams: [bool; 3],
    /// Mapping of the pod's user namespace.
    pub(crate) user: Option<&'a UserNamespace>,
}

/// A C string out of the client's text.
pub(crate) fn text(field: &str, value: &str) -> Result<CString, Error> {
    CString::new(value).map_err(|_| Error::invalid(field, "contains a zero byte"))
}

/// Strings one behind the other, each with its NUL.
pub(crate) fn list<'a>(field: &str, strings: impl Iterator<Item = &'a [u8]>) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    for string in strings {
        if string.contains(&0) {
            return Err(Error::invalid(field, "contains a zero byte"));
        }
        out.extend_from_slice(string);
        out.push(0);
    }
    Ok(out)
}

/// Whether a container sees cgroups of its own; `user`: it has a user namespace, in which it may mount no other.
pub(crate) fn private_cgroups(spec: &ContainerSpec, user: bool) -> bool {
    user || !spec.security.privileged
}

/// The plan of a container. The order of the steps is the order of their needs; each says why where it is not plain.
pub(crate) fn container(facts: &Facts, c: &Container<'_>) -> Result<Vec<u8>, Error> {
    let mut plan = Writer::new();
    let security = &c.spec.security;
    let root = c.tasks as u64;
    plan.push(Step::JoinCgroups { first: 0, count: c.tasks as u64 });
    plan.push(Step::OomScore { value: oom_score(c.spec) });
    labels(&mut plan, c.labels);
    if c.user.is_some() {
        // What only the node's root may do is done; the rest is done as the pod's.
        container_streams(&mut plan, facts, c)?;
        let flags = pid_namespace(&security.namespaces).0 | int(libc::CLONE_NEWNS);
        plan.push(Step::User { fd: c.user_fd(), flags });
    }
    if private_cgroups(c.spec, c.user.is_some()) {
        // After joining: the namespace's root is where we are.
        plan.push(Step::Unshare { flags: int(libc::CLONE_NEWCGROUP) });
    }
    plan.push(Step::Root { fd: root });
    let sets = capabilities::compute(security, facts.default_capabilities, facts.bounding)?;
    kernel_mounts(&mut plan, facts, c, sets);
    usual_devices(&mut plan, c.user.is_some());
    for node in c.devices {
        device(&mut plan, node)?;
    }
    for (mount, fd) in c.mounts.iter().zip(root + 1..) {
        volume(&mut plan, mount, fd)?;
    }
    let cwd = text("working_dir", &c.process.cwd)?;
    plan.push(Step::Directory { at: &cwd, mode: 0o755 });
    plan.push(Step::Session {});
    if c.process.tty {
        plan.push(Step::Terminal { uid: c.process.user.uid.into(), mount: 1 });
    } else if c.user.is_none() {
        container_streams(&mut plan, facts, c)?;
    }
    if !security.privileged {
        for path in &security.masked_paths {
            plan.push(Step::Mask { at: &text("masked_paths", path)? });
        }
        for path in &security.readonly_paths {
            plan.push(Step::ReadOnly { at: &text("readonly_paths", path)? });
        }
    }
    plan.push(Step::Pivot {});
    if security.readonly_rootfs {
        plan.push(Step::ReadOnlyRoot {});
    }
    plan.push(Step::Keyring { name: &text("container id", &format!("_ses.{}", c.id))? });
    program(&mut plan, facts, c.spec, sets, c.process, c.seccomp)?;
    Ok(plan.finish())
}

/// The plan of an exec: into the container's cgroups and namespaces, then as any process of it.
pub(crate) fn exec(facts: &Facts, e: &Exec<'_>) -> Result<Vec<u8>, Error> {
    let mut plan = Writer::new();
    let mut next = e.tasks as u64;
    plan.push(Step::JoinCgroups { first: 0, count: next });
    plan.push(Step::OomScore { value: oom_score(e.spec) });
    labels(&mut plan, e.labels);
    plan.push(Step::Session {});
    let uid = node_id(e.user, e.process.user.uid)?;
    let mut stream = |there: bool| {
        let fd = if there { next } else { u64::MAX };
        next += u64::from(there);
        fd
    };
    let [stdin, stdout, stderr] = e.streams.map(&mut stream);
    if !e.process.tty {
        // While the template's null device is in reach.
        plan.push(Step::Stdio { stdin, stdout, stderr, uid });
    }
    let user = if e.user.is_some() { libc::CLONE_NEWUSER } else { 0 };
    let private = private_cgroups(e.spec, e.user.is_some());
    let cgroup = if private { libc::CLONE_NEWCGROUP } else { 0 };
    plan.push(Step::JoinProcess { pidfd: next, flags: int(libc::CLONE_NEWNS | cgroup | user) });
    if e.process.tty {
        plan.push(Step::Terminal { uid: e.process.user.uid.into(), mount: 0 });
    }
    let sets = capabilities::compute(&e.spec.security, facts.default_capabilities, facts.bounding)?;
    program(&mut plan, facts, e.spec, sets, e.process, e.seccomp)?;
    Ok(plan.finish())
}

/// Where the standard streams of a container come from: the descriptors behind those of the plan, which the supervisor adds in the
/// order stdout, stderr, stdin.
fn container_streams(plan: &mut Writer, facts: &Facts, c: &Container<'_>) -> Result<(), Error> {
    if c.process.tty {
        return Ok(());
    }
    let uid = node_id(c.user.map(|user| user.map), c.process.user.uid)?;
    let first = c.last_fd(facts);
    let stdin = if c.process.stdin { first + 2 } else { u64::MAX };
    plan.push(Step::Stdio { stdin, stdout: first, stderr: first + 1, uid });
    Ok(())
}

/// The id on the node of a user in a pod.
fn node_id(user: Option<&UserNamespace>, uid: u32) -> Result<u64, Error> {
    let Some(user) = user else { return Ok(uid.into()) };
    userns::on_node(&user.uids, uid)
        .map(u64::from)
        .ok_or_else(|| Error::invalid("run_as_user", format!("{uid} is not in the pod's user namespace")))
}

/// Labels for the program, asked for while a /proc of ours is in reach.
pub(crate) fn labels(plan: &mut Writer, labels: &[Label]) {
    for label in labels {
        plan.push(Step::Label { file: label.file, value: &label.value });
    }
}

/// oom_score_adj within its range (proc(5)).
pub(crate) fn oom_score(spec: &ContainerSpec) -> u64 {
    spec.resources.oom_score_adj.clamp(-1000, 1000).cast_unsigned()
}

/// proc, /dev, devpts, mqueue, shm, sysfs, cgroup.
fn kernel_mounts(plan: &mut Writer, facts: &Facts, c: &Container<'_>, sets: Sets) {
    let privileged = c.spec.security.privileged;
    let label = c.mount_label.map(Context::to_string).unwrap_or_default().into_bytes();
    let usual = NOSUID | NODEV | NOEXEC;
    plan.push(Step::Mount { kind: c"proc", options: b"", attributes: usual, at: c"/proc" });
    let dev = plan::labelled(b"mode\x00755\0size\x0065536k\0", &label);
    plan.push(Step::Mount { kind: c"tmpfs", options: &dev, attributes: NOSUID | STRICTATIME, at: c"/dev" });
    let pts = plan::labelled(b"newinstance\0\0ptmxmode\x000666\0mode\x000620\0gid\x005\0", &label);
    plan.push(Step::Mount { kind: c"devpts", options: &pts, attributes: NOSUID | NOEXEC, at: c"/dev/pts" });
    plan.push(Step::Mount { kind: c"mqueue", options: b"", attributes: usual, at: c"/dev/mqueue" });
    if !label.is_empty() {
        // It is the IPC namespace's and mounted there already: only its directory can be labelled.
        plan.push(Step::Relabel { at: c"/dev/mqueue", value: &label });
    }
    if c.node_shm {
        let fd = (c.tasks + 1 + c.mounts.len()) as u64;
        plan.push(Step::Attach {
            fd,
            at: c"/dev/shm",
            directory: 1,
            set: 0,
            propagation: libc::MS_PRIVATE,
            recursive: 1,
        });
    } else {
        plan.push(Step::Share { from: template::SHM, at: c"/dev/shm" });
    }
    let sys = if privileged { usual } else { usual | RDONLY };
    if c.user.is_some_and(|user| !user.own_network) {
        // A sysfs shows the network it is mounted in, which here is not the user namespace's to show anew.
        let (fd, propagation) = (c.user_fd() + 1, libc::MS_PRIVATE);
        plan.push(Step::Attach { fd, at: c"/sys", directory: 1, set: sys, propagation, recursive: 1 });
    } else {
        plan.push(Step::Mount { kind: c"sysfs", options: b"", attributes: sys, at: c"/sys" });
    }
    // Who may mount anew what it shares with others could write to it.
    let alone = !label.is_empty() || (c.user.is_none() && sets.main & capabilities::SYS_ADMIN != 0);
    cgroup_mounts(plan, facts, c, sys, alone.then_some(label.as_slice()));
}

/// The container's own cgroups: one mount on v2, a directory of mounts otherwise, which it shares unless it is to be `alone` with one of
/// that label.
fn cgroup_mounts(plan: &mut Writer, facts: &Facts, c: &Container<'_>, attributes: u64, alone: Option<&[u8]>) {
    if facts.cgroup_v1.is_empty() {
        plan.push(Step::Mount { kind: c"cgroup2", options: b"", attributes, at: c"/sys/fs/cgroup" });
        return;
    }
    match alone {
        None => plan.push(Step::Hierarchies { at: c"/sys/fs/cgroup" }),
        Some(label) => plan.push(Step::Mount {
            kind: c"tmpfs",
            options: &plan::labelled(template::HIERARCHIES_OPTIONS, label),
            attributes: attributes & !RDONLY,
            at: c"/sys/fs/cgroup",
        }),
    }
    for ((name, _), fd) in facts.cgroup_v1.iter().zip(c.cgroups_fd()..) {
        if let Ok(at) = CString::new(format!("/sys/fs/cgroup/{name}")) {
            let (set, propagation) = (attributes, libc::MS_PRIVATE);
            plan.push(Step::Attach { fd, at: &at, directory: 1, set, propagation, recursive: 0 });
        }
    }
    if let (true, Ok(at)) = (facts.cgroup_v2, CString::new(format!("/sys/fs/cgroup/{V2_DIRECTORY}"))) {
        plan.push(Step::Mount { kind: c"cgroup2", options: b"", attributes, at: &at });
    }
    plan.push(Step::Attributes { at: c"/sys/fs/cgroup", set: RDONLY });
}

/// What every program expects to find in /dev.
pub(crate) fn usual_devices(plan: &mut Writer, shared: bool) {
    for (from, at, major, minor) in [
        (template::NULL, c"/dev/null", 1, 3),
        (c"/zero", c"/dev/zero", 1, 5),
        (c"/full", c"/dev/full", 1, 7),
        (c"/random", c"/dev/random", 1, 8),
        (c"/urandom", c"/dev/urandom", 1, 9),
        (c"/tty", c"/dev/tty", 5, 0),
    ] {
        if shared {
            plan.push(Step::ShareFile { from, at });
            continue;
        }
        plan.push(Step::Node {
            at,
            mode: (libc::S_IFCHR | 0o666).into(),
            device: number(major, minor),
            uid: 0,
            gid: 0,
        });
    }
    usual_links(plan);
}

/// The links of /dev.
pub(crate) fn usual_links(plan: &mut Writer) {
    for (at, target) in [
        (c"/dev/ptmx", c"pts/ptmx"),
        (c"/dev/fd", c"/proc/self/fd"),
        (c"/dev/stdin", c"/proc/self/fd/0"),
        (c"/dev/stdout", c"/proc/self/fd/1"),
        (c"/dev/stderr", c"/proc/self/fd/2"),
        (c"/dev/core", c"/proc/kcore"),
    ] {
        plan.push(Step::Link { at, target });
    }
}

/// A device number as plans carry it.
pub(crate) fn number(major: u32, minor: u32) -> u64 {
    u64::from(major) << 32 | u64::from(minor)
}

/// One device of the request.
fn device(plan: &mut Writer, node: &Node) -> Result<(), Error> {
    let at = absolute("devices.container_path", &node.path)?;
    let (uid, gid) = (node.owner.0.into(), node.owner.1.into());
    plan.push(Step::Node {
        at: &at,
        mode: node.mode.into(),
        device: number(node.device.0, node.device.1),
        uid,
        gid,
    });
    Ok(())
}

/// An absolute path in the container.
pub(crate) fn absolute(field: &str, path: &str) -> Result<CString, Error> {
    if path.starts_with('/') {
        text(field, path)
    } else {
        Err(Error::invalid(field, format!("{path:?} is not absolute")))
    }
}

/// One volume.
fn volume(plan: &mut Writer, mount: &PreparedMount, fd: u64) -> Result<(), Error> {
    volume_at(plan, mount, fd, &absolute("mounts.container_path", &mount.destination)?)
}

/// One volume, at another place than the container's.
pub(crate) fn volume_at(plan: &mut Writer, mount: &PreparedMount, fd: u64, at: &CStr) -> Result<(), Error> {
    let mut set = 0;
    if mount.spec.readonly {
        set |= RDONLY;
    }
    for option in &mount.spec.options {
        set |= match option.as_str() {
            "noexec" => NOEXEC,
            "nodev" => NODEV,
            "nosuid" => NOSUID,
            other => {
                return Err(Error::invalid("mounts.mount_options", format!("{other:?} is not supported")));
            }
        };
    }
    let propagation = match mount.spec.propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::HostToContainer => libc::MS_SLAVE,
        // The clone is in the source's peer group already.
        Propagation::Bidirectional => 0,
    };
    let recursive = mount.spec.recursive_readonly.into();
    plan.push(Step::Attach { fd, at, directory: mount.directory.into(), set, propagation, recursive });
    Ok(())
}

/// Without no_new_privs only CAP_SYS_ADMIN may install a filter: becoming the user has made it ineffective, and it is about to go.
pub(crate) fn still_able(ours: u64) -> Step<'static> {
    Step::Capabilities { permitted: ours, effective: ours, inheritable: 0, ambient: 0 }
}

/// From root to the user's program: the part that containers and execs share.
fn program(
    plan: &mut Writer,
    facts: &Facts,
    spec: &ContainerSpec,
    sets: Sets,
    process: &Process,
    seccomp: Option<Guard<'_>>,
) -> Result<(), Error> {
    let security = &spec.security;
    let filter = seccomp.map(Guard::step);
    // What a filter may not allow comes before it.
    let cwd = text("working_dir", &process.cwd)?;
    plan.push(Step::Chdir { path: &cwd });
    if security.no_new_privs {
        plan.push(Step::NoNewPrivs {});
    }
    plan.push(Step::Bounding { keep: sets.main });
    let groups: Vec<u8> = process.user.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
    plan.push(Step::Identity { uid: process.user.uid.into(), gid: process.user.gid.into(), groups: &groups });
    if let (false, Some(filter)) = (security.no_new_privs, filter) {
        plan.push(still_able(facts.bounding));
        plan.push(filter);
    }
    plan.push(Step::Capabilities {
        permitted: sets.main,
        effective: sets.main,
        inheritable: sets.inheritable,
        ambient: sets.ambient,
    });
    if let (true, Some(filter)) = (security.no_new_privs, filter) {
        plan.push(filter);
    }
    let arguments = list("command", process.args.iter().map(String::as_bytes))?;
    if arguments.is_empty() {
        return Err(Error::invalid("command", "neither the request nor the image names one"));
    }
    let environment = list("envs", process.env.iter().map(Vec::as_slice))?;
    plan.push(Step::Exec { arguments: &arguments, environment: &environment });
    Ok(())
}

/// How the child's PID namespace comes about: clone flags, and whether an existing one is joined.
pub(crate) fn pid_namespace(container: &Namespaces) -> (u64, bool) {
    match container.pid {
        NamespaceMode::Container => (int(libc::CLONE_NEWPID), false),
        NamespaceMode::Pod | NamespaceMode::Target => (0, true),
        NamespaceMode::Node => (0, false),
    }
}

#[cfg(test)]
mod tests;
