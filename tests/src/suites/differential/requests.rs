//! The requests behind the names of a plan.

use cri::proto::*;
use prost::Message;

use super::plan::Step;
use crate::images::BUSYBOX;

/// Ids that one runtime has given to the objects of a sequence; an object not made yet has an id nobody has.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// Of pods.
    pub(super) pods: Vec<String>,
    /// Of containers.
    pub(super) containers: Vec<String>,
    /// Where logs go.
    pub(super) logs: String,
    /// Number of the sequence, which makes names unique.
    pub(super) number: u64,
}

/// RPCs about one container that must exist, and about one pod.
pub(super) const ABOUT_CONTAINERS: [&str; 10] = [
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "ContainerStatus",
    "ExecSync",
    "Exec",
    "Attach",
    "UpdateContainerResources",
    "ReopenContainerLog",
    "ContainerStats",
];
pub(super) const ABOUT_PODS: [&str; 7] = [
    "RunPodSandbox",
    "StopPodSandbox",
    "RemovePodSandbox",
    "PodSandboxStatus",
    "CreateContainer",
    "PortForward",
    "PodSandboxStats",
];

/// RPCs after which other objects exist, or in other states.
pub(super) const CHANGES: [&str; 8] = [
    "RunPodSandbox",
    "StopPodSandbox",
    "RemovePodSandbox",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "UpdateContainerResources",
];

/// Whether a container made like this ends by itself.
pub(super) fn ends(variant: &str) -> bool {
    matches!(variant, "ends" | "fails")
}

/// An id nobody has.
pub(super) fn absent() -> String {
    "f".repeat(64)
}

/// The encoded request of a step.
pub(super) fn encode(step: &Step, names: &Names) -> Vec<u8> {
    let own = |ids: &[String], at: usize| match step.variant {
        "absent" => absent(),
        "empty" => String::new(),
        "prefix" => ids[at].chars().take(16).collect(),
        _ => ids[at].clone(),
    };
    let pod = own(&names.pods, step.pod);
    let container = own(&names.containers, step.container);
    match step.rpc {
        "RunPodSandbox" => run(step, names).encode_to_vec(),
        "CreateContainer" => create(step, names).encode_to_vec(),
        "StopPodSandbox" | "RemovePodSandbox" | "PodSandboxStatus" | "PodSandboxStats" | "PortForward" => {
            StopPodSandboxRequest { pod_sandbox_id: pod }.encode_to_vec()
        }
        "StartContainer" | "RemoveContainer" | "ContainerStatus" | "ContainerStats"
        | "ReopenContainerLog" => StartContainerRequest { container_id: container }.encode_to_vec(),
        "StopContainer" => StopContainerRequest { container_id: container, timeout: 0 }.encode_to_vec(),
        "ExecSync" => exec_sync(step, container).encode_to_vec(),
        "Exec" => {
            let cmd = if step.variant == "no command" { Vec::new() } else { words("true") };
            let (tty, stdout, stderr) = streams(step.variant);
            ExecRequest { container_id: container, cmd, tty, stdin: false, stdout, stderr }.encode_to_vec()
        }
        "Attach" => {
            let (tty, stdout, stderr) = streams(step.variant);
            AttachRequest { container_id: container, tty, stdin: false, stdout, stderr }.encode_to_vec()
        }
        "UpdateContainerResources" => update(step, container).encode_to_vec(),
        rpc => about_many(rpc, step, names),
    }
}

/// Lists, images, and what is about the runtime.
fn about_many(rpc: &str, step: &Step, names: &Names) -> Vec<u8> {
    match rpc {
        "ListPodSandbox" => ListPodSandboxRequest { filter: pod_filter(step, names) }.encode_to_vec(),
        "ListContainers" => ListContainersRequest { filter: container_filter(step, names) }.encode_to_vec(),
        "ListContainerStats" => {
            let label_selector = labels(step.variant == "label");
            let filter = ContainerStatsFilter { label_selector, ..Default::default() };
            ListContainerStatsRequest { filter: Some(filter) }.encode_to_vec()
        }
        "ImageStatus" => ImageStatusRequest { image: image(step.variant), verbose: false }.encode_to_vec(),
        "ListImages" => {
            let filter = (step.variant != "all").then(|| ImageFilter { image: image(step.variant) });
            ListImagesRequest { filter }.encode_to_vec()
        }
        "PullImage" => PullImageRequest { image: image(step.variant), ..Default::default() }.encode_to_vec(),
        "RemoveImage" => RemoveImageRequest { image: image(step.variant) }.encode_to_vec(),
        _ => Vec::new(),
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn labels(wanted: bool) -> std::collections::BTreeMap<String, String> {
    wanted.then(|| ("suite".to_owned(), "differential".to_owned())).into_iter().collect()
}

fn streams(variant: &str) -> (bool, bool, bool) {
    match variant {
        "no streams" => (false, false, false),
        "tty and stderr" => (true, true, true),
        _ => (false, true, true),
    }
}

fn image(variant: &str) -> Option<ImageSpec> {
    let name = match variant {
        "absent" | "no match" => "registry.k8s.io/suite/absent:1",
        "not a name" => "Not A Name",
        "empty" => "",
        _ => BUSYBOX,
    };
    Some(ImageSpec { image: name.to_owned(), ..Default::default() })
}

fn pod_filter(step: &Step, names: &Names) -> Option<PodSandboxFilter> {
    let state = |state: PodSandboxState| Some(PodSandboxStateValue { state: state.into() });
    let filter = PodSandboxFilter::default();
    Some(match step.variant {
        "ready" => PodSandboxFilter { state: state(PodSandboxState::SandboxReady), ..filter },
        "notready" => PodSandboxFilter { state: state(PodSandboxState::SandboxNotready), ..filter },
        "label" => PodSandboxFilter { label_selector: labels(true), ..filter },
        "id" => PodSandboxFilter { id: names.pods[step.pod].clone(), ..filter },
        "no match" => PodSandboxFilter { id: absent(), ..filter },
        _ => return None,
    })
}

fn container_filter(step: &Step, names: &Names) -> Option<ContainerFilter> {
    let state = |state: ContainerState| Some(ContainerStateValue { state: state.into() });
    let filter = ContainerFilter::default();
    Some(match step.variant {
        "running" => ContainerFilter { state: state(ContainerState::ContainerRunning), ..filter },
        "exited" => ContainerFilter { state: state(ContainerState::ContainerExited), ..filter },
        "label" => ContainerFilter { label_selector: labels(true), ..filter },
        "pod" => ContainerFilter { pod_sandbox_id: names.pods[step.pod].clone(), ..filter },
        "no match" => ContainerFilter { id: absent(), ..filter },
        _ => return None,
    })
}

fn pod_config(pod: usize, variant: &str, names: &Names) -> PodSandboxConfig {
    let name = format!("pod{pod}-{}", names.number);
    let uid = if variant == "no uid" { String::new() } else { format!("uid-{name}") };
    let network = if variant == "host network" { NamespaceMode::Node } else { NamespaceMode::Pod };
    let options = NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    };
    let security = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    let mut config = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata { name, uid, namespace: "suite".into(), attempt: 1 }),
        log_directory: names.logs.clone(),
        linux: Some(LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() }),
        ..Default::default()
    };
    match variant {
        "no metadata" => config.metadata = None,
        "full" => {
            config.labels = labels(true);
            config.annotations = [("note".into(), "kept".into())].into();
            config.hostname = "host".into();
            config.dns_config = Some(DnsConfig { servers: vec!["10.0.0.10".into()], ..Default::default() });
            config.linux.get_or_insert_default().sysctls =
                [("kernel.shm_rmid_forced".into(), "1".into())].into();
        }
        _ => {}
    }
    config
}

fn run(step: &Step, names: &Names) -> RunPodSandboxRequest {
    let runtime_handler = if step.variant == "unknown handler" { "unknown".into() } else { String::new() };
    RunPodSandboxRequest { config: Some(pod_config(step.pod, step.variant, names)), runtime_handler }
}

fn create(step: &Step, names: &Names) -> CreateContainerRequest {
    let options = NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() };
    let security = LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
    let resources = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
    let linux = LinuxContainerConfig { security_context: Some(security), resources: Some(resources) };
    let name = format!("container{}", step.container);
    let mut config = ContainerConfig {
        log_path: format!("{name}.log"),
        metadata: Some(ContainerMetadata { name, attempt: 1 }),
        image: image("tag"),
        command: words("sleep 1000"),
        linux: Some(linux),
        ..Default::default()
    };
    vary(&mut config, step.variant);
    CreateContainerRequest {
        pod_sandbox_id: names.pods[step.pod].clone(),
        config: Some(config),
        sandbox_config: Some(pod_config(step.pod, "plain", names)),
    }
}

fn vary(config: &mut ContainerConfig, variant: &str) {
    let security = |config: &mut ContainerConfig, change: fn(&mut LinuxContainerSecurityContext)| {
        change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
    };
    match variant {
        "ends" => config.command = words("true"),
        "fails" => config.command = vec!["sh".into(), "-c".into(), "echo out; echo err >&2; exit 3".into()],
        "terminal" => (config.tty, config.stdin) = (true, true),
        "absent image" => config.image = image("absent"),
        "no metadata" => config.metadata = None,
        "no image" => config.image = None,
        "bad mount" => {
            let mount =
                Mount { container_path: "/m".into(), recursive_read_only: true, ..Default::default() };
            config.mounts = vec![Mount { host_path: "/tmp".into(), ..mount }];
        }
        "group without user" => security(config, |s| s.run_as_group = Some(Int64Value { value: 5 })),
        "privileged" => security(config, |s| s.privileged = true),
        "unknown user" => security(config, |s| s.run_as_username = "nosuchuser".into()),
        "full" => {
            config.labels = labels(true);
            config.annotations = [("note".into(), "kept".into())].into();
            config.envs = vec![KeyValue { key: "A".into(), value: b"b".to_vec() }];
            config.working_dir = "/tmp".into();
            let mount = Mount { container_path: "/m".into(), host_path: "/tmp".into(), ..Default::default() };
            config.mounts = vec![Mount { readonly: true, ..mount }];
            config.stop_signal = Signal::Sigusr1.into();
            security(config, |s| {
                s.run_as_user = Some(Int64Value { value: 1000 });
                s.supplemental_groups = vec![7];
            });
        }
        _ => {}
    }
}

fn exec_sync(step: &Step, container_id: String) -> ExecSyncRequest {
    let shell = |script: &str| vec!["sh".into(), "-c".into(), script.into()];
    let cmd = match step.variant {
        "output" => shell("echo out; echo err >&2"),
        "fails" => shell("exit 42"),
        "no command" => Vec::new(),
        "absent program" => words("/no/such/program"),
        "timeout" => words("sleep 1000"),
        _ => words("true"),
    };
    ExecSyncRequest { container_id, cmd, timeout: if step.variant == "timeout" { 1 } else { 10 } }
}

fn update(step: &Step, container_id: String) -> UpdateContainerResourcesRequest {
    let none = LinuxContainerResources::default();
    let linux = match step.variant {
        "memory" => Some(LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..none }),
        "shares" => Some(LinuxContainerResources { cpu_shares: 512, ..none }),
        _ => None,
    };
    UpdateContainerResourcesRequest { container_id, linux, ..Default::default() }
}
