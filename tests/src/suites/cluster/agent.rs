//! `berth net agent` and a real API server: nodes that nobody runs, as objects only, and the routes that lead to them.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::control::{AGENT, Control};
use crate::node::{Node, tail};
use crate::shell::{self, Background};
use crate::world::World;

/// From a change at the API server to the route.
const CONVERGENCE: Duration = Duration::from_secs(2);

/// Runs the agent while nodes come and go.
pub(super) fn follows(world: &World, node: &Node, control: &Control) -> Result<()> {
    control.kubectl(&["create", "clusterrole", AGENT, "--verb=list,watch", "--resource=nodes"])?;
    let (role, user) = (format!("--clusterrole={AGENT}"), format!("--user={AGENT}"));
    control.kubectl(&["create", "clusterrolebinding", AGENT, &role, &user])?;
    for (name, address, cidr) in [
        ("mesh-own", "192.0.2.2", "10.220.0.0/24"),
        ("mesh-near", "192.0.2.77", "10.221.0.0/24"),
        ("mesh-far", "203.0.113.9", "10.222.0.0/24"),
    ] {
        create(node, control, name, address, cidr)?;
    }
    let log = node.dir.join("agent.log");
    let mut agent = Background(
        Command::new(&world.berth)
            .args(["net", "agent", "--node", "mesh-own", "--kubeconfig"])
            .arg(control.for_agent()?)
            .stdin(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()?,
    );
    let outcome = come_and_go(node, control).with_context(|| tail(&log));
    kill(Pid::from_raw(i32::try_from(agent.0.id())?), Signal::SIGTERM)?;
    let status = shell::eventually("the agent ends", 10, || Ok(agent.0.try_wait()?))?;
    shell::run(10, &world.berth.display().to_string(), &["net", "clear"])?;
    outcome?;
    ensure!(status.success(), "the agent ended: {status}");
    control.kubectl(&["delete", "node", "mesh-own", "mesh-far", "mesh-late"]).map(drop)
}

fn create(node: &Node, control: &Control, name: &str, address: &str, cidr: &str) -> Result<()> {
    let manifest = node.dir.join(format!("{name}.json"));
    let object = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
        "spec": { "podCIDR": cidr, "podCIDRs": [cidr] },
        "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
    });
    fs::write(&manifest, object.to_string())?;
    control.kubectl(&["create", "-f", &manifest.display().to_string()]).map(drop)
}

fn come_and_go(node: &Node, control: &Control) -> Result<()> {
    routes("the first list", |routes| {
        routes.contains("10.221.0.0/24 via 192.0.2.77 dev eth0")
            && routes.contains("10.222.0.0/24 via 10.222.0.0 dev berthvx onlink")
    })?;
    create(node, control, "mesh-late", "192.0.2.78", "10.223.0.0/24")?;
    let begun = Instant::now();
    routes("a new node", |routes| routes.contains("10.223.0.0/24 via 192.0.2.78"))?;
    ensure!(begun.elapsed() < CONVERGENCE, "a new node took {:.1} s", begun.elapsed().as_secs_f64());
    control.kubectl(&["delete", "node", "mesh-near"])?;
    let begun = Instant::now();
    routes("a deleted node", |routes| !routes.contains("10.221."))?;
    ensure!(begun.elapsed() < CONVERGENCE, "a deleted node took {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// Waits until the agent's routes are such.
fn routes(what: &str, such: impl Fn(&str) -> bool) -> Result<()> {
    shell::eventually(what, 20, || {
        let routes = shell::run(10, "ip", &["route", "show", "proto", "190"])?;
        Ok(such(&routes).then_some(()))
    })
}
