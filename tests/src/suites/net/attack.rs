//! CVE-2020-8558: services of the node that listen on 127.0.0.1 only, seen from a pod that may change its own routes.

use std::io::ErrorKind;
use std::net::TcpListener;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as api;
use k8s_cri::v1::Protocol::Tcp;

use super::pods::{self, Pod, config};
use super::space::Space::Node as Here;
use crate::client;
use crate::images::BUSYBOX;
use crate::node::Node;
use crate::report::Report;
use crate::suites::wait;

/// The cases.
pub(super) fn run(report: &mut Report, node: &Node) {
    for (case, ports) in [
        ("a pod with NET_ADMIN cannot reach the node's 127.0.0.1 (CVE-2020-8558)", &[][..]),
        ("nor can one that has host ports, and only the guard stops it", &[(Tcp, 8888, 80, "")][..]),
    ] {
        report.case(case, || {
            let (pod, container) = attacker(node, &config(node, "attacker", ports))?;
            let secret = TcpListener::bind("127.0.0.1:0")?;
            secret.set_nonblocking(true)?;
            ensure!(!arrives(node, &container, &secret)?, "the pod is connected");
            if !ports.is_empty() {
                // The attack is a real one: without the guard it succeeds.
                Here.sh("nft flush chain inet berth guard")?;
                let arrived = arrives(node, &container, &secret);
                Here.sh("nft add rule inet berth guard iifname 'berth*' ip daddr 127.0.0.0/8 drop")?;
                ensure!(arrived?, "the attack does not work at all");
                ensure!(!arrives(node, &container, &secret)?, "the pod is connected");
            }
            pods::remove(node, [&pod])
        });
    }
}

/// A pod with one container that may change the pod's network, and has done so: 127/8 is behind its default gateway.
fn attacker(node: &Node, config: &api::PodSandboxConfig) -> Result<(Pod, String)> {
    let mut sandbox = config.clone();
    let linux = sandbox.linux.get_or_insert_default();
    linux.sysctls.insert("net.ipv4.conf.all.route_localnet".into(), "1".into());
    let pod = pods::run(node, &sandbox)?;
    let mut main = client::container("main", BUSYBOX, &["sleep", "3600"]);
    let linux = main.linux.get_or_insert_default();
    let capabilities = api::Capability { add_capabilities: vec!["NET_ADMIN".into()], ..Default::default() };
    linux.security_context.get_or_insert_default().capabilities = Some(capabilities);
    let container = wait(async {
        let mut client = node.client().await?;
        let container = client.create(&pod.id, &main, &sandbox).await?;
        client.start(&container).await?;
        Ok(container)
    })?;
    let steps = "ip address del 127.0.0.1/8 dev lo; ip route add 127.0.0.1 via 10.88.0.1 dev eth0 onlink
        ip route get 127.0.0.1";
    let way = exec(node, &container, steps)?;
    ensure!(way.contains("via 10.88.0.1"), "the pod still has its own 127.0.0.1: {way}");
    Ok((pod, container))
}

/// Whether a connection that the pod opens to 127.0.0.1 is taken by the node's service there.
fn arrives(node: &Node, container: &str, secret: &TcpListener) -> Result<bool> {
    let port = secret.local_addr()?.port();
    exec(node, container, &format!("echo attack | timeout 1 nc -w1 127.0.0.1 {port} || true"))?;
    match secret.accept() {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn exec(node: &Node, container: &str, script: &str) -> Result<String> {
    wait(async {
        let answer = node.client().await?.exec(container, &["sh", "-c", script]).await?;
        let text = [answer.stdout, answer.stderr].concat();
        String::from_utf8(text).context("output of the container")
    })
}
