//! Policy and process of containers, without a container.

use storage::ImageConfig;

use super::policy::{check, exited, lost, reconcile};
use super::process::{merge, parse_signal, stop_signal};
use super::{Container, ContainerPhase, ContainerRecord, ContainerStatus, Reason};
use crate::exec::{Exit, Features, Process, Started, Survivor};
use crate::pod::{PodRecord, PodStatus, State};
use crate::spec::{ContainerSpec, ImageSpec, MountSpec, NamespaceMode, PodSpec, Propagation};
use crate::testing::container;

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn command_and_args_follow_the_docker_rule() {
    let image =
        ImageConfig { entrypoint: strings(&["/e", "-x"]), cmd: strings(&["c"]), ..ImageConfig::default() };
    let bare = ImageConfig { cmd: strings(&["c"]), ..ImageConfig::default() };
    type Row<'a> = (&'a ImageConfig, &'a [&'a str], &'a [&'a str], &'a [&'a str]);
    let table: [Row<'_>; 7] = [
        (&image, &[], &[], &["/e", "-x", "c"]),
        (&image, &[], &["a"], &["/e", "-x", "a"]),
        (&image, &["/r"], &[], &["/r"]),
        (&image, &["/r"], &["a", "b"], &["/r", "a", "b"]),
        (&bare, &[], &[], &["c"]),
        (&bare, &[], &["a"], &["a"]),
        (&bare, &["/r"], &[], &["/r"]),
    ];
    for (image, command, args, expected) in table {
        let spec = ContainerSpec { command: strings(command), args: strings(args), ..container("app") };
        assert_eq!(merge(&spec, image, "host").unwrap().args, strings(expected), "{command:?} {args:?}");
    }
    let nothing = merge(&container("app"), &ImageConfig::default(), "host").unwrap_err();
    assert!(nothing.chain().contains("command"), "{}", nothing.chain());
}

#[test]
fn environment_is_the_images_overridden_by_name_with_defaults() {
    let image = ImageConfig {
        cmd: strings(&["c"]),
        env: strings(&["A=1", "B=2", "PATH=/x"]),
        ..ImageConfig::default()
    };
    let mut spec = ContainerSpec {
        envs: vec![("B".into(), b"\xff=".to_vec()), ("C".into(), Vec::new())],
        ..container("app")
    };
    let env = merge(&spec, &image, "host").unwrap().env;
    let expected: [&[u8]; 5] = [b"A=1", b"B=\xff=", b"PATH=/x", b"C=", b"HOSTNAME=host"];
    assert_eq!(env, expected);
    spec.tty = true;
    let bare = ImageConfig { cmd: strings(&["c"]), ..ImageConfig::default() };
    let env = merge(&spec, &bare, "host").unwrap().env;
    assert!(env.contains(&b"TERM=xterm".to_vec()) && env.iter().any(|v| v.starts_with(b"PATH=/usr")));
}

#[test]
fn the_working_directory_is_the_requests_the_images_or_root() {
    for (requested, image, expected) in
        [("", "", "/"), ("", "/srv", "/srv"), ("", "srv", "/srv"), ("/w", "/srv", "/w")]
    {
        let spec = ContainerSpec { working_dir: requested.into(), ..container("app") };
        let image = ImageConfig { cmd: strings(&["c"]), working_dir: image.into(), ..ImageConfig::default() };
        assert_eq!(merge(&spec, &image, "host").unwrap().cwd, expected);
    }
}

#[test]
fn signals_are_read_by_number_and_name() {
    let table = [
        ("15", Some(15)),
        ("SIGTERM", Some(15)),
        ("term", Some(15)),
        ("SIGRTMIN+3", Some(37)),
        ("RTMAX-14", Some(50)),
        ("SIGRTMIN", Some(34)),
        ("SIGRTMAX", Some(64)),
        ("64", Some(64)),
        ("0", None),
        ("65", None),
        ("-1", None),
        ("SIGNOPE", None),
        ("RTMIN-1", None),
        ("RTMIN+31", None),
        ("", None),
    ];
    for (text, number) in table {
        assert_eq!(parse_signal(text), number, "{text}");
    }
    let image = |signal: &str| ImageConfig { stop_signal: signal.into(), ..ImageConfig::default() };
    assert_eq!(stop_signal(&container("app"), &image("")).unwrap(), 15);
    assert_eq!(stop_signal(&container("app"), &image("SIGQUIT")).unwrap(), 3);
    let spec = ContainerSpec { stop_signal: Some(2), ..container("app") };
    assert_eq!(stop_signal(&spec, &image("SIGQUIT")).unwrap(), 2);
    assert!(stop_signal(&container("app"), &image("SIGNOPE")).is_err());
}

#[test]
fn requests_that_cannot_be_honoured_are_refused_by_field() {
    type Change = fn(&mut ContainerSpec);
    let table: [(&str, Change); 26] = [
        ("metadata.name", |s| s.name.clear()),
        ("image.image", |s| s.image.image.clear()),
        ("security_context.privileged", |s| s.security.privileged = true),
        ("run_as_group", |s| s.security.user.gid = Some(1)),
        ("run_as_username", |s| (s.security.user.uid, s.security.user.username) = (Some(1), "app".into())),
        ("run_as_user", |s| s.security.user.uid = Some(-1)),
        ("run_as_user", |s| s.security.user.uid = Some(i64::from(u32::MAX))),
        ("supplemental_groups", |s| s.security.user.supplemental_groups = vec![1 << 33]),
        ("network", |s| s.security.namespaces.network = NamespaceMode::Node),
        ("ipc", |s| s.security.namespaces.ipc = NamespaceMode::Container),
        ("target_id", |s| s.security.namespaces.pid = NamespaceMode::Target),
        ("target_id", |s| s.security.namespaces.target_id = "x".into()),
        ("userns_options", |s| s.security.namespaces.user = Some(Default::default())),
        ("log_path", |s| s.log_path = "../../etc/passwd".into()),
        ("log_path", |s| s.log_path = "/etc/passwd".into()),
        ("working_dir", |s| s.working_dir = "here".into()),
        ("stop_signal", |s| s.stop_signal = Some(65)),
        ("command", |s| s.command = vec!["a\0b".into()]),
        ("envs", |s| s.envs = vec![("A".into(), vec![0])]),
        ("devices", |s| s.devices = vec![Default::default()]),
        ("mounts[0].host_path", |s| s.mounts[0].host_path = "relative".into()),
        ("mounts[0].container_path", |s| s.mounts[0].container_path.clear()),
        ("mounts[0].mount_options", |s| s.mounts[0].options = vec!["suid".into()]),
        ("mounts[0].recursive_read_only", |s| s.mounts[0].recursive_readonly = true),
        ("mounts[0].uid_mappings", |s| s.mounts[0].uid_mappings = vec![Default::default()]),
        ("mounts[0].image_sub_path", |s| s.mounts[0].image_sub_path = "x".into()),
    ];
    let mount =
        MountSpec { container_path: "/data".into(), host_path: "/tmp".into(), ..MountSpec::default() };
    let good = ContainerSpec { mounts: vec![mount], ..container("app") };
    let features =
        Features { recursive_readonly_mounts: true, user_namespaces: false, ..Features::default() };
    check(&good, &PodSpec::default(), features).unwrap();
    for (field, change) in table {
        let mut spec = good.clone();
        change(&mut spec);
        let error = check(&spec, &PodSpec::default(), features).unwrap_err();
        assert!(error.chain().starts_with(field), "{field}: {}", error.chain());
    }
}

#[test]
fn the_words_the_kubelet_looks_for_come_first() {
    let mount = MountSpec {
        container_path: "/data".into(),
        host_path: "/tmp".into(),
        readonly: true,
        ..MountSpec::default()
    };
    let with = |mount: MountSpec| ContainerSpec { mounts: vec![mount], ..container("app") };
    let recursive = MountSpec { recursive_readonly: true, ..mount.clone() };
    let refused = |spec: &ContainerSpec, rro| {
        let features =
            Features { recursive_readonly_mounts: rro, user_namespaces: false, ..Features::default() };
        check(spec, &PodSpec::default(), features).unwrap_err().chain()
    };
    assert!(refused(&with(recursive.clone()), false).starts_with("RROUnsupported"));
    let propagated = MountSpec { propagation: Propagation::HostToContainer, ..recursive };
    assert!(refused(&with(propagated), true).contains("PROPAGATION_PRIVATE"));
    let image = Some(ImageSpec { image: "data:1".into(), ..ImageSpec::default() });
    let writable = MountSpec { image, host_path: "".into(), readonly: false, ..mount };
    assert!(refused(&with(writable), true).starts_with("ImageVolumeMountFailed"));
}

fn state(phases: &[(&str, ContainerPhase)]) -> State {
    let record = PodRecord {
        id: "pod".into(),
        created_at: 1,
        boot_id: String::new(),
        handler: String::new(),
        cgroup: "/c".into(),
        spec: Default::default(),
        selinux: None,
    };
    let container = |(id, phase): &(&str, ContainerPhase)| {
        let record = ContainerRecord {
            id: (*id).into(),
            pod: "pod".into(),
            created_at: 1,
            spec: Default::default(),
            image_id: String::new(),
            image_ref: String::new(),
            volumes: Vec::new(),
            process: Process::default(),
            cdi: Default::default(),
            stop_signal: 15,
            cgroup: String::new(),
            log_path: Default::default(),
            selinux: None,
        };
        (
            record.id.clone(),
            Container::new(record, ContainerStatus { phase: *phase, ..ContainerStatus::default() }),
        )
    };
    State {
        record: record.into(),
        status: PodStatus::default(),
        containers: phases.iter().map(container).collect(),
    }
}

#[test]
fn an_exit_counts_once_and_only_for_what_has_been_started() {
    use ContainerPhase::{Created, Exited, Running, Starting};
    let mut pod = state(&[("made", Created), ("starts", Starting), ("runs", Running)]);
    let exit = |code| Exit { code, oom: false, at: 5 };
    for id in ["made", "starts", "runs", "unknown"] {
        exited(&mut pod, id, &exit(1));
        exited(&mut pod, id, &exit(2));
    }
    let status = |pod: &State, id: &str| pod.containers[id].status.clone();
    assert_eq!((status(&pod, "made").phase, status(&pod, "made").exit), (Created, None));
    assert_eq!(status(&pod, "starts").phase, Starting);
    assert_eq!((status(&pod, "runs").phase, status(&pod, "runs").exit), (Exited, Some(exit(1))));
    let starting = pod.containers.get_mut("starts").unwrap();
    starting.status.started(Started { pid: 3, at: 4 });
    assert_eq!((starting.status.phase, starting.status.started_at), (Exited, 4));
}

#[test]
fn a_supervisor_that_comes_back_is_believed() {
    use ContainerPhase::{Created, Exited, Running};
    let mut pod = state(&[("made", Created), ("lives", Running), ("ended", Running), ("unknown", Running)]);
    let survivor = |id: &str, exit| Survivor { id: id.into(), pid: 9, started: 8, exit };
    let exit = Exit { code: 0, oom: true, at: 5 };
    reconcile(&mut pod, &[survivor("lives", None), survivor("ended", Some(exit))]);
    let reasons: Vec<_> = pod.containers.values().map(|c| (c.status.phase, c.status.reason)).collect();
    let expected = [
        (Exited, Some(Reason::OOMKilled)),
        (Running, None),
        (Created, None),
        (Exited, Some(Reason::Unknown)),
    ];
    assert_eq!(reasons, expected, "ended, lives, made, unknown");
    assert_eq!(pod.containers["lives"].status.pid, 9);
}

#[test]
fn without_a_supervisor_recorded_exits_count_and_the_rest_is_unknown() {
    let mut pod = state(&[("seen", ContainerPhase::Running), ("unseen", ContainerPhase::Running)]);
    lost(&mut pod, &[("seen".to_owned(), Exit { code: 4, oom: false, at: 5 })].into(), "gone");
    let code = |id: &str| pod.containers[id].status.exit.as_ref().unwrap().code;
    assert_eq!((code("seen"), code("unseen")), (4, 255));
    assert_eq!(pod.containers["unseen"].status.message, "gone");
}
