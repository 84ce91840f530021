//! A real kubelet, standalone with a static pod, on a real node of its own.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::crictl::Crictl;
use super::node;
use crate::images::BUSYBOX;
use crate::report::Report;
use crate::shell;
use crate::world::World;

/// A running kubelet; dropping it ends it.
#[derive(Debug)]
pub(super) struct Kubelet(Child);

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the suite.
///
/// # Errors
/// The daemon does not start.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    let (Some(program), Some(crictl)) = (world.tool("KUBELET"), world.tool("CRICTL")) else {
        report.skip("a static pod", "kubelet or crictl");
        return Ok(());
    };
    if !Path::new("/dev/kmsg").exists() {
        report.skip("a static pod", "/dev/kmsg, which the kubelet reads");
        return Ok(());
    }
    let (mut node, before) = node(world, "kubelet")?;
    let crictl = Crictl::new(crictl, &node.socket, &node.dir)?;
    let manifests = node.dir.join("manifests");
    fs::create_dir_all(&manifests)?;
    let manifest = manifests.join("web.yaml");
    fs::write(&manifest, static_pod().to_string())?;
    let config = json!({ "address": "127.0.0.1", "staticPodPath": manifests });
    let kubelet = start(&program, &node.dir, &node.socket, &[], &config)?;
    let up =
        report.case("the static pod becomes ready by an http readiness and an exec liveness probe", || {
            shell::eventually("the pod is ready", 180, || Ok(container(0)?.is_some().then_some(())))
                .with_context(|| crate::node::tail(&node.dir.join("kubelet.log")))
        });
    if up {
        report.case("its log is readable through the kubelet", || {
            let text = get("https://127.0.0.1:10250/containerLogs/default/web-berth-node/web")?;
            ensure!(text.contains("web is up"), "{text}");
            Ok(())
        });
        report.case("its statistics reach the kubelet's summary", || shell::eventually("usage", 60, summary));
        report.case("a killed container is restarted by the kubelet", || {
            let containers = crictl.json(&["ps", "-o", "json"])?;
            let id = containers["containers"][0]["id"].as_str().context("no container")?;
            let pid = crictl.json(&["inspect", id])?["info"]["pid"].as_i64().context("no pid")?;
            kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
            shell::eventually("it is ready again, restarted once", 120, || {
                Ok(container(1)?.is_some().then_some(()))
            })
        });
        report.case("deleting the manifest removes everything", || {
            fs::remove_file(&manifest)?;
            shell::eventually("no pod and no container remains", 240, || {
                let pods = crictl.json(&["pods", "-o", "json"])?["items"].as_array().map_or(0, Vec::len);
                let containers =
                    crictl.json(&["ps", "-a", "-o", "json"])?["containers"].as_array().map_or(0, Vec::len);
                Ok((pods + containers == 0).then_some(()))
            })
        });
    }
    drop(kubelet);
    report.case("leaves nothing behind", || node.settle(&before));
    Ok(())
}

/// A web server whose page is written by its own start, so that readiness is something to wait for.
fn static_pod() -> Value {
    let script = "echo web is up; httpd -p 8080 -h /www; while :; do sleep 1; done";
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "terminationGracePeriodSeconds": 2,
            "containers": [{
                "name": "web", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", script],
                "readinessProbe": { "httpGet": { "path": "/index.html", "port": 8080 }, "periodSeconds": 1 },
                "livenessProbe": { "exec": { "command": ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/"] }, "periodSeconds": 1, "failureThreshold": 5 },
                "resources": { "limits": { "cpu": "500m", "memory": "64Mi" } },
            }],
        },
    })
}

/// Starts a kubelet for the runtime at `socket`; `more` is laid over its configuration.
pub(super) fn start(
    program: &str,
    dir: &Path,
    socket: &Path,
    args: &[String],
    more: &Value,
) -> Result<Kubelet> {
    let mut config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", socket.display()),
        "podLogsDir": "/var/log/pods", "readOnlyPort": 10255,
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "failSwapOn": false, "failCgroupV1": false, "cgroupDriver": "cgroupfs", "enforceNodeAllocatable": ["pods"],
        "makeIPTablesUtilChains": false, "fileCheckFrequency": "1s", "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99, "evictionHard": { "memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%" },
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    let path = dir.join("kubelet.json");
    fs::write(&path, config.to_string())?;
    let log = fs::File::create(dir.join("kubelet.log"))?;
    let child = Command::new(program)
        .args([
            "--hostname-override=berth-node",
            "--node-ip=192.0.2.2",
            "--root-dir=/var/lib/kubelet",
            "--v=2",
        ])
        .args(args)
        .arg(format!("--config={}", path.display()))
        .arg(format!("--cert-dir={}", dir.join("pki").display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    Ok(Kubelet(child))
}

fn get(url: &str) -> Result<String> {
    shell::run(20, "curl", &["-sSfk", "--max-time", "15", url])
}

/// The web container as the kubelet sees it, once it is ready and was restarted `restarts` times.
fn container(restarts: u64) -> Result<Option<Value>> {
    let Ok(text) = get("http://127.0.0.1:10255/pods") else { return Ok(None) };
    let pods: Value = serde_json::from_str(&text)?;
    let status = &pods["items"][0]["status"]["containerStatuses"][0];
    let wanted = status["ready"] == true && status["restartCount"] == restarts;
    Ok(wanted.then(|| status.clone()))
}

/// CPU and memory of the container in /stats/summary.
fn summary() -> Result<Option<()>> {
    let Ok(text) = get("http://127.0.0.1:10255/stats/summary") else { return Ok(None) };
    let all: Value = serde_json::from_str(&text)?;
    let container = &all["pods"][0]["containers"][0];
    let positive = |value: &Value| value.as_u64().is_some_and(|number| number > 0);
    let seen = positive(&container["cpu"]["usageCoreNanoSeconds"])
        && positive(&container["memory"]["workingSetBytes"]);
    Ok(seen.then_some(()))
}
