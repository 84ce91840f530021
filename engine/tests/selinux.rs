//! SELinux against the kernel: labels, categories, relabelling. A machine whose kernel has it not, or no policy, skips; `tests/exec` runs
//! this in an emulated one, with the policy of `tests/vm/selinux` in force. Needs root and busybox-static.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod house;
#[allow(unused_imports)]
mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::api::ContainerState;
use engine::jobs::{CreateContainer, ExecSync, RunPod, StartContainer};
use engine::spec::{ContainerSpec, MountSpec, NamespaceMode, SelinuxLabel};
use engine::{Engine, Kind, external};
use house::*;
use support::handlers::Handler;

/// Whether labels mean something here; says so when they do not.
fn is_on() -> bool {
    let own = fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
    let on = Path::new("/sys/fs/selinux/enforce").exists() && own.contains(":kernel_t:");
    if on {
        assert_eq!(fs::read_to_string("/sys/fs/selinux/enforce").unwrap(), "1", "the policy is in force");
    } else {
        #[allow(clippy::print_stdout, reason = "`tests/exec` counts what is skipped")]
        {
            println!("skip: the policy of tests/vm/selinux is not in force here");
        }
    }
    on
}

fn asked(kind: &str, level: &str) -> Option<SelinuxLabel> {
    Some(SelinuxLabel { kind: kind.into(), level: level.into(), ..SelinuxLabel::default() })
}

/// A container that stays.
fn idle(house: &House, name: &str) -> ContainerSpec {
    house.shell(name, "exec sleep 1000")
}

/// Waits for a container's end by the engine's events.
async fn ended(engine: &Engine, id: &str) {
    let mut events = engine.events();
    let wait = async {
        while engine.container(id).unwrap().state != ContainerState::Exited {
            events.recv().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
}

/// What a script in a container says.
async fn said(engine: &Arc<Engine>, container: &str, script: &str) -> String {
    let command = ["/bin/sh", "-c", script].map(Into::into).into();
    let timeout = Some(Duration::from_secs(60));
    let output = ok(engine.run(ExecSync { container: container.into(), command, timeout }, None).await);
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap().replace('\0', "")
}

/// The label of a container's first process as the node sees it; an exec must have the same.
async fn process_label(engine: &Arc<Engine>, container: &str) -> String {
    let pid = engine.container(container).unwrap().pid;
    let seen = fs::read_to_string(format!("/proc/{pid}/attr/current")).unwrap().replace('\0', "");
    assert_eq!(said(engine, container, "cat /proc/self/attr/current").await.trim(), seen, "of an exec");
    seen
}

/// The label of a file of the node.
fn file_label(path: &Path) -> String {
    let mut bytes = [0; 256];
    let length = rustix::fs::lgetxattr(path, c"security.selinux", &mut bytes[..]).unwrap();
    String::from_utf8_lossy(&bytes[..length]).replace('\0', "")
}

fn volume(path: &Path, relabel: bool) -> MountSpec {
    MountSpec {
        container_path: "/data".into(),
        host_path: path.into(),
        selinux_relabel: relabel,
        ..MountSpec::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_containers_of_a_pod_share_a_label_that_no_other_pod_has() {
    if !is_on() {
        return;
    }
    let house = House::new();
    let engine = house.engine().await;
    let (one, two) = (run_pod(&engine, house.pod("one")).await, run_pod(&engine, house.pod("two")).await);
    let a = start(&engine, &one, idle(&house, "a")).await;
    let (b, c) =
        (start(&engine, &one, idle(&house, "b")).await, start(&engine, &two, idle(&house, "c")).await);
    let tells = house.shell("tells", "cat /proc/self/attr/current; echo");
    ended(&engine, &start(&engine, &one, tells).await).await;
    let [a_label, b_label, c_label] = [
        process_label(&engine, &a).await,
        process_label(&engine, &b).await,
        process_label(&engine, &c).await,
    ];
    let told = house.log("one", "tells").replace('\0', "");
    assert_eq!(told.trim(), format!("stdout F {a_label}"), "what a container sees of itself");
    assert_eq!(a_label, b_label);
    assert_ne!(a_label, c_label);
    let level = a_label.strip_prefix("system_u:system_r:container_t:").unwrap();
    let (low, high) = level.strip_prefix("s0:c").unwrap().split_once(",c").unwrap();
    assert!(low.parse::<u32>().unwrap() < high.parse::<u32>().unwrap(), "{level}");

    // Its root and what is mounted for it have the label of its files, and are of use to it.
    let table = said(&engine, &a, "cat /proc/self/mountinfo").await;
    let context = format!("context=system_u:object_r:container_file_t:{level}");
    for at in ["/", "/dev", "/dev/pts", "/dev/shm"] {
        let line = table.lines().find(|line| line.split(' ').nth(4) == Some(at)).unwrap();
        assert!(line.replace('"', "").contains(&context), "{line}");
    }
    let used = "echo x > /dev/null && cat /dev/null && echo x > /tmp/x && echo shared > /dev/shm/x && cat /etc/hosts > /tmp/hosts && \
                ls /dev/mqueue /dev/pts > /tmp/list && echo works";
    assert_eq!(said(&engine, &a, used).await, "works\n");
    assert_eq!(said(&engine, &b, "cat /dev/shm/x").await, "shared\n");
    assert_eq!(said(&engine, &b, "kill -0 1 && echo sees").await, "sees\n");
    house.close(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_is_asked_for_is_given_and_who_is_not_confined_has_no_categories() {
    if !is_on() {
        return;
    }
    let house = House::new();
    let engine = house.engine().await;
    let mut spec = house.pod("web");
    spec.security.selinux = asked("", "s0:c4,c5");
    spec.security.privileged = true;
    let pod = run_pod(&engine, spec).await;
    let mut own = idle(&house, "own");
    own.security.selinux = asked("other_t", "s0:c6");
    own.security.no_new_privs = true;
    let mut privileged = idle(&house, "privileged");
    privileged.security.privileged = true;
    let mut host = house.pod("host");
    host.security.namespaces.pid = NamespaceMode::Node;
    let host = run_pod(&engine, host).await;
    let mut sees = idle(&house, "sees");
    sees.security.namespaces.pid = NamespaceMode::Node;
    let table = [
        (&pod, idle(&house, "plain"), "system_u:system_r:container_t:s0:c4,c5"),
        (&pod, own, "system_u:system_r:other_t:s0:c6"),
        (&pod, privileged, "system_u:system_r:spc_t:s0-s0:c0.c1023"),
        (&host, sees, "system_u:system_r:spc_t:s0-s0:c0.c1023"),
    ];
    for (pod, spec, expected) in table {
        let name = spec.name.clone();
        let id = start(&engine, pod, spec).await;
        assert_eq!(process_label(&engine, &id).await, expected, "{name}");
        let works = "echo x > /tmp/x && cat /etc/hosts > /dev/null && echo works";
        assert_eq!(said(&engine, &id, works).await, "works\n", "{name}");
    }
    house.close(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_relabelled_for_its_pod_and_nothing_that_a_link_in_it_names() {
    if !is_on() {
        return;
    }
    let house = House::new();
    let engine = house.engine().await;
    let (data, outside) = (house.data(), house.dir.join("outside"));
    fs::write(data.join("file"), "content").unwrap();
    fs::write(&outside, "secret").unwrap();
    symlink(&outside, data.join("link")).unwrap();
    let before = file_label(&outside);
    let (one, two) = (run_pod(&engine, house.pod("one")).await, run_pod(&engine, house.pod("two")).await);

    // As it is, it is the node's, and no container can read it.
    let untouched = ContainerSpec { mounts: vec![volume(&data, false)], ..idle(&house, "untouched") };
    let untouched = start(&engine, &one, untouched).await;
    assert!(said(&engine, &untouched, "cat /data/file").await.contains("Permission denied"));

    let owner = ContainerSpec { mounts: vec![volume(&data, true)], ..idle(&house, "owner") };
    let owner = start(&engine, &one, owner).await;
    assert_eq!(
        said(&engine, &owner, "cat /data/file; echo; touch /data/new && echo wrote").await,
        "content\nwrote\n"
    );
    assert_eq!(said(&engine, &untouched, "cat /data/file").await, "content", "it is of the same pod");
    let level = process_label(&engine, &owner).await.split_once(":s0:").unwrap().1.to_owned();
    for name in ["", "file", "link"] {
        let expected = format!("system_u:object_r:container_file_t:s0:{level}");
        assert_eq!(file_label(&data.join(name)), expected, "{name}");
    }
    assert_eq!(file_label(&outside), before);

    // Another pod has the same volume, and other categories.
    let other = ContainerSpec { mounts: vec![volume(&data, false)], ..idle(&house, "other") };
    let other = start(&engine, &two, other).await;
    let denied = said(&engine, &other, "cat /data/file; touch /data/other").await;
    assert_eq!(denied.matches("Permission denied").count(), 2, "{denied}");
    house.close(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_by_field_and_value_and_leaves_nothing() {
    if !is_on() {
        return;
    }
    let house = House::new();
    let engine = house.engine().await;
    for (asked, field) in [
        (asked("nosuch_t", ""), "selinux_options.type"),
        (asked("", "s0:c2000"), "selinux_options.level"),
        (asked("", "s0,c4,c5"), "selinux_options.level"),
        (asked("nosuch_t", "s0"), "selinux_options"),
    ] {
        let mut spec = house.pod("bad");
        spec.security.selinux = asked.clone();
        let value = asked.unwrap();
        let value = if value.kind.is_empty() { value.level } else { value.kind };
        let error = engine.run(RunPod { spec }, None).await.unwrap_err();
        let text = error.chain();
        assert!(
            error.kind() == Kind::InvalidArgument && text.starts_with(field) && text.contains(&value),
            "{text}"
        );
    }
    assert!(engine.pods().is_empty());

    let mut spec = house.pod("web");
    spec.security.privileged = true;
    let pod = run_pod(&engine, spec).await;
    for privileged in [false, true] {
        let mut spec = idle(&house, "bad");
        spec.security.privileged = privileged;
        spec.security.selinux = asked("nosuch_t", "");
        let error = engine.run(CreateContainer { pod: pod.clone(), spec }, None).await.unwrap_err().chain();
        assert!(error.starts_with("selinux_options.type") && error.contains("nosuch_t"), "{error}");
    }
    let etc = house.dir.join("link-to-etc");
    symlink("/etc", &etc).unwrap();
    let before = file_label(Path::new("/etc"));
    for path in [Path::new("/etc"), &etc, Path::new("/")] {
        let spec = ContainerSpec { mounts: vec![volume(path, true)], ..idle(&house, "bad") };
        let error = engine.run(CreateContainer { pod: pod.clone(), spec }, None).await.unwrap_err().chain();
        let named = error.starts_with("mounts.selinux_relabel") && error.contains(path.to_str().unwrap());
        assert!(named, "{error}");
    }
    assert!(engine.containers().is_empty());
    assert_eq!(file_label(Path::new("/etc")), before);
    house.close(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_keeps_its_label_when_the_daemon_and_its_supervisor_are_killed() {
    if !is_on() {
        return;
    }
    let house = House::new();
    let engine = house.engine().await;
    let pod = run_pod(&engine, house.pod("web")).await;
    let first = start(&engine, &pod, idle(&house, "first")).await;
    let label = process_label(&engine, &first).await;
    let made = ok(engine.run(CreateContainer { pod: pod.clone(), spec: idle(&house, "made") }, None).await);
    drop(engine);

    let engine = house.engine().await;
    assert_eq!(process_label(&engine, &first).await, label, "an exec of the next daemon");
    ok(engine.run(StartContainer { container: made.clone() }, None).await);
    assert_eq!(process_label(&engine, &made).await, label);

    let old = engine.pod(&pod).unwrap().pid;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(old).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let replaced = async {
        while engine.pod(&pod).unwrap().pid == old {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), replaced).await.unwrap();
    let mut spec = idle(&house, "last");
    spec.security.masked_paths = vec!["/proc/tty".into(), "/proc/cpuinfo".into()];
    let last = start(&engine, &pod, spec).await;
    assert_eq!(process_label(&engine, &last).await, label);
    // What the next supervisor has made for it is of use, too.
    assert_eq!(
        said(&engine, &last, "ls /proc/tty; cat /proc/cpuinfo; echo x > /dev/shm/x && echo works").await,
        "works\n"
    );
    house.close(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_command_line_gives_the_labels_that_a_bundle_names() {
    if !is_on() {
        return;
    }
    let house = House::new();
    let handler = Handler::berth().config("").unwrap();
    let engine = house.engine_of(vec![external::Config { root: house.dir.join("runtime"), ..handler }]).await;
    let mut spec = house.pod("web");
    spec.handler = "berth-oci".into();
    let pod = run_pod(&engine, spec).await;
    // A masked file is the node's null device, which this policy says nothing of; a directory is made for the container.
    let mut spec = idle(&house, "main");
    spec.security.masked_paths = vec!["/proc/tty".into()];
    let container = start(&engine, &pod, spec).await;
    let label = process_label(&engine, &container).await;
    let level = label.strip_prefix("system_u:system_r:container_t:s0:c").unwrap();

    let table = said(&engine, &container, "cat /proc/self/mountinfo").await.replace('"', "");
    let context = format!("context=system_u:object_r:container_file_t:s0:c{level}");
    for at in ["/", "/dev", "/dev/pts", "/dev/shm"] {
        let line = table.lines().find(|line| line.split(' ').nth(4) == Some(at)).unwrap();
        assert!(line.contains(&context), "{line}");
    }
    let used = "echo x > /dev/null && echo x > /tmp/x && echo x > /dev/shm/x && ls /dev/mqueue /dev/pts /proc/tty > /tmp/list && \
                echo works";
    assert_eq!(said(&engine, &container, used).await, "works\n");

    let mut other = idle(&house, "other");
    other.security.selinux = asked("other_t", "");
    let other = start(&engine, &pod, other).await;
    assert_eq!(process_label(&engine, &other).await, format!("system_u:system_r:other_t:s0:c{level}"));
    house.close(engine).await;
}
