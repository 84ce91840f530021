//! Fields of pods and containers, each sent alone to the shipped daemon and looked for where it must show: inside the
//! container, or in the kernel's tables. Every look is taken at a container without the field as well, and must differ.
//!
//! What a field becomes inside Berth is checked for every row by `cri`'s own tests; this suite is about what comes of it.

mod probes;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use cri::fields::{Fate, table};
use cri::proto::{self, *};
use tonic::transport::Channel;

use super::{node, wait};
use crate::images::{BUSYBOX, LAYERED};
use crate::node::Node;
use crate::report::Report;
use crate::shell;
use crate::world::World;
use probes::{ELSEWHERE, Look, PROBES, Probe};

/// Messages whose honoured fields have to be seen here.
const MESSAGES: [&str; 17] = [
    "PodSandboxConfig",
    "DNSConfig",
    "PortMapping",
    "LinuxPodSandboxConfig",
    "NamespaceOption",
    "SecurityProfile",
    "LinuxContainerResources",
    "ContainerConfig",
    "KeyValue",
    "Mount",
    "Device",
    "CDIDevice",
    "LinuxContainerConfig",
    "LinuxContainerSecurityContext",
    "Capability",
    "HugepageLimit",
    "Int64Value",
];

type Runtime = proto::runtime_service_client::RuntimeServiceClient<Channel>;

/// Runs the suite.
///
/// # Errors
/// The daemon does not start.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    let (mut node, before) = node(world, "fields")?;
    report.case("every honoured field of a pod or container is looked for", complete);
    let mut plain = BTreeMap::new();
    report.case("a container without any of them", || {
        prepare(&node)?;
        plain = wait(Box::pin(baseline(&node)))?;
        Ok(())
    });
    for probe in PROBES {
        let name = probe.rows.iter().map(|(message, field)| format!("{message}.{field}")).collect::<Vec<_>>();
        report.case(&format!("{} shows", name.join(", ")), || {
            let without = plain.get(probe.script).context("no plain container")?;
            ensure!(without != probe.want, "a container without the field shows {without:?} as well");
            let with = wait(Box::pin(look(&node, probe)))?;
            ensure!(with == probe.want, "{} shows {with:?}, not {:?}", probe.script, probe.want);
            Ok(())
        });
    }
    report.case("leaves nothing behind", || {
        // A parent cgroup that a client names is the client's to remove.
        shell::run(
            20,
            "find",
            &[
                "/sys/fs/cgroup",
                "-depth",
                "-path",
                "*/berth/fields",
                "-type",
                "d",
                "-exec",
                "rmdir",
                "{}",
                ";",
            ],
        )?;
        node.settle(&before)
    });
    Ok(())
}

/// The table of fields against the two lists of this suite.
fn complete() -> Result<()> {
    let probed: BTreeSet<_> = PROBES.iter().flat_map(|probe| probe.rows).copied().collect();
    let elsewhere: BTreeSet<_> = ELSEWHERE.iter().map(|(message, field, _)| (*message, *field)).collect();
    let honoured = table::ROWS.iter().filter(|row| matches!(row.fate, Fate::Honoured(_)));
    let rows: BTreeSet<_> =
        honoured.filter(|row| MESSAGES.contains(&row.message)).map(|row| (row.message, row.field)).collect();
    let missing: Vec<_> =
        rows.iter().filter(|row| !probed.contains(*row) && !elsewhere.contains(*row)).collect();
    ensure!(missing.is_empty(), "nobody looks for {missing:?}");
    let unknown: Vec<_> = elsewhere.iter().filter(|row| !rows.contains(*row)).collect();
    ensure!(unknown.is_empty(), "no such honoured fields: {unknown:?}");
    Ok(())
}

/// A device as vendors describe theirs.
const DEVICE: &str = "cdiVersion: 1.1.0
kind: suite.example/device
devices:
- name: one
  containerEdits:
    env:
    - SUITE_DEVICE=one
    mounts:
    - hostPath: /run/suite-fields/heard
      containerPath: /heard
      options: [ro, bind]
    hooks:
    - hookName: createContainer
      path: /bin/sh
      args: [sh, -c, echo hooked > /run/suite-fields/heard]
    netDevices:
    - hostInterfaceName: suite-nic
      name: given
";

/// The files the probes' mounts and profiles lead to; the same place on every private machine.
fn prepare(node: &Node) -> Result<()> {
    fs::create_dir_all("/run/suite-fields/below")?;
    fs::write("/run/suite-fields/name", "of the node\n")?;
    fs::write("/run/suite-fields/profile.json", r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#)?;
    fs::write("/run/suite-fields/heard", "")?;
    shell::run(10, "ip", &["link", "add", "suite-nic", "type", "ifb"])?;
    fs::create_dir_all("/var/run/cdi")?;
    fs::write("/var/run/cdi/suite.yaml", DEVICE)?;
    wait(async {
        let mut client = node.client().await?;
        client.pull(BUSYBOX).await?;
        client.pull(LAYERED).await?;
        Ok(())
    })
}

async fn connect(node: &Node) -> Result<Runtime> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{}", node.socket.display()))?;
    Ok(Runtime::new(endpoint.connect().await?))
}

/// What every script says of a container that asks for nothing.
async fn baseline(node: &Node) -> Result<BTreeMap<&'static str, String>> {
    let mut client = connect(node).await?;
    let (pod, container) = Box::pin(start(&mut client, node, &|_, _| {})).await?;
    let mut said = BTreeMap::new();
    for probe in PROBES {
        said.insert(probe.script, ask(&mut client, &container, probe).await?);
    }
    remove(&mut client, &pod).await?;
    Ok(said)
}

async fn look(node: &Node, probe: &Probe) -> Result<String> {
    let mut client = connect(node).await?;
    let (pod, container) = Box::pin(start(&mut client, node, &probe.set)).await?;
    let said = ask(&mut client, &container, probe).await;
    remove(&mut client, &pod).await?;
    said
}

/// A pod with one container, both as `set` changes them.
async fn start(
    client: &mut Runtime,
    node: &Node,
    set: &dyn Fn(&mut PodSandboxConfig, &mut ContainerConfig),
) -> Result<(String, String)> {
    let options = || NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() };
    let sandbox = LinuxSandboxSecurityContext { namespace_options: Some(options()), ..Default::default() };
    let mut pod = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "fields".into(),
            uid: "u".into(),
            namespace: "suite".into(),
            attempt: 0,
        }),
        linux: Some(LinuxPodSandboxConfig { security_context: Some(sandbox), ..Default::default() }),
        ..Default::default()
    };
    let security = LinuxContainerSecurityContext { namespace_options: Some(options()), ..Default::default() };
    let script = "echo of the container; httpd -p 8080 -h /www 2> /dev/null; while :; do sleep 1000; done";
    let mut container = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "fields".into(), attempt: 0 }),
        image: Some(ImageSpec { image: BUSYBOX.into(), ..Default::default() }),
        command: vec!["sh".into(), "-c".into(), script.into()],
        linux: Some(LinuxContainerConfig { security_context: Some(security), ..Default::default() }),
        ..Default::default()
    };
    set(&mut pod, &mut container);
    if pod.log_directory.is_empty() && !container.log_path.is_empty() {
        pod.log_directory = node.dir.join("logs").display().to_string();
    }
    let request = RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: String::new() };
    let pod_sandbox_id = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
    let request = CreateContainerRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
        config: Some(container),
        sandbox_config: Some(pod),
    };
    let container_id = match client.create_container(request).await {
        Ok(answer) => answer.into_inner().container_id,
        Err(status) => {
            remove(client, &pod_sandbox_id).await?;
            return Err(status.into());
        }
    };
    let request = StartContainerRequest { container_id: container_id.clone() };
    if let Err(status) = client.start_container(request).await {
        remove(client, &pod_sandbox_id).await?;
        return Err(status.into());
    }
    Ok((pod_sandbox_id, container_id))
}

/// Runs the probe's script where it belongs; what it says, or its error.
async fn ask(client: &mut Runtime, container: &str, probe: &Probe) -> Result<String> {
    if probe.look == Look::Inside {
        let cmd = ["sh", "-c", probe.script].map(str::to_owned).to_vec();
        let request = ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 20 };
        let answer = client.exec_sync(request).await?.into_inner();
        return Ok(String::from_utf8_lossy(&answer.stdout).trim().to_owned());
    }
    let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
    let answer = client.container_status(request).await?.into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"])?;
    let script = format!("PID={}; {}", info["pid"], probe.script);
    let output = shell::output(20, "bash", &["-c", &script])?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

async fn remove(client: &mut Runtime, pod: &str) -> Result<()> {
    client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() }).await?;
    client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() }).await?;
    Ok(())
}
