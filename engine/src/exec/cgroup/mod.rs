//! Cgroups on whatever hierarchies the node has: v2, v1, or both at once.
//!
//! In reading order: [`hierarchy`] (where the controllers are), [`limits`] (resources → file contents, pure), [`devices`] (device
//! rules for v1 lists and v2 programs), this file (create, enter, update, kill, remove), [`names`] (what cgroups are called), [`manager`]
//! (with or without [`systemd`]), [`stats`] (readings).
//!
//! A container is a member of its cgroup on every hierarchy. Nobody is ever moved by pid, which costs a grace period of the kernel and
//! stalls all forks of the node: children are cloned into the v2 cgroup, and move themselves on v1.

pub(crate) mod blockio;
pub(crate) mod devices;
pub(crate) mod hierarchy;
pub(crate) mod limits;
pub(crate) mod manager;
pub(crate) mod names;
mod removal;
pub mod stats;
pub(crate) mod systemd;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use self::devices::Rules;
use self::hierarchy::{Hierarchies, Hierarchy, read, relative, write};
use self::limits::Setting;
use crate::error::{Error, Kind};
use crate::spec::Resources;

pub(crate) use self::manager::{Holder, Made, Manager};
pub(crate) use self::names::is_unit;
pub use self::names::{CgroupDriver, container};
pub use self::stats::Reader;

/// Controllers that are switched on for children where v2 has them.
const WANTED: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// Descriptors through which a child enters a cgroup, and through which its OOM kills are counted.
#[derive(Debug)]
pub(crate) struct Entrance {
    /// v2 directory to clone into.
    pub(crate) v2: Option<OwnedFd>,
    /// v1 `tasks` files, open for writing.
    pub(crate) tasks: Vec<OwnedFd>,
    /// File with an `oom_kill` line.
    pub(crate) oom: Option<OwnedFd>,
}

impl Entrance {
    /// The `tasks` files once more, to be sent away.
    pub(crate) fn copies(&self) -> Result<Vec<OwnedFd>, Error> {
        let copies = self.tasks.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>();
        copies.map_err(Self::failed)
    }

    /// The whole of it once more, but for the counter.
    pub(crate) fn copy(&self) -> Result<Self, Error> {
        let v2 = self.v2.as_ref().map(OwnedFd::try_clone).transpose().map_err(Self::failed)?;
        Ok(Self { v2, tasks: self.copies()?, oom: None })
    }

    fn failed(e: io::Error) -> Error {
        Error::with(Kind::Internal, "duplicate the entrance of a cgroup", e)
    }
}

/// The node's hierarchies; they do not change while the node runs.
pub(crate) fn node() -> Result<&'static Hierarchies, Error> {
    static NODE: OnceLock<Hierarchies> = OnceLock::new();
    if let Some(node) = NODE.get() {
        return Ok(node);
    }
    let found = Hierarchies::find()?;
    Ok(NODE.get_or_init(|| found))
}

/// A cgroup to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// In cgroupfs spelling.
    pub(crate) cgroup: &'a str,
    /// Limits.
    pub(crate) resources: &'a Resources,
    /// Settings beyond these, for controllers on v1.
    pub(crate) v1: &'a [Setting],
    /// For controllers on v2.
    pub(crate) v2: &'a [Setting],
    /// What may be done with devices.
    pub(crate) devices: &'a Rules,
}

impl<'a> Wanted<'a> {
    /// With no more limits than these.
    pub(crate) fn new(cgroup: &'a str, resources: &'a Resources, devices: &'a Rules) -> Self {
        Self { cgroup, resources, v1: &[], v2: &[], devices }
    }
}

/// Makes a cgroup with its limits and opens it. On failure nothing that was made here is left.
pub(crate) fn create(wanted: &Wanted<'_>) -> Result<Entrance, Error> {
    let (cgroup, resources) = (wanted.cgroup, wanted.resources);
    hierarchy::check(cgroup)?;
    let node = node()?;
    let made = (|| {
        for hierarchy in node.all() {
            make(node, hierarchy, cgroup, resources)?;
        }
        for (hierarchy, setting) in planned(node, resources, wanted.v1, wanted.v2)? {
            apply(hierarchy, cgroup, &setting)?;
        }
        devices::apply(node, cgroup, wanted.devices)?;
        enter(cgroup)
    })();
    if made.is_err() {
        let _ = removal::remove(node, cgroup);
    }
    made
}

/// Opens an existing cgroup for entering.
pub(crate) fn enter(cgroup: &str) -> Result<Entrance, Error> {
    let node = node()?;
    let failed = |what: &str, e| Error::with(Kind::Internal, format!("open {what} of cgroup {cgroup}"), e);
    let mut entrance = Entrance { v2: None, tasks: Vec::new(), oom: None };
    if let Some(v2) = &node.v2 {
        let dir = v2.open(cgroup).map_err(|e| failed("v2 directory", e))?;
        if v2.has("memory") {
            entrance.oom =
                openat(&dir, "memory.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok();
        }
        entrance.v2 = Some(dir);
    }
    for v1 in &node.v1 {
        let tasks = v1.open_file(cgroup, "tasks", OFlags::WRONLY);
        entrance.tasks.push(tasks.map_err(|e| failed(&v1.controllers.join(","), e))?);
        if v1.has("memory") {
            entrance.oom = v1.open_file(cgroup, "memory.oom_control", OFlags::RDONLY).ok();
        }
    }
    Ok(entrance)
}

/// A cgroup as it is seen in each v1 hierarchy, as detached mounts in the order of the hierarchies; "/": the whole of each. What mounts a
/// hierarchy anew instead waits in the kernel for all cgroups of the node to be looked at (`cgroup_lock_and_drain_offline`).
pub(crate) fn views(cgroup: &str) -> Result<Vec<OwnedFd>, Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let view = |v1: &Hierarchy| {
        open_tree(&v1.dir, relative(cgroup), flags).map_err(|e| {
            let controllers = v1.controllers.join(",");
            Error::with(Kind::Internal, format!("copy the mount of cgroup {cgroup} ({controllers})"), e)
        })
    };
    node()?.v1.iter().map(view).collect()
}

/// Makes a cgroup that will have no processes of its own, where it does not exist yet; it goes with what is made in it.
pub(crate) fn prepare(cgroup: &str, resources: &Resources) -> Result<(), Error> {
    hierarchy::check(cgroup)?;
    let node = node()?;
    node.all().try_for_each(|hierarchy| make(node, hierarchy, cgroup, resources))
}

/// Changes the limits of a live cgroup, with settings beyond [`Resources`] for controllers on v1 and on v2; unset values stay as they
/// are. On failure everything already written is put back.
///
/// Fails with [`Kind::NotFound`] when the cgroup is gone, with [`Kind::InvalidArgument`] when the kernel refuses a value: the text
/// names file and value.
pub(crate) fn update(
    cgroup: &str,
    resources: &Resources,
    v1: &[Setting],
    v2: &[Setting],
) -> Result<(), Error> {
    hierarchy::check(cgroup)?;
    let node = node()?;
    change(node, cgroup, planned(node, resources, v1, v2)?).map(drop)
}

/// Values to be written, each with the hierarchy it belongs to.
type Plan<'n> = Vec<(&'n Hierarchy, Setting)>;

/// Writes to the files of a live cgroup, and returns what was there before. On failure that is put back already.
fn change<'n>(node: &Hierarchies, cgroup: &str, mut plan: Plan<'n>) -> Result<Plan<'n>, Error> {
    let mut undo = Plan::new();
    order_memory(node, cgroup, &mut plan);
    for (hierarchy, setting) in plan {
        let before = hierarchy.open(cgroup).map_err(|e| gone(cgroup, e))?;
        let before = read(&before, &setting.file).ok().map(|text| text.trim().to_owned());
        if let Err(error) = apply(hierarchy, cgroup, &setting) {
            put_back(cgroup, &undo);
            return Err(error);
        }
        if let Some(value) = before {
            undo.push((hierarchy, Setting { value, ..setting }));
        }
    }
    Ok(undo)
}

/// Undoes a change, the last first.
fn put_back(cgroup: &str, undo: &Plan<'_>) {
    for (hierarchy, setting) in undo.iter().rev() {
        if let Err(e) = apply(hierarchy, cgroup, setting) {
            tracing::warn!(cgroup, file = setting.file, "undo of a limit failed: {}", e.chain());
        }
    }
}

/// Kills every process of a cgroup and below; absent is fine.
pub(crate) fn kill(cgroup: &str) -> Result<(), Error> {
    removal::kill(node()?, cgroup)
}

/// Kills what runs in a cgroup and removes it and everything below on every hierarchy; absent is fine. Blocks up to a few seconds.
pub(crate) fn remove(cgroup: &str) -> Result<(), Error> {
    hierarchy::check(cgroup)?;
    removal::remove(node()?, cgroup)
}

/// Everything to be written, in the order in which a fresh cgroup takes it.
fn planned<'n>(
    node: &'n Hierarchies,
    resources: &Resources,
    v1: &[Setting],
    v2: &[Setting],
) -> Result<Plan<'n>, Error> {
    let mut plan = settings(node, resources)?;
    more(node, v1, v2, &mut plan)?;
    Ok(plan)
}

/// What resources come down to.
fn settings<'n>(node: &'n Hierarchies, r: &Resources) -> Result<Plan<'n>, Error> {
    let mut out = Vec::new();
    let missing = |controller: &str| {
        Error::new(
            Kind::FailedPrecondition,
            format!("cgroup controller {controller} is not available on this node"),
        )
    };
    let (v1, v2) = (limits::v1(r), limits::v2(r));
    let huge = [limits::huge_pages(r, false)?, limits::huge_pages(r, true)?];
    for setting in v1.into_iter().chain(huge[0].clone()) {
        if let Some(hierarchy) = node.v1(setting.controller) {
            out.push((hierarchy, setting));
        } else if node.v2(setting.controller).is_none() && !setting.optional {
            return Err(missing(setting.controller));
        }
    }
    for setting in v2.into_iter().chain(huge[1].clone()) {
        if let Some(hierarchy) = node.v2(setting.controller) {
            out.push((hierarchy, setting));
        }
    }
    for (controller, setting) in limits::unified(r)? {
        let hierarchy = node.v2.as_ref().filter(|h| controller == "cgroup" || h.has(&controller));
        let hierarchy = hierarchy.ok_or_else(|| {
            Error::invalid(
                "unified",
                format!("{}: controller {controller} is not on cgroup v2 on this node", setting.file),
            )
        })?;
        out.push((hierarchy, setting));
    }
    Ok(out)
}

/// Adds settings where their controllers are; one that is nowhere and not optional is an error.
fn more<'n>(node: &'n Hierarchies, v1: &[Setting], v2: &[Setting], out: &mut Plan<'n>) -> Result<(), Error> {
    let on_v1 = v1.iter().filter_map(|s| Some((node.v1(s.controller)?, s.clone())));
    let on_v2 = v2.iter().filter_map(|s| Some((node.v2(s.controller)?, s.clone())));
    out.extend(on_v1.chain(on_v2));
    for setting in v1.iter().chain(v2).filter(|s| !s.optional) {
        let controller = setting.controller;
        let there = match controller {
            // One thing by two names.
            "blkio" | "io" => node.v1("blkio").is_some() || node.v2("io").is_some(),
            name => node.v1(name).is_some() || node.v2(name).is_some(),
        };
        if !there {
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!("cgroup controller {controller} is not available on this node ({})", setting.file),
            ));
        }
    }
    Ok(())
}

/// Pids of all members of a cgroup and of those below it, as this process sees them; absent has none.
pub(crate) fn members(cgroup: &str) -> Result<Vec<i32>, Error> {
    hierarchy::check(cgroup)?;
    let node = node()?;
    let mut pids = Vec::new();
    for hierarchy in node.all() {
        match hierarchy.open(cgroup).and_then(|dir| removal::members(&dir)) {
            Ok(found) => pids.extend(found),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(gone(cgroup, e)),
        }
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// Stops all members of a cgroup, or lets them go on, and waits until the kernel says so.
pub(crate) fn freeze(cgroup: &str, frozen: bool) -> Result<(), Error> {
    hierarchy::check(cgroup)?;
    removal::freeze(node()?, cgroup, frozen)
}

/// Whether a cgroup is frozen; an absent one is not.
pub(crate) fn is_frozen(cgroup: &str) -> Result<bool, Error> {
    hierarchy::check(cgroup)?;
    Ok(removal::is_frozen(node()?, cgroup))
}

/// A v1 memory limit above the old memory+swap limit must be preceded by raising the latter (memory.memsw ≥ memory.limit).
fn order_memory(node: &Hierarchies, cgroup: &str, plan: &mut [(&Hierarchy, Setting)]) {
    let at = |plan: &[(&Hierarchy, Setting)], file: &str| plan.iter().position(|(_, s)| s.file == file);
    let (Some(limit), Some(both)) =
        (at(plan, "memory.limit_in_bytes"), at(plan, "memory.memsw.limit_in_bytes"))
    else {
        return;
    };
    let old = node
        .v1("memory")
        .and_then(|h| h.open(cgroup).ok())
        .and_then(|d| read(d, "memory.memsw.limit_in_bytes").ok());
    let old = old.and_then(|text| text.trim().parse::<i64>().ok()).unwrap_or(i64::MAX);
    let new = plan[limit].1.value.parse::<i64>().unwrap_or(-1);
    if new < 0 || new > old {
        plan.swap(limit, both);
    }
}

/// Writes one setting. What the kernel was built without is skipped when it is optional.
fn apply(hierarchy: &Hierarchy, cgroup: &str, setting: &Setting) -> Result<(), Error> {
    let dir = hierarchy.open(cgroup).map_err(|e| gone(cgroup, e))?;
    match write(&dir, &setting.file, &setting.value) {
        Err(e) if setting.optional && e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => {
            let kind = match e.raw_os_error() {
                Some(libc::EINVAL | libc::ERANGE | libc::EBUSY | libc::EACCES | libc::ENODEV) => {
                    Kind::InvalidArgument
                }
                _ => Kind::Internal,
            };
            Err(Error::with(
                kind,
                format!("write \"{}\" to {} of cgroup {cgroup}", setting.value, setting.file),
                e,
            ))
        }
        Ok(()) => Ok(()),
    }
}

/// A cgroup that cannot be opened.
fn gone(cgroup: &str, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::NotFound => Error::not_found("cgroup", cgroup),
        _ => Error::with(Kind::Internal, format!("open cgroup {cgroup}"), e),
    }
}

/// Makes a cgroup's directories on one hierarchy, top down, ready for members.
fn make(node: &Hierarchies, hierarchy: &Hierarchy, cgroup: &str, resources: &Resources) -> Result<(), Error> {
    let failed = |e: io::Error| {
        let names =
            if hierarchy.controllers.is_empty() { "v2".into() } else { hierarchy.controllers.join(",") };
        Error::with(Kind::Internal, format!("make cgroup {cgroup} ({names})"), e)
    };
    let is_v2 = node.v2.as_ref().is_some_and(|v2| std::ptr::eq(v2, hierarchy));
    if !is_v2 && !hierarchy.has("cpuset") {
        // All that there is to do, where the parent is there.
        match mkdirat(&hierarchy.dir, relative(cgroup), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(failed(e.into())),
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut parent = openat(&hierarchy.dir, ".", flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    for part in relative(cgroup).split('/') {
        if is_v2 {
            delegate(node, hierarchy, &parent, resources);
        }
        let made = match mkdirat(&parent, part, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(failed(e.into())),
        };
        let child = openat(&parent, part, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        if made && hierarchy.has("cpuset") && !is_v2 {
            inherit_cpuset(&parent, &child).map_err(failed)?;
        }
        parent = child;
    }
    Ok(())
}

/// Switches controllers on for the children of a v2 cgroup: all at once, else one by one. A limit that then finds no file fails by its
/// own name. On hybrid nodes nothing is switched on that nobody asked for.
fn delegate(node: &Hierarchies, v2: &Hierarchy, dir: &OwnedFd, r: &Resources) {
    let asked = |c: &str| {
        node.v1.is_empty()
            || (c == "hugetlb" && !r.hugepage_limits.is_empty())
            || r.unified.keys().any(|k| k.starts_with(c))
    };
    let candidates: Vec<&str> = WANTED.into_iter().filter(|c| v2.has(c) && asked(c)).collect();
    if candidates.is_empty() {
        return;
    }
    let on = read(dir, "cgroup.subtree_control").unwrap_or_default();
    let off = |c: &&str| !on.split_whitespace().any(|o| o == *c);
    let wanted: Vec<String> = candidates.into_iter().filter(off).map(|c| format!("+{c}")).collect();
    if !wanted.is_empty() && write(dir, "cgroup.subtree_control", &wanted.join(" ")).is_err() {
        for one in wanted {
            let _ = write(dir, "cgroup.subtree_control", &one);
        }
    }
}

/// A v1 cpuset is born empty and takes no member before it has CPUs and memory nodes; unless it was told above that children have
/// those of their parent, which is told to all that will be made below. For what is written the kernel looks at all cpusets of the node.
fn inherit_cpuset(parent: impl AsFd, child: impl AsFd) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if read(&child, file)?.trim().is_empty() {
            write(&child, file, read(&parent, file)?.trim())?;
            write(&child, "cgroup.clone_children", "1")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
