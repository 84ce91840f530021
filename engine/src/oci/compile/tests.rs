//! Plans of bundles: which steps there are, and in which order.

use super::*;
use crate::native::plan;
use crate::native::seccomp::Filter;

fn spec(json: &str) -> Spec {
    let spec = bundle::parse(json.as_bytes()).unwrap();
    bundle::check(&spec).unwrap();
    spec
}

/// A bundle with a shell and these members of `linux`, plus members of its own.
fn shell(linux: &str, more: &str) -> Spec {
    spec(&format!(
        r#"{{"ociVersion":"1.2.0","root":{{"path":"r"}},
            "process":{{"user":{{"uid":7,"gid":8}},"cwd":"/w","args":["sh"],"noNewPrivileges":false}},
            "linux":{{{linux}}}{more}}}"#
    ))
}

const MOUNT: &str = r#""namespaces":[{"type":"mount"},{"type":"pid"}]"#;

/// The names of a container's steps.
fn steps(spec: &Spec) -> Result<Vec<String>, Error> {
    let bytes = plan_of(spec, b"")?;
    let name = |step: Step<'_>| format!("{step:?}").split([' ', '{']).next().unwrap_or_default().to_owned();
    Ok(plan::steps(&bytes).unwrap().map(name).collect())
}

/// A container's plan, with an SELinux label for what is mounted, or none.
fn plan_of(spec: &Spec, mount_label: &[u8]) -> Result<Vec<u8>, Error> {
    let requests: Vec<_> = spec.mounts().iter().flatten().map(mounts::request).collect::<Result<_, _>>()?;
    let slots = Slots { tasks: 2, root: 2, null: 3, pipes: [4, 5], streams: [6, 7, 8], ..Slots::default() };
    let filter = Filter { program: Box::new([0; 8]), flags: 0, listener: None };
    let bytes = container(&Container {
        id: "c",
        spec,
        bundle: Path::new("/b"),
        rootfs: Path::new("/b/r"),
        facts: &Facts { bounding: u64::MAX, cgroup_v2: true, ..Facts::default() },
        slots: &slots,
        mounts: &requests,
        labels: &[Label { file: c"self/attr/apparmor/exec", value: b"exec p".to_vec() }],
        mount_label,
        filter: Some(Guard::new(&filter, None)),
        preserve: 0,
        keyring: true,
    })?;
    assert!(plan::verify(&bytes));
    Ok(bytes)
}

/// The position of a step.
fn at(steps: &[String], name: &str) -> usize {
    steps.iter().position(|step| step == name).unwrap_or_else(|| panic!("no {name} in {steps:?}"))
}

#[test]
fn a_process_waits_with_nothing_left_to_take_away_from_it() {
    let steps = steps(&shell(MOUNT, "")).unwrap();
    assert_eq!(steps[0], "Preserve", "what the starter had open is closed first");
    for earlier in
        ["JoinCgroups", "Template", "Root", "Pivot", "Seccomp", "Bounding", "Identity", "Capabilities"]
    {
        assert!(at(&steps, earlier) < at(&steps, "Await"), "{earlier}");
    }
    assert!(at(&steps, "Chdir") < at(&steps, "Seccomp"), "a filter may have no good word for getcwd");
    assert_eq!(steps[steps.len() - 2..], ["Await", "Exec"]);
}

#[test]
fn the_node_stays_in_reach_only_for_hooks_that_need_it() {
    let hook = |name: &str| format!(r#","hooks":{{"{name}":[{{"path":"/h","args":["h"]}}]}}"#);
    for (name, kept) in [
        ("createContainer", true),
        ("createRuntime", true),
        ("prestart", true),
        ("startContainer", false),
        ("poststop", false),
    ] {
        let steps = steps(&shell(MOUNT, &hook(name))).unwrap();
        assert_eq!(steps.contains(&"RootAt".to_owned()), kept, "{name}");
        assert_eq!(steps.contains(&"Sync".to_owned()), kept, "{name}");
    }
    let created = steps(&shell(MOUNT, &hook("createContainer"))).unwrap();
    assert!(at(&created, "Sync") < at(&created, "Hook") && at(&created, "Hook") < at(&created, "Pivot"));
    assert!(
        at(&created, "Hook") < at(&created, "Label"),
        "the node's hooks run without the container's label"
    );
    assert!(
        at(&created, "Label") < at(&created, "Pivot"),
        "it is asked for where no image can be in the way"
    );
    let started = steps(&shell(MOUNT, &hook("startContainer"))).unwrap();
    assert!(at(&started, "Await") < at(&started, "Hook") && at(&started, "Hook") < at(&started, "Exec"));
}

#[test]
fn without_a_mount_namespace_nothing_is_attached_to_the_node() {
    let steps = steps(&shell("", "")).unwrap();
    assert!(at(&steps, "RootAlone") < at(&steps, "Pivot"));
    assert!(!steps.iter().any(|step| ["Root", "RootAt", "Template"].contains(&step.as_str())), "{steps:?}");
}

#[test]
fn places_that_hostile_images_link_away_are_reached_strictly() {
    let mount = |at: &str, kind: &str| {
        let mounts = format!(r#","mounts":[{{"destination":"{at}","type":"{kind}","source":"{kind}"}}]"#);
        steps(&shell(MOUNT, &mounts)).unwrap()
    };
    for (place, kind) in
        [("/proc", "proc"), ("/elsewhere", "proc"), ("/sys", "sysfs"), ("/dev", "tmpfs"), ("/dev/", "tmpfs")]
    {
        assert!(mount(place, kind).contains(&"Mount".to_owned()), "{kind} at {place}");
    }
    assert!(mount("/var/cache", "tmpfs").contains(&"FileSystem".to_owned()));
}

#[test]
fn sysctls_of_the_node_are_refused() {
    let wanted = |key: &str, namespaces: &str| {
        let linux = format!(r#""namespaces":[{{"type":"mount"}}{namespaces}],"sysctl":{{"{key}":"1"}}"#);
        steps(&shell(&linux, ""))
    };
    wanted("net.ipv4.ip_forward", r#",{"type":"network"}"#).unwrap();
    for (key, namespaces) in [
        ("net.ipv4.ip_forward", ""),
        ("kernel.core_pattern", r#",{"type":"network"}"#),
        ("kernel.shmmax", ""),
    ] {
        assert!(wanted(key, namespaces).unwrap_err().chain().contains(key), "{key}");
    }
}

#[test]
fn a_cgroup_path_stays_below_the_hierarchies() {
    let driver = CgroupDriver::Cgroupfs;
    let path = |text: &str| cgroup("c", &shell(&format!(r#""cgroupsPath":"{text}""#), ""), driver);
    assert_eq!(path("").unwrap(), "/berth-oci/c");
    assert_eq!(path("/kubepods/pod1/c").unwrap(), "/kubepods/pod1/c");
    assert_eq!(path("relative//x/.").unwrap(), "/relative/x");
    for bad in ["/", "/a/../..", "..", "system.slice:runc:c"] {
        path(bad).unwrap_err();
    }
}

#[test]
fn a_unit_is_a_scope_in_its_slices() {
    let driver = CgroupDriver::Systemd;
    let path = |text: &str| cgroup("c", &shell(&format!(r#""cgroupsPath":"{text}""#), ""), driver);
    assert_eq!(path("").unwrap(), "/system.slice/berth-oci-c.scope");
    assert_eq!(path("a-b.slice:runc:x").unwrap(), "/a.slice/a-b.slice/runc-x.scope");
    assert_eq!(path("::x").unwrap(), "/system.slice/x.scope");
    for bad in [
        "/kubepods/x",
        "a:b",
        "a.slice:b:c:d",
        "a:b:c",
        "a.slice:b:",
        "a.slice::x.slice",
        "a.slice:b:x/y",
        "..:a:b",
    ] {
        let error = path(bad).unwrap_err().chain();
        assert!(error.starts_with("linux.cgroupsPath: "), "{bad}: {error}");
    }
}

/// Steps of a process with these members.
fn scheduled(members: &str) -> Result<Vec<Step<'static>>, Error> {
    let text = format!(r#"{{"user":{{"uid":0,"gid":0}},"cwd":"/","args":["x"],{members}}}"#);
    let process: Process = serde_json::from_str(&text).unwrap();
    let mut plan = Writer::new();
    process::scheduling(&mut plan, &process)?;
    let bytes: &'static [u8] = plan.finish().leak();
    Ok(plan::steps(bytes).unwrap().collect())
}

#[test]
fn a_scheduler_and_an_io_priority_are_steps() {
    let cases = [
        (
            r#""scheduler":{"policy":"SCHED_BATCH","nice":-5,"flags":["SCHED_RESET_ON_FORK"]}"#,
            Step::Scheduler {
                policy: 3,
                flags: 1,
                nice: (-5i64).cast_unsigned(),
                priority: 0,
                runtime: 0,
                deadline: 0,
                period: 0,
            },
        ),
        (
            r#""scheduler":{"policy":"SCHED_DEADLINE","runtime":1,"deadline":2,"period":3}"#,
            Step::Scheduler { policy: 6, flags: 0, nice: 0, priority: 0, runtime: 1, deadline: 2, period: 3 },
        ),
        (r#""ioPriority":{"class":"IOPRIO_CLASS_BE","priority":7}"#, Step::IoPriority { value: 2 << 13 | 7 }),
        (r#""ioPriority":{"class":"IOPRIO_CLASS_IDLE","priority":0}"#, Step::IoPriority { value: 3 << 13 }),
    ];
    for (members, step) in cases {
        assert_eq!(scheduled(members).unwrap(), [step], "{members}");
    }
}

#[test]
fn what_a_scheduler_would_ignore_is_refused_by_name() {
    for (scheduler, field) in [
        (r#"{"policy":"SCHED_ISO"}"#, "policy"),
        (r#"{"policy":"SCHED_OTHER","nice":20}"#, "nice"),
        (r#"{"policy":"SCHED_OTHER","priority":1}"#, "priority"),
        (r#"{"policy":"SCHED_FIFO"}"#, "priority"),
        (r#"{"policy":"SCHED_RR","priority":100}"#, "priority"),
        (r#"{"policy":"SCHED_IDLE","runtime":5}"#, "runtime"),
        (r#"{"policy":"SCHED_FIFO","priority":1,"period":5}"#, "period"),
    ] {
        let error = scheduled(&format!(r#""scheduler":{scheduler}"#)).unwrap_err().chain();
        assert!(error.starts_with(&format!("process.scheduler.{field}: ")), "{scheduler}: {error}");
    }
    for priority in [-1, 8] {
        let members = format!(r#""ioPriority":{{"class":"IOPRIO_CLASS_RT","priority":{priority}}}"#);
        assert!(scheduled(&members).unwrap_err().chain().starts_with("process.ioPriority.priority: "));
    }
}

#[test]
fn what_is_mounted_has_the_label_unless_the_kernel_labels_it_or_the_bundle_says_otherwise() {
    let mounts = r#","mounts":[
        {"destination":"/proc","type":"proc"},
        {"destination":"/dev","type":"tmpfs","options":["size=64k"]},
        {"destination":"/dev/mqueue","type":"mqueue"},
        {"destination":"/own","type":"tmpfs","options":["context=u:o:other"]}]"#;
    let bytes = plan_of(&shell(MOUNT, mounts), b"u:o:file").unwrap();
    let mut seen = Vec::new();
    for step in plan::steps(&bytes).unwrap() {
        match step {
            Step::Mount { at, options, .. } | Step::FileSystem { at, options, .. } => {
                let text = String::from_utf8_lossy(options).replace('\0', " ");
                seen.push(format!("{}: {}", at.to_str().unwrap(), text.trim()));
            }
            Step::Template { label, .. } => {
                seen.push(format!("template: {}", String::from_utf8_lossy(label)));
            }
            Step::Relabel { at, value } => {
                seen.push(format!("{} is {}", at.to_str().unwrap(), String::from_utf8_lossy(value)));
            }
            _ => {}
        }
    }
    let expected = [
        "template: u:o:file",
        "/proc: ",
        "/dev: size 64k context u:o:file",
        "/dev/mqueue: ",
        "/dev/mqueue is u:o:file",
        "/own: context u:o:other",
    ];
    assert_eq!(seen, expected);
    assert!(!plan_of(&shell(MOUNT, mounts), b"").unwrap().windows(8).any(|bytes| bytes == b"u:o:file"));
}
