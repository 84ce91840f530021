//! Mount sources and log files, against the kernel.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, openat};

use super::{Driver, Local, Request, log};
use crate::Kind;
use crate::exec::PreparedMount;
use crate::spec::{ContainerSpec, ImageSpec, MountSpec, Propagation};
use crate::testing::fakes::{FakeImages, IMAGE, World};
use crate::testing::{Node, container};

struct Place {
    _node: Node,
    dir: PathBuf,
    volumes: Local,
}

fn place(create_missing: bool) -> Place {
    let node = Node::new();
    let dir = node.config.root.join("place");
    fs::create_dir_all(dir.join("pod")).unwrap();
    for name in ["hosts", "hostname", "resolv.conf"] {
        fs::write(dir.join("pod").join(name), name).unwrap();
    }
    let images = FakeImages::new(Arc::new(World::default()), &dir.join("images")).unwrap();
    Place { volumes: Local::new(images, create_missing), dir, _node: node }
}

fn bind(host_path: &Path) -> MountSpec {
    MountSpec { container_path: "/data".into(), host_path: host_path.into(), ..MountSpec::default() }
}

fn prepare(place: &Place, spec: &ContainerSpec, image_volumes: &[String]) -> Vec<PreparedMount> {
    let (directory, pod_files) = (place.dir.join("container"), place.dir.join("pod"));
    let request = Request {
        spec,
        image_id: IMAGE,
        image_volumes,
        directory: &directory,
        pod_files: &pod_files,
        user: None,
        labels: None,
    };
    place.volumes.prepare(&request).unwrap()
}

fn table() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

#[test]
fn a_bind_follows_links_shows_the_source_and_appears_in_no_mount_table() {
    let place = place(false);
    fs::create_dir(place.dir.join("real")).unwrap();
    fs::write(place.dir.join("real/file"), "x").unwrap();
    symlink("real", place.dir.join("link")).unwrap();
    let spec = ContainerSpec { mounts: vec![bind(&place.dir.join("link"))], ..container("app") };
    let mounts = prepare(&place, &spec, &[]);
    assert!(mounts[0].directory && mounts[0].destination == "/data");
    openat(&mounts[0].fd, "file", OFlags::RDONLY, Mode::empty()).unwrap();
    assert!(!table().contains(place.dir.to_str().unwrap()));
}

#[test]
fn the_pods_files_are_mounted_unless_the_request_mounts_there() {
    let place = place(false);
    let mut own = bind(&place.dir.join("pod/hosts"));
    own.container_path = "/etc//hosts/".into();
    let spec = ContainerSpec { mounts: vec![own], ..container("app") };
    let mounts = prepare(&place, &spec, &[]);
    let paths: Vec<&str> = mounts.iter().map(|mount| mount.destination.as_str()).collect();
    assert_eq!(paths, ["/etc//hosts/", "/etc/hostname", "/etc/resolv.conf"]);
    assert!(mounts.iter().all(|mount| !mount.directory));
}

#[test]
fn a_missing_source_is_named_or_made() {
    let strict = place(false);
    let missing = strict.dir.join("missing/deep");
    let error = strict.volumes.check(&bind(&missing), None).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.chain().contains("missing/deep"), "{}", error.chain());
    assert!(!missing.exists());
    let lenient = place(true);
    let missing = lenient.dir.join("missing/deep");
    lenient.volumes.check(&bind(&missing), None).unwrap();
    assert!(missing.is_dir());
}

#[test]
fn mounts_cannot_be_propagated_through_a_private_mount() {
    let place = place(false);
    // /proc is private or shared as the node has it; the answer must agree with the kernel's table.
    let shared = table().lines().any(|line| line.contains(" /proc ") && line.contains("shared:"));
    let mount = MountSpec { propagation: Propagation::Bidirectional, ..bind(Path::new("/proc")) };
    let answer = place.volumes.check(&mount, None);
    assert_eq!(answer.is_ok(), shared, "{answer:?}");
}

#[test]
fn an_image_volume_names_its_image_in_the_kubelets_words() {
    let place = place(false);
    let mount = |image: &str, sub_path: &str| MountSpec {
        container_path: "/data".into(),
        image: Some(ImageSpec { image: image.into(), ..ImageSpec::default() }),
        image_sub_path: sub_path.into(),
        readonly: true,
        ..MountSpec::default()
    };
    place.volumes.check(&mount(IMAGE, ""), None).unwrap();
    for (image, sub_path) in [("absent:1", ""), (IMAGE, "absent")] {
        let error = place.volumes.check(&mount(image, sub_path), None).unwrap_err();
        assert!(error.chain().starts_with("ImageVolumeMountFailed"), "{}", error.chain());
        assert!(error.chain().contains("absent"), "{}", error.chain());
    }
}

#[test]
fn image_declared_volumes_are_fresh_and_have_the_images_mode() {
    let place = place(false);
    let root = place.dir.join("images/rootfs");
    fs::create_dir(root.join("cache")).unwrap();
    fs::set_permissions(root.join("cache"), fs::Permissions::from_mode(0o1777)).unwrap();
    // CVE-2022-23648: what lies outside of the image lends the volume neither its content nor its attributes.
    let outside = place.dir.join("images/outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "").unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o1777)).unwrap();
    symlink(&outside, root.join("link")).unwrap();
    let declared = ["/cache", "/not/there", "/../../etc", "/../outside", "/link"].map(str::to_owned);
    let mounts = prepare(&place, &container("app"), &declared);
    let mode = |fd| rustix::fs::fstat(fd).unwrap().st_mode & 0o7777;
    assert_eq!(mode(&mounts[0].fd), 0o1777);
    assert_eq!(mode(&mounts[1].fd), 0o755);
    assert_eq!(mounts[2].destination, "/../../etc", "only the child resolves it, inside the root");
    let inside = fs::read_dir(place.dir.join("container/volumes")).unwrap().count();
    assert_eq!(inside, declared.len());
    for led_astray in &mounts[3..5] {
        assert_eq!(mode(&led_astray.fd), 0o755, "{}", led_astray.destination);
        let absent = openat(&led_astray.fd, "secret", OFlags::PATH, Mode::empty());
        assert_eq!(absent.unwrap_err(), rustix::io::Errno::NOENT);
    }
    // What a container has written stays for its restart.
    let file = openat(&mounts[0].fd, "kept", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
    drop(file);
    let again = prepare(&place, &container("app"), &declared);
    openat(&again[0].fd, "kept", OFlags::RDONLY, Mode::empty()).unwrap();
}

#[test]
fn a_log_is_made_with_its_parents_and_appended_to() {
    let place = place(false);
    let dir = place.dir.join("logs");
    for _ in 0..2 {
        let fd = log::open(&dir, Path::new("app/0.log")).unwrap();
        fs::File::from(fd).write_all(b"line\n").unwrap();
    }
    assert_eq!(fs::read_to_string(dir.join("app/0.log")).unwrap(), "line\nline\n");
    let mode = fs::metadata(dir.join("app/0.log")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode & 0o027, 0, "{mode:o}");
}

#[test]
fn a_log_never_leaves_its_directory() {
    let place = place(false);
    let dir = place.dir.join("logs");
    fs::create_dir_all(&dir).unwrap();
    let secret = place.dir.join("secret");
    fs::write(&secret, "").unwrap();
    symlink(&secret, dir.join("link.log")).unwrap();
    symlink(&place.dir, dir.join("out")).unwrap();
    fs::create_dir(dir.join("directory.log")).unwrap();
    for path in ["link.log", "out/stolen.log", "../stolen.log", "directory.log"] {
        let error = log::open(&dir, Path::new(path)).unwrap_err();
        assert!(error.chain().contains("open log"), "{}", error.chain());
    }
    assert_eq!(fs::read_to_string(&secret).unwrap(), "");
    assert!(!place.dir.join("stolen.log").exists());
}
