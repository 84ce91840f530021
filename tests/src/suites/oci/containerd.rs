//! Debian's containerd with `berth oci` as its runtime, driven by crictl: ten pods from run to rm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::images::BUSYBOX;
use crate::node::tail;
use crate::report::Report;
use crate::shell;
use crate::suites::crictl::Crictl;
use crate::world::World;

/// How many pods run side by side.
const PODS: usize = 10;

/// A running containerd.
struct Containerd {
    child: Child,
    dir: PathBuf,
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = shell::run(10, "umount", &["--lazy", &self.dir.join("state").display().to_string()]);
    }
}

/// One pod with its container.
struct Pod {
    name: String,
    sandbox: String,
    container: String,
}

/// Runs the cases.
///
/// # Errors
/// containerd does not start.
pub(super) fn run(world: &World, report: &mut Report, runtime: &Path, dir: &Path) -> Result<()> {
    let (Some(programs), Some(crictl)) = (world.tool("DEBIAN_CONTAINERD"), world.tool("CRICTL")) else {
        report.skip("Debian's containerd drives ten pods", "containerd or crictl");
        return Ok(());
    };
    let dir = dir.join("containerd");
    let containerd = start(world, &programs, runtime, &dir)?;
    let crictl = Crictl::new(crictl, &dir.join("containerd.sock"), &dir)?;
    shell::eventually("containerd answers", 30, || Ok(crictl.run(&["version"]).ok()))
        .with_context(|| tail(&dir.join("daemon.log")))?;
    let failures = report.failures();
    let mut pods = Vec::new();
    report.case("containerd: run, create and start ten pods", || {
        crictl.run(&["pull", BUSYBOX])?;
        for number in 0..PODS {
            pods.push(up(&crictl, &dir, number)?);
        }
        Ok(())
    });
    report.case("containerd: exec in each, with its output and its exit code", || {
        each(&pods, |pod| exec(&crictl, pod))
    });
    report.case("containerd: logs of each", || each(&pods, |pod| logs(&crictl, pod)));
    report.case("containerd: statistics of each", || each(&pods, |pod| stats(&crictl, pod)));
    report.case("containerd: stop each, which ends with its own code", || {
        each(&pods, |pod| stop(&crictl, pod))
    });
    report.case("containerd: rm of containers and pods", || each(&pods, |pod| remove(&crictl, pod)));
    report.case("containerd: nothing of the runtime's is left", || nothing_left(&dir));
    if report.failures() > failures {
        crate::report::line(format_args!("{}", tail(&dir.join("daemon.log"))));
    }
    drop(containerd);
    Ok(())
}

fn each(pods: &[Pod], case: impl Fn(&Pod) -> Result<()>) -> Result<()> {
    ensure!(pods.len() == PODS, "{} of {PODS} pods run", pods.len());
    pods.iter().try_for_each(|pod| case(pod).with_context(|| pod.name.clone()))
}

fn start(world: &World, programs: &str, runtime: &Path, dir: &Path) -> Result<Containerd> {
    fs::create_dir_all(dir.join("state"))?;
    shell::run(
        10,
        "mount",
        &["-t", "tmpfs", "-o", "mode=700", "tmpfs", &dir.join("state").display().to_string()],
    )?;
    let config = dir.join("config.toml");
    fs::write(&config, configuration(dir, &world.registry()?.mirrors, runtime))?;
    let log = fs::File::create(dir.join("daemon.log"))?;
    let child = Command::new(format!("{programs}/containerd"))
        .arg("--config")
        .arg(&config)
        .env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap_or_default()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start containerd")?;
    Ok(Containerd { child, dir: dir.to_owned() })
}

fn configuration(dir: &Path, mirrors: &Path, runtime: &Path) -> String {
    let (dir, mirrors, runtime) = (dir.display(), mirrors.display(), runtime.display());
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"

[grpc]
  address = "{dir}/containerd.sock"

[ttrpc]
  address = "{dir}/containerd.sock.ttrpc"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.9"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{mirrors}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "berth"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.berth]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.berth.options]
        BinaryName = "{runtime}"
        SystemdCgroup = false

[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
"#
    )
}

/// A pod on the node's network, which needs no plugin, and a container that ends with a code of its own.
fn up(crictl: &Crictl, dir: &Path, number: usize) -> Result<Pod> {
    let name = format!("pod-{number}");
    let logs = dir.join("logs").join(&name);
    fs::create_dir_all(&logs)?;
    let pod = json!({
        "metadata": { "name": name, "namespace": "oci", "uid": format!("uid-{number}"), "attempt": 0 },
        "log_directory": logs,
        "linux": { "cgroup_parent": "/oci-pods", "security_context": { "namespace_options": { "network": 2 } } },
    });
    let script = "trap 'exit 7' TERM; echo to-stdout; echo to-stderr >&2; while :; do sleep 0.05; done";
    let container = json!({
        "metadata": { "name": "main" }, "image": { "image": BUSYBOX }, "log_path": "main.log",
        "command": ["sh", "-c", script],
        "envs": [{ "key": "NUMBER", "value": number.to_string() }],
        "linux": {
            "resources": { "memory_limit_in_bytes": 67_108_864 },
            "security_context": { "namespace_options": { "network": 2, "pid": 1 }, "no_new_privs": true },
        },
    });
    let (pod_file, container_file) = (logs.join("pod.json"), logs.join("container.json"));
    fs::write(&pod_file, pod.to_string())?;
    fs::write(&container_file, container.to_string())?;
    let (pod_file, container_file) = (pod_file.display().to_string(), container_file.display().to_string());
    let sandbox = crictl.run(&["runp", &pod_file])?;
    let container = crictl.run(&["create", &sandbox, &container_file, &pod_file])?;
    crictl.run(&["start", &container])?;
    Ok(Pod { name, sandbox, container })
}

fn exec(crictl: &Crictl, pod: &Pod) -> Result<()> {
    let said = crictl.run(&["exec", "-s", &pod.container, "sh", "-c", "echo $NUMBER; ls /proc/self/fd"])?;
    let number = pod.name.trim_start_matches("pod-");
    ensure!(said == format!("{number}\n0\n1\n2\n3"), "{said}");
    let failed = crictl.run(&["exec", "-s", &pod.container, "sh", "-c", "exit 3"]);
    ensure!(failed.is_err_and(|e| format!("{e:#}").contains("3")), "an exit code of 3 was not passed on");
    let absent = crictl.run(&["exec", "-s", &pod.container, "no-such-program"]);
    ensure!(
        absent.is_err_and(|e| format!("{e:#}").contains("not found in the image")),
        "an absent program was not named"
    );
    Ok(())
}

fn logs(crictl: &Crictl, pod: &Pod) -> Result<()> {
    shell::eventually("both lines are logged", 10, || {
        let said = crictl.run(&["logs", &pod.container])?;
        Ok((said.contains("to-stdout")).then_some(()))
    })
}

fn stats(crictl: &Crictl, pod: &Pod) -> Result<()> {
    let stats = crictl.json(&["stats", "-o", "json", "--id", &pod.container])?;
    let memory = &stats["stats"][0]["memory"]["workingSetBytes"]["value"];
    ensure!(memory.as_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) > 0, "{stats}");
    Ok(())
}

fn stop(crictl: &Crictl, pod: &Pod) -> Result<()> {
    crictl.run(&["stop", "--timeout", "20", &pod.container])?;
    let status = crictl.json(&["inspect", &pod.container])?;
    ensure!(
        status["status"]["state"] == "CONTAINER_EXITED" && status["status"]["exitCode"] == 7,
        "{}",
        status["status"]
    );
    Ok(())
}

fn remove(crictl: &Crictl, pod: &Pod) -> Result<()> {
    crictl.run(&["rm", &pod.container])?;
    crictl.run(&["stopp", &pod.sandbox])?;
    crictl.run(&["rmp", &pod.sandbox])?;
    let left = crictl.run(&["pods", "-q"])?;
    ensure!(!left.contains(&pod.sandbox), "the pod is still listed");
    Ok(())
}

/// No state, no cgroup, no mount.
fn nothing_left(dir: &Path) -> Result<()> {
    for group in fs::read_to_string("/proc/self/mountinfo")?
        .lines()
        .filter(|line| line.contains(" - cgroup"))
        .filter_map(|line| line.split(' ').nth(4).map(|at| Path::new(at).join("oci-pods")))
    {
        let below = fs::read_dir(&group).into_iter().flatten().flatten();
        let left: Vec<_> = below.filter(|e| e.path().is_dir()).map(|e| e.file_name()).collect();
        ensure!(left.is_empty(), "{}: {left:?}", group.display());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let left: Vec<_> = mounts
        .lines()
        .filter(|l| l.contains(&format!("{}/state/io.containerd.runtime", dir.display())))
        .collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
