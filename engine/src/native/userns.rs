//! A pod's user namespace: made before everything it has to own (user_namespaces(7), KEP-127).
//!
//! The kernel asks of every other namespace which user namespace it was made in. So user, UTS, IPC and network namespace of such a pod
//! are made at once, by a clone that never runs anything, and its supervisor, which stays in the node's user namespace, only enters
//! the latter three. Containers enter the user namespace on their way ([`super::plan::Step::User`]).

use std::fmt::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::{Error, Kind};
use crate::exec::PodNamespaces;
use crate::native::child::new_mount;
use crate::spec::{IdMapping, NamespaceMode, Namespaces, PodSpec, UserNamespace};
use crate::sys::{mount, namespaces};

/// The user namespace a pod asks for; `None`: the node's.
pub(crate) fn of(namespaces: &Namespaces) -> Option<&UserNamespace> {
    namespaces.user.as_ref().filter(|user| user.mode == NamespaceMode::Pod)
}

/// Makes the namespaces that a pod's user namespace owns; `None`: it has none.
pub(crate) fn make(spec: &PodSpec) -> Result<Option<PodNamespaces>, Error> {
    let wanted = &spec.security.namespaces;
    let Some(user) = of(wanted) else { return Ok(None) };
    let own_network = wanted.network == NamespaceMode::Pod;
    let network = libc::CLONE_NEWNET | libc::CLONE_NEWUTS;
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWIPC | if own_network { network } else { 0 };
    let failed = |e| Error::with(Kind::Internal, "make the pod's user namespace", e);
    let made =
        namespaces::make(flags, [&lines(&user.uids), &lines(&user.gids)], ["user", "uts", "ipc", "net"]);
    let [user, uts, ipc, net] = made.map_err(failed)?;
    Ok(Some(PodNamespaces { user, uts, ipc, net: own_network.then_some(net) }))
}

/// A uid_map or gid_map (user_namespaces(7)).
fn lines(mappings: &[IdMapping]) -> String {
    let mut text = String::new();
    for m in mappings {
        let _ = writeln!(text, "{} {} {}", m.container_id, m.host_id, m.length);
    }
    text
}

/// The id on the node of an id in a pod; `None`: it is not mapped.
pub(crate) fn on_node(mappings: &[IdMapping], id: u32) -> Option<u32> {
    let within = |m: &&IdMapping| id.checked_sub(m.container_id).is_some_and(|offset| offset < m.length);
    mappings.iter().find(within).map(|m| m.host_id + (id - m.container_id))
}

/// Lays a user namespace's mapping over a detached mount.
pub(crate) fn map(mount: BorrowedFd<'_>, user: BorrowedFd<'_>) -> std::io::Result<()> {
    mount::map_ids(mount, user)
}

/// Whether pods can have user namespaces here, found by making one and mapping a tmpfs with it (Linux 6.3, as KEP-127 asks).
pub(crate) fn works() -> bool {
    let map = "0 65536 65536\n";
    let made = namespaces::make(libc::CLONE_NEWUSER, [map, map], ["user"]);
    let mapped = made.and_then(|[user]: [OwnedFd; 1]| {
        let tmpfs = new_mount(c"tmpfs", b"", 0)?;
        mount::map_ids(tmpfs.as_fd(), user.as_fd())
    });
    mapped.inspect_err(|e| tracing::info!("pods cannot have user namespaces here: {e}")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process;

    #[test]
    fn ids_are_shifted_and_those_outside_of_the_map_are_nobody() {
        let map = [IdMapping { container_id: 0, host_id: 65_536, length: 1000 }];
        assert_eq!(on_node(&map, 0), Some(65_536));
        assert_eq!(on_node(&map, 999), Some(66_535));
        assert_eq!(on_node(&map, 1000), None);
        assert_eq!(lines(&map), "0 65536 1000\n");
    }

    #[test]
    fn a_pods_namespaces_are_owned_by_its_user_namespace() {
        let mut spec = PodSpec::default();
        let map = vec![IdMapping { container_id: 0, host_id: 65_536, length: 65_536 }];
        spec.security.namespaces.user =
            Some(UserNamespace { mode: NamespaceMode::Pod, uids: map.clone(), gids: map });
        let made = make(&spec).unwrap().unwrap();
        for fd in [&made.uts, &made.ipc, made.net.as_ref().unwrap()] {
            let owner = process::owning_user_namespace(fd.as_fd()).unwrap();
            let id = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
            assert_eq!(id(&owner), id(&made.user));
        }
    }
}
