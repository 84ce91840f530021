//! From a bundle to plans of the native interpreter. Pure: what the node has is in [`Facts`], what was opened in [`Slots`].
//!
//! [`container`] is the first process, [`exec`] any other. [`mounts`] and [`resources`] read their parts of the configuration.

pub(super) mod mounts;
pub(super) mod process;
pub(super) mod resources;
#[cfg(test)]
mod tests;

use std::path::Path;

use oci_spec::runtime::{Hook, LinuxDevice, LinuxDeviceType, LinuxNamespaceType as Namespace, Process, Spec};

use self::mounts::{Kindred, Request};
use super::bundle;
use crate::error::{Error, Kind};
use crate::exec::cgroup::hierarchy::V2_DIRECTORY;
use crate::exec::cgroup::{CgroupDriver, is_unit};
use crate::exec::wire::int;
use crate::native::child::template;
use crate::native::compile::{Facts, absolute, labels, list, number, text, usual_devices, usual_links};
use crate::native::listener::Guard;
use crate::native::lsm::Label;
use crate::native::plan::{self, Step, Writer};
use crate::native::sysctls;
use crate::spec::{NamespaceMode, PodSpec};

/// At which point the first process waits for the runtime.
pub(super) mod stage {
    /// It is in its user namespace, which has no ids yet.
    pub(in crate::oci) const IDS: u8 = 0;
    /// Its root file system is complete and not yet its root.
    pub(in crate::oci) const HOOKS: u8 = 1;
}

/// An owner that leaves pipes as they are (chown(2)): those of the node have none in a user namespace.
const NOBODY: u64 = u32::MAX as u64;

/// Numbers of descriptors in the plan of a first process.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots {
    /// How many `tasks` files of v1 cgroups come first.
    pub(super) tasks: usize,
    /// The root file system, detached.
    pub(super) root: u64,
    /// A detached null device.
    pub(super) null: u64,
    /// The pipes on which it waits and tells.
    pub(super) pipes: [u64; 2],
    /// The standard streams.
    pub(super) streams: [u64; 3],
    /// Per v1 hierarchy its name and the container's own directory in it, for containers without a cgroup namespace; `unified` is v2.
    pub(super) cgroups: Vec<(String, u64)>,
    /// The null device and its like as binds, where nodes cannot be made: path and descriptor.
    pub(super) devices: Vec<(String, u64)>,
    /// Mount and cgroup namespaces to be entered by the process itself.
    pub(super) enter: Vec<(u64, Namespace)>,
}

/// Everything the plan of a first process depends on.
#[derive(Debug)]
pub(super) struct Container<'a> {
    pub(super) id: &'a str,
    pub(super) spec: &'a Spec,
    pub(super) bundle: &'a Path,
    /// The root file system on the node.
    pub(super) rootfs: &'a Path,
    pub(super) facts: &'a Facts,
    pub(super) slots: &'a Slots,
    pub(super) mounts: &'a [Request],
    /// Labels of security modules.
    pub(super) labels: &'a [Label],
    /// SELinux label of the file systems mounted for it, or nothing.
    pub(super) mount_label: &'a [u8],
    pub(super) filter: Option<Guard<'a>>,
    /// Descriptors from 3 on for the program.
    pub(super) preserve: u32,
    /// A session keyring of its own.
    pub(super) keyring: bool,
}

/// Whether hooks need the node's tree inside the container's mount namespace.
pub(super) fn keeps_node(spec: &Spec) -> bool {
    let Some(hooks) = spec.hooks() else { return false };
    #[allow(deprecated, reason = "old bundles have them")]
    let prestart = hooks.prestart();
    [prestart, hooks.create_runtime(), hooks.create_container()]
        .iter()
        .any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
}

/// Whether a namespace is to be made.
pub(super) fn is_new(spec: &Spec, kind: Namespace) -> bool {
    matches!(bundle::namespace(spec, kind), Some(None))
}

/// The plan of a container's first process. The order of the steps is the order of their needs.
pub(super) fn container(c: &Container<'_>) -> Result<Vec<u8>, Error> {
    let mut plan = Writer::new();
    let process = c.spec.process().as_ref().ok_or_else(|| Error::invalid("process", "is missing"))?;
    plan.push(Step::Preserve { count: c.preserve.into() });
    plan.push(Step::JoinCgroups { first: 0, count: c.slots.tasks as u64 });
    if is_new(c.spec, Namespace::User) {
        plan.push(Step::Sync { stage: stage::IDS.into() });
        plan.push(Step::NamespaceRoot {});
    }
    namespaces(&mut plan, c)?;
    process::limits(&mut plan, process);
    process::scheduling(&mut plan, process)?;
    root(&mut plan, c)?;
    for (at, mount) in c.mounts.iter().enumerate() {
        one_mount(&mut plan, c, at, mount)?;
    }
    devices(&mut plan, c)?;
    let cwd = text("process.cwd", process.cwd().to_str().unwrap_or_default())?;
    plan.push(Step::Directory { at: &cwd, mode: 0o755 });
    plan.push(Step::Session {});
    let uid = process.user().uid().into();
    if process.terminal() == Some(true) {
        plan.push(Step::Terminal { uid, mount: 1 });
    } else {
        let [stdin, stdout, stderr] = c.slots.streams;
        let uid = if bundle::has_namespace(c.spec, Namespace::User) { NOBODY } else { uid };
        plan.push(Step::Stdio { stdin, stdout, stderr, uid });
    }
    covers(&mut plan, c.spec)?;
    node_hooks(&mut plan, c)?;
    labels(&mut plan, c.labels);
    plan.push(Step::Pivot {});
    last_of_root(&mut plan, c.spec)?;
    if c.keyring {
        plan.push(Step::Keyring { name: &text("ID", &format!("_ses.{}", c.id))? });
    }
    process::identity(&mut plan, process, c.facts.bounding, c.filter)?;
    let [go, verdict] = c.slots.pipes;
    plan.push(Step::Await { go, verdict });
    start_hooks(&mut plan, c)?;
    process::program(&mut plan, process, c.filter)?;
    Ok(plan.finish())
}

/// Namespaces the clone could not make, the template, and what belongs to namespaces.
fn namespaces(plan: &mut Writer, c: &Container<'_>) -> Result<(), Error> {
    let spec = c.spec;
    for (fd, kind) in &c.slots.enter {
        plan.push(Step::Enter { fd: *fd, kind: *kind as u64 });
    }
    if is_new(spec, Namespace::Cgroup) {
        // After joining: the namespace's root is where we are.
        plan.push(Step::Unshare { flags: int(libc::CLONE_NEWCGROUP) });
    }
    if bundle::has_namespace(spec, Namespace::Mount) {
        let sysfs = bundle::has_namespace(spec, Namespace::User).into();
        let keep = keeps_node(spec).into();
        plan.push(Step::Template { null: c.slots.null, keep, sysfs, label: c.mount_label });
    } else {
        plan.push(Step::RootAlone { fd: c.slots.root, null: c.slots.null, label: c.mount_label });
    }
    if let Some(process) = spec.process()
        && let Some(score) = process.oom_score_adj()
    {
        plan.push(Step::OomScore { value: i64::from(score).clamp(-1000, 1000).cast_unsigned() });
    }
    if let Some(name) = spec.hostname() {
        plan.push(Step::Hostname { name: name.as_bytes() });
    }
    if let Some(name) = spec.domainname() {
        plan.push(Step::Domainname { name: name.as_bytes() });
    }
    for (path, value) in sysctls_of(spec)? {
        plan.push(Step::Sysctl { path: &text("linux.sysctl", &path)?, value: value.as_bytes() });
    }
    Ok(())
}

/// Sysctls as paths below /proc/sys, checked against the namespaces that are the container's own.
fn sysctls_of(spec: &Spec) -> Result<Vec<(String, String)>, Error> {
    let mut pod = PodSpec::default();
    let mode = |kind| {
        if bundle::has_namespace(spec, kind) { NamespaceMode::Pod } else { NamespaceMode::Node }
    };
    pod.security.namespaces.network = mode(Namespace::Network);
    pod.security.namespaces.ipc = mode(Namespace::Ipc);
    let wanted = spec.linux().as_ref().and_then(|l| l.sysctl().as_ref()).into_iter().flatten();
    let mut out = Vec::new();
    for (key, value) in wanted {
        pod.sysctls = [(key.clone(), value.clone())].into();
        sysctls::check(&pod).map_err(|e| e.context("linux"))?;
        // As soon as there is a slash, dots belong to names.
        out.push((if key.contains('/') { key.clone() } else { key.replace('.', "/") }, value.clone()));
    }
    out.sort();
    Ok(out)
}

/// The root file system: on top of the template, or where hooks look for it.
fn root(plan: &mut Writer, c: &Container<'_>) -> Result<(), Error> {
    if !bundle::has_namespace(c.spec, Namespace::Mount) {
        return Ok(());
    }
    if keeps_node(c.spec) {
        let at = c.rootfs.to_str().ok_or_else(|| Error::invalid("root.path", "is not UTF-8"))?;
        plan.push(Step::RootAt { fd: c.slots.root, at: &text("root.path", at)? });
    } else {
        plan.push(Step::Root { fd: c.slots.root });
    }
    Ok(())
}

/// File systems that are mounted where the runtime has to be sure of the place.
const STRICT: [&str; 6] = ["proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2"];

fn one_mount(plan: &mut Writer, c: &Container<'_>, index: usize, mount: &Request) -> Result<(), Error> {
    let at = absolute("mounts.destination", &mount.destination)?;
    let attributes = mount.set & !mount.clear;
    match &mount.kind {
        Kindred::Bind { .. } => {
            plan.push(Step::Bind { index: index as u64, at: &at });
        }
        Kindred::Cgroups => cgroups(plan, c, &mount.destination, attributes)?,
        Kindred::FileSystem { kind, options } => {
            let name = text("mounts.type", kind)?;
            let options = &mounts::labelled(kind, options, c.mount_label);
            let place = mount.destination.trim_end_matches('/');
            // Links of the image for these have led runtimes astray (CVE-2019-19921, CVE-2025-54867, CVE-2026-41579).
            if STRICT.contains(&kind.as_str()) || ["/proc", "/sys", "/dev"].contains(&place) {
                plan.push(Step::Mount { kind: &name, options, attributes, at: &at });
            } else {
                let propagation = mount.propagation;
                plan.push(Step::FileSystem { kind: &name, options, attributes, propagation, at: &at });
            }
            if kind == "mqueue" && !c.mount_label.is_empty() {
                // It is the IPC namespace's: only its directory can be labelled.
                plan.push(Step::Relabel { at: &at, value: c.mount_label });
            }
        }
    }
    Ok(())
}

/// The container's cgroups: one mount on v2, a directory of mounts otherwise.
fn cgroups(plan: &mut Writer, c: &Container<'_>, at: &str, attributes: u64) -> Result<(), Error> {
    let base = absolute("mounts.destination", at)?;
    let bind = |plan: &mut Writer, fd: u64, at: &std::ffi::CStr| {
        let set = attributes;
        plan.push(Step::Attach { fd, at, directory: 1, set, propagation: libc::MS_PRIVATE, recursive: 0 });
    };
    let namespace = bundle::has_namespace(c.spec, Namespace::Cgroup);
    if c.facts.cgroup_v1.is_empty() {
        match c.slots.cgroups.first() {
            Some((_, fd)) if !namespace => bind(plan, *fd, &base),
            _ => plan.push(Step::Mount { kind: c"cgroup2", options: b"", attributes, at: &base }),
        }
        return Ok(());
    }
    let writable = attributes & !libc::MOUNT_ATTR_RDONLY;
    let options = &plan::labelled(template::HIERARCHIES_OPTIONS, c.mount_label);
    plan.push(Step::Mount { kind: c"tmpfs", options, attributes: writable, at: &base });
    let below = |name: &str| absolute("mounts.destination", &format!("{}/{name}", at.trim_end_matches('/')));
    if namespace {
        for (name, options) in &c.facts.cgroup_v1 {
            plan.push(Step::Mount { kind: c"cgroup", options, attributes, at: &below(name)? });
        }
        if c.facts.cgroup_v2 {
            plan.push(Step::Mount { kind: c"cgroup2", options: b"", attributes, at: &below(V2_DIRECTORY)? });
        }
    } else {
        for (name, fd) in &c.slots.cgroups {
            bind(plan, *fd, &below(name)?);
        }
    }
    plan.push(Step::Attributes { at: &base, set: attributes & libc::MOUNT_ATTR_RDONLY });
    Ok(())
}

/// Devices: what every program expects (config-linux.md, "Default Devices"), then the bundle's. A /dev of the node has its own.
fn devices(plan: &mut Writer, c: &Container<'_>) -> Result<(), Error> {
    let foreign =
        |m: &Request| m.destination.trim_end_matches('/') == "/dev" && matches!(m.kind, Kindred::Bind { .. });
    if c.mounts.iter().any(foreign) {
        return Ok(());
    }
    for (path, fd) in &c.slots.devices {
        let at = &absolute("linux.devices", path)?;
        plan.push(Step::Attach { fd: *fd, at, directory: 0, set: 0, propagation: 0, recursive: 0 });
    }
    if !c.slots.devices.is_empty() {
        usual_links(plan);
        return Ok(());
    }
    usual_devices(plan, false);
    for device in c.spec.linux().as_ref().and_then(|l| l.devices().as_ref()).into_iter().flatten() {
        let path = device.path().to_str().unwrap_or_default();
        let at = absolute("linux.devices.path", path)?;
        let (uid, gid) = (device.uid().unwrap_or(0).into(), device.gid().unwrap_or(0).into());
        let (mode, device) = node(device)?;
        plan.push(Step::Node { at: &at, mode, device, uid, gid });
    }
    Ok(())
}

/// Type with permissions, and number, of a device.
fn node(device: &LinuxDevice) -> Result<(u64, u64), Error> {
    let field = "linux.devices";
    let part =
        |n: i64| u32::try_from(n).map_err(|_| Error::invalid(field, format!("{n} is no device number")));
    let (kind, device_number) = match device.typ() {
        LinuxDeviceType::B => (libc::S_IFBLK, number(part(device.major())?, part(device.minor())?)),
        LinuxDeviceType::C | LinuxDeviceType::U => {
            (libc::S_IFCHR, number(part(device.major())?, part(device.minor())?))
        }
        LinuxDeviceType::P => (libc::S_IFIFO, 0),
        LinuxDeviceType::A => return Err(Error::invalid(field, "type \"a\" is no type of a node")),
    };
    let mode = device.file_mode().unwrap_or(0o666) & 0o7777;
    Ok((u64::from(kind | mode), device_number))
}

/// Masked and read-only paths.
fn covers(plan: &mut Writer, spec: &Spec) -> Result<(), Error> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    for path in linux.masked_paths().iter().flatten() {
        plan.push(Step::Mask { at: &absolute("linux.maskedPaths", path)? });
    }
    for path in linux.readonly_paths().iter().flatten() {
        plan.push(Step::ReadOnly { at: &absolute("linux.readonlyPaths", path)? });
    }
    Ok(())
}

/// The root's own attributes, once it is the root.
fn last_of_root(plan: &mut Writer, spec: &Spec) -> Result<(), Error> {
    if spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true)) {
        plan.push(Step::ReadOnlyRoot {});
    }
    let Some(linux) = spec.linux() else { return Ok(()) };
    if let Some(word) = linux.rootfs_propagation().as_deref().filter(|word| !word.is_empty()) {
        let (propagation, all) = mounts::propagation_of(word)
            .ok_or_else(|| Error::invalid("linux.rootfsPropagation", format!("{word:?} is none")))?;
        plan.push(Step::Propagation { propagation, recursive: all.into() });
    }
    if let Some(personality) = linux.personality() {
        plan.push(Step::Personality { domain: process::personality(personality)? });
    }
    Ok(())
}

/// Hooks that see the node and the container's namespaces, and the moment for those that run outside.
fn node_hooks(plan: &mut Writer, c: &Container<'_>) -> Result<(), Error> {
    if keeps_node(c.spec) {
        plan.push(Step::Sync { stage: stage::HOOKS.into() });
    }
    let hooks = c.spec.hooks().as_ref().and_then(|hooks| hooks.create_container().as_ref());
    for hook in hooks.into_iter().flatten() {
        one_hook(plan, c, hook, "creating", true)?;
    }
    Ok(())
}

/// Hooks inside the container, once it is told to start.
fn start_hooks(plan: &mut Writer, c: &Container<'_>) -> Result<(), Error> {
    let hooks = c.spec.hooks().as_ref().and_then(|hooks| hooks.start_container().as_ref());
    for hook in hooks.into_iter().flatten() {
        one_hook(plan, c, hook, "created", false)?;
    }
    Ok(())
}

fn one_hook(
    plan: &mut Writer,
    c: &Container<'_>,
    hook: &Hook,
    status: &str,
    host: bool,
) -> Result<(), Error> {
    let path = text("hooks.path", hook.path().to_str().unwrap_or_default())?;
    let own = [path.to_string_lossy().into_owned()];
    let arguments = hook.args().as_deref().filter(|args| !args.is_empty()).unwrap_or(&own);
    let arguments = list("hooks.args", arguments.iter().map(String::as_bytes))?;
    let environment = list("hooks.env", hook.env().iter().flatten().map(String::as_bytes))?;
    let (before, after) = halves(&super::hooks::state(c.id, status, None, c.bundle, c.spec))?;
    plan.push(Step::Hook {
        path: &path,
        arguments: &arguments,
        environment: &environment,
        before: before.as_bytes(),
        after: after.as_bytes(),
        seconds: super::hooks::seconds(hook),
        host: host.into(),
    });
    Ok(())
}

/// A state as text with a gap for the process id, which nobody knows yet.
fn halves(state: &serde_json::Value) -> Result<(String, String), Error> {
    let text = state.to_string();
    let Some(rest) = text.strip_prefix('{') else {
        return Err(Error::new(Kind::Internal, "a container's state is no object"));
    };
    Ok(("{\"pid\":".to_owned(), format!(",{rest}")))
}

/// Everything the plan of another process depends on.
#[derive(Debug)]
pub(super) struct Exec<'a> {
    pub(super) process: &'a Process,
    pub(super) facts: &'a Facts,
    /// How many `tasks` files come first; the streams follow, then the container's pidfd, then its root if it has to be entered.
    pub(super) tasks: usize,
    /// Namespaces to enter (`CLONE_NEW*`).
    pub(super) flags: u64,
    /// The container has no mount namespace.
    pub(super) change_root: bool,
    /// The container has a user namespace.
    pub(super) user_namespace: bool,
    /// Labels of security modules.
    pub(super) labels: &'a [Label],
    pub(super) filter: Option<Guard<'a>>,
    pub(super) preserve: u32,
    /// Name of the container's session keyring.
    pub(super) keyring: &'a str,
}

/// The plan of another process.
pub(super) fn exec(e: &Exec<'_>) -> Result<Vec<u8>, Error> {
    let mut plan = Writer::new();
    let tasks = e.tasks as u64;
    plan.push(Step::Preserve { count: e.preserve.into() });
    plan.push(Step::JoinCgroups { first: 0, count: tasks });
    labels(&mut plan, e.labels);
    if let Some(score) = e.process.oom_score_adj() {
        plan.push(Step::OomScore { value: i64::from(score).clamp(-1000, 1000).cast_unsigned() });
    }
    process::limits(&mut plan, e.process);
    process::scheduling(&mut plan, e.process)?;
    plan.push(Step::Session {});
    let uid = e.process.user().uid().into();
    let terminal = e.process.terminal() == Some(true);
    if !terminal {
        let uid = if e.user_namespace { NOBODY } else { uid };
        plan.push(Step::Stdio { stdin: tasks, stdout: tasks + 1, stderr: tasks + 2, uid });
    }
    if e.change_root {
        plan.push(Step::ChangeRoot { fd: tasks + 4 });
    }
    plan.push(Step::JoinProcess { pidfd: tasks + 3, flags: e.flags });
    if terminal {
        plan.push(Step::Terminal { uid, mount: 0 });
    }
    plan.push(Step::Keyring { name: &text("ID", e.keyring)? });
    process::identity(&mut plan, e.process, e.facts.bounding, e.filter)?;
    process::program(&mut plan, e.process, e.filter)?;
    Ok(plan.finish())
}

/// The cgroup of a container: as the bundle says, below the root of each hierarchy; else one of its own. For systemd the bundle says
/// `slice:prefix:name`, for `prefix-name.scope` in that slice.
pub(super) fn cgroup(id: &str, spec: &Spec, driver: CgroupDriver) -> Result<String, Error> {
    let field = "linux.cgroupsPath";
    let path =
        spec.linux().as_ref().and_then(|l| l.cgroups_path().clone()).filter(|p| !p.as_os_str().is_empty());
    let given =
        path.as_deref().map(|path| path.to_str().ok_or_else(|| Error::invalid(field, "is not UTF-8")));
    let given = given.transpose()?;
    if driver == CgroupDriver::Systemd {
        return scope(id, given.unwrap_or_default());
    }
    let own = format!("/berth-oci/{id}");
    let text = given.unwrap_or(&own);
    if text.contains(':') {
        let why = format!("{text:?} is a unit of systemd: give --systemd-cgroup, or a cgroup path");
        return Err(Error::invalid(field, why));
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.is_empty() || parts.contains(&"..") {
        return Err(Error::invalid(field, format!("{text:?} is no path of a cgroup")));
    }
    Ok(format!("/{}", parts.join("/")))
}

/// A scope by its three parts, of which slice and prefix may be empty; without any, one of its own.
fn scope(id: &str, given: &str) -> Result<String, Error> {
    let field = "linux.cgroupsPath";
    let own = format!(":berth-oci:{id}");
    let text = if given.is_empty() { &own } else { given };
    let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..] else {
        let why = format!("{text:?} is not of the form slice:prefix:name, which --systemd-cgroup wants");
        return Err(Error::invalid(field, why));
    };
    let slice = CgroupDriver::Systemd.parent(field, if slice.is_empty() { "system.slice" } else { slice })?;
    let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
    if name.is_empty() || name.ends_with(".slice") || !is_unit(&unit) {
        return Err(Error::invalid(field, format!("{unit:?} is not the name of a scope")));
    }
    Ok(format!("{slice}/{unit}"))
}
