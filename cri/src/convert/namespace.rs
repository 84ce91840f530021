//! Namespace options of pods and containers, and id mappings.

use engine::Error;
use engine::spec::{IdMapping, NamespaceMode, Namespaces, UserNamespace};

use super::known;
use crate::proto;

/// Whose options are read: what is allowed differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A sandbox has no container yet whose namespace could be joined.
    Pod,
    /// A container may join another one of its pod.
    Container,
}

/// Reads namespace options; absent means the pod's namespaces and no user namespace.
pub fn options(at: &str, options: Option<proto::NamespaceOption>, owner: Owner) -> Result<Namespaces, Error> {
    let Some(o) = options else { return Ok(Namespaces::default()) };
    let network = pod_or_node(&format!("{at}.network"), o.network)?;
    let ipc = pod_or_node(&format!("{at}.ipc"), o.ipc)?;
    let pid = mode(&format!("{at}.pid"), o.pid)?;
    let target = format!("{at}.target_id");
    match (pid, owner) {
        (NamespaceMode::Target, Owner::Pod) => {
            return Err(Error::invalid(
                &format!("{at}.pid"),
                "a pod has no container whose namespace to join",
            ));
        }
        (NamespaceMode::Target, Owner::Container) if o.target_id.is_empty() => {
            return Err(Error::invalid(&target, "must name a container when pid is TARGET"));
        }
        (NamespaceMode::Target, Owner::Container) => {}
        _ if !o.target_id.is_empty() => return Err(Error::invalid(&target, "only goes with pid TARGET")),
        _ => {}
    }
    let user = user(&format!("{at}.userns_options"), o.userns_options)?;
    Ok(Namespaces { network, pid, ipc, target_id: o.target_id, user })
}

fn mode(field: &str, value: i32) -> Result<NamespaceMode, Error> {
    Ok(match known::<proto::NamespaceMode>(field, value)? {
        proto::NamespaceMode::Pod => NamespaceMode::Pod,
        proto::NamespaceMode::Container => NamespaceMode::Container,
        proto::NamespaceMode::Node => NamespaceMode::Node,
        proto::NamespaceMode::Target => NamespaceMode::Target,
    })
}

fn pod_or_node(field: &str, value: i32) -> Result<NamespaceMode, Error> {
    match mode(field, value)? {
        mode @ (NamespaceMode::Pod | NamespaceMode::Node) => Ok(mode),
        _ => Err(Error::invalid(field, "must be POD or NODE")),
    }
}

/// User namespace options. Both known kubelets and runtimes take an absent message for the node's namespace.
fn user(at: &str, options: Option<proto::UserNamespace>) -> Result<Option<UserNamespace>, Error> {
    let Some(o) = options else { return Ok(None) };
    let mode = pod_or_node(&format!("{at}.mode"), o.mode)?;
    let uids = mappings(&format!("{at}.uids"), &o.uids)?;
    let gids = mappings(&format!("{at}.gids"), &o.gids)?;
    for (name, lines) in [("uids", &uids), ("gids", &gids)] {
        let field = format!("{at}.{name}");
        match (mode, lines.as_slice()) {
            (NamespaceMode::Node, []) => {}
            (NamespaceMode::Node, _) => {
                return Err(Error::invalid(&field, "must be empty when mode is NODE"));
            }
            (_, [line]) if line.container_id == 0 => {}
            (_, [_]) => return Err(Error::invalid(&field, "must map id 0 of the container")),
            (_, _) => return Err(Error::invalid(&field, "must hold exactly one mapping")),
        }
    }
    Ok(Some(UserNamespace { mode, uids, gids }))
}

/// Lines of uid_map(5); ranges that are empty or run past the last id are refused.
pub fn mappings(field: &str, lines: &[proto::IdMapping]) -> Result<Vec<IdMapping>, Error> {
    let line = |(i, m): (usize, &proto::IdMapping)| {
        let fits = |first: u32| m.length > 0 && first.checked_add(m.length).is_some();
        if !fits(m.host_id) || !fits(m.container_id) {
            let why = format!("{}:{}:{} is no range of ids", m.container_id, m.host_id, m.length);
            return Err(Error::invalid(&format!("{field}[{i}]"), why));
        }
        Ok(IdMapping { container_id: m.container_id, host_id: m.host_id, length: m.length })
    };
    lines.iter().enumerate().map(line).collect()
}

/// Writes namespace options back; the kubelet compares them with what it asked for.
pub fn encode(n: &Namespaces) -> proto::NamespaceOption {
    proto::NamespaceOption {
        network: encode_mode(n.network),
        pid: encode_mode(n.pid),
        ipc: encode_mode(n.ipc),
        target_id: n.target_id.clone(),
        userns_options: n.user.as_ref().map(|u| proto::UserNamespace {
            mode: encode_mode(u.mode),
            uids: encode_mappings(&u.uids),
            gids: encode_mappings(&u.gids),
        }),
    }
}

fn encode_mode(mode: NamespaceMode) -> i32 {
    (match mode {
        NamespaceMode::Pod => proto::NamespaceMode::Pod,
        NamespaceMode::Container => proto::NamespaceMode::Container,
        NamespaceMode::Node => proto::NamespaceMode::Node,
        NamespaceMode::Target => proto::NamespaceMode::Target,
    })
    .into()
}

/// Writes id mappings back.
pub fn encode_mappings(lines: &[IdMapping]) -> Vec<proto::IdMapping> {
    let line = |m: &IdMapping| proto::IdMapping {
        host_id: m.host_id,
        container_id: m.container_id,
        length: m.length,
    };
    lines.iter().map(line).collect()
}
