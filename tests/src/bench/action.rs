//! What is measured. Each action returns milliseconds and has checked its result by what the container itself says.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
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
    /// Its name.
    pub name: String,
    /// Sandbox id.
    pub id: String,
    /// Container id.
    pub container: String,
}

/// How long the three calls of a pod start took, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// RunPodSandbox.
    pub run: f64,
    /// CreateContainer.
    pub create: f64,
    /// StartContainer.
    pub start: f64,
}

/// RunPodSandbox, CreateContainer, StartContainer. [`up`] is the proof; it is left to the caller, so that no waiting for it
/// stands between pods that are started together.
///
/// # Errors
/// A call fails.
pub async fn pod(client: &mut Client, name: &str, logs: &Path) -> Result<(Start, Pod)> {
    let logs = logs.join(name);
    std::fs::create_dir_all(&logs)?;
    let config = client::pod(name, &logs);
    let spec = client::container("main", BUSYBOX, &["sh", "-c", PAYLOAD]);
    let begun = Instant::now();
    let id = client.run_pod(&config).await?;
    let run = milliseconds(begun);
    let container = client.create(&id, &spec, &config).await?;
    let create = milliseconds(begun) - run;
    client.start(&container).await?;
    let start = milliseconds(begun) - run - create;
    Ok((Start { run, create, start }, Pod { name: name.to_owned(), id, container }))
}

/// The container says in its own log that it is up.
///
/// # Errors
/// It does not within 20 seconds.
pub async fn up(pod: &Pod, logs: &Path) -> Result<()> {
    let log = logs.join(&pod.name).join("main.log");
    let until = Instant::now() + Duration::from_secs(20);
    while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains("payload is up")) {
        ensure!(Instant::now() < until, "{} does not say that it is up", pod.name);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
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

/// One more container in a pod: CreateContainer, StartContainer, StopContainer with SIGTERM, RemoveContainer.
///
/// # Errors
/// A call fails, the container was killed, or it is still there.
pub async fn container(client: &mut Client, pod: &Pod, name: &str, logs: &Path) -> Result<[f64; 4]> {
    let config = client::pod(&pod.name, &logs.join(&pod.name));
    let spec = client::container(name, BUSYBOX, &["sh", "-c", PAYLOAD]);
    let start = Instant::now();
    let id = client.create(&pod.id, &spec, &config).await?;
    let created = milliseconds(start);
    let start = Instant::now();
    client.start(&id).await?;
    let started = milliseconds(start);
    // It can end well only after it has set its trap.
    let log = logs.join(&pod.name).join(format!("{name}.log"));
    while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains("payload is up")) {
        ensure!(start.elapsed() < Duration::from_secs(20), "{name} does not say that it is up");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let stopped = stop(client, &id).await?;
    let start = Instant::now();
    client.runtime.remove_container(api::RemoveContainerRequest { container_id: id.clone() }).await?;
    let removed = milliseconds(start);
    ensure!(client.status(&id).await.is_err(), "{id} is still there");
    Ok([created, started, stopped, removed])
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

/// ExecSync of a program that writes 8 MiB.
///
/// # Errors
/// The call fails or a byte is missing or wrong.
pub async fn exec_output(client: &mut Client, pod: &Pod) -> Result<f64> {
    const SIZE: usize = 8 << 20;
    let start = Instant::now();
    let output =
        client.exec(&pod.container, &["sh", "-c", "yes 12345678901234567890123456789 | head -c 8388608"]);
    let output = output.await?.stdout;
    let taken = milliseconds(start);
    let line = b"12345678901234567890123456789\n";
    let right = output.chunks(line.len()).all(|chunk| line.starts_with(chunk));
    ensure!(output.len() == SIZE && right, "{} bytes of {SIZE}", output.len());
    Ok(taken)
}

/// That exec runs inside the container, on its files and in its namespaces.
///
/// # Errors
/// It does not.
pub async fn inside(client: &mut Client, pod: &Pod) -> Result<()> {
    let output = client.exec(&pod.container, &["sh", "-c", "hostname; cat /proc/1/cmdline; exit 3"]).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.exit_code == 3 && text.starts_with(&pod.name) && text.contains("payload is up"),
        "{output:?}"
    );
    Ok(())
}

/// StopContainer with a container that ends at SIGTERM; its exit code is checked.
///
/// # Errors
/// The call fails, or the container was killed.
pub async fn stop(client: &mut Client, container: &str) -> Result<f64> {
    let start = Instant::now();
    let request = api::StopContainerRequest { container_id: container.to_owned(), timeout: 30 };
    client.runtime.stop_container(request).await?;
    let taken = milliseconds(start);
    let status = client.status(container).await?;
    ensure!(status.exit_code == 0 && status.state() == api::ContainerState::ContainerExited, "{status:?}");
    Ok(taken)
}

/// ContainerStatus of a running container.
///
/// # Errors
/// The call fails, or it does not run.
pub async fn status(client: &mut Client, pod: &Pod) -> Result<f64> {
    let start = Instant::now();
    let status = client.status(&pod.container).await?;
    let taken = milliseconds(start);
    ensure!(status.state() == api::ContainerState::ContainerRunning, "{status:?}");
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

/// A container writes 64 MiB in lines of 64 bytes; until all of it is in the log file.
///
/// # Errors
/// A call fails, or a line is missing.
pub async fn log(client: &mut Client, pod: &Pod, name: &str, logs: &Path) -> Result<f64> {
    const LINES: usize = 1 << 20;
    let line = "x".repeat(63);
    let config = client::pod(&pod.name, &logs.join(&pod.name));
    let command = format!("yes {line} | head -n {LINES}");
    let spec = client::container(name, BUSYBOX, &["sh", "-c", &command]);
    let id = client.create(&pod.id, &spec, &config).await?;
    let start = Instant::now();
    client.start(&id).await?;
    while client.status(&id).await?.state() != api::ContainerState::ContainerExited {
        ensure!(start.elapsed() < Duration::from_secs(120), "{name} does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let path = logs.join(&pod.name).join(format!("{name}.log"));
    let complete = |text: &str| text.lines().filter(|entry| entry.ends_with(&line)).count() == LINES;
    // A runtime may still be copying when the process has ended; that belongs to the time.
    let mut size = 0;
    let taken = loop {
        let taken = milliseconds(start);
        let now = std::fs::metadata(&path)?.len();
        if now == size && now >= LINES as u64 * 64 {
            break taken;
        }
        ensure!(start.elapsed() < Duration::from_secs(120), "{now} bytes in the log");
        size = now;
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    ensure!(complete(&std::fs::read_to_string(&path)?), "the log of {name} is not what was written");
    std::fs::remove_file(&path)?;
    client.runtime.remove_container(api::RemoveContainerRequest { container_id: id }).await?;
    Ok(taken)
}

/// PullImage until it is durable: the time includes a `sync` of the file system, so that no one can defer the work. That the files are
/// there then is for [`remount`](super::remount) to prove.
///
/// # Errors
/// The call fails, or the image is not what was pulled.
pub async fn pull(client: &mut Client, image: &str, dir: &Path) -> Result<f64> {
    let start = Instant::now();
    client.pull(image).await?;
    shell::run(300, "sync", &["-f", &dir.display().to_string()])?;
    let taken = milliseconds(start);
    let image = Some(api::ImageSpec { image: image.to_owned(), ..Default::default() });
    let status =
        client.image.image_status(api::ImageStatusRequest { image, verbose: false }).await?.into_inner();
    let size = status.image.context("the image is not there")?.size;
    ensure!(size > 100 << 20, "the image has {size} bytes");
    Ok(taken)
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

/// Whether there is such a file and it has this in it.
pub(super) fn says(file: &Path, what: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.contains(what))
}

/// Waits until a file has this in it, to a tenth of a millisecond.
pub(super) fn said(file: &Path, what: &str) -> Result<()> {
    let start = Instant::now();
    while !says(file, what) {
        ensure!(start.elapsed() < Duration::from_secs(20), "{}: no \"{what}\"", file.display());
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// Milliseconds since then.
pub(super) fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
