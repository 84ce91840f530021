//! What may happen to a container: pure decisions, no I/O.

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::time::SystemTime;

use super::{ContainerPhase, ContainerStatus, Reason};
use crate::exec::{Exit, Features, Started, Survivor, nanos};
use crate::pod::State;
use crate::spec::{ContainerSpec, MountSpec, NamespaceMode, PodSpec, Propagation, UserSpec};
use crate::{Error, Kind};

// === what happened ===

impl ContainerStatus {
    /// It has ended.
    pub fn end(&mut self, exit: Exit, reason: Reason, message: &str) {
        self.phase = ContainerPhase::Exited;
        self.pid = 0;
        self.exit = Some(exit);
        self.reason = Some(reason);
        self.message = message.to_owned();
    }

    /// It has ended as its supervisor saw it.
    pub fn end_seen(&mut self, exit: &Exit) {
        let (reason, message) = match (exit.oom, exit.code) {
            (true, _) => (Reason::OOMKilled, "killed because its memory limit was reached"),
            (false, 0) => (Reason::Completed, ""),
            (false, _) => (Reason::Error, ""),
        };
        self.end(exit.clone(), reason, message);
    }

    /// Nobody saw how it ended.
    pub fn end_unseen(&mut self, why: &str) {
        let exit = Exit { code: 255, oom: false, at: nanos(SystemTime::now()) };
        self.end(exit, Reason::Unknown, why);
    }

    /// It never ran.
    pub fn start_failed(&mut self, error: &Error) {
        let exit = Exit { code: 128, oom: false, at: nanos(SystemTime::now()) };
        self.end(exit, Reason::StartError, &error.chain());
    }

    /// It runs; or has run, if its exit came first.
    pub fn started(&mut self, started: Started) {
        self.phase = ContainerPhase::Running;
        self.pid = started.pid;
        self.started_at = started.at;
        if let Some(exit) = self.exit.take() {
            self.end_seen(&exit);
        }
    }
}

/// An exit was reported. During a start it is kept until the start is recorded; later repeats change nothing.
pub fn exited(state: &mut State, container: &str, exit: &Exit) {
    let Some(container) = state.containers.get_mut(container) else { return };
    match container.status.phase {
        ContainerPhase::Starting => container.status.exit = Some(exit.clone()),
        ContainerPhase::Running => container.status.end_seen(exit),
        _ => {}
    }
}

/// A supervisor says what it has. A container that should run and that it does not know has ended unseen.
pub fn reconcile(state: &mut State, survivors: &[Survivor]) {
    for (id, container) in &mut state.containers {
        let status = &mut container.status;
        let survivor = survivors.iter().find(|s| *s.id == **id);
        match (status.phase, survivor) {
            (ContainerPhase::Running, None) => status.end_unseen("its supervisor does not know it"),
            (ContainerPhase::Running, Some(survivor)) => {
                (status.pid, status.started_at) = (survivor.pid, survivor.started);
                if let Some(exit) = &survivor.exit {
                    status.end_seen(exit);
                }
            }
            _ => {}
        }
    }
}

/// There is no supervisor any more: what it recorded counts, the rest ended unseen.
pub fn lost(state: &mut State, exits: &BTreeMap<String, Exit>, why: &str) {
    for (id, container) in &mut state.containers {
        if container.status.phase != ContainerPhase::Running {
            continue;
        }
        match exits.get(&**id) {
            Some(exit) => container.status.end_seen(exit),
            None => container.status.end_unseen(why),
        }
    }
}

// === what may be asked ===

/// Refuses a request that cannot be honoured as it stands, naming the field.
pub fn check(spec: &ContainerSpec, pod: &PodSpec, features: Features) -> Result<(), Error> {
    if spec.name.is_empty() {
        return Err(Error::invalid("metadata.name", "must not be empty"));
    }
    if spec.image.image.is_empty() {
        return Err(Error::invalid("image.image", "must not be empty"));
    }
    if spec.security.privileged && !pod.security.privileged {
        return Err(Error::invalid("security_context.privileged", "the pod sandbox is not privileged"));
    }
    check_user(&spec.security.user)?;
    check_namespaces(spec, pod)?;
    check_log_path(&spec.log_path)?;
    if !spec.working_dir.is_empty() && !spec.working_dir.starts_with('/') {
        return Err(Error::invalid("working_dir", format!("\"{}\" is not absolute", spec.working_dir)));
    }
    if let Some(signal) = spec.stop_signal.filter(|s| !(1..=64).contains(s)) {
        return Err(Error::invalid("stop_signal", format!("{signal} is not a signal")));
    }
    check_strings(spec)?;
    for (number, mount) in spec.mounts.iter().enumerate() {
        check_mount(mount, features).map_err(|(field, why)| refuse_mount(number, mount, field, &why))?;
    }
    for device in &spec.devices {
        let known = device.permissions.chars().all(|c| "rwm".contains(c));
        if !known || !device.host_path.is_absolute() {
            let why = format!("{} \"{}\"", device.host_path.display(), device.permissions);
            return Err(Error::invalid(
                "devices",
                format!("need an absolute host_path and permissions of r, w, m: {why}"),
            ));
        }
    }
    Ok(())
}

/// Identity rules, the same for pods and containers.
pub fn check_user(user: &UserSpec) -> Result<(), Error> {
    if user.uid.is_some() && !user.username.is_empty() {
        return Err(Error::invalid("run_as_username", "cannot be given together with run_as_user"));
    }
    if user.gid.is_some() && user.uid.is_none() && user.username.is_empty() {
        return Err(Error::invalid("run_as_group", "needs run_as_user or run_as_username"));
    }
    // 2^32-1 is the kernel's "no change": no process can be that.
    let valid = |id: &i64| (0..i64::from(u32::MAX)).contains(id);
    for (field, id) in [("run_as_user", user.uid), ("run_as_group", user.gid)] {
        if let Some(id) = id.filter(|id| !valid(id)) {
            return Err(Error::invalid(field, format!("{id} is out of range")));
        }
    }
    match user.supplemental_groups.iter().find(|id| !valid(id)) {
        Some(id) => Err(Error::invalid("supplemental_groups", format!("{id} is out of range"))),
        None => Ok(()),
    }
}

fn check_namespaces(spec: &ContainerSpec, pod: &PodSpec) -> Result<(), Error> {
    use NamespaceMode::{Container, Node, Pod, Target};
    let (own, pods) = (&spec.security.namespaces, &pod.security.namespaces);
    for (field, own, pods) in [("network", own.network, pods.network), ("ipc", own.ipc, pods.ipc)] {
        match own {
            Pod => {}
            Node if pods == Node => {}
            Node => {
                return Err(Error::invalid(field, "NODE, but the pod sandbox has a namespace of its own"));
            }
            Container | Target => return Err(Error::invalid(field, "must be POD or NODE")),
        }
    }
    match own.pid {
        Target if own.target_id.is_empty() => Err(Error::invalid("target_id", "is needed with pid TARGET")),
        Pod if !matches!(pods.pid, Pod | Node) => {
            Err(Error::invalid("pid", "POD, but the pod sandbox has no PID namespace to share"))
        }
        _ if own.pid != Target && !own.target_id.is_empty() => {
            Err(Error::invalid("target_id", "is for pid TARGET only"))
        }
        _ if own.user.is_some() && own.user != pods.user => {
            Err(Error::invalid("userns_options", "differ from the pod sandbox's"))
        }
        _ => Ok(()),
    }
}

/// The log stays below the pod's log directory.
fn check_log_path(path: &Path) -> Result<(), Error> {
    let inside = path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if inside {
        Ok(())
    } else {
        Err(Error::invalid("log_path", format!("{} must stay below the pod's log_directory", path.display())))
    }
}

/// execve(2) cannot carry a NUL.
fn check_strings(spec: &ContainerSpec) -> Result<(), Error> {
    let nul = |text: &str| text.contains('\0');
    let field = if spec.command.iter().any(|s| nul(s)) {
        "command"
    } else if spec.args.iter().any(|s| nul(s)) {
        "args"
    } else if spec.envs.iter().any(|(k, v)| nul(k) || k.is_empty() || v.contains(&0)) {
        "envs"
    } else {
        return Ok(());
    };
    Err(Error::invalid(field, "must not contain a NUL byte or an empty name"))
}

type Refusal = (&'static str, String);

fn check_mount(mount: &MountSpec, features: Features) -> Result<(), Refusal> {
    let no = |field, why: &str| Err((field, why.to_owned()));
    if mount.container_path.is_empty() {
        return no("container_path", "must not be empty");
    }
    if let Some(option) = mount.options.iter().find(|o| !matches!(o.as_str(), "noexec" | "nodev" | "nosuid"))
    {
        return no("mount_options", &format!("\"{option}\" is not one of noexec, nodev, nosuid"));
    }
    if mount.recursive_readonly {
        if !mount.readonly {
            return no("recursive_read_only", "needs readonly");
        }
        if mount.propagation != Propagation::Private {
            return no("recursive_read_only", "needs propagation PROPAGATION_PRIVATE");
        }
        if !features.recursive_readonly_mounts {
            return Err(("recursive_read_only", format!("RROUnsupported{RRO_WHY}")));
        }
    }
    let idmapped = !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
    if idmapped && !features.user_namespaces {
        return no("uid_mappings", "idmapped mounts need user namespaces, which this node does not offer");
    }
    match &mount.image {
        Some(_) if !mount.host_path.as_os_str().is_empty() => {
            no("host_path", "must be empty for an image mount")
        }
        Some(_) if !mount.readonly => Err(("readonly", IMAGE_WRITABLE.into())),
        Some(image) if image.image.is_empty() => no("image.image", "must not be empty"),
        Some(_) => Ok(()),
        None if !mount.image_sub_path.is_empty() => no("image_sub_path", "is for image mounts only"),
        None if !mount.host_path.is_absolute() => no("host_path", "must be absolute"),
        None => Ok(()),
    }
}

const RRO_WHY: &str = ": this kernel has no mount_setattr(2); Linux 5.12 has";
const IMAGE_WRITABLE: &str = "ImageVolumeMountFailed: an image volume must be read-only";

/// The words the kubelet looks for come first.
fn refuse_mount(number: usize, mount: &MountSpec, field: &str, why: &str) -> Error {
    let place = format!("mounts[{number}].{field} ({})", mount.container_path);
    for word in ["RROUnsupported", "ImageVolumeMountFailed"] {
        if let Some(why) = why.strip_prefix(word) {
            return Error::new(Kind::InvalidArgument, format!("{word}: {place}{why}"));
        }
    }
    Error::invalid(&place, why)
}
