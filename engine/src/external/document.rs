//! The bundle's config.json (config.md and config-linux.md of the OCI runtime specification). Pure.
//!
//! Namespaces that the pod shares are not in it: the runtime is born into them. Nor are limits but those of devices: they are in the
//! cgroup before the runtime joins it.

use std::path::Path;

use serde_json::{Value, json};

use super::{Bundle, plan};
use crate::error::Error;
use crate::exec::cgroup::devices::Rules;
use crate::exec::{PreparedMount, Process};
use crate::native::capabilities;
use crate::native::compile::{Facts, Node};
use crate::native::lsm::{self, Label};
use crate::selinux::Context;
use crate::spec::{ContainerSpec, NamespaceMode, Propagation};

/// A version that also the oldest runtimes in use take; nothing here is newer.
const VERSION: &str = "1.0.2";

/// Everything a container's document depends on.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    /// What is known of the node.
    pub(crate) facts: &'a Facts,
    /// The request.
    pub(crate) spec: &'a ContainerSpec,
    /// The first process.
    pub(crate) process: &'a Process,
    /// Volumes, in mount order.
    pub(crate) mounts: &'a [PreparedMount],
    /// Devices beyond the usual.
    pub(crate) devices: &'a [Node],
    /// Which devices may be used.
    pub(crate) rules: &'a Rules,
    /// Labels of security modules.
    pub(crate) labels: &'a [Label],
    /// SELinux label of the file systems mounted for it; `None`: SELinux is off.
    pub(crate) mount_label: Option<&'a Context>,
    /// Seccomp profile, in the specification's spelling.
    pub(crate) seccomp: Option<Value>,
    /// Cgroup, in cgroupfs spelling.
    pub(crate) cgroup: &'a str,
    /// Process whose PID namespace is joined; `None`: as `spec` says.
    pub(crate) pid: Option<i32>,
    /// The pod has a /dev/shm of its own.
    pub(crate) shm: bool,
    /// Where root and volumes are attached.
    pub(crate) bundle: &'a Bundle,
}

/// config.json.
pub(crate) fn config(c: &Container<'_>) -> Result<Value, Error> {
    let security = &c.spec.security;
    let hidden = |paths: &[String]| if security.privileged { Vec::new() } else { paths.to_vec() };
    let mut linux = json!({
        "cgroupsPath": c.cgroup,
        "namespaces": namespaces(c),
        "maskedPaths": hidden(&security.masked_paths),
        "readonlyPaths": hidden(&security.readonly_paths),
        "devices": c.devices.iter().map(device).collect::<Vec<_>>(),
        "resources": { "devices": rules(c.rules) },
        "rootfsPropagation": propagation(c.mounts),
    });
    if let Some(seccomp) = &c.seccomp {
        linux["seccomp"] = seccomp.clone();
    }
    if let Some(label) = c.mount_label {
        linux["mountLabel"] = label.to_string().into();
    }
    if let Some(rdt) = &c.spec.runtime_edits.intel_rdt {
        linux["intelRdt"] = json!(rdt);
    }
    let mut config = json!({
        "ociVersion": VERSION,
        "process": process(c.facts, c.spec, c.process, c.labels)?,
        "root": { "path": "rootfs", "readonly": security.readonly_rootfs },
        "mounts": mounts(c),
        "linux": linux,
    });
    if !c.spec.runtime_edits.hooks.is_empty() {
        config["hooks"] = json!(c.spec.runtime_edits.hooks);
    }
    Ok(config)
}

/// The part that a container and its execs share.
pub(crate) fn process(
    facts: &Facts,
    spec: &ContainerSpec,
    process: &Process,
    labels: &[Label],
) -> Result<Value, Error> {
    let security = &spec.security;
    let sets = capabilities::compute(security, facts.default_capabilities, facts.bounding)?;
    let utf8 = |text: &Vec<u8>| {
        let name =
            || String::from_utf8_lossy(text.split(|b| *b == b'=').next().unwrap_or_default()).into_owned();
        String::from_utf8(text.clone())
            .map_err(|_| Error::invalid("envs", format!("{} is not UTF-8, as this handler needs it", name())))
    };
    let env = process.env.iter().map(utf8).collect::<Result<Vec<_>, _>>()?;
    let mut out = json!({
        "terminal": process.tty,
        "user": {
            "uid": process.user.uid,
            "gid": process.user.gid,
            "umask": 0o022,
            "additionalGids": process.user.groups,
        },
        "args": process.args,
        "env": env,
        "cwd": process.cwd,
        "capabilities": {
            "bounding": names(sets.main),
            "permitted": names(sets.main),
            "effective": names(sets.main),
            "inheritable": names(sets.inheritable),
            "ambient": names(sets.ambient),
        },
        "noNewPrivileges": security.no_new_privs,
        "oomScoreAdj": spec.resources.oom_score_adj.clamp(-1000, 1000),
    });
    if let Some(profile) = labels.iter().find_map(lsm::profile) {
        out["apparmorProfile"] = profile.into();
    }
    if let Some(label) = labels.iter().find_map(lsm::context) {
        out["selinuxLabel"] = label.into();
    }
    Ok(out)
}

/// Names of the capabilities of a set.
fn names(set: u64) -> Vec<String> {
    let known = capabilities::NAMES.iter().enumerate();
    known.filter(|(bit, _)| set >> bit & 1 == 1).map(|(_, name)| format!("CAP_{name}")).collect()
}

fn namespaces(c: &Container<'_>) -> Vec<Value> {
    let mut out = vec![json!({ "type": "mount" })];
    if !c.spec.security.privileged {
        out.push(json!({ "type": "cgroup" }));
    }
    match (c.pid, c.spec.security.namespaces.pid) {
        (Some(pid), _) => out.push(json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") })),
        (None, NamespaceMode::Node) => {}
        (None, _) => out.push(json!({ "type": "pid" })),
    }
    out
}

fn mounts(c: &Container<'_>) -> Vec<Value> {
    let one = |kind: &str, at: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    let sealed = if c.spec.security.privileged { "rw" } else { "ro" };
    let shm = if c.shm { c.bundle.at("shm") } else { "/dev/shm".into() };
    let mut out = vec![
        one("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        one("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        one(
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        one("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        bind(&shm, "/dev/shm", &["rbind", "rprivate"]),
        one("sysfs", "/sys", &["nosuid", "noexec", "nodev", sealed]),
        one("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", sealed]),
    ];
    out.extend(c.mounts.iter().enumerate().map(|(number, mount)| {
        let travels = match mount.spec.propagation {
            Propagation::Private => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        };
        let mut options = vec!["rbind", travels];
        // What is attached there is so already; the runtime is told so that it does not undo it.
        options.extend(mount.spec.readonly.then_some("ro"));
        options.extend(mount.spec.options.iter().map(String::as_str));
        bind(&c.bundle.at(&plan::volume(number)), &mount.destination, &options)
    }));
    out
}

fn bind(source: &Path, at: &str, options: &[&str]) -> Value {
    json!({ "destination": at, "type": "bind", "source": source, "options": options })
}

/// How far mounts travel has to be allowed for the whole tree first.
fn propagation(mounts: &[PreparedMount]) -> &'static str {
    let any = |wanted| mounts.iter().any(|mount| mount.spec.propagation == wanted);
    if any(Propagation::Bidirectional) {
        "rshared"
    } else if any(Propagation::HostToContainer) {
        "rslave"
    } else {
        "rprivate"
    }
}

fn device(node: &Node) -> Value {
    json!({
        "path": node.path,
        "type": if node.mode & libc::S_IFMT == libc::S_IFBLK { "b" } else { "c" },
        "major": node.device.0,
        "minor": node.device.1,
        "fileMode": node.mode & 0o7777,
        "uid": node.owner.0,
        "gid": node.owner.1,
    })
}

/// Nothing at first, then what is allowed.
fn rules(rules: &Rules) -> Vec<Value> {
    let none = json!({ "allow": false, "access": "rwm" });
    match rules {
        Rules::All => vec![json!({ "allow": true, "access": "rwm" })],
        Rules::Only(only) => {
            std::iter::once(none).chain(only.iter().map(|rule| rule.document(true))).collect()
        }
        Rules::Ordered(all) => {
            std::iter::once(none).chain(all.iter().map(|(allow, rule)| rule.document(*allow))).collect()
        }
    }
}
