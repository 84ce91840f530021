//! Pods whose RuntimeClass names another OCI runtime: runc, Debian's crun, and Berth's own command line, next to Berth's own pods.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_cri::v1 as api;
use nix::sys::signal::Signal;

use super::wait;
use crate::census::Census;
use crate::client::{self, Client};
use crate::images::BUSYBOX;
use crate::node::Node;
use crate::report::Report;
use crate::shell;
use crate::world::World;

/// What a handler's container runs: it says when it is up, and ends with a code of its own.
const SCRIPT: &str =
    "trap 'echo bye; exit 7' TERM; echo up; echo to-stderr >&2; while :; do sleep 0.05; done";

/// Runs the suite.
///
/// # Errors
/// The daemon does not start.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    let mut handlers = vec![("own", world.berth.clone(), "arguments = [\"oci\"]\n")];
    for name in ["crun", "runc"] {
        match runtime(name) {
            Some(path) => handlers.push((name, path, "")),
            None => report.skip(&format!("pods of {name}"), name),
        }
    }
    let section = |(name, path, more): &(&str, PathBuf, &str)| {
        format!("[handlers.{name}]\npath = {:?}\n{more}", path.display().to_string())
    };
    let config: String = handlers.iter().map(section).collect();
    report
        .case("a runtime that is not there keeps the daemon from starting, with its path", || absent(world));
    let mut node = Node::with_config(world, "handlers", &config)?;
    let before = Census::take(node.pid())?;
    report.case("Status names every handler, and promises no user namespaces for those of others", || {
        wait(offered(&node, &handlers.iter().map(|handler| handler.0).collect::<Vec<_>>()))
    });
    report.case("a handler that is not configured is refused by its name", || wait(unknown(&node)));
    let names: Vec<&str> = std::iter::once("").chain(handlers.iter().map(|handler| handler.0)).collect();
    let mut pods = Vec::new();
    report.case("pods of every handler run next to each other: logs, exec, statistics", || {
        pods = wait(start(&node, &names))?;
        Ok(())
    });
    report.case("they outlive a killed daemon, and end with their own codes", || {
        node.end(Signal::SIGKILL)?;
        node.launch()?;
        wait(stop(&node, &pods))
    });
    for (name, ..) in &handlers {
        report.case(&format!("{name}: a daemon killed while a container starts leaves nothing"), || {
            (0..8).try_for_each(|round| wait(killed(&mut node, name, round)))
        });
    }
    report.case("no runtime has kept anything", || kept(&node));
    let failed = !report.case("leaves nothing behind", || node.settle(&before));
    if failed {
        crate::report::line(format_args!("{}", node.log_tail()));
    }
    Ok(())
}

/// One of `OCI_RUNTIMES`, which `tests/run` has prepared.
fn runtime(name: &str) -> Option<PathBuf> {
    let given = std::env::var("OCI_RUNTIMES").ok()?;
    given.split(':').map(PathBuf::from).find(|path| path.ends_with(name) && path.is_file())
}

fn absent(world: &World) -> Result<()> {
    let more = "[handlers.gone]\npath = \"/no/such/runtime\"\n";
    let Err(error) = Node::with_config(world, "absent", more) else { bail!("the daemon has started") };
    let said = format!("{error:#}");
    ensure!(said.contains("handler \\\"gone\\\"") || said.contains("handler \"gone\""), "{said}");
    ensure!(said.contains("/no/such/runtime") && said.contains("No such file"), "{said}");
    Ok(())
}

async fn offered(node: &Node, names: &[&str]) -> Result<()> {
    let mut client = node.client().await?;
    let request = api::StatusRequest { verbose: false };
    let handlers = client.runtime.status(request).await?.into_inner().runtime_handlers;
    for name in names {
        let handler =
            handlers.iter().find(|handler| handler.name == *name).context("a handler is missing")?;
        let features = handler.features.as_ref().context("features")?;
        ensure!(!features.user_namespaces && features.recursive_read_only_mounts, "{handler:?}");
    }
    ensure!(handlers.iter().any(|handler| handler.name == "native"), "{handlers:?}");
    Ok(())
}

async fn run_pod(
    client: &mut Client,
    config: &api::PodSandboxConfig,
    handler: &str,
) -> Result<String, tonic::Status> {
    let runtime_handler = handler.to_owned();
    let request = api::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler };
    Ok(Box::pin(client.runtime.run_pod_sandbox(request)).await?.into_inner().pod_sandbox_id)
}

async fn unknown(node: &Node) -> Result<()> {
    let mut client = node.client().await?;
    let config = client::pod("unknown", &node.dir.join("logs"));
    let Err(status) = run_pod(&mut client, &config, "kata").await else { bail!("it has run") };
    ensure!(status.message().contains("\"kata\" is not configured"), "{status:?}");
    Ok(())
}

/// A pod of a handler with one container.
struct Running {
    handler: String,
    pod: String,
    container: String,
    log: PathBuf,
}

async fn start(node: &Node, handlers: &[&str]) -> Result<Vec<Running>> {
    let mut client = node.client().await?;
    client.pull(BUSYBOX).await?;
    let mut pods = Vec::new();
    for handler in handlers {
        let name = format!("on-{}", if handler.is_empty() { "native" } else { handler });
        let logs = node.dir.join("logs").join(&name);
        fs::create_dir_all(&logs)?;
        let config = client::pod(&name, &logs);
        let pod = run_pod(&mut client, &config, handler).await?;
        let command = client::container("main", BUSYBOX, &["sh", "-c", SCRIPT]);
        let container = client.create(&pod, &command, &config).await?;
        client.start(&container).await.with_context(|| name.clone())?;
        let log = logs.join("main.log");
        pods.push(Running { handler: (*handler).to_owned(), pod, container, log });
    }
    for pod in &pods {
        written(&pod.log, &[" stdout F up\n", " stderr F to-stderr\n"])?;
        let output = client.exec(&pod.container, &["sh", "-c", "hostname; exit 4"]).await?;
        let name = if pod.handler.is_empty() { "native" } else { &pod.handler };
        let expected = format!("on-{name}\n").into_bytes();
        ensure!(output.stdout == expected && output.exit_code == 4, "{name}: {output:?}");
        let request = api::ContainerStatsRequest { container_id: pod.container.clone() };
        let stats = client.runtime.container_stats(request).await?.into_inner().stats.context("stats")?;
        let memory = stats.memory.as_ref().and_then(|memory| memory.working_set_bytes.as_ref());
        ensure!(memory.is_some_and(|memory| memory.value > 0), "{name}: {stats:?}");
    }
    Ok(pods)
}

fn written(log: &Path, lines: &[&str]) -> Result<()> {
    shell::eventually("its lines are in the log", 10, || {
        let text = fs::read_to_string(log).unwrap_or_default();
        Ok(lines.iter().all(|line| text.contains(line)).then_some(()))
    })
}

async fn stop(node: &Node, pods: &[Running]) -> Result<()> {
    let mut client = node.client().await?;
    for pod in pods {
        let request = api::StopContainerRequest { container_id: pod.container.clone(), timeout: 20 };
        client.runtime.stop_container(request).await?;
        let status = client.status(&pod.container).await?;
        ensure!(
            status.exit_code == 7 && status.finished_at > status.started_at,
            "{}: {status:?}",
            pod.handler
        );
        written(&pod.log, &[" stdout F bye\n"])?;
        client.remove_pod(&pod.pod).await?;
    }
    Ok(())
}

/// Kills the daemon a little later in each round of a container's start, and removes what the next one lists.
async fn killed(node: &mut Node, handler: &str, round: u64) -> Result<()> {
    let mut client = node.client().await?;
    let config = client::pod(&format!("doomed-{handler}-{round}"), &node.dir.join("logs"));
    let pod = run_pod(&mut client, &config, handler).await?;
    let command = client::container("main", BUSYBOX, &["sleep", "1000"]);
    let container = client.create(&pod, &command, &config).await?;
    let start = tokio::spawn(async move { client.start(&container).await });
    tokio::time::sleep(Duration::from_millis(round * 15)).await;
    node.end(Signal::SIGKILL)?;
    let _ = start.await?;
    node.launch()?;
    let mut client = node.client().await?;
    client.remove_pod(&pod).await?;
    kept(node).with_context(|| format!("killed after {} ms", round * 15))
}

/// What runtimes have in their roots; each is the default one.
fn kept(node: &Node) -> Result<()> {
    for root in fs::read_dir(node.dir.join("state/handlers"))? {
        let left: Vec<_> = fs::read_dir(root?.path())?.flatten().map(|entry| entry.path()).collect();
        ensure!(left.is_empty(), "{left:?} is left");
    }
    Ok(())
}
