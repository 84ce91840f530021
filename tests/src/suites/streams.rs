//! Sessions of exec, attach and port-forward by the thousand, over both carriers, broken off wherever it hurts: the daemon
//! must hold afterwards what it held before, and the pod's supervisor too.
//!
//! `BERTH_STREAM_SESSIONS` says how many; the clients' dice are seeded, so that a run can be repeated.

mod session;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use k8s_cri::v1 as api;

use super::{node, wait};
use crate::bench::machine;
use crate::client;
use crate::images::BUSYBOX;
use crate::node::Node;
use crate::report::{Report, line};
use crate::shell;
use crate::streams::spdy::Spdy;
use crate::streams::websocket::WebSocket;
use crate::world::World;
use session::{Caller, Dice};

/// Sessions, unless the environment says otherwise.
const SESSIONS: usize = 10_000;
/// Clients at once.
const CLIENTS: usize = 8;
/// Sessions that are open at the same time in the case of that name.
const TOGETHER: usize = 1000;
/// Processes of the pod's two containers: a shell, what it waits for, its server, and the talker.
const OWN: usize = 4;
/// How much the daemon may hold more after all sessions than after a fifth of them, in MiB: what an allocator keeps differs a
/// little from moment to moment.
const SLACK: f64 = 3.0;

/// A pod that can be talked to.
#[derive(Clone, Debug)]
struct Site {
    pod: String,
    /// Repeats what it hears, and serves a page on port 8080.
    echo: String,
    /// Writes without end.
    loud: String,
}

/// Runs the suite.
///
/// # Errors
/// The daemon does not start.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    let (mut node, before) = node(world, "streams")?;
    let mut site = None;
    report.case("a pod to talk to", || {
        site = Some(wait(Box::pin(prepare(&node)))?);
        Ok(())
    });
    let Some(site) = site else { return Ok(()) };
    report.case(&format!("{TOGETHER} sessions at once, each with its own bytes"), || together(&node, &site));
    let count = std::env::var("BERTH_STREAM_SESSIONS").ok().and_then(|text| text.parse().ok());
    let count: usize = count.unwrap_or(SESSIONS);
    report.case(&format!("{count} sessions broken at random leave memory and descriptors flat"), || {
        // The first fifth fills caches, pools and the allocator.
        break_off(&node, &site, count / 5, 1)?;
        let first = Held::settled(&node, &site, None)?;
        line(format_args!("        after {} sessions: {first}", count / 5));
        break_off(&node, &site, count, 2)?;
        let last = Held::settled(&node, &site, Some(&first))?;
        line(format_args!("        after {count} more: {last}"));
        Ok(())
    });
    report.case("the pod still does what it did", || wait(alive(&node, &site)));
    report.case("leaves nothing behind", || {
        wait(async { Ok(node.client().await?.remove_pod(&site.pod).await?) })?;
        node.settle(&before)
    });
    Ok(())
}

async fn prepare(node: &Node) -> Result<Site> {
    let mut client = node.client().await?;
    client.pull(BUSYBOX).await?;
    let config = client::pod("streams", &node.dir.join("logs"));
    let pod = client.run_pod(&config).await?;
    let mut ids = Vec::new();
    for (name, script) in [
        (
            "echo",
            "httpd -p 8080 -h /www; while :; do while read line; do echo \"heard $line\"; done; sleep 0.1; done",
        ),
        ("loud", "exec yes 'somebody who never stops'"),
    ] {
        let mut spec = client::container(name, BUSYBOX, &["sh", "-c", script]);
        // Nobody is to fill the disk with what they say.
        (spec.stdin, spec.log_path) = (true, String::new());
        let id = client.create(&pod, &spec, &config).await?;
        client.start(&id).await?;
        ids.push(id);
    }
    let [echo, loud] = ids.try_into().map_err(|_| anyhow::anyhow!("two containers"))?;
    Ok(Site { pod, echo, loud })
}

async fn alive(node: &Node, site: &Site) -> Result<()> {
    let mut client = node.client().await?;
    let answer = client.exec(&site.echo, &["echo", "here"]).await?;
    ensure!(answer.stdout == b"here\n", "{answer:?}");
    let status = client.status(&site.loud).await?;
    ensure!(status.state() == api::ContainerState::ContainerRunning, "{status:?}");
    Ok(())
}

/// Opens the sessions one by one, then uses all, then lets go of all.
fn together(node: &Node, site: &Site) -> Result<()> {
    enum Open {
        Spdy(Spdy, [u32; 3]),
        WebSocket(WebSocket),
    }
    let mut caller = Caller::new(node, site.clone())?;
    let mut open = Vec::new();
    for number in 0..TOGETHER {
        let url = caller.exec(&["cat"])?;
        open.push(if number % 2 == 0 {
            let mut spdy = Spdy::connect(&url, "v4.channel.k8s.io")?;
            let ids = spdy.open_command()?;
            Open::Spdy(spdy, ids)
        } else {
            Open::WebSocket(WebSocket::connect(&url, "v5.channel.k8s.io")?)
        });
    }
    for (number, one) in open.iter_mut().enumerate() {
        let text = format!("session {number}\n");
        match one {
            Open::Spdy(spdy, [_, stdin, _]) => spdy.send(*stdin, text.as_bytes(), true)?,
            Open::WebSocket(socket) => socket.send(0, text.as_bytes())?,
        }
    }
    for (number, one) in open.iter_mut().enumerate() {
        let text = format!("session {number}\n");
        match one {
            Open::Spdy(spdy, [error, _, stdout]) => {
                spdy.hear(*stdout, &text)?;
                spdy.hear(*error, "Success")?;
            }
            Open::WebSocket(socket) => {
                socket.hear(1, &text)?;
                // The end of standard input, as v5 says it.
                socket.send(255, &[0])?;
                socket.hear(3, "Success")?;
            }
        }
    }
    Ok(())
}

/// So many sessions, by several clients at once.
fn break_off(node: &Node, site: &Site, count: usize, seed: u64) -> Result<()> {
    let (left, broken) = (Arc::new(AtomicUsize::new(count)), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let mut caller = Caller::new(node, site.clone())?;
            let (left, broken) = (left.clone(), &broken);
            clients.push(scope.spawn(move || -> Result<()> {
                let mut dice = Dice::new(seed * 1000 + number as u64);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                    broken.fetch_add(u64::from(session::one(&mut caller, &mut dice)?), Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        let broken = broken.load(Ordering::Relaxed);
        line(format_args!("        {count} sessions, {broken} of them broken off"));
        ensure!(broken > 0 && broken < count as u64, "the dice are loaded");
        Ok(())
    })
}

/// What the daemon and the pod's supervisor hold.
#[derive(Clone, Debug)]
struct Held {
    /// The daemon's share of memory, in MiB.
    memory: f64,
    /// Open descriptors of the daemon, and of the supervisor.
    files: [usize; 2],
    /// Processes of the pod.
    processes: usize,
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [daemon, supervisor] = self.files;
        let (memory, processes) = (self.memory, self.processes);
        write!(f, "{memory:.1} MiB, {daemon} and {supervisor} descriptors, {processes} processes")
    }
}

impl Held {
    /// What is held once everything has ended: no session, and no more than `before`.
    fn settled(node: &Node, site: &Site, before: Option<&Self>) -> Result<Self> {
        let quiet = |held: &Self| {
            held.processes <= OWN
                && before.is_none_or(|before| {
                    let files = (0..2).all(|who| held.files[who] <= before.files[who]);
                    files && held.memory < before.memory + SLACK
                })
        };
        let mut last = None;
        let settled = shell::eventually("all sessions have ended and free memory is given back", 100, || {
            let held = Self::now(node, site)?;
            last = Some(held.clone());
            Ok(quiet(&held).then_some(held))
        });
        settled.with_context(|| format!("{} is held", last.map_or_else(String::new, |held| held.to_string())))
    }

    fn now(node: &Node, site: &Site) -> Result<Self> {
        let all = machine::processes()?;
        let daemon = all.get(&node.pid()).context("the daemon is gone")?;
        let (mut supervisors, mut processes) = (Vec::new(), 0);
        for (pid, process) in &all {
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            // A process that does not run its own program yet is a copy of the supervisor, which is its parent.
            let parent = machine::parent(*pid).and_then(|parent| all.get(&parent));
            let copied = parent.is_some_and(|parent| supervises(&parent.command));
            if supervises(&process.command) && !copied {
                supervisors.push(*pid);
            } else if copied || cgroups.contains(&site.pod) {
                processes += 1;
            }
        }
        let [supervisor] = supervisors[..] else { bail!("{} supervisors", supervisors.len()) };
        let files = |pid: u32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        let files = [files(node.pid()), files(supervisor)];
        Ok(Self { memory: daemon.pss / 1024.0, files, processes })
    }
}

/// A pod's supervisor, and not what supervisors are forked from.
fn supervises(command: &str) -> bool {
    command.starts_with("berth podd ") && !command.contains(" zygote")
}
