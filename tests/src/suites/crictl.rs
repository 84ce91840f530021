//! The main job by hand: real `crictl`, one verb after the other, each result asserted, nothing left.

mod streaming;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::node;
use crate::images::{BUSYBOX, INDEX, LAYERED};
use crate::report::Report;
use crate::shell;
use crate::world::World;

/// crictl bound to one socket.
#[derive(Debug)]
pub struct Crictl {
    program: String,
    endpoint: String,
    config: String,
}

// === impl Crictl ===

impl Crictl {
    /// For the runtime at `socket`; `dir` holds an empty client configuration.
    ///
    /// # Errors
    /// The configuration cannot be written.
    pub fn new(program: String, socket: &Path, dir: &Path) -> Result<Self> {
        let config = dir.join("crictl.yaml");
        fs::write(&config, "timeout: 30\n")?;
        let endpoint = format!("unix://{}", socket.display());
        Ok(Self { program, endpoint, config: config.display().to_string() })
    }

    /// Runs a verb and returns what it wrote.
    ///
    /// # Errors
    /// It failed; the message holds its output.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let words = self.words();
        let all: Vec<_> = words[1..].iter().chain(args).copied().collect();
        Ok(shell::run(60, &self.program, &all)?.trim_end().to_owned())
    }

    /// The program and the arguments before the verb.
    fn words(&self) -> Vec<&str> {
        let endpoint = self.endpoint.as_str();
        vec![
            &self.program,
            "--config",
            &self.config,
            "--runtime-endpoint",
            endpoint,
            "--image-endpoint",
            endpoint,
        ]
    }

    /// Runs a verb whose output is JSON.
    ///
    /// # Errors
    /// As [`Crictl::run`]; the output is no JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.run(args)?;
        serde_json::from_str(&text).with_context(|| text)
    }

    /// The length of the list that `args` print under `key`.
    fn count(&self, args: &[&str], key: &str) -> Result<usize> {
        Ok(self.json(args)?[key].as_array().map_or(0, Vec::len))
    }
}

/// What the cases share.
struct Session {
    crictl: Crictl,
    pod_file: String,
    container_file: String,
    pod: String,
    container: String,
}

/// Runs the suite.
///
/// # Errors
/// The daemon does not start.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    let Some(program) = world.tool("CRICTL") else {
        report.skip("all verbs", "crictl");
        return Ok(());
    };
    let (mut node, before) = node(world, "crictl")?;
    let crictl = Crictl::new(program, &node.socket, &node.dir)?;
    let (pod_file, container_file) = requests(&node.dir)?;
    let mut session =
        Session { crictl, pod_file, container_file, pod: String::new(), container: String::new() };
    for (name, case) in CASES {
        report.case(name, || case(&mut session));
        if name == CASES[1].0 {
            streaming::run(&session, report);
        }
    }
    let failed = !report.case("leaves nothing behind", || node.settle(&before));
    if failed {
        crate::report::line(format_args!("{}", node.log_tail()));
    }
    Ok(())
}

/// One verb after the other.
type Case = fn(&mut Session) -> Result<()>;
const CASES: [(&str, Case); 17] = [
    ("version and info answer, runtime and network are ready", ready),
    ("pull and images: by tag, of an index, of layers in three compressions", pull),
    ("runp runs a pod, pods lists it Ready", run_pod),
    ("create makes a container, ps -a lists it Created", create),
    ("start starts it, ps lists it Running", start),
    ("logs prints what it wrote to both streams", logs),
    ("exec -s runs a command inside and passes its exit code on", exec),
    ("inspect shows what was asked for and what runs", inspect),
    ("inspectp shows the pod with its address", inspect_pod),
    ("stats and statsp show processor time and memory", stats),
    ("whiteouts, links, owners and odd names of layers arrive as packed", layers),
    ("stop ends it with its own exit code", stop),
    ("rm removes the container", remove),
    ("stopp stops the pod", stop_pod),
    ("rmp removes the pod", remove_pod),
    ("rmi removes the images", remove_images),
    ("no pod, container or image remains", nothing),
];

/// Writes the JSON requests; the container ends with code 7 on SIGTERM.
fn requests(dir: &Path) -> Result<(String, String)> {
    let logs = dir.join("logs/crictl-pod");
    fs::create_dir_all(&logs)?;
    let metadata = json!({ "name": "web", "namespace": "default", "uid": "uid-1", "attempt": 1 });
    let pod = json!({
        "metadata": metadata, "hostname": "web-host", "log_directory": logs, "labels": { "app": "web" },
        "dns_config": { "servers": ["10.9.8.7"], "searches": ["suite.test"], "options": ["ndots:3"] },
        "linux": {},
    });
    let script = "trap 'exit 7' TERM; echo to-stdout; echo to-stderr >&2; while :; do sleep 0.05; done";
    let container = json!({
        "metadata": { "name": "main" }, "image": { "image": BUSYBOX }, "log_path": "main.log",
        "command": ["sh", "-c", script], "labels": { "role": "main" }, "working_dir": "/tmp",
        "envs": [{ "key": "GREETING", "value": "hello" }],
        "linux": { "resources": { "memory_limit_in_bytes": 67_108_864 } },
    });
    let (pod_file, container_file) = (dir.join("pod.json"), dir.join("container.json"));
    fs::write(&pod_file, pod.to_string())?;
    fs::write(&container_file, container.to_string())?;
    Ok((pod_file.display().to_string(), container_file.display().to_string()))
}

fn ready(s: &mut Session) -> Result<()> {
    let version = s.crictl.run(&["version"])?;
    ensure!(
        version.contains("RuntimeName:  berth") && version.contains("RuntimeApiVersion:  v1"),
        "{version}"
    );
    let info = s.crictl.json(&["info"])?;
    ensure!(info["config"]["stateDir"].as_str().is_some_and(|dir| dir.starts_with('/')), "{info}");
    for condition in info["status"]["conditions"].as_array().context("conditions")? {
        ensure!(condition["status"] == true, "{condition}");
    }
    Ok(())
}

fn pull(s: &mut Session) -> Result<()> {
    for image in [BUSYBOX, INDEX, LAYERED] {
        s.crictl.run(&["pull", image])?;
        let images = s.crictl.json(&["images", "-o", "json"])?;
        let found = images["images"].as_array().into_iter().flatten().any(|entry| {
            let id = entry["id"].as_str().is_some_and(|id| id.starts_with("sha256:"));
            entry["repoTags"] == json!([image]) && id && entry["size"] != "0"
        });
        ensure!(found, "{image} is not in {images}");
    }
    Ok(())
}

fn run_pod(s: &mut Session) -> Result<()> {
    s.pod = s.crictl.run(&["runp", &s.pod_file])?;
    let pods = s.crictl.json(&["pods", "-o", "json"])?;
    let pod = &pods["items"][0];
    ensure!(pod["id"] == s.pod.as_str() && pod["state"] == "SANDBOX_READY", "{pods}");
    ensure!(pod["metadata"]["name"] == "web" && pod["labels"]["app"] == "web", "{pods}");
    Ok(())
}

fn listed(s: &Session, all: bool, state: &str) -> Result<()> {
    let args: &[&str] = if all { &["ps", "-a", "-o", "json"] } else { &["ps", "-o", "json"] };
    let containers = s.crictl.json(args)?;
    let container = &containers["containers"][0];
    ensure!(container["id"] == s.container.as_str() && container["state"] == state, "{containers}");
    ensure!(
        container["podSandboxId"] == s.pod.as_str() && container["labels"]["role"] == "main",
        "{containers}"
    );
    Ok(())
}

fn create(s: &mut Session) -> Result<()> {
    s.container = s.crictl.run(&["create", &s.pod, &s.container_file, &s.pod_file])?;
    listed(s, true, "CONTAINER_CREATED")
}

fn start(s: &mut Session) -> Result<()> {
    s.crictl.run(&["start", &s.container])?;
    listed(s, false, "CONTAINER_RUNNING")
}

fn logs(s: &mut Session) -> Result<()> {
    shell::eventually("both lines are in the log", 10, || {
        // crictl prints each stream on its own; `run` returns standard output only.
        let all = shell::run(
            20,
            "sh",
            &[
                "-c",
                &format!(
                    "{} --config {} --runtime-endpoint {} logs {} 2>&1",
                    s.crictl.program, s.crictl.config, s.crictl.endpoint, s.container
                ),
            ],
        )?;
        let mut lines: Vec<_> = all.lines().collect();
        lines.sort_unstable();
        Ok((lines == ["to-stderr", "to-stdout"]).then_some(()))
    })
}

fn exec(s: &mut Session) -> Result<()> {
    let script = "cat /etc/hostname; pwd; echo $GREETING; cat /etc/resolv.conf";
    let text = s.crictl.run(&["exec", "-s", &s.container, "sh", "-c", script])?;
    let want = "web-host\n/tmp\nhello\n";
    ensure!(text.starts_with(want), "{text}");
    for line in ["nameserver 10.9.8.7", "search suite.test", "options ndots:3"] {
        ensure!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
    let error =
        s.crictl.run(&["exec", "-s", &s.container, "sh", "-c", "exit 42"]).err().context("exit 42 passed")?;
    ensure!(format!("{error:#}").contains("42"), "{error:#}");
    Ok(())
}

fn inspect(s: &mut Session) -> Result<()> {
    let all = s.crictl.json(&["inspect", &s.container])?;
    let status = &all["status"];
    ensure!(status["state"] == "CONTAINER_RUNNING" && status["metadata"]["name"] == "main", "{all}");
    ensure!(status["image"]["image"] == BUSYBOX, "{status}");
    ensure!(status["imageRef"].as_str().is_some_and(|text| text.contains("@sha256:")), "{status}");
    ensure!(status["logPath"].as_str().is_some_and(|path| path.ends_with("crictl-pod/main.log")), "{status}");
    ensure!(status["resources"]["linux"]["memoryLimitInBytes"] == "67108864", "{status}");
    let pid = all["info"]["pid"].as_u64().context("info.pid")?;
    let cmdline = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    ensure!(cmdline.contains("to-stdout"), "process {pid} is {cmdline}");
    Ok(())
}

fn inspect_pod(s: &mut Session) -> Result<()> {
    let all = s.crictl.json(&["inspectp", &s.pod])?;
    ensure!(all["status"]["state"] == "SANDBOX_READY", "{all}");
    let ip: std::net::IpAddr = all["status"]["network"]["ip"].as_str().context("no address")?.parse()?;
    ensure!(!ip.is_loopback() && !ip.is_unspecified(), "{ip}");
    shell::run(10, "busybox", &["ping", "-c", "1", "-W", "2", &ip.to_string()]).map(drop)
}

fn stats(s: &mut Session) -> Result<()> {
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let all = s.crictl.json(&["stats", "-a", "-o", "json"])?;
    let entry = &all["stats"][0];
    ensure!(entry["attributes"]["id"] == s.container.as_str(), "{all}");
    ensure!(number(&entry["cpu"]["usageCoreNanoSeconds"]["value"]) > 0, "{entry}");
    ensure!(number(&entry["memory"]["workingSetBytes"]["value"]) > 0, "{entry}");
    let pods = s.crictl.json(&["statsp", "-o", "json"])?;
    ensure!(pods["stats"][0]["attributes"]["id"] == s.pod.as_str(), "{pods}");
    Ok(())
}

/// Another container in the same pod, from the image with three layers.
fn layers(s: &mut Session) -> Result<()> {
    let text = fs::read_to_string(&s.container_file)?.replace(BUSYBOX, LAYERED);
    let file = format!("{}.layered", s.container_file);
    fs::write(&file, text.replace("main", "layered").replace("/tmp", "/data"))?;
    let container = s.crictl.run(&["create", &s.pod, &file, &s.pod_file])?;
    s.crictl.run(&["start", &container])?;
    let script = "find . | sort; cat kept replaced; readlink link; stat -c '%u:%g %a %h' name* replaced; echo $LAYERED";
    let text = s.crictl.run(&["exec", "-s", &container, "sh", "-c", script])?;
    let want = ".\n./hard\n./kept\n./link\n./name with spaces and ünïcode\n./opaque\n./opaque/new\n./replaced\n\
        basetopreplaced\n1000:50000 640 1\n0:0 644 2\nyes";
    ensure!(text == want, "{text}");
    s.crictl.run(&["rm", "-f", &container]).map(drop)
}

fn stop(s: &mut Session) -> Result<()> {
    s.crictl.run(&["stop", "--timeout", "20", &s.container])?;
    let status = s.crictl.json(&["inspect", &s.container])?["status"].clone();
    ensure!(status["state"] == "CONTAINER_EXITED" && status["exitCode"] == 7, "{status}");
    ensure!(
        status["reason"] == "Error" && status["finishedAt"].as_str().is_some_and(|at| at > "2"),
        "{status}"
    );
    Ok(())
}

fn remove(s: &mut Session) -> Result<()> {
    s.crictl.run(&["rm", &s.container])?;
    ensure!(s.crictl.count(&["ps", "-a", "-o", "json"], "containers")? == 0, "still listed");
    Ok(())
}

fn stop_pod(s: &mut Session) -> Result<()> {
    s.crictl.run(&["stopp", &s.pod])?;
    let pods = s.crictl.json(&["pods", "-o", "json"])?;
    ensure!(pods["items"][0]["state"] == "SANDBOX_NOTREADY", "{pods}");
    Ok(())
}

fn remove_pod(s: &mut Session) -> Result<()> {
    s.crictl.run(&["rmp", &s.pod])?;
    ensure!(s.crictl.count(&["pods", "-o", "json"], "items")? == 0, "still listed");
    Ok(())
}

fn remove_images(s: &mut Session) -> Result<()> {
    s.crictl.run(&["rmi", BUSYBOX, INDEX, LAYERED]).map(drop)
}

fn nothing(s: &mut Session) -> Result<()> {
    for (args, key) in [
        (["pods", "-o", "json"].as_slice(), "items"),
        (&["ps", "-a", "-o", "json"], "containers"),
        (&["images", "-o", "json"], "images"),
    ] {
        ensure!(s.crictl.count(args, key)? == 0, "{key} remain");
    }
    Ok(())
}
