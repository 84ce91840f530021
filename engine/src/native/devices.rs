//! Device nodes of a container: from paths on the node to nodes to be made and rules to be set.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::mount::{OpenTreeFlags, open_tree};

use super::compile::Node;
use crate::error::{Error, Kind};
use crate::exec::PreparedMount;
use crate::exec::cgroup::devices::{Access, Rule, Rules};
use crate::spec::{ContainerSpec, DeviceSpec, MountSpec};

/// Most nodes that one directory may stand for.
const MAX: usize = 4096;

/// The nodes to be made and the rules to be set for a container. Reads the node's /dev.
pub(crate) fn resolve(spec: &ContainerSpec) -> Result<(Vec<Node>, Rules), Error> {
    let mut nodes = Vec::new();
    if spec.security.privileged {
        // What is mounted there, not found there, is the container's own business.
        for entry in fs::read_dir("/dev").into_iter().flatten().flatten() {
            let own = [
                "pts", "shm", "fd", "mqueue", "console", "null", "zero", "full", "random", "urandom", "tty",
                "ptmx",
            ];
            // A link (stdin to the daemon's own /dev/null, say) names no device of the node.
            let link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            if !link && !entry.file_name().to_str().is_none_or(|name| own.contains(&name)) {
                walk(&entry.path(), &entry.path().to_string_lossy(), &mut nodes)?;
            }
        }
    }
    let mut rules = Rules::usual();
    for device in &spec.devices {
        let access = Access::parse(&device.permissions)?;
        let first = nodes.len();
        if device.node.number.is_none() && !device.host_path.exists() {
            return Err(Error::new(
                Kind::InvalidArgument,
                format!("device {} does not exist on the node", device.host_path.display()),
            ));
        }
        match device.node.number {
            Some(number) => nodes.push(Node {
                path: device.container_path.clone(),
                mode: 0o666,
                device: number,
                owner: (0, 0),
                host: None,
            }),
            None => walk(&device.host_path, &device.container_path, &mut nodes)?,
        }
        nodes[first..].iter_mut().try_for_each(|node| restate(node, device))?;
        if nodes.len() == first {
            return Err(Error::new(
                Kind::InvalidArgument,
                format!("{} is not a device", device.host_path.display()),
            ));
        }
        rules.extend(nodes[first..].iter().map(|node| Rule {
            kind: if node.mode & libc::S_IFMT == libc::S_IFBLK { b'b' } else { b'c' },
            major: Some(node.device.0),
            minor: Some(node.device.1),
            access,
        }));
    }
    Ok((nodes, if spec.security.privileged { Rules::All } else { Rules::Only(rules) }))
}

/// The same devices as mounts of the node's files: who is root of a user namespace alone cannot make any.
pub(crate) fn as_mounts(nodes: Vec<Node>) -> Result<Vec<PreparedMount>, Error> {
    let one = |node: Node| {
        let refuse = || {
            let why =
                format!("{}: a pod with a user namespace gets the node's own device files only", node.path);
            Error::invalid("devices", why)
        };
        let host = node.host.as_ref().ok_or_else(refuse)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let fd = open_tree(rustix::fs::CWD, host, flags)
            .map_err(|e| Error::with(Kind::Internal, format!("open device {}", host.display()), e))?;
        let meta = fs::metadata(host)
            .map_err(|e| Error::with(Kind::Internal, format!("look at device {}", host.display()), e))?;
        if meta.mode() != node.mode || (meta.uid(), meta.gid()) != node.owner {
            return Err(refuse());
        }
        Ok(PreparedMount { fd, destination: node.path, directory: false, spec: MountSpec::default() })
    };
    nodes.into_iter().map(one).collect()
}

/// Makes a device as its request states it.
fn restate(node: &mut Node, device: &DeviceSpec) -> Result<(), Error> {
    let stated = &device.node;
    if let Some(block) = stated.block {
        let kind = if block { libc::S_IFBLK } else { libc::S_IFCHR };
        if stated.number.is_none() && node.mode & libc::S_IFMT != kind {
            let why =
                format!("device {} is of another type than its CDI spec says", device.host_path.display());
            return Err(Error::new(Kind::InvalidArgument, why));
        }
        node.mode = kind | (node.mode & 0o7777);
    }
    if let Some(mode) = stated.mode {
        node.mode = (node.mode & libc::S_IFMT) | (mode & 0o7777);
    }
    node.owner = (stated.uid.unwrap_or(node.owner.0), stated.gid.unwrap_or(node.owner.1));
    Ok(())
}

/// Adds the device at a path, or all devices below it.
fn walk(host: &Path, container: &str, nodes: &mut Vec<Node>) -> Result<(), Error> {
    let Ok(meta) = fs::metadata(host) else { return Ok(()) };
    let kind = meta.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(host).into_iter().flatten().flatten() {
            // Links inside would lead out of the tree, or in circles.
            if !entry.file_type().is_ok_and(|t| t.is_symlink()) {
                let name = entry.file_name();
                walk(
                    &entry.path(),
                    &format!("{}/{}", container.trim_end_matches('/'), name.to_string_lossy()),
                    nodes,
                )?;
            }
        }
    } else if kind.is_char_device() || kind.is_block_device() {
        if nodes.len() >= MAX {
            return Err(Error::invalid("devices", format!("more than {MAX} devices")));
        }
        let device = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        nodes.push(Node {
            path: container.to_owned(),
            mode: meta.mode(),
            device,
            owner: (meta.uid(), meta.gid()),
            host: Some(host.to_owned()),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::DeviceNode;

    #[test]
    fn a_stated_device_need_not_exist_on_the_node() {
        let node =
            DeviceNode { block: Some(true), number: Some((8, 17)), mode: Some(0o640), ..Default::default() };
        let missing = DeviceSpec {
            container_path: "/dev/disk".into(),
            host_path: "/dev/no-such-disk".into(),
            permissions: "r".into(),
            node,
        };
        let spec = ContainerSpec { devices: vec![missing.clone()], ..Default::default() };
        let (nodes, rules) = resolve(&spec).unwrap();
        assert_eq!((nodes[0].mode, nodes[0].device), (libc::S_IFBLK | 0o640, (8, 17)));
        let Rules::Only(rules) = rules else { panic!("not restricted") };
        assert_eq!((rules.last().unwrap().kind, rules.last().unwrap().minor), (b'b', Some(17)));

        let other = DeviceNode { block: Some(true), ..Default::default() };
        let null = DeviceSpec { host_path: "/dev/null".into(), node: other, ..missing };
        resolve(&ContainerSpec { devices: vec![null], ..Default::default() }).unwrap_err();
    }

    #[test]
    fn a_privileged_container_gets_the_devices_of_the_node_and_none_of_its_links() {
        let mut spec = ContainerSpec::default();
        spec.security.privileged = true;
        let (nodes, _) = resolve(&spec).unwrap();
        assert!(!nodes.is_empty());
        for node in nodes {
            assert!(!fs::symlink_metadata(&node.path).unwrap().is_symlink(), "{}", node.path);
        }
    }
}
