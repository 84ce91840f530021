//! The daemon may die at any instruction: pods, logs and exit codes survive.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as api;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{node, wait};
use crate::bench::machine;
use crate::client::{self, Client};
use crate::images::BUSYBOX;
use crate::node::Node;
use crate::report::Report;
use crate::shell;
use crate::world::World;

/// Writes numbered lines as fast as a shell can, and its own process id first.
const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo line $n; usleep 2000; done";

/// A pod with one container.
struct Running {
    pod: String,
    container: String,
    log: PathBuf,
    pid: i32,
}

/// Runs the suite.
///
/// # Errors
/// The daemon does not start.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    let (mut node, before) = node(world, "restart")?;
    let mut pods = Vec::new();
    let up = report.case("three pods run and log", || {
        pods = wait(three(&node))?;
        Ok(())
    });
    if !up {
        return Ok(());
    }
    report.case("kill -9 of the daemon loses no pod, no log line, no exit code and no finish time", || {
        killed(&mut node, &pods)
    });
    report.case("SIGTERM ends the daemon with code 0 and leaves containers running", || {
        let status = node.end(Signal::SIGTERM)?;
        ensure!(status.success(), "{status}");
        alive(&pods[..2])?;
        node.launch()?;
        wait(async {
            let mut client = node.client().await?;
            all_in_state(&mut client, &pods[..2], api::ContainerState::ContainerRunning).await
        })
    });
    report.case(
        "a new version of the binary takes the supervisors of running pods with it, and the old one back",
        || {
            let (older, newer) = (node.berth.clone(), newer(&node)?);
            [newer, older].into_iter().try_for_each(|berth| updated(&mut node, &pods[..2], berth))
        },
    );
    report.case("after the restart every verb works on the old pods", || wait(use_and_remove(&node, &pods)));
    report.case("a daemon killed while a pod starts leaves nothing that Remove does not clear", || {
        wait(killed_at_start(&mut node))
    });
    report.case("leaves nothing behind", || node.settle(&before));
    Ok(())
}

async fn three(node: &Node) -> Result<Vec<Running>> {
    let mut client = node.client().await?;
    client.pull(BUSYBOX).await?;
    let mut pods = Vec::new();
    for number in 0..3 {
        pods.push(one(node, &mut client, &format!("counter{number}")).await?);
    }
    Ok(pods)
}

async fn one(node: &Node, client: &mut Client, name: &str) -> Result<Running> {
    let logs = node.dir.join("logs").join(name);
    fs::create_dir_all(&logs)?;
    let config = client::pod(name, &logs);
    let pod = client.run_pod(&config).await?;
    let container =
        client.create(&pod, &client::container("main", BUSYBOX, &["sh", "-c", COUNTER]), &config).await?;
    client.start(&container).await?;
    let request = api::ContainerStatusRequest { container_id: container.clone(), verbose: true };
    let info = client.runtime.container_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("verbose info")?)?;
    let pid = i32::try_from(info["pid"].as_i64().context("info.pid")?)?;
    Ok(Running { pod, container, log: logs.join("main.log"), pid })
}

/// Kills the daemon, then one container while nobody but its supervisor can see it, and starts the daemon again.
fn killed(node: &mut Node, pods: &[Running]) -> Result<()> {
    for pod in pods {
        shell::eventually("it logs", 10, || Ok((lines(&pod.log)?.len() > 20).then_some(())))?;
    }
    node.end(Signal::SIGKILL)?;
    let at_kill = lines(&pods[0].log)?.len();
    kill(Pid::from_raw(pods[2].pid), Signal::SIGTERM)?;
    kill(Pid::from_raw(pods[2].pid), Signal::SIGKILL)?;
    // The kernel ends it when it gets to it; the supervisor has seen the end once nobody has that number.
    shell::eventually("its supervisor has seen its end", 10, || {
        Ok((kill(Pid::from_raw(pods[2].pid), None) == Err(Errno::ESRCH)).then_some(()))
    })?;
    shell::eventually("the others log on without the daemon", 10, || {
        Ok((lines(&pods[0].log)?.len() > at_kill + 20).then_some(()))
    })?;
    let restarted = std::time::SystemTime::now();
    node.launch()?;
    wait(async {
        let mut client = node.client().await?;
        all_in_state(&mut client, &pods[..2], api::ContainerState::ContainerRunning).await?;
        let status = client.status(&pods[2].container).await?;
        ensure!(status.state() == api::ContainerState::ContainerExited, "{status:?}");
        ensure!(status.exit_code == 137 && status.reason == "Error", "{status:?}");
        let finished = u128::try_from(status.finished_at)?;
        let limit = restarted.duration_since(std::time::UNIX_EPOCH)?.as_nanos();
        ensure!(
            finished > u128::try_from(status.started_at)? && finished < limit,
            "{finished} is after the restart {limit}"
        );
        let request = api::ListPodSandboxRequest::default();
        let listed = client.runtime.list_pod_sandbox(request).await?.into_inner().items;
        ensure!(
            listed.len() == 3 && listed.iter().all(|pod| pod.state() == api::PodSandboxState::SandboxReady),
            "{listed:?}"
        );
        Ok(())
    })?;
    let after = lines(&pods[0].log)?.len();
    shell::eventually("they log on", 10, || Ok((lines(&pods[0].log)?.len() > after + 20).then_some(())))?;
    pods.iter().try_for_each(|pod| gapless(&lines(&pod.log)?))
}

/// Restarts the node with another binary: every supervisor goes on as that one, in its process, and the containers notice nothing.
fn updated(node: &mut Node, pods: &[Running], berth: PathBuf) -> Result<()> {
    let supervisors: Vec<_> = pods.iter().map(supervisor).collect::<Result<_>>()?;
    let before: Vec<_> = supervisors.iter().map(|pid| program(*pid)).collect::<Result<_>>()?;
    let status = node.end(Signal::SIGTERM)?;
    ensure!(status.success(), "{status}");
    node.berth = berth;
    node.launch()?;
    for (pod, (pid, before)) in pods.iter().zip(supervisors.iter().zip(before)) {
        shell::eventually("its supervisor goes on as the other program", 10, || {
            Ok((program(*pid)? != before).then_some(()))
        })?;
        let after = lines(&pod.log)?.len();
        shell::eventually("it logs on", 10, || Ok((lines(&pod.log)?.len() > after + 20).then_some(())))?;
        gapless(&lines(&pod.log)?)?;
    }
    alive(pods)
}

/// The node's program with a byte behind its end, which changes nothing but what it is.
fn newer(node: &Node) -> Result<PathBuf> {
    let newer = node.dir.join("berth-newer");
    fs::copy(&node.berth, &newer)?;
    fs::OpenOptions::new().append(true).open(&newer)?.write_all(b"\n")?;
    Ok(newer)
}

/// The process that supervises a pod: the parent of its container.
fn supervisor(pod: &Running) -> Result<i32> {
    let parent = machine::parent(u32::try_from(pod.pid)?).context("the container is gone")?;
    Ok(i32::try_from(parent)?)
}

/// Device and inode of a process's program.
fn program(pid: i32) -> Result<(u64, u64)> {
    let about = fs::metadata(format!("/proc/{pid}/exe"))?;
    Ok((about.dev(), about.ino()))
}

async fn all_in_state(client: &mut Client, pods: &[Running], state: api::ContainerState) -> Result<()> {
    for pod in pods {
        let status = client.status(&pod.container).await?;
        ensure!(status.state() == state, "{status:?}");
    }
    Ok(())
}

fn alive(pods: &[Running]) -> Result<()> {
    pods.iter().try_for_each(|pod| Ok(kill(Pid::from_raw(pod.pid), None)?))
}

/// The complete lines of a CRI log, without time, stream and tag.
fn lines(log: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(log)?;
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    Ok(complete.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or(line).to_owned()).collect())
}

fn gapless(lines: &[String]) -> Result<()> {
    for (number, line) in lines.iter().enumerate() {
        ensure!(*line == format!("line {}", number + 1), "line {} reads {line:?}", number + 1);
    }
    Ok(())
}

async fn use_and_remove(node: &Node, pods: &[Running]) -> Result<()> {
    let mut client = node.client().await?;
    let output = client.exec(&pods[0].container, &["echo", "still here"]).await?;
    ensure!(output.stdout == b"still here\n", "{output:?}");
    let request = api::ContainerStatsRequest { container_id: pods[1].container.clone() };
    client.runtime.container_stats(request).await?;
    let request = api::StopContainerRequest { container_id: pods[0].container.clone(), timeout: 0 };
    client.runtime.stop_container(request).await?;
    let status = client.status(&pods[0].container).await?;
    ensure!(status.exit_code == 137, "{status:?}");
    for pod in pods {
        client.remove_pod(&pod.pod).await?;
    }
    Ok(())
}

/// Kills the daemon a little later in each round of a pod's start, and clears what the next daemon lists.
async fn killed_at_start(node: &mut Node) -> Result<()> {
    for round in 0..10_u64 {
        let mut client = node.client().await?;
        let config = client::pod(&format!("doomed{round}"), &node.dir.join("logs"));
        let start = tokio::spawn(async move { client.run_pod(&config).await });
        tokio::time::sleep(std::time::Duration::from_millis(round)).await;
        node.end(Signal::SIGKILL)?;
        let _ = start.await?;
        node.launch()?;
        let mut client = node.client().await?;
        let listed =
            client.runtime.list_pod_sandbox(api::ListPodSandboxRequest::default()).await?.into_inner();
        for pod in listed.items {
            client.remove_pod(&pod.id).await?;
        }
        // A pod whose start was never answered is nobody's: the daemon removes it by itself, behind its readiness.
        let records = node.dir.join("root/pods");
        shell::eventually("the half made pod is removed", 10, || {
            Ok(fs::read_dir(&records)?.next().is_none().then_some(()))
        })?;
    }
    Ok(())
}
