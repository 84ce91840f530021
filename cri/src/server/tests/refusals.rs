//! Bad input, RPC by RPC: the right code, a text that names what is wrong, and nothing left behind.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::testing::Act;
use prost::Message;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::harness::*;
use crate::proto::*;

/// One bad request: RPC, bytes, code, and a word of the answer.
type Row = (&'static str, Vec<u8>, Code, &'static str);

/// Bytes that are already encoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Raw(pub(super) Vec<u8>);

impl Message for Raw {
    fn encode_raw(&self, buf: &mut impl prost::bytes::BufMut) {
        buf.put_slice(&self.0);
    }
    fn merge_field(
        &mut self,
        _: u32,
        _: prost::encoding::WireType,
        _: &mut impl prost::bytes::Buf,
        _: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        Ok(())
    }
    fn encoded_len(&self) -> usize {
        self.0.len()
    }
    fn clear(&mut self) {
        self.0.clear();
    }
}

/// Sends bytes to an RPC by its name; what a unary one answers.
async fn send(daemon: &Daemon, rpc: &str, bytes: Vec<u8>) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(daemon.channel.clone());
    client.ready().await.unwrap();
    let image = ["PullImage", "RemoveImage", "ImageStatus", "ListImages"].contains(&rpc);
    let service = if image { "ImageService" } else { "RuntimeService" };
    let path = format!("/runtime.v1.{service}/{rpc}").parse().unwrap();
    let mut request = Request::new(Raw(bytes));
    request.set_timeout(Duration::from_secs(30));
    let codec: ProstCodec<Raw, ()> = ProstCodec::default();
    client.unary(request, path, codec).await.map(drop)
}

/// A message with the string `id` as its field 1, which is what every request about one object is.
fn about(id: &str) -> Vec<u8> {
    StartContainerRequest { container_id: id.into() }.encode_to_vec()
}

/// RPCs about one pod, then about one container; whether an absent one is a success.
const PODS: [(&str, bool); 7] = [
    ("StopPodSandbox", true),
    ("RemovePodSandbox", true),
    ("PodSandboxStatus", false),
    ("PodSandboxStats", false),
    ("UpdatePodSandboxResources", false),
    ("PortForward", false),
    ("CreateContainer", false),
];
const CONTAINERS: [(&str, bool); 10] = [
    ("StartContainer", false),
    ("StopContainer", true),
    ("RemoveContainer", true),
    ("ContainerStatus", false),
    ("ContainerStats", false),
    ("UpdateContainerResources", false),
    ("ReopenContainerLog", false),
    ("ExecSync", false),
    ("Exec", false),
    ("Attach", false),
];

/// A request about `id` that is otherwise good.
fn good(rpc: &str, id: &str) -> Vec<u8> {
    let cmd = || vec!["true".to_owned()];
    let mut bytes = about(id);
    let rest = match rpc {
        "CreateContainer" => {
            CreateContainerRequest { config: Some(container_config("x")), ..Default::default() }
                .encode_to_vec()
        }
        "ExecSync" => ExecSyncRequest { cmd: cmd(), ..Default::default() }.encode_to_vec(),
        "Exec" => ExecRequest { cmd: cmd(), stdout: true, ..Default::default() }.encode_to_vec(),
        "Attach" => AttachRequest { stdout: true, ..Default::default() }.encode_to_vec(),
        _ => Vec::new(),
    };
    bytes.extend(rest);
    bytes
}

/// The first hex digit that two ids share.
fn ambiguous(ids: &[String]) -> String {
    let mut seen = BTreeMap::new();
    ids.iter().find_map(|id| seen.insert(id[..1].to_owned(), ()).map(|()| id[..1].to_owned())).unwrap()
}

/// What is wrong with an answer; nothing when it is as the row says.
fn wrong((rpc, _, code, word): &Row, outcome: Result<(), Status>) -> Option<String> {
    let status = outcome.err().unwrap_or_else(|| Status::new(Code::Ok, ""));
    let text = status.message();
    let one_line = !text.contains('\n') && text.len() < 600;
    let right = status.code() == *code && text.contains(word) && one_line;
    (!right).then(|| format!("{rpc} was to be {code:?} with \"{word}\", and is {:?}: {text}", status.code()))
}

#[tokio::test]
async fn an_id_that_is_empty_absent_or_ambiguous_is_told_apart() {
    let mut daemon = Daemon::start().await;
    // Seventeen ids in hexadecimal: two begin alike.
    let (mut pods, mut containers) = (Vec::new(), Vec::new());
    for n in 0..17 {
        let pod = daemon.pod(&format!("p{n}")).await;
        containers.push(daemon.container(&pod, "c").await);
        pods.push(pod);
    }
    let absent = "f".repeat(63) + "g";
    let mut bad = Vec::new();
    for (rpcs, ids) in [(PODS.as_slice(), &pods), (&CONTAINERS, &containers)] {
        let twice = ambiguous(ids);
        for (rpc, idempotent) in rpcs {
            let missing = if *idempotent { (Code::Ok, "") } else { (Code::NotFound, absent.as_str()) };
            for (id, code, word) in [
                ("", Code::InvalidArgument, "must not be empty"),
                (absent.as_str(), missing.0, ""),
                (twice.as_str(), Code::InvalidArgument, "more than one"),
            ] {
                bad.extend(wrong(&(rpc, Vec::new(), code, word), send(&daemon, rpc, good(rpc, id)).await));
            }
        }
    }
    assert_eq!(bad, Vec::<String>::new());
    assert_eq!(daemon.service.engine.containers().len(), 17, "nothing was touched");
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}

#[tokio::test]
async fn an_object_in_the_wrong_state_is_a_failed_precondition() {
    let mut daemon = Daemon::start().await;
    let (pod, stopped) = (daemon.pod("p").await, daemon.pod("stopped").await);
    let create = |name: &str| CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(container_config(name)),
        sandbox_config: None,
    };
    let created = daemon.runtime.create_container(create("created")).await.unwrap().into_inner().container_id;
    let exited = daemon.container(&pod, "exited").await;
    daemon.node.world.end(&exited, 0);
    let stop = StopContainerRequest { container_id: exited.clone(), timeout: 1 };
    daemon.runtime.stop_container(stop).await.unwrap();
    let stop = StopPodSandboxRequest { pod_sandbox_id: stopped.clone() };
    daemon.runtime.stop_pod_sandbox(stop).await.unwrap();
    let mut bad = Vec::new();
    for (rpc, id) in [
        ("CreateContainer", &stopped),
        ("PortForward", &stopped),
        ("UpdatePodSandboxResources", &stopped),
        ("StartContainer", &exited),
        ("ExecSync", &created),
        ("ExecSync", &exited),
        ("Exec", &created),
        ("Exec", &exited),
        ("Attach", &created),
        ("Attach", &exited),
        ("ReopenContainerLog", &created),
        ("ReopenContainerLog", &exited),
        ("UpdateContainerResources", &exited),
    ] {
        let row = (rpc, Vec::new(), Code::FailedPrecondition, "");
        bad.extend(wrong(&row, send(&daemon, rpc, good(rpc, id)).await));
    }
    assert_eq!(bad, Vec::<String>::new());
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}

/// RunPodSandbox with a spoilt configuration.
fn run(word: &'static str, spoil: impl FnOnce(&mut PodSandboxConfig)) -> Row {
    let mut config = pod_config("bad");
    spoil(&mut config);
    let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    ("RunPodSandbox", request.encode_to_vec(), Code::InvalidArgument, word)
}

/// The same with a spoilt security context.
fn confined(word: &'static str, spoil: impl FnOnce(&mut LinuxSandboxSecurityContext)) -> Row {
    let mut context = LinuxSandboxSecurityContext::default();
    spoil(&mut context);
    run(word, |config| {
        config.linux = Some(LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() });
    })
}

fn sandboxes() -> Vec<Row> {
    let metadata = |change: fn(&mut PodSandboxMetadata)| {
        move |config: &mut PodSandboxConfig| change(config.metadata.as_mut().unwrap())
    };
    let unknown = RunPodSandboxRequest { config: Some(pod_config("bad")), runtime_handler: "none".into() };
    let user = |mode: NamespaceMode| UserNamespace { mode: mode.into(), ..Default::default() };
    let options = |o: NamespaceOption| {
        move |context: &mut LinuxSandboxSecurityContext| context.namespace_options = Some(o)
    };
    let of_user = |mode| NamespaceOption { userns_options: Some(user(mode)), ..Default::default() };
    vec![
        ("RunPodSandbox", Vec::new(), Code::InvalidArgument, "config"),
        ("RunPodSandbox", unknown.encode_to_vec(), Code::InvalidArgument, "\"none\" is not configured"),
        run("metadata", |config| config.metadata = None),
        run("metadata.name", metadata(|m| m.name.clear())),
        run("metadata.uid", metadata(|m| m.uid.clear())),
        run("metadata.namespace", metadata(|m| m.namespace.clear())),
        run("hostname", |config| config.hostname = "h".repeat(1 << 20)),
        run("log_directory", |config| config.log_directory = "relative".into()),
        run("servers[0]", |config| {
            config.dns_config = Some(DnsConfig { servers: vec!["nobody".into()], ..Default::default() });
        }),
        run("host_port", |config| {
            config.port_mappings =
                vec![PortMapping { container_port: 1, host_port: -1, ..Default::default() }];
        }),
        run("protocol", |config| {
            config.port_mappings =
                vec![PortMapping { protocol: 17, container_port: 1, ..Default::default() }];
        }),
        run("windows", |config| config.windows = Some(WindowsPodSandboxConfig::default())),
        confined("needs run_as_user", |c| c.run_as_group = Some(Int64Value { value: 5 })),
        confined("network", options(NamespaceOption { network: 1, ..Default::default() })),
        confined("ipc", options(NamespaceOption { ipc: 3, ..Default::default() })),
        confined("pid", options(NamespaceOption { pid: 3, target_id: "x".into(), ..Default::default() })),
        confined("target_id", options(NamespaceOption { target_id: "x".into(), ..Default::default() })),
        confined("userns_options", options(of_user(NamespaceMode::Container))),
        confined("userns_options", options(of_user(NamespaceMode::Target))),
        confined("exactly one mapping", options(of_user(NamespaceMode::Pod))),
    ]
}

/// CreateContainer with a spoilt configuration.
fn create(pod: &str, word: &'static str, spoil: impl FnOnce(&mut ContainerConfig)) -> Row {
    let mut config = container_config("bad");
    spoil(&mut config);
    let request =
        CreateContainerRequest { pod_sandbox_id: pod.into(), config: Some(config), sandbox_config: None };
    ("CreateContainer", request.encode_to_vec(), Code::InvalidArgument, word)
}

fn mount(change: impl FnOnce(&mut Mount)) -> impl FnOnce(&mut ContainerConfig) {
    let mut mount = Mount { host_path: "/tmp".into(), container_path: "/m".into(), ..Default::default() };
    change(&mut mount);
    |config| config.mounts = vec![mount]
}

fn secured(change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> impl FnOnce(&mut ContainerConfig) {
    let mut context = LinuxContainerSecurityContext::default();
    change(&mut context);
    |config| {
        config.linux = Some(LinuxContainerConfig { security_context: Some(context), ..Default::default() });
    }
}

fn limited(change: impl FnOnce(&mut LinuxContainerResources)) -> impl FnOnce(&mut ContainerConfig) {
    let mut resources = LinuxContainerResources::default();
    change(&mut resources);
    |config| config.linux = Some(LinuxContainerConfig { resources: Some(resources), ..Default::default() })
}

fn containers(pod: &str) -> Vec<Row> {
    let env = |key: &str, value: &[u8]| vec![KeyValue { key: key.into(), value: value.into() }];
    let image = || Some(ImageSpec { image: IMAGE.into(), ..Default::default() });
    let bare = CreateContainerRequest { pod_sandbox_id: pod.into(), ..Default::default() };
    let rows = vec![
        ("CreateContainer", bare.encode_to_vec(), Code::InvalidArgument, "config"),
        create(pod, "metadata", |c| c.metadata = None),
        create(pod, "metadata.name", |c| c.metadata = Some(ContainerMetadata::default())),
        create(pod, "config.image", |c| c.image = None),
        create(pod, "image.image", |c| c.image = Some(ImageSpec::default())),
        create(pod, "command[0]", |c| c.command = vec!["a\0b".into()]),
        create(pod, "envs[0].key", |c| c.envs = env("", b"v")),
        create(pod, "envs[0].key", |c| c.envs = env("A=B", b"v")),
        create(pod, "envs[0].value", |c| c.envs = env("A", b"a\0b")),
        create(pod, "stop_signal", |c| c.stop_signal = 4711),
        create(pod, "log_path", |c| c.log_path = "/absolute".into()),
        create(pod, "log_path", |c| c.log_path = "../up".into()),
        create(pod, "windows", |c| c.windows = Some(WindowsContainerConfig::default())),
        create(pod, "CDI_devices[0]", |c| c.cdi_devices = vec![CdiDevice { name: "gpu".into() }]),
        create(pod, "recursive_read_only", mount(|m| m.recursive_read_only = true)),
        create(
            pod,
            "propagation",
            mount(|m| {
                (m.readonly, m.recursive_read_only, m.propagation) = (true, true, 2);
            }),
        ),
        create(pod, "propagation", mount(|m| m.propagation = 9)),
        create(pod, "host_path", mount(|m| (m.image, m.readonly) = (image(), true))),
        create(pod, "readonly", mount(|m| (m.image, m.host_path) = (image(), String::new()))),
        create(pod, "image_sub_path", mount(|m| m.image_sub_path = "x".into())),
        create(pod, "container_path", mount(|m| m.container_path.clear())),
        create(pod, "mount_options", mount(|m| m.mount_options = vec!["exec".into()])),
        create(pod, "needs run_as_user", secured(|s| s.run_as_group = Some(Int64Value { value: 1 }))),
        create(
            pod,
            "run_as_username",
            secured(|s| {
                (s.run_as_user, s.run_as_username) = (Some(Int64Value { value: 1 }), "root".into());
            }),
        ),
        create(pod, "run_as_user", secured(|s| s.run_as_user = Some(Int64Value { value: -1 }))),
        create(pod, "supplemental_groups", secured(|s| s.supplemental_groups = vec![-1])),
        create(pod, "supplemental_groups_policy", secured(|s| s.supplemental_groups_policy = 7)),
        create(
            pod,
            "target_id",
            secured(|s| {
                s.namespace_options = Some(NamespaceOption { pid: 3, ..Default::default() });
            }),
        ),
        create(
            pod,
            "localhost_ref",
            secured(|s| {
                s.seccomp = Some(SecurityProfile { profile_type: 2, localhost_ref: String::new() });
            }),
        ),
        create(
            pod,
            "memory_swap_limit_in_bytes",
            limited(|r| {
                (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (2 << 20, 1 << 20);
            }),
        ),
        create(pod, "memory_limit_in_bytes", limited(|r| r.memory_limit_in_bytes = -5)),
        create(pod, "cpu_period", limited(|r| r.cpu_period = 1)),
        create(pod, "cpu_shares", limited(|r| r.cpu_shares = -1)),
        create(pod, "oom_score_adj", limited(|r| r.oom_score_adj = 1001)),
        create(pod, "cpuset_cpus", limited(|r| r.cpuset_cpus = "all".into())),
        create(pod, "page_size", limited(|r| r.hugepage_limits = vec![HugepageLimit::default()])),
        create(pod, "unified", limited(|r| r.unified = [("../x".into(), "1".into())].into())),
    ];
    let privileged = create(pod, "privileged", secured(|s| s.privileged = true));
    let absent = create(pod, "absent:1", |c| {
        c.image = Some(ImageSpec { image: "absent:1".into(), ..Default::default() });
    });
    let not_found = (absent.0, absent.1, Code::NotFound, absent.3);
    rows.into_iter().chain([privileged, not_found]).collect()
}

/// Exec, Attach, PortForward, ExecSync, UpdateContainerResources, lists and images.
fn others(pod: &str, container: &str) -> Vec<Row> {
    let exec = |tty, stdout, stderr| {
        let cmd = vec!["true".into()];
        ExecRequest { container_id: container.into(), cmd, tty, stdout, stderr, ..Default::default() }
    };
    let attach = |tty, stdout, stderr| {
        let container_id = container.into();
        AttachRequest { container_id, tty, stdout, stderr, ..Default::default() }
    };
    let forward = PortForwardRequest { pod_sandbox_id: pod.into(), port: vec![80, 65_536] };
    let sync = |cmd: &[&str]| {
        let cmd = cmd.iter().map(|&word| word.to_owned()).collect();
        ExecSyncRequest { container_id: container.into(), cmd, timeout: 1 }.encode_to_vec()
    };
    let nobody = ExecRequest { cmd: Vec::new(), ..exec(false, true, false) };
    let update = UpdateContainerResourcesRequest {
        container_id: container.into(),
        linux: Some(LinuxContainerResources { cpu_quota: 5, ..Default::default() }),
        ..Default::default()
    };
    let resize = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.into(),
        resources: Some(LinuxContainerResources { memory_limit_in_bytes: -1, ..Default::default() }),
        ..Default::default()
    };
    let state = PodSandboxFilter { state: Some(PodSandboxStateValue { state: 9 }), ..Default::default() };
    let list = ListPodSandboxRequest { filter: Some(state) };
    let state = ContainerFilter { state: Some(ContainerStateValue { state: 9 }), ..Default::default() };
    let containers = ListContainersRequest { filter: Some(state) };
    let pull = |image: &str| {
        let image = Some(ImageSpec { image: image.into(), ..Default::default() });
        PullImageRequest { image, ..Default::default() }.encode_to_vec()
    };
    let bad = Code::InvalidArgument;
    vec![
        ("Exec", exec(true, true, true).encode_to_vec(), bad, "stderr"),
        ("Exec", exec(false, false, false).encode_to_vec(), bad, "at least one"),
        ("Exec", nobody.encode_to_vec(), bad, "cmd"),
        ("Attach", attach(true, true, true).encode_to_vec(), bad, "stderr"),
        ("Attach", attach(false, false, false).encode_to_vec(), bad, "at least one"),
        ("PortForward", forward.encode_to_vec(), bad, "65536"),
        ("ExecSync", sync(&[]), bad, "cmd"),
        ("ExecSync", sync(&[""]), bad, "cmd"),
        ("ExecSync", sync(&["a\0b"]), bad, "cmd"),
        ("UpdateContainerResources", update.encode_to_vec(), bad, "linux.cpu_quota"),
        ("UpdatePodSandboxResources", resize.encode_to_vec(), bad, "memory_limit_in_bytes"),
        ("ListPodSandbox", list.encode_to_vec(), bad, "filter.state"),
        ("ListContainers", containers.encode_to_vec(), bad, "filter.state"),
        ("PullImage", Vec::new(), bad, "image"),
        ("PullImage", pull(""), bad, "image"),
        ("RemoveImage", Vec::new(), bad, "image"),
        ("ImageStatus", Vec::new(), bad, "image"),
        ("CheckpointContainer", about(container), Code::Unimplemented, "CheckpointContainer"),
        ("CheckpointPod", about(pod), Code::Unimplemented, "CheckpointPod"),
        ("RestorePod", about(pod), Code::Unimplemented, "RestorePod"),
    ]
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_name_and_leaves_nothing() {
    let mut daemon = Daemon::start().await;
    let pod = daemon.pod("p").await;
    let container = daemon.container(&pod, "c").await;
    let rows = sandboxes().into_iter().chain(containers(&pod)).chain(others(&pod, &container));
    let mut bad = Vec::new();
    for row in rows {
        bad.extend(wrong(&row, send(&daemon, row.0, row.1.clone()).await));
    }
    assert_eq!(bad, Vec::<String>::new());
    let engine = &daemon.service.engine;
    assert_eq!((engine.pods().len(), engine.containers().len()), (1, 1), "a refused object is listed");
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}

/// A string field (1) that is no UTF-8, as only a broken client sends it; and a message cut off in the middle.
#[tokio::test]
async fn bytes_that_do_not_decode_are_refused_and_the_connection_lives() {
    let daemon = Daemon::start().await;
    for bytes in [vec![0x0a, 2, 0xff, 0xfe], vec![0x0a, 200, 1, b'x'], vec![0xff; 64]] {
        for (rpc, _) in PODS.iter().chain(&CONTAINERS) {
            let status = send(&daemon, rpc, bytes.clone()).await.unwrap_err();
            assert!(matches!(status.code(), Code::Internal | Code::InvalidArgument), "{rpc}: {status}");
        }
    }
    send(&daemon, "Version", Vec::new()).await.unwrap();
}

#[tokio::test]
async fn large_requests_are_either_taken_whole_or_refused() {
    let mut daemon = Daemon::start().await;
    let pod = daemon.pod("p").await;
    let mut config = container_config("large");
    config.labels = (0..10_000).map(|i| (format!("label-{i}"), "v".repeat(100))).collect();
    config.annotations = [("a".repeat(1 << 20), "b".repeat(1 << 20))].into();
    config.envs = vec![KeyValue { key: "BIG".into(), value: vec![0xfe; 1 << 20] }];
    config.args = vec!["x".repeat(1 << 20)];
    let request =
        CreateContainerRequest { pod_sandbox_id: pod, config: Some(config.clone()), sandbox_config: None };
    let container_id = daemon.runtime.create_container(request).await.unwrap().into_inner().container_id;
    let status = ContainerStatusRequest { container_id, verbose: false };
    let mut client = daemon.runtime.clone().max_decoding_message_size(16 << 20);
    let shown = client.container_status(status).await.unwrap().into_inner().status.unwrap();
    assert_eq!((shown.labels, shown.annotations), (config.labels, config.annotations));
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}

/// A call that hangs in a driver, and the driver's call.
fn hanging(pod: &str, container: &str, created: &str) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let run = RunPodSandboxRequest { config: Some(pod_config("late")), runtime_handler: String::new() };
    let create = good("CreateContainer", pod);
    let image = Some(ImageSpec { image: "example.org/other:3".into(), ..Default::default() });
    let pull = PullImageRequest { image, ..Default::default() };
    vec![
        ("RunPodSandbox", "attach", run.encode_to_vec()),
        ("RunPodSandbox", "launch", run.encode_to_vec()),
        ("CreateContainer", "prepare", create),
        ("StartContainer", "start", about(created)),
        ("ExecSync", "exec", good("ExecSync", container)),
        ("PullImage", "pull", pull.encode_to_vec()),
        ("StopContainer", "kill", about(container)),
        ("StopPodSandbox", "detach", about(pod)),
    ]
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_leaves_nothing_half_done() {
    let cases = hanging("", "", "").len();
    for case in 0..cases {
        let mut daemon = Daemon::start().await;
        let pod = daemon.pod("p").await;
        let container = daemon.container(&pod, "c").await;
        let create = CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(container_config("created")),
            sandbox_config: None,
        };
        let created = daemon.runtime.create_container(create).await.unwrap().into_inner().container_id;
        let (rpc, call, bytes) = hanging(&pod, &container, &created).swap_remove(case);
        daemon.node.script.on(call, [Act::Hang]);
        {
            let sent = send(&daemon, rpc, bytes);
            tokio::select! {
                outcome = sent => panic!("{rpc} did not hang in {call}: {outcome:?}"),
                () = daemon.node.script.hanging() => {}
            }
        }
        daemon.node.script.release();
        daemon.settled().await;
        assert_eq!(daemon.clean().await, Vec::<String>::new(), "{rpc} in {call}");
    }
}

/// What the server itself says at the deadline, read past every client that would give up on its own.
#[tokio::test]
async fn a_deadline_that_passes_is_answered_with_deadline_exceeded() {
    for case in 0..hanging("", "", "").len() {
        for timeout in ["1n", "40m"] {
            let mut daemon = Daemon::start().await;
            let pod = daemon.pod("p").await;
            let container = daemon.container(&pod, "c").await;
            let create = CreateContainerRequest {
                pod_sandbox_id: pod.clone(),
                config: Some(container_config("created")),
                sandbox_config: None,
            };
            let created = daemon.runtime.create_container(create).await.unwrap().into_inner().container_id;
            let (rpc, call, bytes) = hanging(&pod, &container, &created).swap_remove(case);
            daemon.node.script.on(call, [Act::Hang]);
            let service = if rpc == "PullImage" { "ImageService" } else { "RuntimeService" };
            let status = daemon.ask(&format!("/runtime.v1.{service}/{rpc}"), timeout, &bytes).await;
            assert_eq!(status, i32::from(Code::DeadlineExceeded).to_string(), "{rpc} within {timeout}");
            daemon.node.script.release();
            daemon.settled().await;
            assert_eq!(daemon.clean().await, Vec::<String>::new(), "{rpc} within {timeout}");
        }
    }
}
