//! What is measured. Each action returns milliseconds and has checked its result by what the container itself says.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use k8s_cri::v1 as api;

use crate::client::{self, Client};
use crate::images::BUSYBOX;
use crate::shell;

/// Ends at once on SIGTERM, as a well-behaved server does; `PAYLOAD` tells it from a runtime's own processes.
const PAYLOAD: &str = "trap 'exit 0' TERM; echo payload is up; while :; do sleep 1000 & wait; done";

/// Part of the command line of everything a pod runs itself.
pub const MARKS: [&str; 2] = ["payload is up", "sleep 1000"];

/// A running pod with its container.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Sandbox id.
    pub id: String,
    /// Container id.
    pub container: String,
}

/// RunPodSandbox, CreateContainer, StartContainer; afterwards the container's own output is read from its log.
///
/// # Errors
/// A call fails, or the container does not say that it is up.
pub async fn pod(client: &mut Client, name: &str, logs: &Path) -> Result<(f64, Pod)> {
    let logs = logs.join(name);
    std::fs::create_dir_all(&logs)?;
    let config = client::pod(name, &logs);
    let spec = client::container("main", BUSYBOX, &["sh", "-c", PAYLOAD]);
    let start = Instant::now();
    let id = client.run_pod(&config).await?;
    let container = client.create(&id, &spec, &config).await?;
    client.start(&container).await?;
    let taken = milliseconds(start);
    let log = logs.join("main.log");
    shell::eventually("the container says that it is up", 20, || {
        Ok(std::fs::read_to_string(&log).is_ok_and(|text| text.contains("payload is up")).then_some(()))
    })?;
    Ok((taken, Pod { id, container }))
}

/// StopPodSandbox and RemovePodSandbox of a running pod.
///
/// # Errors
/// A call fails, or the pod is still listed.
pub async fn remove(client: &mut Client, pod: &Pod) -> Result<f64> {
    let start = Instant::now();
    client.remove_pod(&pod.id).await?;
    let taken = milliseconds(start);
    let filter = api::PodSandboxFilter { id: pod.id.clone(), ..Default::default() };
    let listed = client.runtime.list_pod_sandbox(api::ListPodSandboxRequest { filter: Some(filter) }).await?;
    ensure!(listed.into_inner().items.is_empty(), "{} is still listed", pod.id);
    Ok(taken)
}

/// ExecSync of `true`; see [`inside`] for what proves that it runs in the container.
///
/// # Errors
/// The call fails or the output is wrong.
pub async fn exec(client: &mut Client, pod: &Pod) -> Result<f64> {
    let start = Instant::now();
    let output = client.exec(&pod.container, &["true"]).await?;
    let taken = milliseconds(start);
    ensure!(output.exit_code == 0 && output.stdout.is_empty(), "{output:?}");
    Ok(taken)
}

/// That exec runs inside the container, on its files and in its namespaces.
///
/// # Errors
/// It does not.
pub async fn inside(client: &mut Client, pod: &Pod, name: &str) -> Result<()> {
    let output = client.exec(&pod.container, &["sh", "-c", "hostname; cat /proc/1/cmdline; exit 3"]).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.exit_code == 3 && text.starts_with(name) && text.contains("payload is up"), "{output:?}");
    Ok(())
}

/// StopContainer with a container that ends at SIGTERM; its exit code is checked.
///
/// # Errors
/// The call fails, or the container was killed.
pub async fn stop(client: &mut Client, pod: &Pod) -> Result<f64> {
    let start = Instant::now();
    let request = api::StopContainerRequest { container_id: pod.container.clone(), timeout: 30 };
    client.runtime.stop_container(request).await?;
    let taken = milliseconds(start);
    let status = client.status(&pod.container).await?;
    ensure!(status.exit_code == 0 && status.state() == api::ContainerState::ContainerExited, "{status:?}");
    Ok(taken)
}

/// ListContainerStats over all containers, of which there are `count`.
///
/// # Errors
/// The call fails, or an entry lacks processor time or memory.
pub async fn stats(client: &mut Client, count: usize) -> Result<f64> {
    let start = Instant::now();
    let answer = client.runtime.list_container_stats(api::ListContainerStatsRequest::default()).await?;
    let taken = milliseconds(start);
    let all = answer.into_inner().stats;
    let complete = |one: &api::ContainerStats| {
        one.memory
            .as_ref()
            .and_then(|memory| memory.working_set_bytes.as_ref())
            .is_some_and(|bytes| bytes.value > 0)
            && one.cpu.as_ref().is_some_and(|cpu| cpu.usage_core_nano_seconds.is_some())
    };
    ensure!(all.len() == count && all.iter().all(complete), "{} of {count}: {:?}", all.len(), all.first());
    Ok(taken)
}

/// ListPodSandbox and ListContainers: what the kubelet asks every second.
///
/// # Errors
/// The call fails or the count is wrong.
pub async fn relist(client: &mut Client, count: usize) -> Result<f64> {
    let start = Instant::now();
    let pods =
        client.runtime.list_pod_sandbox(api::ListPodSandboxRequest::default()).await?.into_inner().items;
    let containers =
        client.runtime.list_containers(api::ListContainersRequest::default()).await?.into_inner();
    let taken = milliseconds(start);
    ensure!(pods.len() == count && containers.containers.len() == count, "{} of {count}", pods.len());
    Ok(taken)
}

/// PullImage until it is durable: the time includes a `sync` of the file system, so that no one can defer the work.
///
/// # Errors
/// The call fails.
pub async fn pull(client: &mut Client, image: &str, dir: &Path) -> Result<f64> {
    let start = Instant::now();
    client.pull(image).await?;
    shell::run(300, "sync", &["-f", &dir.display().to_string()])?;
    Ok(milliseconds(start))
}

/// RemoveImage.
///
/// # Errors
/// The call fails, or the image is still there.
pub async fn remove_image(client: &mut Client, image: &str) -> Result<f64> {
    let image = Some(api::ImageSpec { image: image.to_owned(), ..Default::default() });
    let start = Instant::now();
    client.image.remove_image(api::RemoveImageRequest { image: image.clone() }).await?;
    let taken = milliseconds(start);
    let status =
        client.image.image_status(api::ImageStatusRequest { image, verbose: false }).await?.into_inner();
    ensure!(status.image.is_none(), "{:?} is still there", status.image);
    Ok(taken)
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
