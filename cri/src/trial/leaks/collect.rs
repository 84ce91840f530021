//! Fetches the marked objects of this machine from /proc, netlink and the daemon's directories.
//!
//! Objects come and go while they are listed; what vanishes in between is not there. Only a list that cannot be read
//! at all is an error: a count that was not made must not look like zero.

use std::io;
use std::path::{Path, PathBuf};

use super::parse::{self, MountLine, Stat};
use super::{Kind, Marks, Object, Snapshot};
use crate::trial::links::{self, Network, Place};
use crate::trial::netlink::{self, NftObject};

/// A list that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read {path}")]
pub struct CollectError {
    /// What was read.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// Depth at which the walk through a cgroup hierarchy or a directory ends.
const DEPTH_MAX: usize = 24;

/// All objects that carry `marks` now.
pub async fn snapshot(marks: &Marks) -> Result<Snapshot, CollectError> {
    let mounts = parse::mounts(&read("/proc/self/mountinfo")?);
    let processes = processes(marks)?;
    let network = links::network().await.map_err(failed("rtnetlink"))?;
    let mut objects = Vec::new();
    objects.extend(marked_mounts(&mounts, marks));
    objects.extend(cgroups(&hierarchies(&mounts), marks));
    objects.extend(network_namespaces(&mounts, &processes, marks));
    objects.extend(own_links(&network, marks));
    objects.extend(nft(marks)?);
    objects.extend(addresses(&network, marks));
    objects.extend(processes.iter().map(|stat| Object {
        kind: Kind::Process,
        name: format!("{} ({}{})", stat.pid, stat.command, if stat.state == 'Z' { ", zombie" } else { "" }),
    }));
    objects.extend(marks.directories.iter().flat_map(|directory| files(directory)));
    Ok(Snapshot::of(objects))
}

fn read(path: impl AsRef<Path>) -> Result<String, CollectError> {
    let path = path.as_ref();
    std::fs::read_to_string(path).map_err(|source| CollectError { path: path.to_owned(), source })
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> CollectError {
    let path = PathBuf::from(what);
    |source| CollectError { path, source }
}

/// Names of a directory's entries; empty when it is gone.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect()
}

// === mounts, cgroups ===

fn marked_mounts(mounts: &[MountLine], marks: &Marks) -> Vec<Object> {
    let marked = |line: &&MountLine| {
        [&line.root, &line.point, &line.source, &line.options].into_iter().any(|text| marks.occur_in(text))
    };
    let object =
        |line: &MountLine| Object { kind: Kind::Mount, name: format!("{} on {}", line.kind, line.point) };
    mounts.iter().filter(marked).map(object).collect()
}

/// Mount points of all cgroup hierarchies, v1 and v2.
pub fn hierarchies(mounts: &[MountLine]) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = mounts
        .iter()
        .filter(|line| matches!(line.kind.as_str(), "cgroup" | "cgroup2"))
        .map(|line| PathBuf::from(&line.point))
        .collect();
    points.sort();
    points.dedup();
    points
}

/// Cgroup directories with a mark, on every hierarchy, parents before children.
pub fn cgroup_directories(hierarchies: &[PathBuf], marks: &Marks) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in hierarchies {
        walk(root, 0, &mut |path, directory| {
            if directory
                && path.strip_prefix(root).is_ok_and(|path| marks.occur_in(&format!("/{}", path.display())))
            {
                found.push(path.to_owned());
            }
        });
    }
    found
}

fn cgroups(hierarchies: &[PathBuf], marks: &Marks) -> Vec<Object> {
    let object = |path: PathBuf| Object { kind: Kind::Cgroup, name: path.display().to_string() };
    cgroup_directories(hierarchies, marks).into_iter().map(object).collect()
}

/// Visits everything below a directory, without following links and without entering other mounts' loops for ever.
fn walk(directory: &Path, depth: usize, visit: &mut dyn FnMut(&Path, bool)) {
    if depth > DEPTH_MAX {
        return;
    }
    for path in entries(directory) {
        let is_directory = std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
        visit(&path, is_directory);
        if is_directory {
            walk(&path, depth + 1, visit);
        }
    }
}

// === processes, network namespaces ===

/// Processes that descend from this one, or whose cgroup or command line carries a mark.
pub fn processes(marks: &Marks) -> Result<Vec<Stat>, CollectError> {
    let own = std::process::id().cast_signed();
    let proc = PathBuf::from("/proc");
    let listing = std::fs::read_dir(&proc).map_err(|source| CollectError { path: proc, source })?;
    let pids = listing.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let all: Vec<Stat> = pids
        .filter_map(|pid| parse::stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?))
        .collect();
    let descendants = parse::descendants(&all, own);
    let ours =
        |stat: &Stat| stat.pid != own && (descendants.contains(&stat.pid) || process_marked(stat.pid, marks));
    Ok(all.into_iter().filter(ours).collect())
}

fn process_marked(pid: i32, marks: &Marks) -> bool {
    let text = |name: &str| {
        let bytes = std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    parse::cgroup_paths(&text("cgroup")).any(|path| marks.occur_in(path))
        || marks.occur_in(&text("cmdline"))
        || marks.occur_in(&text("environ"))
}

/// Namespaces that a mark holds open: by a bind mount, or by a process of the run.
fn network_namespaces(mounts: &[MountLine], processes: &[Stat], marks: &Marks) -> Vec<Object> {
    let of_process = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let own = of_process("self");
    let mounted = mounts
        .iter()
        .filter(|line| line.kind == "nsfs" && line.root.starts_with("net:") && marks.occur_in(&line.point))
        .map(|line| line.root.clone());
    let inhabited = processes
        .iter()
        .filter_map(|stat| of_process(&stat.pid.to_string()))
        .filter(|namespace| Some(namespace) != own.as_ref())
        .map(|namespace| namespace.display().to_string());
    mounted.chain(inhabited).map(|name| Object { kind: Kind::NetworkNamespace, name }).collect()
}

// === network ===

/// The run's nft tables, and the elements of their sets and maps.
fn nft(marks: &Marks) -> Result<Vec<Object>, CollectError> {
    if marks.link_prefix.is_empty() {
        return Ok(Vec::new());
    }
    let found = netlink::nft_objects(&marks.link_prefix).map_err(failed("nf_tables (netlink)"))?;
    let name = |object: &NftObject, element: &str| match &object.set {
        None => format!("table {}", object.table),
        Some(set) => format!("element {element} of {} {set}", object.table),
    };
    let tables = found.iter().filter(|object| object.set.is_none()).map(|object| name(object, ""));
    let elements =
        found.iter().flat_map(|object| object.elements.iter().map(|element| name(object, element)));
    Ok(tables.chain(elements).map(|name| Object { kind: Kind::Nft, name }).collect())
}

fn own_links<'a>(network: &'a Network, marks: &'a Marks) -> impl Iterator<Item = Object> {
    let ours = network.links.iter().filter(|link| carries(&link.name, marks));
    ours.map(|link| Object { kind: Kind::Link, name: link.name.clone() })
}

fn carries(link: &str, marks: &Marks) -> bool {
    !marks.link_prefix.is_empty() && link.starts_with(&marks.link_prefix)
}

/// Addresses of the node's links and routes that belong to pods, or are at one of the run's links. What IPv6 gives to every link by
/// itself (link-local and multicast) is no address of a pod: the link is counted, and they go with it.
fn addresses<'a>(network: &'a Network, marks: &'a Marks) -> impl Iterator<Item = Object> {
    let ours = |place: &&Place| {
        let inside =
            |subnet: &parse::Subnet| place.subnet.prefix >= subnet.prefix && place.subnet.overlaps(subnet);
        (carries(&place.link, marks) && !of_every_link(&place.subnet)) || marks.subnets.iter().any(inside)
    };
    let object = |what: &str, place: &Place| Object {
        kind: Kind::Address,
        name: format!("{what} {} at {}", place.subnet, place.link),
    };
    let addresses = network.addresses.iter().filter(ours).map(move |place| object("address", place));
    addresses.chain(network.routes.iter().filter(ours).map(move |place| object("route", place)))
}

/// The two switches of the node that a pod network needs, with their values. They are shared by everybody on the node, so
/// nobody can switch them off again without asking the others; a change is shown, not undone.
pub fn forwarding() -> [(&'static str, String); 2] {
    ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"].map(|name| {
        let value = std::fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default();
        (name, value.trim_end().to_owned())
    })
}

fn of_every_link(destination: &parse::Subnet) -> bool {
    match destination.address {
        std::net::IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast(),
        std::net::IpAddr::V4(_) => false,
    }
}

// === files ===

/// The store's table of names: written at the first pull, kept from then on, empty when there is no image.
const STANDING: &str = "refs.json";

/// Files, links and sockets below a directory, and directories that are named after an id.
fn files(directory: &Path) -> Vec<Object> {
    let mut found = Vec::new();
    walk(directory, 0, &mut |path, is_directory| {
        let hexadecimal = |name: &str| name.len() >= 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let named_by_id = path.file_name().and_then(|name| name.to_str()).is_some_and(hexadecimal);
        let standing =
            path.file_name().is_some_and(|name| name == STANDING) && path.parent() == Some(directory);
        if (!is_directory || named_by_id) && !standing {
            found.push(Object { kind: Kind::File, name: path.display().to_string() });
        }
    });
    found
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_running_child_is_seen_and_gone_after_its_end() {
        let marks = Marks::default();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let listed =
            |marks| processes(marks).unwrap().iter().any(|stat| stat.pid.cast_unsigned() == child.id());
        assert!(listed(&marks));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!processes(&marks).unwrap().iter().any(|stat| stat.pid.cast_unsigned() == child.id()));
    }

    #[test]
    fn files_are_counted_and_plain_directories_are_not() {
        let directory = std::env::temp_dir().join(format!("berth-collect-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("layers")).unwrap();
        std::fs::create_dir_all(directory.join("0123456789abcdef")).unwrap();
        std::fs::write(directory.join("layers/one"), "x").unwrap();
        let marks = Marks { directories: vec![directory.clone()], ..Marks::default() };
        let mut names: Vec<String> =
            marks.directories.iter().flat_map(|d| files(d)).map(|o| o.name).collect();
        names.sort();
        std::fs::remove_dir_all(&directory).unwrap();
        let base = directory.display();
        assert_eq!(names, [format!("{base}/0123456789abcdef"), format!("{base}/layers/one")]);
    }

    #[test]
    fn a_route_inside_the_subnet_is_ours_and_the_default_route_is_not() {
        let marks = Marks {
            subnets: parse::Subnet::parse("203.0.113.0/24").into_iter().collect(),
            ..Marks::default()
        };
        let at = |text, link: &str| Place { subnet: parse::Subnet::parse(text).unwrap(), link: link.into() };
        let network = Network {
            routes: vec![at("0.0.0.0/0", "eth0"), at("203.0.113.7/32", "t1")],
            addresses: vec![at("fe80::1/64", "t1"), at("192.0.2.2/24", "eth0")],
            ..Network::default()
        };
        let names: Vec<String> = addresses(&network, &marks).map(|object| object.name).collect();
        assert_eq!(names, ["route 203.0.113.7/32 at t1"]);
    }

    #[test]
    fn an_unmarked_machine_has_no_cgroup_and_no_mount_of_ours() {
        let marks = Marks { words: vec!["no-such-run-exists".into()], ..Marks::default() };
        let mounts = parse::mounts(&read("/proc/self/mountinfo").unwrap());
        assert!(!mounts.is_empty());
        assert_eq!(marked_mounts(&mounts, &marks), []);
        assert_eq!(cgroups(&hierarchies(&mounts), &marks), []);
    }
}
