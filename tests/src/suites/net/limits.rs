//! What is measured out, what is refused, and what a full node says.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as api;
use k8s_cri::v1::Protocol::Tcp;
use nix::sys::signal::Signal;
use tonic::{Code, Status};

use super::pods::{self, Pod, config};
use super::space::Space::Node as Here;
use super::traffic::{tcp, throughput};
use crate::census::Census;
use crate::node::Node;
use crate::report::Report;
use crate::suites::wait;
use crate::world::World;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

fn refused(answer: Result<Result<String, Status>>, code: Code, words: &[&str]) -> Result<()> {
    let status = answer?.err().context("it was accepted")?;
    ensure!(status.code() == code, "{status}");
    for word in words {
        ensure!(status.message().contains(word), "{word:?} is missing: {}", status.message());
    }
    Ok(())
}

/// Rates by measurement.
pub(super) fn bandwidth(report: &mut Report, node: &Node) {
    report.case("bandwidth annotations hold within 15 %, both ways, IPv4 and IPv6", || {
        let mut limited = config(node, "limited", &[]);
        limited.annotations.insert(INGRESS.into(), "48M".into());
        limited.annotations.insert(EGRESS.into(), "12M".into());
        let pod = pods::run(node, &limited)?;
        for (inside, here) in [
            (SocketAddr::from((pod.v4()?, 5001)), "192.0.2.2:5001".parse::<SocketAddr>()?),
            (SocketAddr::from((pod.v6()?, 5001)), "[2001:db8:9::1]:5001".parse()?),
        ] {
            let ingress = throughput(&Here, inside, &pod.space)? / 48e6;
            let egress = throughput(&pod.space, here, &Here)? / 12e6;
            for (way, share) in [("ingress", ingress), ("egress", egress)] {
                ensure!((0.85..1.15).contains(&share), "{way} is {:.0} % of the limit", share * 100.0);
            }
        }
        pods::remove(node, [&pod])
    });
    report.case("a bandwidth nobody can have is refused by the annotation's name", || {
        for (annotation, value) in [(INGRESS, "10"), (EGRESS, "2000P"), (EGRESS, "fast")] {
            let mut asked = config(node, "refused", &[]);
            asked.annotations.insert(annotation.into(), value.into());
            refused(pods::ask(node, &asked), Code::InvalidArgument, &[annotation, value])?;
        }
        Ok(())
    });
}

/// Ports that are taken.
pub(super) fn ports(report: &mut Report, node: &Node) {
    report.case(
        "a host port of a live pod is refused and the pod named; it is free when the pod is gone",
        || {
            let owner = pods::run(node, &config(node, "owner", &[(Tcp, 9090, 80, "")]))?;
            let rival = config(node, "rival", &[(Tcp, 9090, 80, "192.0.2.2")]);
            refused(
                pods::ask(node, &rival),
                Code::AlreadyExists,
                &["9090/tcp", "suite/owner", &owner.id[..13]],
            )?;
            pods::remove(node, [&owner])?;
            let rival = pods::run(node, &rival)?;
            tcp(&Here, SocketAddr::from(([192, 0, 2, 2], 9090)), &rival.space, 80)?;
            pods::remove(node, [&rival])
        },
    );
}

/// Runs cases on a node with other pod CIDRs than the default ones.
fn with_cidrs(
    world: &World,
    report: &mut Report,
    (directory, cidrs, case): (&str, &str, &str),
    work: impl FnOnce(&mut Node) -> Result<()>,
) {
    report.case(case, || {
        let network = format!("[network]\npod_cidrs = [{cidrs}]\n");
        let mut node = Node::with_config(world, directory, &network)?;
        let before = Census::take(node.pid())?;
        work(&mut node)?;
        node.settle(&before)
    });
}

/// A node without a free address.
pub(super) fn full(world: &World, report: &mut Report) {
    let case = "a full pod CIDR says how many addresses are held, and by whom; one pod less makes room";
    with_cidrs(world, report, ("full", "'10.91.0.0/29'", case), |node| {
        let names = ["p0", "p1", "p2", "p3", "p4"];
        let mut held: Vec<Pod> =
            names.iter().map(|name| pods::run(node, &config(node, name, &[]))).collect::<Result<_>>()?;
        let words = ["10.91.0.0/29", "5 held by pods", "suite/p0", "suite/p4", &held[3].id[..13]];
        let one_more = config(node, "one-more", &[]);
        refused(pods::ask(node, &one_more), Code::ResourceExhausted, &words)?;
        let gone = held.remove(2);
        pods::remove(node, [&gone])?;
        let late = pods::run(node, &one_more)?;
        ensure!(late.addresses == gone.addresses, "{late:?} instead of {gone:?}");
        held.push(late);
        pods::remove(node, &held)
    });
}

/// Subnets: several, and the kubelet's own.
pub(super) fn cidrs(world: &World, report: &mut Report) {
    let case = "several pod CIDRs of one family: the next serves when one is full";
    let several = "'10.92.0.0/30', '10.93.0.0/24', 'fd00:93::/64'";
    with_cidrs(world, report, ("several", several, case), |node| {
        let first = pods::run(node, &config(node, "first", &[]))?;
        let second = pods::run(node, &config(node, "second", &[]))?;
        ensure!(first.v4()?.octets()[1] == 92 && second.v4()?.octets()[1] == 93, "{first:?} {second:?}");
        let seen = tcp(&first.space, (second.v4()?, 7000).into(), &second.space, 7000)?;
        ensure!(seen == first.v4()?, "masqueraded between pods: {seen}");
        pods::remove(node, [&first, &second])
    });
    let case = "the kubelet's pod CIDRs survive kill -9; pods of the old ones stay reachable";
    with_cidrs(world, report, ("kubelets", "'10.94.0.0/24'", case), |node| {
        let old = pods::run(node, &config(node, "old", &[]))?;
        tell(node, "10.95.0.0/24,fd00:95::/64")?;
        let new = pods::run(node, &config(node, "new", &[]))?;
        ensure!(new.v4()?.octets()[1] == 95 && new.addresses.len() == 2, "{new:?}");
        node.end(Signal::SIGKILL)?;
        node.launch()?;
        let newest = pods::run(node, &config(node, "newest", &[]))?;
        ensure!(newest.v4()?.octets()[1] == 95 && newest.v4()? != new.v4()?, "{newest:?}");
        for pod in [&old, &new] {
            tcp(&newest.space, (pod.v4()?, 7000).into(), &pod.space, 7000)?;
        }
        pods::remove(node, [&old, &new, &newest])?;
        tell(node, "10.94.0.0/24")
    });
}

fn tell(node: &Node, cidrs: &str) -> Result<()> {
    let network_config = Some(api::NetworkConfig { pod_cidr: cidrs.to_owned() });
    let request =
        api::UpdateRuntimeConfigRequest { runtime_config: Some(api::RuntimeConfig { network_config }) };
    wait(async {
        node.client().await?.runtime.update_runtime_config(request).await?;
        Ok(())
    })
}
