//! Namespaces against the kernel.

use super::*;
use crate::testing::TempDir;

fn namespaces(dir: &TempDir) -> Namespaces {
    Namespaces::new(&dir.path().join("netns"), &dir.path().join("state"))
}

fn links(ns: &NetNs) -> Vec<(String, bool)> {
    let links = route::links(&mut socket_in(ns.as_fd()).unwrap()).unwrap();
    links.into_iter().filter(|l| l.loopback).map(|l| (l.name, l.operational)).collect()
}

#[test]
fn a_namespace_has_one_mount_a_marker_and_lo_up() {
    let dir = TempDir::new("netns");
    let all = namespaces(&dir);
    let here = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let (ns, _socket) = all.create("pod").unwrap();
    assert_eq!(
        fs::read_link("/proc/thread-self/ns/net").unwrap(),
        here,
        "the calling thread stayed where it was"
    );
    assert_eq!(links(&ns), [("lo".to_owned(), true)]);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let ours = mounts.lines().filter(|l| l.contains(&*dir.path().to_string_lossy())).count();
    assert_eq!(ours, 1, "{mounts}");
    assert_eq!(all.marked().unwrap(), BTreeSet::from(["pod".to_owned()]));

    let again = all.open("pod").unwrap().unwrap();
    let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
    assert_eq!(inode(again.as_fd()), inode(ns.as_fd()));
    all.remove("pod").unwrap();
    all.remove("pod").unwrap();
    assert!(all.open("pod").unwrap().is_none());
    assert_eq!(all.marked().unwrap(), BTreeSet::new());
}

#[test]
fn an_interrupted_creation_does_not_look_like_a_namespace() {
    let dir = TempDir::new("netns");
    let all = namespaces(&dir);
    all.mark("pod").unwrap();
    fs::create_dir_all(dir.path().join("netns")).unwrap();
    fs::write(all.path("pod"), "").unwrap();
    assert!(all.open("pod").unwrap().is_none());
    let (_ns, _socket) = all.create("pod").unwrap();
    assert!(all.open("pod").unwrap().is_some());
    all.remove("pod").unwrap();
}

#[test]
fn a_failed_creation_leaves_no_file() {
    let dir = TempDir::new("netns");
    let all = namespaces(&dir);
    fs::create_dir_all(all.path("pod")).unwrap(); // a directory where the file should be
    assert!(all.create("pod").is_err());
    fs::remove_dir(all.path("pod")).unwrap();
    assert!(all.create("../pod").is_err());
    all.remove("pod").unwrap();
    assert_eq!(all.marked().unwrap(), BTreeSet::new());
}

#[test]
fn a_link_in_the_way_is_not_followed() {
    let dir = TempDir::new("netns");
    let all = namespaces(&dir);
    fs::create_dir_all(dir.path().join("netns")).unwrap();
    let victim = dir.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, all.path("pod")).unwrap();
    assert!(all.create("pod").is_err());
    assert_eq!(fs::read_to_string(victim).unwrap(), "precious");
}
