//! Several nodes, each a network namespace with a daemon and an agent of its own: two on one wire, one behind a router.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::api::{Api, TOKEN};
use super::pods::{self, Pod, config};
use super::space::Space;
use super::traffic::tcp;
use crate::node::{Node, tail};
use crate::report::Report;
use crate::shell;
use crate::world::World;

/// From a change at the API server to packets that follow it.
const CONVERGENCE: Duration = Duration::from_secs(2);

/// One node of the cluster.
struct Member {
    name: &'static str,
    /// Its wire: `a` or `b`.
    wire: char,
    number: u8,
    space: Space,
    daemon: Node,
    agent: Option<Child>,
    pod: Pod,
}

/// The cases.
pub(super) fn run(world: &World, report: &mut Report) {
    let mut members = Vec::new();
    let mut api = None;
    let up = report.case("three nodes, each with a daemon, an agent and a pod", || {
        routers()?;
        let started = api.insert(Api::start()?);
        for (name, wire, number) in [("mesh1", 'a', 1), ("mesh2", 'a', 2), ("mesh3", 'b', 3)] {
            members.push(Member::start(world, started, name, wire, number)?);
            members.last().into_iter().for_each(|member| member.announce(started));
        }
        Ok(())
    });
    let (true, Some(api)) = (up, api) else { return };
    report.case(
        "pods of every node reach those of every other one, by routes and by VXLAN, as themselves",
        || {
            all_reach_all(&members)?;
            let routes = members[0].space.sh("ip route show proto 190")?;
            ensure!(routes.contains("10.212.0.0/24 via 10.201.0.2 dev wire"), "{routes}");
            ensure!(routes.contains("10.213.0.0/24 via 10.213.0.0 dev berthvx onlink"), "{routes}");
            Ok(())
        },
    );
    report.case(
        "a pod's packets fit into the tunnel from the start; older pods' packets get through as well",
        || {
            let (near, far) = (&members[0], &members[2]);
            let early = near.pod.space.sh("ip -o link show eth0")?;
            let late = pods::run(&near.daemon, &config(&near.daemon, "late", &[]))?;
            let fitting = late.space.sh("ip -o link show eth0")?;
            ensure!(early.contains(" mtu 1500 ") && fitting.contains(" mtu 1450 "), "{early}{fitting}");
            for pod in [&near.pod, &late] {
                tcp(&pod.space, (far.pod.v4()?, 7000).into(), &far.pod.space, 7000)?;
                tcp(&far.pod.space, (pod.v6()?, 7000).into(), &pod.space, 7000)?;
            }
            pods::remove(&near.daemon, [&late])
        },
    );
    report.case("a node that joins is reached within 2 s, and forgotten within 2 s when it leaves", || {
        let late = Member::start(world, &api, "mesh4", 'b', 4)?;
        late.announce(&api);
        let start = Instant::now();
        eventually_reach(&members[0], &late)?;
        ensure!(start.elapsed() < CONVERGENCE, "it took {:.1} s", start.elapsed().as_secs_f64());
        api.remove(late.name);
        let start = Instant::now();
        shell::eventually("its routes and its end of the tunnel are gone", 10, || {
            let left = members[0].space.sh("ip route show proto 190; bridge fdb show dev berthvx")?;
            Ok((!left.contains("10.214.") && !left.contains("10.202.0.4")).then_some(()))
        })?;
        ensure!(start.elapsed() < CONVERGENCE, "it took {:.1} s", start.elapsed().as_secs_f64());
        late.end()
    });
    report.case("a watch that breaks is resumed, and one that is too old begins with a new list", || {
        resumed(&api, &members)
    });
    report.case(
        "agents that end leave the ways as they are; their successors change nothing and clear removes all",
        || successors(world, &api, &mut members),
    );
    report.case("the nodes end, and nothing of theirs is left in the mesh", || {
        members.into_iter().try_for_each(Member::end)?;
        Space::Node.sh("ip link del bra; ip link del brb")?;
        Ok(())
    });
}

/// The two wires, and the router between them: this machine.
fn routers() -> Result<()> {
    for (wire, number) in [('a', 201), ('b', 202)] {
        // An address of its own: else it is that of a port, and when that node leaves the others still send to it.
        Space::Node.sh(&format!(
            "ip link add br{wire} address 02:00:00:00:00:{wire}{wire} type bridge; ip link set br{wire} up
             ip address add 10.{number}.0.254/24 dev br{wire}; ip -6 address add 2001:db8:{wire}::fe/64 dev br{wire} nodad"
        ))?;
    }
    Space::Node
        .sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
        .map(drop)
}

impl Member {
    fn start(world: &World, api: &Api, name: &'static str, wire: char, number: u8) -> Result<Self> {
        let space = Space::make(name)?;
        let (four, six) = addresses(wire, number);
        let router = if wire == 'a' { "10.201.0.254" } else { "10.202.0.254" };
        Space::Node.sh(&format!(
            "ip link add {name} type veth peer name wire netns {name}; ip link set {name} master br{wire} up"
        ))?;
        space.sh(&format!(
            "ip address add {four}/24 dev wire; ip -6 address add {six}/64 dev wire nodad; ip link set wire up
             ip route add default via {router}; ip -6 route add default via 2001:db8:{wire}::fe"
        ))?;
        let cidrs = cidrs(number);
        let network = format!("[network]\npod_cidrs = ['{}', '{}']\n", cidrs[0], cidrs[1]);
        let daemon = Node::inside(world, name, &network, Some(name))?;
        let pod = pods::run(&daemon, &config(&daemon, &format!("pod-of-{name}"), &[]))?;
        let mut member = Self { name, wire, number, space, daemon, agent: None, pod };
        member.agent = Some(agent(world, &member.daemon.dir, name, &member.server(api))?);
        Ok(member)
    }

    /// Tells the cluster of this node.
    fn announce(&self, api: &Api) {
        let (four, six) = addresses(self.wire, self.number);
        let cidrs = cidrs(self.number);
        api.put(self.name, &[&four, &six], &[&cidrs[0], &cidrs[1]]);
    }

    fn server(&self, api: &Api) -> String {
        format!("http://10.{}.0.254:{}", if self.wire == 'a' { 201 } else { 202 }, api.port)
    }

    fn end_agent(&mut self) -> Result<()> {
        let Some(mut agent) = self.agent.take() else { return Ok(()) };
        kill(Pid::from_raw(i32::try_from(agent.id())?), Signal::SIGTERM)?;
        let status = shell::eventually("the agent ends", 10, || Ok(agent.try_wait()?))?;
        ensure!(status.success(), "the agent ended: {status}");
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        self.end_agent()?;
        pods::remove(&self.daemon, [&self.pod])?;
        drop(self.daemon);
        shell::run(10, "ip", &["netns", "del", self.name]).map(drop)
    }
}

fn addresses(wire: char, number: u8) -> (String, String) {
    let subnet = if wire == 'a' { 201 } else { 202 };
    (format!("10.{subnet}.0.{number}"), format!("2001:db8:{wire}::{number}"))
}

fn cidrs(number: u8) -> [String; 2] {
    [format!("10.21{number}.0.0/24"), format!("fd00:21{number}::/64")]
}

/// `berth net agent` as a service manager would start it, with a kubeconfig of its own.
fn agent(world: &World, dir: &Path, name: &str, server: &str) -> Result<Child> {
    let file = dir.join("agent.kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: mesh\ncontexts:\n- name: mesh\n  context:\n    cluster: double\n    \
         user: agent\nclusters:\n- name: double\n  cluster:\n    server: {server}\nusers:\n- name: agent\n  user:\n    \
         token: {TOKEN}\n"
    );
    fs::write(&file, text)?;
    let log = fs::File::options().create(true).append(true).open(dir.join("agent.log"))?;
    Command::new("nsenter")
        .arg(format!("--net=/run/netns/{name}"))
        .arg(&world.berth)
        .args(["net", "agent", "--node", name, "--kubeconfig"])
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("start the agent")
}

/// A connection each way and in each family; both sides see each other's own address.
fn reach(from: &Member, to: &Member) -> Result<()> {
    let addresses: [(IpAddr, IpAddr); 2] =
        [(from.pod.v4()?.into(), to.pod.v4()?.into()), (from.pod.v6()?.into(), to.pod.v6()?.into())];
    for (own, other) in addresses {
        let seen = tcp(&from.pod.space, SocketAddr::from((other, 7000)), &to.pod.space, 7000)
            .with_context(|| format!("{} to {}", from.name, to.name))?;
        ensure!(seen == own, "{} at {} is seen as {seen}", from.name, to.name);
    }
    Ok(())
}

fn eventually_reach(from: &Member, to: &Member) -> Result<()> {
    let log = || tail(&from.daemon.dir.join("agent.log"));
    shell::eventually(&format!("{} reaches {}", from.name, to.name), 10, || {
        // Until there are routes on both sides, connections fail at once or not at all; only then is one tried.
        let ready = |here: &Member, there: &Member| -> Result<bool> {
            let routes = here.space.sh("ip route show proto 190; ip -6 route show proto 190")?;
            Ok(cidrs(there.number).iter().all(|cidr| routes.contains(cidr.as_str())))
        };
        Ok((ready(from, to)? && ready(to, from)?).then_some(()))
    })
    .with_context(log)?;
    reach(from, to).with_context(log)
}

fn all_reach_all(members: &[Member]) -> Result<()> {
    for from in members {
        for to in members.iter().filter(|to| to.name != from.name) {
            eventually_reach(from, to)?;
        }
    }
    Ok(())
}

fn resumed(api: &Api, members: &[Member]) -> Result<()> {
    let count = members.len();
    let (lists, watches) = api.asked();
    api.interrupt(false);
    shell::eventually("they watch again", 10, || Ok((api.asked().1 >= watches + count).then_some(())))?;
    ensure!(api.asked().0 == lists, "they listed although they could go on");
    api.interrupt(true);
    shell::eventually("they list again", 10, || Ok((api.asked().0 >= lists + count).then_some(())))?;
    api.put("mesh9", &["10.202.0.9"], &["10.219.0.0/24"]);
    for member in members {
        shell::eventually("they hear of a node afterwards", 10, || {
            Ok(member.space.sh("ip route show proto 190")?.contains("10.219.0.0/24").then_some(()))
        })?;
    }
    api.remove("mesh9");
    for member in members {
        shell::eventually("and of its end", 10, || {
            Ok((!member.space.sh("ip route show proto 190")?.contains("10.219.0.0/24")).then_some(()))
        })?;
    }
    Ok(())
}

fn successors(world: &World, api: &Api, members: &mut [Member]) -> Result<()> {
    members.iter_mut().try_for_each(Member::end_agent)?;
    all_reach_all(members)?;
    for member in members.iter_mut() {
        let log = member.daemon.dir.join("agent.log");
        let before = fs::read_to_string(&log)?.len();
        member.agent = Some(agent(world, &member.daemon.dir, member.name, &member.server(api))?);
        let said = shell::eventually("its successor has looked at everything", 10, || {
            let text = fs::read_to_string(&log)?.split_off(before);
            // The table is the one thing that a new process states again.
            Ok(text.contains("nft table").then_some(text))
        })?;
        member.end_agent()?;
        ensure!(!said.contains("route") && !said.contains("link "), "{said}");
    }
    all_reach_all(members)?;
    for member in members.iter() {
        let berth = world.berth.display();
        member.space.sh(&format!("{berth} net clear"))?;
        let left = member
            .space
            .sh("ip route show proto 190; ip -6 route show proto 190; nft list tables; ip link")?;
        ensure!(
            // The tunnel's whole name: a pod's link may begin like it.
            !left.contains(" via ") && !left.contains("berthmesh") && !left.contains(": berthvx:"),
            "{left}"
        );
    }
    Ok(())
}
