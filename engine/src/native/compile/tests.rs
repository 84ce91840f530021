//! Plans as people read them: what is asked for on one side, the steps in order on the other.

use super::*;
use crate::exec::ResolvedUser;
use crate::native::plan::{self, Step};
use crate::native::seccomp::Filter;
use crate::spec::{ContainerSecurity, MountSpec};

fn facts() -> Facts {
    let default_capabilities = capabilities::default_set(None).unwrap();
    Facts { bounding: u64::MAX, default_capabilities, cgroup_v1: Vec::new(), cgroup_v2: true }
}

fn process() -> Process {
    Process {
        args: vec!["sh".into(), "-c".into()],
        env: vec![b"PATH=/bin".to_vec()],
        cwd: "/work".into(),
        user: ResolvedUser { uid: 1000, gid: 7, groups: vec![7, 8] },
        ..Process::default()
    }
}

/// A container with nothing beside its request and its process.
fn plain<'a>(id: &'a str, spec: &'a ContainerSpec, process: &'a Process) -> Container<'a> {
    Container {
        id,
        spec,
        process,
        mounts: &[],
        devices: &[],
        seccomp: None,
        labels: &[],
        mount_label: None,
        tasks: 0,
        node_shm: false,
        user: None,
    }
}

fn compiled(
    facts: &Facts,
    spec: &ContainerSpec,
    process: &Process,
    mounts: &[PreparedMount],
    tasks: usize,
) -> Vec<u8> {
    let c = Container { mounts, tasks, ..plain("c1", spec, process) };
    container(facts, &c).unwrap()
}

/// One word per step, with the path it is about.
fn outline(plan: &[u8]) -> Vec<String> {
    let name = |step: Step<'_>| format!("{step:?}").split([' ', '{']).next().unwrap_or_default().to_owned();
    plan::steps(plan).unwrap().map(|s| format!("{} {}", name(s), s.object()).trim().to_owned()).collect()
}

#[test]
fn a_plain_container_on_cgroup_v2() {
    let mut spec = ContainerSpec::default();
    spec.security.masked_paths = vec!["/proc/keys".into()];
    spec.security.readonly_paths = vec!["/proc/sys".into()];
    spec.security.readonly_rootfs = true;
    spec.security.no_new_privs = true;
    let plan = compiled(&facts(), &spec, &process(), &[], 0);
    assert!(plan::verify(&plan));
    let expected = [
        "JoinCgroups",
        "OomScore",
        "Unshare",
        "Root",
        "Mount /proc",
        "Mount /dev",
        "Mount /dev/pts",
        "Mount /dev/mqueue",
        "Share /dev/shm",
        "Mount /sys",
        "Mount /sys/fs/cgroup",
        "Node /dev/null",
        "Node /dev/zero",
        "Node /dev/full",
        "Node /dev/random",
        "Node /dev/urandom",
        "Node /dev/tty",
        "Link /dev/ptmx",
        "Link /dev/fd",
        "Link /dev/stdin",
        "Link /dev/stdout",
        "Link /dev/stderr",
        "Link /dev/core",
        "Directory /work",
        "Session",
        "Stdio",
        "Mask /proc/keys",
        "ReadOnly /proc/sys",
        "Pivot",
        "ReadOnlyRoot",
        "Keyring",
        "Chdir /work",
        "NoNewPrivs",
        "Bounding",
        "Identity",
        "Capabilities",
        "Exec sh",
    ];
    assert_eq!(outline(&plan), expected);
}

/// CVE-2023-6476, CVE-2024-3154, CVE-2026-53488: what a pod or an image may say about itself decides nothing here.
#[test]
fn no_annotation_or_label_changes_a_plan() {
    let plain = ContainerSpec::default();
    let mut talking = plain.clone();
    for name in [
        "io.kubernetes.cri-o.UnifiedCgroup.app",
        "io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw",
        "io.kubernetes.cri-o.userns-mode",
        "org.systemd.property.ExecStartPre",
        "run.oci.keep_original_groups",
        "run.oci.hooks.stderr",
        "io.containerd.runc.v2.group",
        "cdi.k8s.io/devices",
        "nri.io/hooks",
    ] {
        talking.annotations.insert(name.into(), "1".into());
        talking.labels.insert(name.into(), "1".into());
    }
    let plan = |spec| compiled(&facts(), spec, &process(), &[], 0);
    assert_eq!(plan(&talking), plan(&plain));
}

#[test]
fn a_privileged_container_has_no_masks_and_writable_sysfs() {
    let mut spec = ContainerSpec::default();
    spec.security.privileged = true;
    spec.security.masked_paths = vec!["/proc/keys".into()];
    let plan = compiled(&facts(), &spec, &process(), &[], 0);
    let outline = outline(&plan);
    assert!(!outline.iter().any(|s| s.starts_with("Mask") || s == "Unshare"), "{outline:?}");
    let writable = |s: Step<'_>| matches!(s, Step::Mount { at, attributes, .. } if at == c"/sys" && attributes & RDONLY == 0);
    assert!(plan::steps(&plan).unwrap().any(writable));
    assert!(plan::steps(&plan).unwrap().any(|s| matches!(s, Step::Bounding { keep: u64::MAX })));
}

#[test]
fn descriptors_are_numbered_tasks_root_mounts_streams() {
    let node = || std::fs::File::open("/dev/null").unwrap().into();
    let mount = |destination: &str, spec| PreparedMount {
        fd: node(),
        destination: destination.into(),
        directory: true,
        spec,
    };
    let shared = MountSpec { propagation: Propagation::Bidirectional, ..Default::default() };
    let frozen = MountSpec {
        readonly: true,
        recursive_readonly: true,
        options: vec!["noexec".into()],
        ..Default::default()
    };
    let mounts = [mount("/a", shared), mount("/b", frozen)];
    let process = Process { stdin: true, ..process() };
    let plan = compiled(&facts(), &ContainerSpec::default(), &process, &mounts, 9);
    let steps: Vec<_> = plan::steps(&plan).unwrap().collect();
    let set = RDONLY | NOEXEC;
    for expected in [
        Step::JoinCgroups { first: 0, count: 9 },
        Step::Root { fd: 9 },
        Step::Attach { fd: 10, at: c"/a", directory: 1, set: 0, propagation: 0, recursive: 0 },
        Step::Attach { fd: 11, at: c"/b", directory: 1, set, propagation: libc::MS_PRIVATE, recursive: 1 },
        Step::Stdio { stdout: 12, stderr: 13, stdin: 14, uid: 1000 },
        Step::Identity { uid: 1000, gid: 7, groups: &[7, 0, 0, 0, 8, 0, 0, 0] },
    ] {
        assert!(steps.contains(&expected), "{expected:?} in {steps:#?}");
    }
}

#[test]
fn a_filter_is_installed_while_it_still_may_be() {
    let filter = Filter { program: vec![6, 0, 0, 0, 0, 0, 255, 127].into(), flags: 0, listener: None };
    for no_new_privs in [false, true] {
        let mut spec = ContainerSpec::default();
        spec.security.no_new_privs = no_new_privs;
        let process = process();
        let e = Exec {
            spec: &spec,
            process: &process,
            seccomp: Some(Guard::new(&filter, None)),
            labels: &[],
            tasks: 2,
            streams: [false, true, true],
            user: None,
        };
        let outline = outline(&exec(&facts(), &e).unwrap());
        let at = |name: &str| outline.iter().position(|s| s == name).unwrap();
        let last = outline.iter().rposition(|s| s == "Capabilities").unwrap();
        assert_eq!(at("Seccomp") > last, no_new_privs, "{outline:?}");
        assert!(at("Chdir /work") < at("Seccomp") && at("Identity") < at("Seccomp"), "{outline:?}");
        assert!(at("Stdio") < at("JoinProcess") && at("JoinProcess") < at("Bounding"), "{outline:?}");
    }
}

#[test]
fn requests_that_cannot_be_honoured_are_refused_by_name() {
    let refused = |spec: &ContainerSpec, process: &Process| {
        let c = plain("c", spec, process);
        container(&facts(), &c).unwrap_err().chain()
    };
    let spec = ContainerSpec::default();
    assert!(refused(&spec, &Process { args: Vec::new(), ..process() }).starts_with("command: "));
    assert!(
        refused(&spec, &Process { args: vec!["a\0b".into()], ..process() })
            .starts_with("command: contains a zero byte")
    );
    assert!(refused(&spec, &Process { env: vec![b"A=\0".to_vec()], ..process() }).starts_with("envs: "));
}

#[test]
fn in_a_user_namespace_what_needs_the_nodes_root_comes_first() {
    let map = vec![crate::spec::IdMapping { container_id: 0, host_id: 100_000, length: 65_536 }];
    let user = UserNamespace { mode: NamespaceMode::Pod, uids: map.clone(), gids: map };
    let (spec, process) = (ContainerSpec::default(), process());
    let compiled = |own_network| {
        let c = Container {
            tasks: 2,
            user: Some(User { map: &user, own_network }),
            ..plain("c1", &spec, &process)
        };
        container(&facts(), &c).unwrap()
    };
    let plan = compiled(true);
    assert_eq!(outline(&plan)[..5], ["JoinCgroups", "OomScore", "Stdio", "User", "Unshare"]);
    assert!(
        outline(&plan).contains(&"ShareFile /dev/null".into()),
        "root of a user namespace makes no devices"
    );
    let streams = plan::steps(&plan).unwrap().find(|s| matches!(s, Step::Stdio { .. })).unwrap();
    // Behind two tasks files, the root and the user namespace; the pipes belong to the user's id on the node.
    assert_eq!(streams, Step::Stdio { stdin: u64::MAX, stdout: 4, stderr: 5, uid: 101_000 });
    assert!(
        outline(&compiled(false)).contains(&"Attach /sys".into()),
        "with the node's network it is the node's"
    );
}

#[test]
fn the_directory_of_cgroups_is_shared_with_those_who_cannot_write_to_it() {
    let facts = Facts { cgroup_v1: vec![("cpu".into(), b"cpu\0\0".to_vec())], ..facts() };
    let (mut spec, process) = (ContainerSpec::default(), process());
    let shares = |spec: &ContainerSpec| {
        let plan = container(&facts, &plain("c1", spec, &process)).unwrap();
        outline(&plan).contains(&"Hierarchies /sys/fs/cgroup".to_owned())
    };
    assert!(shares(&spec));
    spec.security.add_capabilities = vec!["SYS_ADMIN".into()];
    assert!(!shares(&spec), "it could mount it anew");
    spec.security = ContainerSecurity { privileged: true, ..ContainerSecurity::default() };
    assert!(!shares(&spec));
}

#[test]
fn where_selinux_is_on_what_is_mounted_for_a_container_has_its_label() {
    let label: crate::selinux::Context = "u:o:file_t:s0:c1,c2".parse().unwrap();
    let (spec, process) = (ContainerSpec::default(), process());
    let c = Container { mount_label: Some(&label), ..plain("c1", &spec, &process) };
    let plan =
        container(&Facts { cgroup_v1: vec![("cpu".into(), b"cpu\0\0".to_vec())], ..facts() }, &c).unwrap();
    let context = b"context\0u:o:file_t:s0:c1,c2\0";
    let labelled = plan::steps(&plan).unwrap().filter_map(|step| match step {
        Step::Mount { at, options, .. } if options.ends_with(context) => Some(at),
        _ => None,
    });
    // The others are the kernel's, which knows what is in them.
    assert_eq!(labelled.collect::<Vec<_>>(), [c"/dev", c"/dev/pts", c"/sys/fs/cgroup"]);
    let relabelled = Step::Relabel { at: c"/dev/mqueue", value: b"u:o:file_t:s0:c1,c2" };
    assert_eq!(plan::steps(&plan).unwrap().filter(|step| *step == relabelled).count(), 1);
}
