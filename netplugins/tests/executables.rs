//! The built-in plugins as executables: what other runtimes would see of them.
//!
//! This program is its own plugin: called by a plugin's name it acts as that plugin, else it runs its tests. With the
//! reference plugins in the directories of `CNI_REFERENCE_PATH`, every configuration is also given to those, and results
//! and the pod's addresses and routes are compared.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Sender, channel};

use serde_json::{Value, json};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn main() -> ExitCode {
    let argv0 = std::env::args().next().unwrap_or_default();
    if let Some(code) = netplugins::cni_main(&argv0) {
        return code;
    }
    let tests: [Test; 7] = [
        ("versions_and_environment_are_told_as_the_specification_wants", versions_and_environment),
        ("every_configuration_is_added_checked_and_deleted_without_a_trace", every_configuration),
        ("results_are_those_of_the_reference_plugins", like_the_reference),
        ("addresses_are_given_in_turn_and_once", addresses_in_turn),
        ("pods_on_a_bridge_reach_each_other_and_the_outside_is_masqueraded", pods_talk),
        ("host_ports_lead_to_the_pod_and_have_one_owner", host_ports),
        ("garbage_collection_frees_what_no_attachment_owns", garbage),
    ];
    let lab = Lab::new();
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let mut failed = 0;
    for (name, test) in tests {
        if !wanted.is_empty() && !wanted.iter().any(|w| name.contains(w.as_str())) {
            continue;
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&lab)));
        say(&format!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" }));
        failed += usize::from(outcome.is_err());
    }
    say(&format!("test result: {failed} failed"));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "a test program reports on standard output")]
fn say(line: &str) {
    println!("{line}");
}

/// Name and body.
type Test = (&'static str, fn(&Lab));

/// Our plugins in a directory.
struct Lab {
    dir: PathBuf,
    ours: PathBuf,
}

impl Lab {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("net-plugins-{}", std::process::id()));
        let ours = dir.join("bin");
        netplugins::install_cni(&ours, &std::env::current_exe().unwrap()).unwrap();
        Self { dir, ours }
    }

    fn data(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// A network namespace that lives as long as the value.
struct Namespace {
    path: String,
    _end: Sender<()>,
}

impl Namespace {
    fn new() -> Self {
        let (tell, told) = channel();
        let (end, ended) = channel::<()>();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let thread = nix::unistd::gettid();
            tell.send(format!("/proc/{}/task/{thread}/ns/net", std::process::id())).unwrap();
            let _ = ended.recv();
        });
        Self { path: told.recv().unwrap(), _end: end }
    }

    /// Runs `work` inside.
    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let file = std::fs::File::open(&self.path).unwrap();
        let thread = std::thread::spawn(move || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    }

    /// Connects to a listener in `other` at that address; the address it is seen under.
    fn reach(&self, other: &Self, address: &str) -> String {
        let any = if address.contains(':') { "::" } else { "0.0.0.0" };
        let listener = other.inside(move || std::net::TcpListener::bind((any, 0)).unwrap());
        let to = (address.parse::<std::net::IpAddr>().unwrap(), listener.local_addr().unwrap().port());
        self.inside(move || {
            std::net::TcpStream::connect_timeout(&to.into(), std::time::Duration::from_secs(5))
                .unwrap_or_else(|e| panic!("{to:?}: {e}"));
        });
        listener.accept().unwrap().1.ip().to_string()
    }

    fn sh(&self, command: &str) -> String {
        let mut nsenter = Command::new("nsenter");
        let output =
            nsenter.arg(format!("--net={}", self.path)).args(["sh", "-c", command]).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A node and one pod.
struct Site<'a> {
    node: Namespace,
    pod: Namespace,
    bin: &'a Path,
    container: &'a str,
}

impl<'a> Site<'a> {
    fn new(bin: &'a Path) -> Self {
        let node = Namespace::new();
        node.sh("ip link set lo up");
        Self { node, pod: Namespace::new(), bin, container: "c1" }
    }

    /// Runs a plugin on the node; exit status, and what it printed as JSON.
    fn call(&self, command: &str, conf: &Value) -> (bool, Value) {
        self.call_with(command, conf, &[])
    }

    fn call_with(&self, command: &str, conf: &Value, more: &[(&str, &str)]) -> (bool, Value) {
        use std::io::Write;
        let mut nsenter = Command::new("nsenter");
        nsenter
            .arg(format!("--net={}", self.node.path))
            .arg(self.bin.join(conf["type"].as_str().unwrap()))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", self.container)
            .env("CNI_NETNS", &self.pod.path)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.bin)
            .envs(more.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = nsenter.spawn().unwrap();
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let printed = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.success(), printed)
    }

    fn done(&self, command: &str, conf: &Value) -> Value {
        let (ok, printed) = self.call(command, conf);
        assert!(ok, "{command} {conf}: {printed}");
        printed
    }

    /// Addresses and routes of the pod, without what is chosen at random.
    fn pod_state(&self) -> BTreeMap<&'static str, String> {
        let hide = |text: String| {
            let keep = |w: &&str| {
                !matches!(
                    *w,
                    "noprefixroute" | "nodad" | "tentative" | "dynamic" | "static" | "onlink" | "kernel"
                )
            };
            let line = |l: &str| l.split_whitespace().filter(keep).collect::<Vec<_>>().join(" ");
            let mut lines: Vec<String> = text
                .lines()
                .map(line)
                .filter(|l| !l.contains("fe80::") && !l.contains("multicast ff00"))
                .collect();
            lines.sort();
            lines.join("\n")
        };
        BTreeMap::from([
            ("addresses", hide(self.pod.sh("ip -o addr show dev eth0 | sed 's/valid_lft.*//; s/brd [0-9.]*//; s/^[0-9]*: //'"))),
            ("routes", hide(self.pod.sh("ip route show; ip -6 route show | sed 's/proto [a-z]*//; s/pref medium//; s/metric 1024//'"))),
        ])
    }
}

/// Configurations of the hot set, with a data directory of their own.
fn configurations(lab: &Lab, label: &str) -> Vec<(String, Value)> {
    let dual = json!([[{"subnet": "10.50.0.0/24"}], [{"subnet": "fd50::/64"}]]);
    let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    let ipam = |name: &str, ranges: Value, routes: Value| json!({"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": lab.data(&format!("{label}-{name}"))});
    let four = json!([[{"subnet": "10.51.0.0/24", "rangeStart": "10.51.0.20", "rangeEnd": "10.51.0.30", "gateway": "10.51.0.9"}]]);
    let fixed = json!({"type": "static", "routes": [{"dst": "10.60.0.0/16", "gw": "10.52.0.1"}],
        "addresses": [{"address": "10.52.0.5/24", "gateway": "10.52.0.1"}], "dns": {"nameservers": ["10.52.0.53"]}});
    vec![
        (
            "bridge dual".into(),
            json!({"type": "bridge", "bridge": "cnx0", "isGateway": true, "ipam": ipam("a", dual.clone(), routes.clone())}),
        ),
        (
            "bridge default".into(),
            json!({"type": "bridge", "isDefaultGateway": true, "hairpinMode": true, "ipam": ipam("b", four.clone(), json!([]))}),
        ),
        (
            "bridge masq".into(),
            json!({"type": "bridge", "bridge": "cnx0", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables", "promiscMode": true, "mtu": 1400, "ipam": ipam("c", four.clone(), json!([{"dst": "0.0.0.0/0"}]))}),
        ),
        ("bridge static".into(), json!({"type": "bridge", "isGateway": true, "ipam": fixed})),
        ("bridge layer 2".into(), json!({"type": "bridge", "bridge": "cnx0", "ipam": {}})),
        ("ptp dual".into(), json!({"type": "ptp", "ipam": ipam("d", dual, routes)})),
        (
            "ptp masq".into(),
            json!({"type": "ptp", "ipMasq": true, "ipMasqBackend": "nftables", "mtu": 1450, "dns": {"nameservers": ["10.0.0.9"]}, "ipam": ipam("e", four, json!([{"dst": "0.0.0.0/0"}]))}),
        ),
        ("loopback".into(), json!({"type": "loopback"})),
    ]
}

fn versioned(conf: &Value, version: &str) -> Value {
    let mut conf = conf.clone();
    conf["cniVersion"] = json!(version);
    conf["name"] = json!("testnet");
    conf
}

fn versions_and_environment(lab: &Lab) {
    let site = Site::new(&lab.ours);
    let conf = versioned(&json!({"type": "bridge"}), "1.0.0");
    let (ok, printed) = site.call("VERSION", &conf);
    assert!(ok);
    assert_eq!(printed, json!({"cniVersion": "1.1.0", "supportedVersions": VERSIONS}));
    for (command, more, conf, code) in [
        ("ADD", vec![("CNI_NETNS", "")], conf.clone(), 4),
        ("ADD", vec![("CNI_IFNAME", "a/b")], conf.clone(), 4),
        ("ADD", vec![("CNI_CONTAINERID", "../x")], conf.clone(), 4),
        ("SUB", vec![], conf.clone(), 4),
        ("ADD", vec![], versioned(&json!({"type": "bridge"}), "3.0.0"), 1),
        ("ADD", vec![], json!({"type": "bridge", "cniVersion": "1.0.0"}), 7),
        ("ADD", vec![], versioned(&json!({"type": "bridge", "vlan": 5}), "1.0.0"), 2),
        ("ADD", vec![("CNI_NETNS", "/proc/self/ns/net")], conf, 8),
    ] {
        let (ok, printed) = site.call_with(command, &conf, &more);
        assert!(!ok && printed["code"] == code, "{command} {more:?} {conf}: {printed}");
    }
}

fn every_configuration(lab: &Lab) {
    for version in VERSIONS {
        for (name, conf) in configurations(lab, "own") {
            let conf = versioned(&conf, version);
            if name == "bridge layer 2" && version < "0.3.0" {
                continue; // those versions cannot say "no address"
            }
            let site = Site::new(&lab.ours);
            let before = site
                .node
                .sh("ip -o link | grep -vE ': (cni0|cnx0)[:@]'; nft list ruleset | grep comment || true");
            let result = site.done("ADD", &conf);
            assert_eq!(result["cniVersion"], version, "{name}");
            let mut again = conf.clone();
            again["prevResult"] = result;
            if version >= "0.4.0" {
                site.done("CHECK", &again);
            }
            site.done("DEL", &again);
            site.done("DEL", &again);
            let after = site
                .node
                .sh("ip -o link | grep -vE ': (cni0|cnx0)[:@]'; nft list ruleset | grep comment || true");
            assert_eq!(before, after, "{name} {version}");
            if let Some(dir) = conf["ipam"]["dataDir"].as_str() {
                let held = std::fs::read_dir(Path::new(dir).join("testnet")).unwrap().flatten();
                let held = held
                    .filter(|e| e.file_name().to_string_lossy().parse::<std::net::IpAddr>().is_ok())
                    .count();
                assert_eq!(held, 0, "{name} {version}");
            }
        }
    }
}

/// Hides what both choose at random.
fn normal(mut result: Value) -> Value {
    let interfaces = result.get_mut("interfaces").and_then(Value::as_array_mut);
    for interface in interfaces.into_iter().flatten() {
        if interface["name"].as_str().is_some_and(|n| n.starts_with("veth")) {
            interface["name"] = json!("veth");
        }
        if interface.get("mac").is_some() {
            interface["mac"] = json!("mac");
        }
        if interface.get("sandbox").is_some() {
            interface["sandbox"] = json!("sandbox");
        }
    }
    result
}

fn like_the_reference(lab: &Lab) {
    let Some(reference) = std::env::var_os("CNI_REFERENCE_PATH").map(PathBuf::from) else {
        say("    skipped: CNI_REFERENCE_PATH does not name the reference plugins");
        return;
    };
    let mut compared = 0;
    for version in VERSIONS {
        for ((name, ours), (_, theirs)) in
            configurations(lab, "ours").into_iter().zip(configurations(lab, "theirs"))
        {
            let (ours, theirs) = (versioned(&ours, version), versioned(&theirs, version));
            if name == "loopback" {
                continue; // the reference prints the newest form whatever the version
            }
            let (here, there) = (Site::new(&lab.ours), Site::new(&reference));
            let (ok, printed) = here.call("ADD", &ours);
            let (reference_ok, reference_printed) = there.call("ADD", &theirs);
            assert_eq!(ok, reference_ok, "{name} {version}: {printed} {reference_printed}");
            if !ok {
                continue;
            }
            assert_eq!(normal(printed), normal(reference_printed), "{name} {version}");
            assert_eq!(here.pod_state(), there.pod_state(), "{name} {version}");
            here.done("DEL", &ours);
            there.done("DEL", &theirs);
            compared += 1;
        }
    }
    say(&format!("    {compared} configurations agree with the reference plugins"));
}

fn addresses_in_turn(lab: &Lab) {
    let site = Site::new(&lab.ours);
    let data = lab.data("turn");
    let conf = versioned(
        &json!({"type": "host-local", "ipam": {"type": "host-local", "dataDir": data,
            "ranges": [[{"subnet": "10.70.0.0/29"}]]}}),
        "1.0.0",
    );
    let add = |container: &str| site.call_with("ADD", &conf, &[("CNI_CONTAINERID", container)]);
    let given: Vec<Value> = (0..5).map(|i| add(&format!("c{i}")).1["ips"][0]["address"].clone()).collect();
    assert_eq!(given, ["10.70.0.2/29", "10.70.0.3/29", "10.70.0.4/29", "10.70.0.5/29", "10.70.0.6/29"]);
    let (ok, full) = add("c9");
    assert!(!ok && full["msg"] == "no IP addresses available in range set 0", "{full}");
    assert!(full["details"].as_str().unwrap().starts_with("5 are held, by 5 containers"), "{full}");
    let (ok, twice) = add("c1");
    assert!(!ok && twice["msg"].as_str().unwrap().contains("duplicate allocation"), "{twice}");
    for container in ["c1", "c3"] {
        let (ok, _) = site.call_with("DEL", &conf, &[("CNI_CONTAINERID", container)]);
        assert!(ok);
    }
    assert_eq!(add("d0").1["ips"][0]["address"], "10.70.0.3/29");
    assert_eq!(add("d1").1["ips"][0]["address"], "10.70.0.5/29");
    let named = site.call_with("ADD", &conf, &[("CNI_CONTAINERID", "e"), ("CNI_ARGS", "IP=10.70.0.2")]);
    assert!(!named.0, "somebody has it: {}", named.1);
    let text = std::fs::read_to_string(data.join("testnet/10.70.0.2")).unwrap();
    assert_eq!(text, "c0\r\neth0", "the reference plugin's format");
}

fn pods_talk(lab: &Lab) {
    for kind in ["bridge", "ptp"] {
        let conf = versioned(
            &json!({"type": kind, "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local",
                "dataDir": lab.data(&format!("talk-{kind}")), "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                "ranges": [[{"subnet": "10.71.0.0/24"}], [{"subnet": "fd71::/64"}]]}}),
            "1.0.0",
        );
        let one = Site::new(&lab.ours);
        let two = Site {
            node: Namespace { path: one.node.path.clone(), _end: channel().0 },
            container: "c2",
            ..Site::new(&lab.ours)
        };
        let outside = Namespace::new();
        one.node.sh(&format!(
            "ip link add up0 type veth peer name out0 && ip link set up0 up && ip addr add 192.0.2.1/24 dev up0 &&
             ip link set out0 netns {}",
            outside.path.split('/').nth(4).unwrap()
        ));
        outside.sh("ip addr add 192.0.2.9/24 dev out0 && ip link set out0 up");
        one.done("ADD", &conf);
        two.done("ADD", &conf);
        assert_eq!(one.pod.reach(&two.pod, "10.71.0.3"), "10.71.0.2");
        assert_eq!(one.pod.reach(&two.pod, "fd71::3"), "fd71::2");
        assert_eq!(two.pod.reach(&one.node, "10.71.0.1"), "10.71.0.3");
        assert_eq!(one.node.reach(&two.pod, "10.71.0.3"), "10.71.0.1");
        assert_eq!(two.pod.reach(&outside, "192.0.2.9"), "192.0.2.1");
        let mac = |site: &Site<'_>| {
            site.node.sh("ip -o link show type bridge | grep -o 'link/ether [0-9a-f:]*' || true")
        };
        let before = mac(&one);
        one.done("DEL", &conf);
        assert_eq!(before.is_empty(), kind == "ptp");
        assert_eq!(mac(&two), before, "the bridge keeps its address when a port leaves");
        two.done("DEL", &conf);
    }
}

fn host_ports(lab: &Lab) {
    for kind in ["bridge", "ptp"] {
        let site = Site::new(&lab.ours);
        let conf = versioned(
            &json!({"type": kind, "isGateway": true, "hairpinMode": true, "ipam": {"type": "host-local",
                "dataDir": lab.data(&format!("port-{kind}")), "routes": [{"dst": "0.0.0.0/0"}],
                "ranges": [[{"subnet": "10.73.0.0/24"}]]}}),
            "1.0.0",
        );
        // keys as Go runtimes write them
        let mut ports = versioned(
            &json!({"type": "portmap", "runtimeConfig": {"portMappings": [
            {"HostPort": 8000, "ContainerPort": 80, "Protocol": "TCP", "HostIP": ""}]}}),
            "1.0.0",
        );
        ports["prevResult"] = site.done("ADD", &conf);
        assert_eq!(site.done("ADD", &ports), ports["prevResult"]);
        site.done("CHECK", &ports);
        site.node.sh("ip addr add 192.0.2.1/32 dev lo");
        // Where bridged packets pass the IP hooks, a bridge's port does not get its own packets back.
        site.node.sh("echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables");
        for (who, from, to) in [
            ("node", &site.node, "127.0.0.1"),
            ("node", &site.node, "192.0.2.1"),
            ("pod", &site.pod, "192.0.2.1"),
        ] {
            let listener = site.pod.inside(|| std::net::TcpListener::bind("0.0.0.0:80").unwrap());
            let to: std::net::SocketAddr = format!("{to}:8000").parse().unwrap();
            from.inside(move || {
                std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_secs(5))
                    .unwrap_or_else(|e| panic!("{who} to {to}: {e}"));
            });
            listener.accept().unwrap();
        }
        let mut other = ports.clone();
        other["prevResult"]["ips"][0]["address"] = json!("10.73.0.99/24");
        let (ok, printed) = site.call_with("ADD", &other, &[("CNI_CONTAINERID", "c9")]);
        assert!(
            !ok && printed["msg"].as_str().unwrap().contains("published by c1/eth0 already"),
            "{printed}"
        );
        site.done("DEL", &ports);
        site.done("DEL", &ports);
        assert!(!site.node.sh("nft list ruleset").contains("10.73.0.2"));
        assert!(!site.call("CHECK", &ports).0);
        site.done("DEL", &conf);
    }
}

fn garbage(lab: &Lab) {
    let site = Site::new(&lab.ours);
    let conf = versioned(
        &json!({"type": "bridge", "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local",
            "dataDir": lab.data("gc"), "ranges": [[{"subnet": "10.72.0.0/24"}]]}}),
        "1.1.0",
    );
    site.done("ADD", &conf);
    site.done("STATUS", &conf);
    let mut collect = conf;
    collect["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    site.done("GC", &collect);
    assert!(site.node.sh("nft list ruleset").contains("10.72.0.2 comment \"c1/eth0\""));
    collect["cni.dev/valid-attachments"] = json!([]);
    site.done("GC", &collect);
    assert!(!site.node.sh("nft list ruleset").contains("10.72.0.2"));
    assert!(!lab.data("gc").join("testnet/10.72.0.2").exists());
}
