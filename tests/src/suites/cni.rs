//! Other people's programs run our plugins, and other people's plugins run under us.
//!
//! `cnitool` is libcni's own command line; containerd is Debian's. Both are given the directory that `berth cni install`
//! makes. The comparison with the reference plugins, configuration by configuration, is `tests/cni`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::client;
use crate::node::Node;
use crate::report::Report;
use crate::shell;
use crate::suites::wait;
use crate::world::World;

/// A conflist as clusters have it, for two families.
const LIST: &str = r#"{"cniVersion": "1.1.0", "name": "std", "plugins": [
    {"type": "bridge", "bridge": "std0", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables", "ipam": {"type": "host-local",
        "ranges": [[{"subnet": "10.91.0.0/24"}], [{"subnet": "fd91::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}},
    {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}]}"#;

/// What libcni passes on to plugins that asked for it.
const CAPABILITIES: &str = r#"{"portMappings": [{"hostPort": 8091, "containerPort": 80, "protocol": "tcp"}],
    "bandwidth": {"ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 8000000, "egressBurst": 800000}}"#;

/// Runs the suite.
///
/// # Errors
/// The plugins cannot be installed.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    let dir = world.dir.join("cni");
    let (conf, bin) = (dir.join("net.d"), dir.join("bin"));
    std::fs::create_dir_all(&conf)?;
    std::fs::write(conf.join("10-std.conflist"), LIST)?;
    let berth = world.berth.display().to_string();
    shell::run(30, &berth, &["cni", "install", &bin.display().to_string()])?;
    match world.tool("CNITOOL") {
        Some(tool) => {
            report.case("cnitool: add, check, status, gc and del with our executables leave nothing", || {
                libcni(&tool, &conf, &bin)
            });
        }
        None => report.skip("cnitool with our executables", "cnitool"),
    }
    match debian(world) {
        Ok(containerd) => {
            report.case("Debian's containerd gives a container its network by our executables", || {
                under_containerd(&containerd, &dir, &bin)
            });
        }
        Err(missing) => report.skip("Debian's containerd with our executables", missing),
    }
    match world.tool("CNI_REFERENCE_PATH") {
        Some(reference) => {
            report.case("the reference plugins serve a pod under Berth as our own do", || {
                both_under_berth(world, &conf, Path::new(&reference))
            });
        }
        None => report.skip("the reference plugins under Berth", "the reference plugins"),
    }
    Ok(())
}

/// What pods leave on a node, but for the bridge, which stays.
fn traces() -> Result<String> {
    let links = shell::run(10, "ip", &["-o", "link"])?;
    let links =
        links.lines().filter(|l| l.contains("veth") || l.contains("bwp")).collect::<Vec<_>>().join("\n");
    let rules = shell::run(10, "nft", &["list", "ruleset"])?;
    let rules = rules
        .lines()
        .filter(|l| l.contains("10.91.0.2") || l.contains("fd91::2"))
        .collect::<Vec<_>>()
        .join("\n");
    Ok(format!("{links}\n{rules}"))
}

fn libcni(tool: &str, conf: &Path, bin: &Path) -> Result<()> {
    shell::run(10, "ip", &["netns", "add", "cnitool"])?;
    let before = traces()?;
    let call = |verb: &str| -> Result<String> {
        let output = Command::new("timeout")
            .args(["60", tool, verb, "std", "/run/netns/cnitool"])
            .env("NETCONFPATH", conf)
            .env("CNI_PATH", bin)
            .env("CAP_ARGS", CAPABILITIES)
            .env("CNI_IFNAME", "eth0")
            .output()?;
        ensure!(
            output.status.success(),
            "cnitool {verb}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    call("status")?;
    let result: Value = serde_json::from_str(&call("add")?)?;
    ensure!(result["ips"][0]["address"] == "10.91.0.2/24", "{result}");
    ensure!(result["ips"][1]["address"] == "fd91::2/64", "{result}");
    call("check")?;
    let rules = shell::run(10, "nft", &["list", "ruleset"])?;
    ensure!(rules.contains("tcp . 8091") && rules.contains(": 10.91.0.2 . 80"), "{rules}");
    let queue = shell::run(10, "tc", &["qdisc", "show"])?;
    ensure!(queue.matches("tbf").count() == 2, "{queue}");
    call("del")?;
    call("del")?;
    shell::run(10, "ip", &["netns", "delete", "cnitool"])?;
    ensure!(traces()? == before, "{}", traces()?);
    Ok(())
}

/// Debian's containerd and runc, unpacked from the packages that `tests/run` has fetched.
fn debian(world: &World) -> std::result::Result<PathBuf, String> {
    let debs = std::env::var("BERTH_TEST_DEBS").map_err(|_| "the Debian packages".to_owned())?;
    let root = world.dir.join("debian");
    for package in ["containerd", "runc"] {
        let entries = std::fs::read_dir(&debs).map_err(|e| e.to_string())?.flatten();
        let deb = entries.map(|e| e.path()).find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{package}_")))
        });
        let deb = deb.ok_or_else(|| format!("Debian's {package}"))?;
        shell::run(60, "dpkg-deb", &["-x", &deb.display().to_string(), &root.display().to_string()])
            .map_err(|e| e.to_string())?;
    }
    Ok(root)
}

/// Lays list and executables where `ctr` looks for them; the places are this machine's own.
fn install_for_ctr(bin: &Path) -> Result<()> {
    std::fs::create_dir_all("/opt/cni/bin")?;
    std::fs::create_dir_all("/etc/cni/net.d")?;
    let list = LIST
        .replace("\"1.1.0\"", "\"1.0.0\"")
        .replace("std", "ctd")
        .replace("10.91", "10.92")
        .replace("fd91", "fd92");
    std::fs::write("/etc/cni/net.d/10-ctd.conflist", list)?;
    for entry in std::fs::read_dir(bin)? {
        let entry = entry?;
        std::os::unix::fs::symlink(
            std::fs::read_link(entry.path())?,
            Path::new("/opt/cni/bin").join(entry.file_name()),
        )?;
    }
    Ok(())
}

fn under_containerd(root: &Path, dir: &Path, bin: &Path) -> Result<()> {
    install_for_ctr(bin)?;
    let path =
        format!("{0}/usr/bin:{0}/usr/sbin:{1}", root.display(), std::env::var("PATH").unwrap_or_default());
    let (socket, state) = (dir.join("ctd.sock"), dir.join("ctd"));
    let config = dir.join("containerd.toml");
    std::fs::write(
        &config,
        format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{1}\"\n",
            state.display(),
            socket.display()
        ),
    )?;
    let rootfs = dir.join("rootfs");
    std::fs::create_dir_all(rootfs.join("bin"))?;
    let busybox = shell::run(5, "sh", &["-c", "command -v busybox"])?;
    std::fs::copy(busybox.trim(), rootfs.join("bin/busybox"))?;
    let log = std::fs::File::create(dir.join("containerd.log"))?;
    let mut daemon = Command::new(root.join("usr/bin/containerd"))
        .args(["--config", &config.display().to_string()])
        .env("PATH", &path)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let outcome = (|| {
        let ctr = |args: &[&str]| -> Result<String> {
            let output = Command::new("timeout")
                .args([
                    "60",
                    &root.join("usr/bin/ctr").display().to_string(),
                    "-a",
                    &socket.display().to_string(),
                ])
                .args(args)
                .env("PATH", &path)
                .output()?;
            let text =
                [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
            if output.status.success() { Ok(text) } else { bail!("ctr {args:?}: {text}") }
        };
        shell::eventually("containerd serves", 30, || Ok(ctr(&["version"]).ok()))?;
        let rootfs = rootfs.display().to_string();
        let seen = ctr(&[
            "run",
            "--rm",
            "--cni",
            "--rootfs",
            &rootfs,
            "c1",
            "/bin/busybox",
            "ip",
            "addr",
            "show",
            "eth0",
        ])?;
        ensure!(seen.contains("10.92.0.2/24") && seen.contains("fd92::2/64"), "{seen}");
        let held = std::fs::read_dir("/var/lib/cni/networks/ctd")?
            .flatten()
            .filter(|e| e.file_name() == "10.92.0.2")
            .count();
        ensure!(held == 0, "the address is free again");
        Ok(())
    })();
    let stopped = shell::run(10, "kill", &[&daemon.id().to_string()]).and_then(|_| Ok(daemon.wait()?));
    outcome.and_then(|()| stopped.map(drop)).with_context(|| crate::node::tail(&dir.join("containerd.log")))
}

/// The same pod by the reference's executables and by ours in process, from one conflist.
fn both_under_berth(world: &World, conf: &Path, reference: &Path) -> Result<()> {
    let mut seen = Vec::new();
    for (name, bin) in [("cni-theirs", reference.to_owned()), ("cni-ours", world.dir.join("no-plugins"))] {
        let text =
            format!("[network]\nconf_dir = \"{}\"\nbin_dirs = [\"{}\"]\n", conf.display(), bin.display());
        let node = Node::with_config(world, name, &text)?;
        let log = node.dir.join("logs");
        let addresses = wait(async {
            let mut client = node.client().await?;
            let pod = client::pod("std", &log);
            let id = client.run_pod(&pod).await?;
            let request = k8s_cri::v1::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
            let status = client.runtime.pod_sandbox_status(request).await?.into_inner().status;
            let network = status.and_then(|s| s.network).context("no network in the status")?;
            let more = network.additional_ips.into_iter().map(|other| other.ip);
            let addresses: Vec<String> = std::iter::once(network.ip).chain(more).collect();
            client.remove_pod(&id).await?;
            Ok(addresses)
        })?;
        let held = std::fs::read_dir("/var/lib/cni/networks/std")?.flatten();
        let held =
            held.filter(|e| e.file_name().to_string_lossy().parse::<std::net::IpAddr>().is_ok()).count();
        ensure!(held == 0, "{name}: {held} addresses are still held");
        seen.push(addresses);
    }
    ensure!(seen[0].len() == 2 && seen[1].len() == 2, "{seen:?}");
    let network = |a: &Vec<String>| {
        a.iter().map(|ip| ip.rsplit_once(['.', ':']).map(|(n, _)| n.to_owned())).collect::<Vec<_>>()
    };
    ensure!(network(&seen[0]) == network(&seen[1]), "{seen:?}");
    Ok(())
}
