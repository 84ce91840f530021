//! Device nodes of a container: from paths on the node to nodes to be made and rules to be set.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::compile::Node;
use crate::error::{Error, Kind};
use crate::exec::cgroup::devices::{Access, Rule, Rules};
use crate::spec::ContainerSpec;

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
        if !device.host_path.exists() {
            return Err(Error::new(
                Kind::InvalidArgument,
                format!("device {} does not exist on the node", device.host_path.display()),
            ));
        }
        walk(&device.host_path, &device.container_path, &mut nodes)?;
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
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
