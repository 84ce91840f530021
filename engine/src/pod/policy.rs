//! What may be asked of a pod: pure decisions, no I/O.

use std::net::IpAddr;

use netplugins::{Endpoint, HostPort, Protocol as NetProtocol};

use super::{PodPhase, PodRecord, State};
use crate::container::policy::check_user;
use crate::exec::Features;
use crate::spec::{Dns, IdMapping, NamespaceMode, Namespaces, PodSpec, Protocol, UserNamespace};
use crate::{Config, Error, Kind};

/// Refuses a request that cannot be honoured as it stands, naming the field.
pub fn check(spec: &PodSpec, features: Features) -> Result<(), Error> {
    use NamespaceMode::{Container, Target};
    if spec.name.is_empty() {
        return Err(Error::invalid("metadata.name", "must not be empty"));
    }
    if !spec.log_directory.as_os_str().is_empty() && !spec.log_directory.is_absolute() {
        return Err(Error::invalid(
            "log_directory",
            format!("{} is not absolute", spec.log_directory.display()),
        ));
    }
    let parent = &spec.cgroup_parent;
    if !parent.is_empty() && (!parent.starts_with('/') || parent.split('/').any(|part| part == "..")) {
        return Err(Error::invalid(
            "cgroup_parent",
            format!("\"{parent}\" is not an absolute cgroupfs path"),
        ));
    }
    if spec.hostname.len() > 64 || spec.hostname.contains(['\0', '\n', '/']) {
        return Err(Error::invalid(
            "hostname",
            format!("\"{}\" is not a host name (at most 64 bytes)", spec.hostname),
        ));
    }
    let namespaces = &spec.security.namespaces;
    for (field, mode) in [("network", namespaces.network), ("ipc", namespaces.ipc)] {
        if matches!(mode, Container | Target) {
            return Err(Error::invalid(field, "must be POD or NODE"));
        }
    }
    if namespaces.pid == Target {
        return Err(Error::invalid("pid", "TARGET is for containers"));
    }
    if let Some(user) = &namespaces.user {
        check_user_namespace(user, features)?;
        check_owned(namespaces, user, features)?;
    }
    check_user(&spec.security.user)?;
    check_sysctls(spec)?;
    host_ports(spec).map(|_| ())
}

/// The cgroup under which the containers' cgroups are made: the one that is named, else one of the pod's own. Refuses, naming the field,
/// what belongs to the other cgroup driver.
pub fn cgroup(spec: &PodSpec, config: &Config, id: &str) -> Result<String, Error> {
    match spec.cgroup_parent.trim_end_matches('/') {
        "" => Ok(config.cgroup_driver.pod(&config.cgroup_parent, id)),
        parent => config.cgroup_driver.parent("cgroup_parent", parent),
    }
}

fn check_user_namespace(user: &UserNamespace, features: Features) -> Result<(), Error> {
    let no = |why: &str| Err(Error::invalid("userns_options", why));
    match user.mode {
        NamespaceMode::Node if user.uids.is_empty() && user.gids.is_empty() => Ok(()),
        NamespaceMode::Node => no("mode NODE takes no mappings"),
        NamespaceMode::Pod => match (user.uids.as_slice(), user.gids.as_slice()) {
            ([uids], [gids]) if !maps_root(uids) || !maps_root(gids) => {
                no("mappings must begin with container_id 0")
            }
            ([_], [_]) if !features.user_namespaces => {
                no("this node or handler does not offer user namespaces")
            }
            ([_], [_]) => Ok(()),
            _ => no("mode POD takes exactly one uid mapping and one gid mapping"),
        },
        NamespaceMode::Container | NamespaceMode::Target => no("mode must be POD or NODE"),
    }
}

/// What a user namespace cannot be combined with: namespaces of the node that it would have to own.
fn check_owned(namespaces: &Namespaces, user: &UserNamespace, features: Features) -> Result<(), Error> {
    use NamespaceMode::{Node, Pod};
    let why = match user.mode {
        Pod if namespaces.pid == Node => "does not go with the node's PID namespace",
        Pod if namespaces.ipc == Node => "does not go with the node's IPC namespace",
        Pod if namespaces.network == Node && !features.user_namespaces_host_network => {
            "does not go with the node's network on this node or handler"
        }
        _ => return Ok(()),
    };
    Err(Error::invalid("userns_options", why))
}

fn maps_root(mapping: &IdMapping) -> bool {
    mapping.container_id == 0 && mapping.length > 0
}

/// Only sysctls of a namespace the pod owns; the rest are the node's.
fn check_sysctls(spec: &PodSpec) -> Result<(), Error> {
    let namespaces = &spec.security.namespaces;
    for (name, value) in &spec.sysctls {
        let dotted = name.replace('/', ".");
        let clean = dotted.split('.').all(|part| !part.is_empty() && part != "..") && !value.contains('\0');
        let owner = if dotted.starts_with("net.") {
            Some(("network", namespaces.network))
        } else if dotted.starts_with("fs.mqueue.") || IPC_SYSCTLS.contains(&dotted.as_str()) {
            Some(("ipc", namespaces.ipc))
        } else {
            None
        };
        match owner {
            Some((_, NamespaceMode::Pod)) if clean => {}
            Some((namespace, NamespaceMode::Node)) => {
                return Err(Error::invalid(
                    "sysctls",
                    format!("\"{name}\" would change the node: {namespace} is NODE"),
                ));
            }
            _ => {
                return Err(Error::invalid(
                    "sysctls",
                    format!("\"{name}\" does not belong to a namespace of the pod"),
                ));
            }
        }
    }
    Ok(())
}

/// ipc_namespaces(7).
const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Published ports; a mapping without host port publishes nothing, nor does any in the node's network.
fn host_ports(spec: &PodSpec) -> Result<Vec<HostPort>, Error> {
    if spec.security.namespaces.network == NamespaceMode::Node {
        return Ok(Vec::new());
    }
    let published = spec.port_mappings.iter().filter(|mapping| mapping.host_port != 0);
    published
        .map(|mapping| {
            let host_ip = match mapping.host_ip.as_str() {
                "" => None,
                text => Some(text.parse::<IpAddr>().map_err(|e| {
                    Error::with(Kind::InvalidArgument, format!("port_mappings.host_ip: \"{text}\""), e)
                })?),
            };
            if mapping.container_port == 0 {
                return Err(Error::invalid("port_mappings.container_port", "must not be 0"));
            }
            let protocol = match mapping.protocol {
                Protocol::Tcp => NetProtocol::Tcp,
                Protocol::Udp => NetProtocol::Udp,
                Protocol::Sctp => NetProtocol::Sctp,
            };
            Ok(HostPort {
                protocol,
                host_port: mapping.host_port,
                container_port: mapping.container_port,
                host_ip,
            })
        })
        .collect()
}

/// What the pod asks of the network.
pub fn endpoint(record: &PodRecord) -> Result<Endpoint, Error> {
    let spec = &record.spec;
    let Dns { servers, searches, options } = spec.dns.clone().unwrap_or_default();
    Ok(Endpoint {
        id: record.id.to_string(),
        pod: (spec.name.clone(), spec.namespace.clone(), spec.uid.clone()),
        host_ports: host_ports(spec)?,
        annotations: spec.annotations.clone(),
        dns: (servers, searches, options),
        cgroup: record.cgroup.clone(),
    })
}

/// The request as the supervisor gets it: node defaults filled in.
pub fn effective(spec: &PodSpec, node_name: &str, unprivileged_ports: bool) -> PodSpec {
    let mut spec = spec.clone();
    let own_network = spec.security.namespaces.network == NamespaceMode::Pod;
    if own_network && spec.hostname.is_empty() {
        node_name.clone_into(&mut spec.hostname);
    }
    if own_network && unprivileged_ports {
        for (name, value) in
            [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")]
        {
            spec.sysctls.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    spec
}

impl State {
    /// Containers may be made and started in a ready pod only.
    pub fn must_be_ready(&self) -> Result<(), Error> {
        if self.status.phase == PodPhase::Ready {
            return Ok(());
        }
        let why = if self.status.message.is_empty() { "it has been stopped" } else { &self.status.message };
        Err(Error::new(Kind::FailedPrecondition, format!("pod \"{}\" is not ready: {why}", self.record.id)))
    }
}
