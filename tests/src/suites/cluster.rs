//! kubectl through a real API server and a real kubelet to the daemon: the way every user's exec, attach, cp, logs and
//! port-forward come in. Each of them over WebSocket and over SPDY. And the network agent, which lives by that API server.

mod agent;
mod control;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as api;
use serde_json::json;

use super::kubelet::{self, Kubelet};
use super::wait;
use crate::census::Census;
use crate::images::BUSYBOX;
use crate::node::Node;
use crate::report::{Report, line};
use crate::shell::{self, Background};
use crate::terminal::Terminal;
use crate::world::World;
use control::{Control, Programs};

/// Bytes of the file that `kubectl cp` takes there and back.
const FILE: usize = 16 << 20;

/// kubectl's environment for one transport.
struct Transport {
    name: &'static str,
    /// Value of `KUBECTL_REMOTE_COMMAND_WEBSOCKETS` and `KUBECTL_PORT_FORWARD_WEBSOCKETS`.
    websockets: &'static str,
}

type Case = fn(&Cluster<'_>) -> Result<()>;
const CASES: [(&str, Case); 6] = [
    ("exec passes input, its end, both outputs and the exit code", exec),
    ("exec -it has the terminal's size, follows it, and ends with the command's code", terminal),
    ("attach talks to the container", attach),
    ("cp takes a file there and back unchanged", copy),
    ("port-forward carries requests side by side", forward),
    ("logs --follow shows a line as it is written", logs),
];

/// What the cases work with.
struct Cluster<'a> {
    control: &'a Control,
    dir: &'a Path,
    transport: Transport,
}

/// Runs the suite.
///
/// # Errors
/// The daemon does not start.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    let tools = ["ETCD", "KUBE_APISERVER", "KUBECTL", "KUBELET"].map(|name| world.tool(name));
    let [Some(etcd), Some(apiserver), Some(kubectl), Some(program)] = tools else {
        report.skip("a cluster of one node", "etcd, kube-apiserver, kubectl or kubelet");
        return Ok(());
    };
    if !Path::new("/dev/kmsg").exists() {
        report.skip("a cluster of one node", "/dev/kmsg, which the kubelet reads");
        return Ok(());
    }
    let mut node = Node::with_config(world, "cluster", "log = \"cri::streaming=debug,info\"\n")?;
    let before = Census::take(node.pid())?;
    let programs = Programs { etcd, apiserver, kubectl };
    let mut up = None;
    report.case("a cluster of one node comes up and runs a pod", || {
        up = Some(bring_up(&programs, &program, &node)?);
        Ok(())
    });
    if let Some((control, kubelet)) = up {
        for (name, websockets) in [("websocket", "true"), ("spdy", "false")] {
            let transport = Transport { name, websockets };
            let cluster = Cluster { control: &control, dir: &node.dir, transport };
            for (case, body) in CASES {
                report.case(&format!("{name}: {case}"), || body(&cluster));
            }
        }
        report.case("all of them have reached the daemon", || served(&node));
        report.case("the network agent, who may list and watch nodes only, follows them within 2 s", || {
            agent::follows(world, &node, &control)
        });
        report.case("a deleted pod is gone, and its sandbox is stopped", || {
            control.kubectl(&["delete", "pod", "talk", "--grace-period=1", "--timeout=60s"])?;
            Ok(())
        });
        drop((control, kubelet));
        // What the kubelet would collect within the next minute.
        report.case("what is left of it is removed", || wait(Box::pin(collect(&node))));
    }
    report.case("leaves nothing behind", || node.settle(&before));
    if report.failures() > 0 {
        line(format_args!("{}", node.log_tail()));
    }
    Ok(())
}

fn bring_up(programs: &Programs, kubelet: &str, node: &Node) -> Result<(Control, Kubelet)> {
    let begun = Instant::now();
    let control = Control::start(programs, &node.dir.join("control"))?;
    let api = begun.elapsed();
    let with_api = [format!("--kubeconfig={}", control.kubeconfig.display())];
    let config = json!({ "address": "192.0.2.2", "volumePluginDir": node.dir.join("volume-plugins") });
    let kubelet = kubelet::start(kubelet, &node.dir, &node.socket, &with_api, &config)?;
    let failed = || crate::node::tail(&node.dir.join("kubelet.log"));
    let is_ready = ["wait", "--for=condition=Ready", "--timeout=1s"];
    shell::eventually("the node is ready", 120, || {
        Ok(control.kubectl(&[&is_ready[..], &["node/berth-node"]].concat()).ok())
    })
    .with_context(failed)?;
    let there = begun.elapsed();
    let manifest = node.dir.join("talk.json");
    fs::write(&manifest, pod().to_string())?;
    control.kubectl(&["apply", "-f", &manifest.display().to_string()])?;
    control.kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", "pod/talk"]).with_context(failed)?;
    line(format_args!(
        "        API server after {:.1} s, node ready after {:.1} s, pod after {:.1} s",
        api.as_secs_f64(),
        there.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    ));
    Ok((control, kubelet))
}

/// A pod that repeats what it hears and serves a page; no scheduler puts it on its node.
fn pod() -> serde_json::Value {
    let script =
        "httpd -p 8080 -h /www; while :; do while read line; do echo \"heard $line\"; done; sleep 0.1; done";
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "talk" },
        "spec": {
            "nodeName": "berth-node", "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
            "containers": [{
                "name": "talk", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "stdin": true,
                "command": ["sh", "-c", script],
                "readinessProbe": { "httpGet": { "path": "/index.html", "port": 8080 }, "periodSeconds": 1 },
            }],
        },
    })
}

/// Removes every pod; none may be ready any more.
async fn collect(node: &Node) -> Result<()> {
    let mut client = node.client().await?;
    let all = client.runtime.list_pod_sandbox(api::ListPodSandboxRequest::default()).await?.into_inner();
    for pod in all.items {
        ensure!(pod.state() == api::PodSandboxState::SandboxNotready, "{pod:?}");
        client.remove_pod(&pod.id).await?;
    }
    Ok(())
}

/// What the daemon's log says of the sessions it has served. An API server of this version turns kubectl's WebSockets into
/// SPDY, so both arrive as that; how Berth itself speaks WebSocket is seen in the suite `crictl`.
fn served(node: &Node) -> Result<()> {
    let log = fs::read_to_string(node.dir.join("daemon.log"))?;
    let begun: Vec<_> = log.lines().filter(|line| line.contains("session begins")).collect();
    for kind in ["exec", "attach", "portforward"] {
        let count = begun.iter().filter(|line| line.contains(&format!("kind=\"{kind}\""))).count();
        ensure!(count >= 2, "{count} {kind} sessions in the log");
    }
    Ok(())
}

// === impl Cluster ===

impl Cluster<'_> {
    /// kubectl over this transport.
    fn command(&self, args: &[&str]) -> Command {
        let words = self.control.words();
        let mut command = Command::new("env");
        command.args(self.environment()).args(words).args(args);
        command
    }

    fn environment(&self) -> [String; 2] {
        ["KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "KUBECTL_PORT_FORWARD_WEBSOCKETS"]
            .map(|name| format!("{name}={}", self.transport.websockets))
    }

    /// Starts it with a pipe for its input and its output.
    fn background(&self, args: &[&str]) -> Result<Background> {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Background(command.spawn()?))
    }

    /// Runs it with `input` to its end: exit code, output, errors.
    fn talk(&self, args: &[&str], input: &[u8]) -> Result<(Option<i32>, Vec<u8>, String)> {
        let mut child =
            self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("stdin")?;
        let input = input.to_vec();
        // A thread of its own: output may come before all input is taken.
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output()?;
        let _ = writer.join();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.code(), output.stdout, errors))
    }
}

fn exec(c: &Cluster<'_>) -> Result<()> {
    let script = "cat; echo err >&2; exit 42";
    let (code, out, err) = c.talk(&["exec", "-i", "talk", "--", "sh", "-c", script], b"abc")?;
    ensure!((code, out.as_slice()) == (Some(42), b"abc"), "{code:?} {out:?} {err}");
    ensure!(err.contains("err\n") && err.contains("exit code 42"), "{err}");
    Ok(())
}

fn terminal(c: &Cluster<'_>) -> Result<()> {
    let script = "trap 'echo now $(stty size)' WINCH; echo first; \
        while :; do read line && [ \"$line\" = q ] && exit 7; done";
    let words = c.control.words();
    let env = c.environment();
    let mut args = vec!["env"];
    args.extend(env.iter().chain(&words).map(String::as_str));
    args.extend(["exec", "-it", "talk", "--", "sh", "-c", script]);
    let mut terminal = Terminal::start(&args, (132, 50))?;
    terminal.shows("first", 20)?;
    // kubectl begins with one row more and corrects it, so that the process gets a signal to draw by.
    terminal.resize((90, 33))?;
    terminal.shows("now 33 90", 20)?;
    terminal.keys("q\n")?;
    let status = terminal.end(20)?;
    ensure!(status.code() == Some(7), "{status}");
    Ok(())
}

fn attach(c: &Cluster<'_>) -> Result<()> {
    let mut child = c.background(&["attach", "-i", "--quiet", "talk"])?;
    let mut stdin = child.0.stdin.take().context("stdin")?;
    let word = format!("{}-attach", c.transport.name);
    stdin.write_all(format!("{word}\n").as_bytes())?;
    let mut line = String::new();
    let mut stdout = BufReader::new(child.0.stdout.take().context("stdout")?);
    let heard = format!("heard {word}\n");
    while stdout.read_line(&mut line)? > 0 && !line.ends_with(&heard) {}
    ensure!(line.ends_with(&heard), "{line:?}");
    Ok(())
}

fn copy(c: &Cluster<'_>) -> Result<()> {
    let (there, back) = (c.dir.join("there.bin"), c.dir.join("back.bin"));
    let bytes: Vec<u8> = (0..FILE).map(|n| u8::try_from(n * 7 / 3 % 251).unwrap_or(0)).collect();
    fs::write(&there, &bytes)?;
    let _ = fs::remove_file(&back);
    let there = there.display().to_string();
    let (code, _, err) = c.talk(&["cp", &there, "talk:/tmp/copied.bin"], b"")?;
    ensure!(code == Some(0), "there: {err}");
    let (code, _, err) = c.talk(&["cp", "talk:/tmp/copied.bin", &back.display().to_string()], b"")?;
    ensure!(code == Some(0), "back: {err}");
    ensure!(fs::read(&back)? == bytes, "the file has changed on its way");
    Ok(())
}

fn forward(c: &Cluster<'_>) -> Result<()> {
    let mut child = c.background(&["port-forward", "talk", ":8080"])?;
    let mut line = String::new();
    // Held to the end: kubectl says more, and ends when nobody listens.
    let mut stdout = BufReader::new(child.0.stdout.take().context("stdout")?);
    stdout.read_line(&mut line)?;
    let address = line.split_whitespace().nth(2).with_context(|| line.clone())?;
    let url = format!("http://{address}/index.html");
    let fetch = format!("for n in $(seq 20); do curl -sSf --max-time 20 {url} & done; wait");
    let text = shell::run(60, "bash", &["-c", &fetch])?;
    ensure!(text == "a page of the test server\n".repeat(20), "{text}");
    Ok(())
}

fn logs(c: &Cluster<'_>) -> Result<()> {
    let mut child = c.background(&["logs", "--follow", "--tail=1", "talk"])?;
    let word = format!("{}-logs", c.transport.name);
    // A child of the first process writes to the container's output.
    c.control.kubectl(&["exec", "talk", "--", "sh", "-c", &format!("echo {word} > /proc/1/fd/1")])?;
    let mut stdout = BufReader::new(child.0.stdout.take().context("stdout")?);
    let mut line = String::new();
    while stdout.read_line(&mut line)? > 0 && !line.contains(&word) {}
    ensure!(line.contains(&word), "{line:?}");
    Ok(())
}
