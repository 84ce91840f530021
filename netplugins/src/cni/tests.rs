//! The driver for configured networks, with plugins written for the purpose.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::testing::TempDir;
use crate::{Driver, Kind};

/// A node whose only plugin records how it is called.
struct Node {
    driver: Arc<dyn Driver>,
    dir: TempDir,
}

/// Writes each call's command, its standard input and its network namespace to `log`, then runs `body`.
fn install(dir: &TempDir, name: &str, body: &str) {
    let log = dir.path().join("log");
    let script = format!(
        "#!/bin/sh\nconf=$(cat)\necho \"$CNI_COMMAND {name} $CNI_NETNS $conf\" >> {}\n{body}\n",
        log.display()
    );
    fs::create_dir_all(dir.path().join("bin")).unwrap();
    let staged = dir.path().join("staged");
    fs::write(&staged, script).unwrap();
    fs::set_permissions(&staged, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(staged, dir.path().join("bin").join(name)).unwrap();
}

const ADDS: &str = r#"[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"interface":0,"address":"10.7.0.9/24"}]}' ; exit 0"#;
const PASSES: &str = "exit 0";
const LIST: &str = r#"{"cniVersion":"1.1.0","name":"n","plugins":[
    {"type":"first","capabilities":{"portMappings":true}},{"type":"second","x":1}]}"#;

fn config(dir: &TempDir) -> Config {
    Config {
        pod_cidrs: vec!["10.88.0.0/16".into()],
        conf_dir: dir.path().join("net.d"),
        max_networks: 1,
        bin_dirs: vec![dir.path().join("bin")],
        netns_dir: dir.path().join("netns"),
        state_dir: dir.path().join("state"),
        link_prefix: "ntcni".into(),
        tap: crate::no_tap,
    }
}

fn endpoint(id: &str) -> Endpoint {
    let port = crate::HostPort {
        protocol: crate::Protocol::Tcp,
        host_port: 80,
        container_port: 8080,
        host_ip: None,
    };
    Endpoint { id: id.into(), host_ports: vec![port], cgroup: "/x".into(), ..Endpoint::default() }
}

impl Node {
    fn new() -> Self {
        let dir = TempDir::new("cni");
        install(&dir, "first", ADDS);
        install(&dir, "second", ADDS);
        fs::create_dir_all(dir.path().join("net.d")).unwrap();
        fs::write(dir.path().join("net.d/10-n.conflist"), LIST).unwrap();
        let driver = crate::open(config(&dir)).unwrap();
        assert_eq!(driver.restore(&[]).unwrap(), Vec::<String>::new());
        Self { dir, driver }
    }

    fn attach(&self, id: &str) -> (NetNs, Result<Attachment, Error>) {
        let ns = self.driver.create_namespace(id).unwrap();
        let reserved = self.driver.reserve(&endpoint(id)).unwrap();
        let attached = self.driver.attach(&ns, &endpoint(id), reserved);
        (ns, attached)
    }

    /// The calls so far, but for STATUS and GC, as command, plugin, namespace and configuration.
    fn calls(&self) -> Vec<(String, String, String, Value)> {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let parse = |line: &str| {
            let mut parts = line.splitn(4, ' ').map(str::to_owned);
            let mut next = || parts.next().unwrap();
            (next(), next(), next(), serde_json::from_str(&next()).unwrap())
        };
        log.lines().map(parse).filter(|c| c.0 != "STATUS" && c.0 != "GC").collect()
    }

    fn files(&self, directory: &str) -> usize {
        fs::read_dir(self.dir.path().join("state/cni").join(directory)).map_or(0, Iterator::count)
    }

    fn status(&self) -> String {
        // STATUS is asked in the background; its answer is awaited by the plugin's own log.
        loop {
            match self.driver.status() {
                Err(text) if text.contains("have not answered STATUS yet") => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(text) => return text,
                Ok(()) => return "ok".into(),
            }
        }
    }
}

#[test]
fn plugins_are_called_in_order_with_what_the_specification_promises() {
    let node = Node::new();
    let (ns, attached) = node.attach("p1");
    let attachment = attached.unwrap();
    assert_eq!(attachment.addresses, [([10, 7, 0, 9].into(), 24)]);
    node.driver.check(&ns, &attachment).unwrap();
    assert_eq!(node.files("results"), 1);
    node.driver.detach(Some(&ns), &attachment).unwrap();
    assert_eq!((node.files("results"), node.files("pending")), (0, 0));
    let calls = node.calls();
    let order: Vec<String> = calls.iter().map(|(c, p, ..)| format!("{c} {p}")).collect();
    assert_eq!(order, ["ADD first", "ADD second", "CHECK first", "CHECK second", "DEL second", "DEL first"]);
    assert!(calls.iter().all(|c| c.2 == ns.path.display().to_string()));
    let (first, second) = (&calls[0].3, &calls[1].3);
    assert_eq!((&first["name"], &first["cniVersion"]), (&json!("n"), &json!("1.1.0")));
    assert_eq!(first["runtimeConfig"]["portMappings"][0]["hostPort"], 80);
    assert_eq!(first.get("prevResult"), None);
    // the second asked for no capability, keeps its own keys and sees the first one's result
    assert_eq!((second.get("runtimeConfig"), &second["x"]), (None, &json!(1)));
    assert_eq!(second["prevResult"]["ips"][0]["address"], "10.7.0.9/24");
    assert_eq!(calls[4].3["prevResult"]["ips"][0]["address"], "10.7.0.9/24");
    drop(ns);
    node.driver.remove_namespace("p1").unwrap();
}

#[test]
fn a_failed_add_is_followed_by_del_and_leaves_nothing() {
    let node = Node::new();
    install(
        &node.dir,
        "second",
        r#"[ $CNI_COMMAND = ADD ] && echo '{"code":100,"msg":"no way"}' && exit 1; exit 0"#,
    );
    let (ns, attached) = node.attach("p1");
    let error = attached.unwrap_err();
    assert!(error.chain().starts_with("cannot attach pod p1 to network \"n\": plugin "), "{}", error.chain());
    assert!(error.chain().ends_with("failed: no way"), "{}", error.chain());
    let order: Vec<String> = node.calls().iter().map(|(c, p, ..)| format!("{c} {p}")).collect();
    assert_eq!(order, ["ADD first", "ADD second", "DEL second", "DEL first"]);
    assert_eq!((node.files("results"), node.files("pending")), (0, 0));
    for garbage in ["echo null", "echo '{'", "echo '[]'", "true"] {
        install(&node.dir, "second", &format!("[ $CNI_COMMAND = ADD ] && {garbage}; exit 0"));
        let reserved = node.driver.reserve(&endpoint("p1")).unwrap();
        let error = node.driver.attach(&ns, &endpoint("p1"), reserved).unwrap_err();
        assert!(error.chain().contains("its result cannot be read"), "{garbage}: {}", error.chain());
    }
    drop(ns);
    node.driver.remove_namespace("p1").unwrap();
}

#[test]
fn a_pod_goes_without_its_plugin_and_the_del_is_made_up_for() {
    let node = Node::new();
    let (ns, attached) = node.attach("p1");
    let attachment = attached.unwrap();
    fs::remove_file(node.dir.path().join("bin/second")).unwrap();
    assert!(node.driver.status().unwrap_err().contains("no plugin \"second\" in"));
    node.driver.detach(Some(&ns), &attachment).unwrap();
    drop(ns);
    node.driver.remove_namespace("p1").unwrap();
    assert_eq!(node.files("pending"), 1);
    // the configuration may change and the daemon may restart: the DEL uses what ADD used
    fs::write(node.dir.path().join("net.d/10-n.conflist"), LIST.replace("\"n\"", "\"other\"")).unwrap();
    install(&node.dir, "second", PASSES);
    let before = node.calls().len();
    let again = crate::open(config(&node.dir)).unwrap();
    again.restore(&[]).unwrap();
    let made_up: Vec<_> = node.calls().split_off(before);
    assert!(made_up.iter().any(|(c, p, ns, conf)| {
        (c.as_str(), p.as_str(), ns.as_str()) == ("DEL", "second", "") && conf["name"] == "n"
    }));
    assert_eq!((node.files("results"), node.files("pending")), (0, 0));
}

#[test]
fn a_restart_detaches_what_no_pod_owns() {
    let node = Node::new();
    let (live_ns, live) = node.attach("live");
    let (dead_ns, dead) = node.attach("dead");
    let (live, _dead) = (live.unwrap(), dead.unwrap());
    drop(dead_ns);
    let again = crate::open(config(&node.dir)).unwrap();
    let found = again.restore(std::slice::from_ref(&live)).unwrap();
    assert!(found.iter().any(|l| l.contains("n-dead-eth0 of no pod")), "{found:?}");
    assert!(found.iter().any(|l| l.contains("netns/dead of no pod")), "{found:?}");
    assert_eq!(node.files("results"), 1);
    let log = fs::read_to_string(node.dir.path().join("log")).unwrap();
    let gc = log.lines().rfind(|l| l.starts_with("GC")).unwrap();
    assert!(gc.contains(r#""cni.dev/valid-attachments":[{"containerID":"live","ifname":"eth0"}]"#), "{gc}");
    again.detach(Some(&live_ns), &live).unwrap();
    drop(live_ns);
    again.remove_namespace("live").unwrap();
}

/// Addresses whose holder is gone for good, in a list too old for GC: by the built-in plugins, and by executables of others.
#[test]
fn addresses_of_nobody_are_freed_whatever_the_version() {
    for kind in ["bridge", "first"] {
        let node = Node::new();
        let data = node.dir.path().join("ipam");
        let list = json!({"cniVersion": "0.3.1", "name": "old", "plugins": [{"type": kind, "ipam": {
            "type": "host-local", "dataDir": data, "ranges": [[{"subnet": "10.73.0.0/24"}]]}}]});
        fs::write(node.dir.path().join("net.d/10-n.conflist"), list.to_string()).unwrap();
        fs::create_dir_all(data.join("old")).unwrap();
        fs::create_dir_all(data.join("other")).unwrap();
        for file in ["old/10.73.0.2", "old/10.73.0.3", "other/10.73.0.4"] {
            fs::write(data.join(file), "long-gone\r\neth0").unwrap();
        }
        crate::open(config(&node.dir)).unwrap().restore(&[]).unwrap();
        let left = |file: &str| data.join(file).exists();
        assert!(!left("old/10.73.0.2") && !left("old/10.73.0.3"), "{kind}");
        assert!(left("other/10.73.0.4"), "{kind}: another network's");
        let log = fs::read_to_string(node.dir.path().join("log")).unwrap_or_default();
        assert!(!log.lines().any(|l| l.starts_with("GC first") && l.contains("0.3.1")), "{log}");
    }
}

#[test]
fn a_broken_file_keeps_the_last_good_network_and_is_named() {
    let node = Node::new();
    let file = node.dir.path().join("net.d/10-n.conflist");
    assert_eq!(node.status(), "ok");
    assert_eq!(node.driver.notice(), None);
    fs::write(&file, "{\n \"name\" oops").unwrap();
    assert_eq!(node.status(), "ok");
    let notice = node.driver.notice().unwrap();
    assert!(notice.contains("10-n.conflist: expected `:` at line 2 column 9"), "{notice}");
    let (ns, attached) = node.attach("p1");
    node.driver.detach(Some(&ns), &attached.unwrap()).unwrap();
    drop(ns);
    node.driver.remove_namespace("p1").unwrap();
    fs::write(&file, LIST).unwrap();
    assert_eq!(node.status(), "ok");
    assert_eq!(node.driver.notice(), None);
    // with no good one ever, nothing is guessed
    fs::write(&file, "{").unwrap();
    let again = crate::open(config(&node.dir)).unwrap();
    again.restore(&[]).unwrap();
    assert!(again.status().unwrap_err().contains("10-n.conflist"));
    assert_eq!(again.reserve(&endpoint("p2")).unwrap_err().kind(), Kind::NotReady);
}

/// A second file that counts.
fn second_network(node: &Node, name: &str) -> Arc<dyn Driver> {
    let list = LIST.replace("\"n\"", &format!("\"{name}\"")).replace("\"x\":1", "\"x\":2");
    fs::write(node.dir.path().join("net.d/20-m.conflist"), list).unwrap();
    let driver = crate::open(Config { max_networks: 2, ..config(&node.dir) }).unwrap();
    driver.restore(&[]).unwrap();
    driver
}

#[test]
fn a_pod_has_an_interface_on_each_network_and_leaves_all_of_them() {
    let node = Node::new();
    let driver = second_network(&node, "m");
    let ns = driver.create_namespace("p1").unwrap();
    let reserved = driver.reserve(&endpoint("p1")).unwrap();
    let attachment = driver.attach(&ns, &endpoint("p1"), reserved).unwrap();
    assert_eq!(attachment.interface, "eth0");
    assert_eq!(attachment.addresses.len(), 1, "the first network's");
    driver.check(&ns, &attachment).unwrap();
    let cached = |n: usize| assert_eq!(node.files("results"), n);
    cached(2);
    assert!(node.dir.path().join("state/cni/results/m-p1-eth1").exists());
    driver.detach(Some(&ns), &attachment).unwrap();
    cached(0);
    let calls = node.calls();
    let named = |command: &str| -> Vec<String> {
        let of = calls.iter().filter(|c| c.0 == command);
        of.map(|c| format!("{} {}", c.3["name"].as_str().unwrap(), c.1)).collect()
    };
    assert_eq!(named("ADD"), ["n first", "n second", "m first", "m second"]);
    assert_eq!(named("DEL"), ["m second", "m first", "n second", "n first"]);
    // what the second network refuses takes the first one down as well
    let refuses = format!("case \"$conf\" in *'\"x\":2'*) [ $CNI_COMMAND = ADD ] && exit 1;; esac\n{ADDS}");
    install(&node.dir, "second", &refuses);
    let before = node.calls().len();
    let reserved = driver.reserve(&endpoint("p1")).unwrap();
    assert!(driver.attach(&ns, &endpoint("p1"), reserved).is_err());
    let after = node.calls().split_off(before);
    assert_eq!(after.iter().filter(|c| c.0 == "DEL").count(), 4);
    cached(0);
    drop(ns);
    driver.remove_namespace("p1").unwrap();
}

#[test]
fn two_networks_of_one_name_are_refused_by_both_files() {
    let node = Node::new();
    let driver = second_network(&node, "n");
    let error = driver.status().unwrap_err();
    assert!(error.contains("20-m.conflist: network \"n\" is configured by "), "{error}");
    assert!(error.contains("10-n.conflist already"), "{error}");
}

#[test]
fn a_new_network_is_asked_for_its_status_without_waiting_for_a_round() {
    let node = Node::new();
    assert_eq!(node.status(), "ok");
    let start = Instant::now();
    fs::write(node.dir.path().join("net.d/10-n.conflist"), LIST.replace("\"x\":1", "\"x\":3")).unwrap();
    assert_eq!(node.status(), "ok");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn status_is_what_the_plugins_say() {
    let node = Node::new();
    assert_eq!(node.status(), "ok");
    install(
        &node.dir,
        "first",
        r#"[ $CNI_COMMAND = STATUS ] && echo '{"code":50,"msg":"controller is down"}' && exit 1; exit 0"#,
    );
    fs::write(node.dir.path().join("net.d/10-n.conflist"), LIST.replace("\"x\":1", "\"x\":2")).unwrap();
    let Node { driver, dir } = node;
    drop(driver);
    let again = Node { driver: crate::open(config(&dir)).unwrap(), dir };
    again.driver.restore(&[]).unwrap();
    assert!(again.status().contains("controller is down"));
}

#[test]
fn the_built_in_network_serves_when_the_directory_is_empty() {
    crate::testing::on_a_node(|| {
        let node = Node::new();
        let before = std::process::Command::new("nft").args(["list", "ruleset"]).output().unwrap().stdout;
        assert_eq!(before, b"", "a configured network leaves the node alone");
        fs::remove_file(node.dir.path().join("net.d/10-n.conflist")).unwrap();
        let reserved = node.driver.reserve(&endpoint("p1")).unwrap();
        assert_eq!(reserved.addresses[0].0.to_string(), "10.88.0.2");
        assert_eq!(node.driver.status(), Ok(()));
        node.driver.abandon(&reserved);
        node.driver.retire().unwrap();
    });
}

#[test]
fn a_standard_conflist_works_with_no_plugin_installed() {
    crate::testing::on_a_node(|| {
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        let node = Node::new();
        let data = node.dir.path().join("ipam");
        let list = json!({"cniVersion": "1.1.0", "name": "std", "plugins": [
            {"type": "bridge", "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local", "dataDir": data,
                "ranges": [[{"subnet": "10.74.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}}]});
        fs::write(node.dir.path().join("net.d/10-n.conflist"), list.to_string()).unwrap();
        assert_eq!(node.status(), "ok");
        let (ns, attached) = node.attach("p1");
        let attachment = attached.unwrap();
        assert_eq!(attachment.addresses, [([10, 74, 0, 2].into(), 24)]);
        node.driver.check(&ns, &attachment).unwrap();
        let listener = crate::netns::inside(std::os::fd::AsFd::as_fd(&ns), || {
            std::net::TcpListener::bind("0.0.0.0:8080").unwrap()
        });
        let listener = listener.unwrap();
        std::net::TcpStream::connect_timeout(&"127.0.0.1:80".parse().unwrap(), Duration::from_secs(5))
            .unwrap();
        listener.accept().unwrap();
        // a record of another configuration and a lost daemon: what nobody owns is detached by its cached result
        drop((listener, ns));
        let again = crate::open(config(&node.dir)).unwrap();
        let found = again.restore(&[]).unwrap();
        assert!(found.iter().any(|l| l.contains("std-p1-eth0 of no pod")), "{found:?}");
        assert!(!data.join("std/10.74.0.2").exists());
        let ruleset = std::process::Command::new("nft").args(["list", "ruleset"]).output().unwrap().stdout;
        assert!(!String::from_utf8(ruleset).unwrap().contains("10.74.0.2"));
    });
}
