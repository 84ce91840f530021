//! exec, attach and port-forward by crictl, over SPDY and over WebSocket.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{Crictl, Session};
use crate::images::BUSYBOX;
use crate::report::Report;
use crate::shell::{self, Background};
use crate::terminal::Terminal;

/// Bytes through exec unless the environment says more (`BERTH_STREAM_BYTES`).
const BYTES: u64 = 64 << 20;
/// What is written and read back through standard input and output: different everywhere, so that nothing may be missing,
/// doubled or out of place.
const PATTERN: &str = "openssl enc -aes-128-ctr -K 00 -iv 00 -nosalt -in /dev/zero 2> /dev/null | head -c";

type Case = fn(&Interactive<'_>) -> Result<()>;
const CASES: [(&str, Case); 7] = [
    ("exec -it has the terminal's size, follows it, and ends with the command's code", terminal),
    ("exec -i ends the command's input, and reads on", half_close),
    ("exec passes the exit code on, and both outputs apart", code),
    ("exec carries every byte in and out", bytes),
    ("attach talks to the container, whoever left before", attach),
    ("an attached client that does not read is let go of, and the container goes on", deaf),
    ("port-forward carries requests side by side", forward),
];

/// A pod whose containers can be talked to, and the transport in use.
struct Interactive<'a> {
    crictl: &'a Crictl,
    transport: &'static str,
    pod: String,
    /// Repeats what it hears, and serves a page on port 8080.
    echo: String,
    /// Writes without end.
    loud: String,
}

/// Runs the cases over both transports.
pub(super) fn run(session: &Session, report: &mut Report) {
    let mut made = None;
    report.case("a pod to talk to", || {
        made = Some(prepare(session)?);
        Ok(())
    });
    let Some(mut interactive) = made else { return };
    for transport in ["spdy", "websocket"] {
        interactive.transport = transport;
        for (name, case) in CASES {
            report.case(&format!("{transport}: {name}"), || case(&interactive));
        }
    }
    report.case("the pod that was talked to goes away", || {
        interactive.crictl.run(&["rmp", "-f", &interactive.pod]).map(drop)
    });
}

fn prepare(session: &Session) -> Result<Interactive<'_>> {
    let crictl = &session.crictl;
    let dir = std::path::Path::new(&session.pod_file).with_file_name("talk");
    fs::create_dir_all(&dir)?;
    let file = |name: &str, text: String| -> Result<String> {
        let path = dir.join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let pod = json!({
        "metadata": { "name": "talk", "namespace": "default", "uid": "uid-talk" }, "log_directory": dir, "linux": {},
    });
    let pod_file = file("pod.json", pod.to_string())?;
    let container = |name: &str, script: &str| -> Result<String> {
        let config = json!({
            "metadata": { "name": name }, "image": { "image": BUSYBOX }, "command": ["sh", "-c", script], "stdin": true,
        });
        file(&format!("{name}.json"), config.to_string())
    };
    let echo =
        "httpd -p 8080 -h /www; while :; do while read line; do echo \"heard $line\"; done; sleep 0.1; done";
    // Counts what it has written, a block at a time.
    let loud = "n=0; while :; do head -c 65536 /dev/zero; n=$((n+1)); echo $n > /tmp/n.new; mv /tmp/n.new /tmp/n; done";
    let (echo, loud) = (container("echo", echo)?, container("loud", loud)?);
    let pod = crictl.run(&["runp", &pod_file])?;
    let start = |file: &str| -> Result<String> {
        let id = crictl.run(&["create", &pod, file, &pod_file])?;
        crictl.run(&["start", &id])?;
        Ok(id)
    };
    let (echo, loud) = (start(&echo)?, start(&loud)?);
    Ok(Interactive { crictl, transport: "", pod, echo, loud })
}

// === impl Interactive ===

impl Interactive<'_> {
    /// crictl with this transport: the verb, then its other arguments.
    fn words<'w>(&'w self, verb: &'w str, rest: &[&'w str]) -> Vec<&'w str> {
        let mut words = self.crictl.words();
        words.extend([verb, "--transport", self.transport]);
        words.extend(rest);
        words
    }

    /// Starts it with pipes for input and output.
    fn background(&self, verb: &str, rest: &[&str]) -> Result<Background> {
        let words = self.words(verb, rest);
        let (program, args) = words.split_first().context("no program")?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Background(command.spawn()?))
    }

    /// Runs it in a shell, where `{}` stands for it.
    fn in_shell(&self, seconds: u64, line: &str, verb: &str, rest: &[&str]) -> Result<std::process::Output> {
        let quoted: Vec<_> =
            self.words(verb, rest).iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
        shell::output(seconds, "bash", &["-c", &line.replace("{}", &quoted.join(" "))])
    }
}

fn terminal(i: &Interactive<'_>) -> Result<()> {
    // The first size follows the start of the command, as with every runtime.
    let script = "trap 'echo now $(stty size)' WINCH; echo first; while [ \"$(stty size)\" != '50 132' ]; do :; done; echo sized; \
        while :; do read line && [ \"$line\" = q ] && exit 7; done";
    let words = i.words("exec", &["-i", "-t", &i.echo, "sh", "-c", script]);
    let mut terminal = Terminal::start(&words, (132, 50))?;
    terminal.shows("sized", 20)?;
    terminal.resize((90, 33))?;
    terminal.shows("now 33 90", 20)?;
    terminal.keys("q\n")?;
    // crictl's own exit code does not tell the command's; its last words do.
    terminal.shows("exit code 7", 20)?;
    ensure!(!terminal.end(20)?.success(), "crictl hides the command's failure");
    Ok(())
}

fn half_close(i: &Interactive<'_>) -> Result<()> {
    let output = i.in_shell(30, "printf abc | {}", "exec", &["-i", &i.echo, "sh", "-c", "cat; echo end"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && text == "abcend\n", "{}: {text}", output.status);
    Ok(())
}

fn code(i: &Interactive<'_>) -> Result<()> {
    let output = i.in_shell(30, "{}", "exec", &[&i.echo, "sh", "-c", "echo out; echo err >&2; exit 42"])?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(!output.status.success() && out == "out\n", "{}: {out}", output.status);
    ensure!(err.contains("err\n") && err.contains("exit code 42"), "{err}");
    Ok(())
}

fn bytes(i: &Interactive<'_>) -> Result<()> {
    let count = std::env::var("BERTH_STREAM_BYTES").ok().and_then(|text| text.parse().ok()).unwrap_or(BYTES);
    let sum = shell::run(600, "bash", &["-c", &format!("{PATTERN} {count} | sha256sum")])?;
    let line = format!("{PATTERN} {count} | {{}} | sha256sum");
    let output = i.in_shell(900, &line, "exec", &["-i", &i.echo, "cat"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text == sum, "{count} bytes came back as {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn attach(i: &Interactive<'_>) -> Result<()> {
    for word in ["one", "two"] {
        let mut child = i.background("attach", &["-i", &i.echo])?;
        let mut stdin = child.0.stdin.take().context("stdin")?;
        stdin.write_all(format!("{word}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().context("stdout")?).read_line(&mut line)?;
        ensure!(line == format!("heard {word}\n"), "{line:?}");
    }
    Ok(())
}

fn deaf(i: &Interactive<'_>) -> Result<()> {
    let blocks = || -> Result<u64> {
        let text = i.crictl.run(&["exec", "-s", &i.loud, "cat", "/tmp/n"])?;
        Ok(text.trim().parse()?)
    };
    shell::eventually("the container writes", 20, || Ok(blocks().ok().filter(|n| *n > 0)))?;
    let mut child = i.background("attach", &[&i.loud])?;
    // It has begun when something has come through, and from then on nobody reads.
    child.0.stdout.as_mut().context("stdout")?.read_exact(&mut [0; 1])?;
    kill(Pid::from_raw(i32::try_from(child.0.id())?), Signal::SIGSTOP)?;
    let before = blocks()?;
    // More than all buffers on the way can hold: 32 MiB.
    shell::eventually("the container goes on writing", 60, || Ok((blocks()? > before + 512).then_some(())))
}

fn forward(i: &Interactive<'_>) -> Result<()> {
    let mut child = i.background("port-forward", &[&i.pod, ":8080"])?;
    let mut line = String::new();
    // Held to the end: crictl says more, and ends when nobody listens.
    let mut stdout = BufReader::new(child.0.stdout.take().context("stdout")?);
    stdout.read_line(&mut line)?;
    // "Forwarding from 127.0.0.1:41234 -> 8080"
    let address = line.split_whitespace().nth(2).with_context(|| line.clone())?;
    let url = format!("http://{address}/index.html");
    let fetch = format!("for n in $(seq 20); do curl -sSf --max-time 20 {url} & done; wait");
    let text = shell::run(60, "bash", &["-c", &fetch])?;
    ensure!(text == "a page of the test server\n".repeat(20), "{text}");
    Ok(())
}
