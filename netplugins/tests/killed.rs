//! Attach and detach, over and over, by a process that is killed at random moments: nothing may leak, ever.
//!
//! The parent starts itself again as a child that behaves like the daemon: it journals a pod, attaches it, and takes pods down
//! again, as fast as it can. The parent kills it within milliseconds, and again, and looks at what is there in the end:
//! free addresses and live pods make up the subnet, and without pods there is nothing left at all.
//!
//! `BERTH_NET_CYCLES` is the number of attachments and detachments (in a plain run 400, with plugins 100; 20000 for the full
//! proof), `BERTH_NET_SEED` repeats a run's choices. Arguments choose tests by a part of their name.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use netplugins::{Attachment, Config, Driver, Endpoint, HostPort, Inventory, Protocol};
use nix::sched::CloneFlags;
use serde::{Deserialize, Serialize};

/// A /24 without network, gateway and broadcast address.
const ADDRESSES: usize = 253;
/// Pods that live at once, at most.
const CROWD: usize = 120;
const CHILD: &str = "BERTH_NET_KILLED_CHILD";

fn main() -> ExitCode {
    let asked: Option<usize> = std::env::var("BERTH_NET_CYCLES").ok().and_then(|n| n.parse().ok());
    if let Some(dir) = std::env::var_os(CHILD) {
        let node = Node::new(PathBuf::from(dir));
        let failed = node.dir.join("failed");
        std::panic::set_hook(Box::new(move |panic| fs::write(&failed, panic.to_string()).unwrap()));
        node.live(asked.unwrap_or_default());
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut failed) = (0, 0);
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    for (name, cni) in [
        ("the_built_in_network_leaks_nothing_however_often_it_is_killed", false),
        ("bridge_and_host_local_in_process_leak_nothing_however_often_they_are_killed", true),
    ] {
        if !wanted.is_empty() && !wanted.iter().any(|w| name.contains(w.as_str())) {
            continue;
        }
        // A node of its own, and mounts that end with the test.
        let cycles = asked.unwrap_or(if cni { 100 } else { 400 });
        let outcome = std::thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
            nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            survive(cni, cycles);
        });
        let outcome = outcome.join();
        say(&format!("test {name} ... {}", if outcome.is_ok() { "ok" } else { "FAILED" }));
        passed += usize::from(outcome.is_ok());
        failed += usize::from(outcome.is_err());
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    say(&format!("test result: {word}. {passed} passed; {failed} failed"));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "a test program reports on standard output")]
fn say(line: &str) {
    println!("{line}");
}

/// Kills children until the cycles are done, then counts.
fn survive(cni: bool, cycles: usize) {
    let dir = std::env::temp_dir().join(format!("net-killed-{}-{cni}", std::process::id()));
    let node = Node::new(dir.clone());
    fs::create_dir_all(dir.join("pods")).unwrap();
    fs::create_dir_all(dir.join("state")).unwrap();
    if cni {
        fs::create_dir_all(dir.join("net.d")).unwrap();
        fs::write(dir.join("net.d/10-bridge.conflist"), conflist(&dir)).unwrap();
    }
    let seed = std::env::var("BERTH_NET_SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
    say(&format!("seed {seed}"));
    let mut random = Random(seed);
    let (mut kills, start) = (0, Instant::now());
    while node.cycles() < cycles {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(CHILD, &dir)
            .env("BERTH_NET_CYCLES", cycles.to_string())
            .env("BERTH_NET_SEED", random.next().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Mostly some cycles after it has taken over, now and then while it does; and then at any moment of the next step.
        let mut done = child.stdout.take().unwrap();
        let lives = if random.below(8) == 0 { 0 } else { 1 + random.below(16) };
        for _ in 0..lives {
            if done.read(&mut [0]).unwrap() == 0 {
                break;
            }
        }
        std::thread::sleep(Duration::from_micros(random.below(if lives == 0 { 20_000 } else { 6_000 })));
        let _ = child.kill();
        let status = child.wait().unwrap();
        let failed = fs::read_to_string(dir.join("failed")).unwrap_or_default();
        assert!(failed.is_empty(), "the child failed by itself: {failed}");
        kills += usize::from(status.code().is_none());
    }
    say(&format!("{} cycles, killed {kills} times, {:.1} s", node.cycles(), start.elapsed().as_secs_f64()));
    node.count(cni);
    fs::remove_dir_all(dir).unwrap();
}

/// Bridge, host-local and portmap on a /24, all of them in process.
fn conflist(dir: &Path) -> String {
    serde_json::json!({
        "cniVersion": "1.1.0", "name": "killed", "plugins": [
            { "type": "bridge", "bridge": "ntkbr0", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables",
              "ipam": { "type": "host-local", "dataDir": dir.join("ipam"),
                        "ranges": [[{ "subnet": "10.77.0.0/24" }]] } },
            { "type": "portmap", "backend": "nftables", "capabilities": { "portMappings": true } }
        ]
    })
    .to_string()
}

/// What a daemon keeps of a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    attachment: Attachment,
    /// The port of the node that leads to it.
    port: u16,
    /// Attached, and not being taken down.
    up: bool,
}

/// One node: the driver's directories and the journal.
struct Node {
    dir: PathBuf,
}

impl Node {
    fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn driver(&self) -> Arc<dyn Driver> {
        let config = Config {
            pod_cidrs: vec!["10.88.0.0/24".into()],
            conf_dir: self.dir.join("net.d"),
            max_networks: 1,
            bin_dirs: vec![],
            netns_dir: self.dir.join("netns"),
            state_dir: self.dir.join("state"),
            link_prefix: "ntk".into(),
            tap: netplugins::no_tap,
        };
        netplugins::open(config).unwrap()
    }

    /// Completed attachments and detachments of all children.
    fn cycles(&self) -> usize {
        fs::metadata(self.dir.join("cycles")).map_or(0, |m| usize::try_from(m.len()).unwrap())
    }

    fn records(&self) -> BTreeMap<String, Record> {
        let entries = fs::read_dir(self.dir.join("pods")).unwrap().flatten();
        let whole = entries.filter(|e| !e.file_name().to_string_lossy().starts_with('.'));
        whole
            .map(|e| {
                let record = serde_json::from_slice(&fs::read(e.path()).unwrap()).unwrap();
                (e.file_name().into_string().unwrap(), record)
            })
            .collect()
    }

    fn journal(&self, record: &Record) {
        let id = &record.attachment.id;
        let temporary = self.dir.join("pods").join(format!(".{id}"));
        fs::write(&temporary, serde_json::to_vec(record).unwrap()).unwrap();
        fs::rename(temporary, self.dir.join("pods").join(id)).unwrap();
    }

    /// What a daemon does at its start: live pods are kept, the others are finished off.
    fn take_over(&self) -> (Arc<dyn Driver>, BTreeMap<String, Record>) {
        let driver = self.driver();
        let (live, dead): (BTreeMap<_, _>, BTreeMap<_, _>) =
            self.records().into_iter().partition(|(_, r)| r.up);
        let attachments: Vec<Attachment> = live.values().map(|r| r.attachment.clone()).collect();
        driver.restore(&attachments).unwrap();
        for record in dead.values() {
            self.take_down(&*driver, record);
        }
        (driver, live)
    }

    fn take_down(&self, driver: &dyn Driver, record: &Record) {
        let id = &record.attachment.id;
        let ns = driver.open_namespace(id).unwrap();
        driver.detach(ns.as_ref(), &record.attachment).unwrap();
        drop(ns);
        driver.remove_namespace(id).unwrap();
        fs::remove_file(self.dir.join("pods").join(id)).unwrap();
    }

    /// A child's life; says a byte when it has taken over, and after each cycle.
    fn live(&self, cycles: usize) {
        let seed = std::env::var("BERTH_NET_SEED").unwrap().parse().unwrap();
        let mut random = Random(seed);
        let (driver, mut live) = self.take_over();
        let mut done = fs::File::options().create(true).append(true).open(self.dir.join("cycles")).unwrap();
        tell();
        while self.cycles() < cycles {
            let wanted = live.len() < CROWD && (live.is_empty() || random.below(2) == 0);
            if wanted {
                let record = self.attach(&*driver, &mut random, &live);
                live.insert(record.attachment.id.clone(), record);
            } else {
                let at = usize::try_from(random.below(u64::try_from(live.len()).unwrap())).unwrap();
                let id = live.keys().nth(at).unwrap().clone();
                let mut record = live.remove(&id).unwrap();
                record.up = false;
                self.journal(&record);
                self.take_down(&*driver, &record);
            }
            done.write_all(b".").unwrap();
            tell();
        }
    }

    fn attach(&self, driver: &dyn Driver, random: &mut Random, live: &BTreeMap<String, Record>) -> Record {
        let number = random.next();
        let mut draw = || u16::try_from(1024 + random.below(60_000)).unwrap();
        let mut host_port = draw();
        while live.values().any(|r| r.port == host_port) {
            host_port = draw();
        }
        let port = |protocol| HostPort { protocol, host_port, container_port: 80, host_ip: None };
        let host_ports = [vec![port(Protocol::Tcp)], vec![port(Protocol::Tcp), port(Protocol::Udp)], vec![]];
        let kinds = if self.dir.join("net.d").exists() { 2 } else { 3 };
        let mut endpoint = Endpoint {
            id: format!("{number:016x}"),
            host_ports: host_ports[usize::try_from(number % kinds).unwrap()].clone(),
            ..Endpoint::default()
        };
        if number.is_multiple_of(7) {
            endpoint.annotations.insert("kubernetes.io/egress-bandwidth".into(), "10M".into());
        }
        let reserved = driver.reserve(&endpoint).unwrap();
        let mut record = Record { attachment: reserved, port: host_port, up: false };
        self.journal(&record);
        let ns = driver.create_namespace(&endpoint.id).unwrap();
        record.attachment = driver.attach(&ns, &endpoint, record.attachment).unwrap();
        record.up = true;
        self.journal(&record);
        record
    }

    /// The proof.
    fn count(&self, cni: bool) {
        let (driver, live) = self.take_over();
        for record in live.values() {
            let ns = driver.open_namespace(&record.attachment.id).unwrap().expect("a live pod's namespace");
            let checked = driver.check(&ns, &record.attachment);
            checked.unwrap_or_else(|e| panic!("a live pod is damaged: {}\n{}", e.chain(), ruleset()));
        }
        if cni {
            let held: BTreeSet<String> = self.held_by_host_local();
            let addresses = live.values().flat_map(|r| &r.attachment.addresses).map(|(ip, _)| ip.to_string());
            assert_eq!(held, addresses.collect::<BTreeSet<_>>(), "files of host-local");
        } else {
            // Links of pods that have just gone may still be dismantled; their addresses come back with that.
            let links = driver.inventory().unwrap().links;
            let ours =
                |l: &String| live.values().any(|r| r.attachment.host_interface == *l || shaper(r) == *l);
            let leaving: Vec<String> = links.into_iter().filter(|l| !ours(l)).collect();
            assert_eq!(driver.wait_gone(&leaving, deadline()).unwrap(), Vec::<String>::new());
            let mut free = 0;
            let endpoint = |n| Endpoint { id: format!("free{n}"), ..Endpoint::default() };
            while let Ok(reserved) = driver.reserve(&endpoint(free)) {
                assert_eq!(reserved.addresses.len(), 1);
                free += 1;
            }
            assert_eq!(free + live.len(), ADDRESSES, "free addresses and live pods");
            for n in 0..free {
                driver.abandon(&Attachment { id: format!("free{n}"), ..Attachment::default() });
            }
        }
        say(&format!("{} pods live, every other address free", live.len()));
        for mut record in live.into_values() {
            record.up = false;
            self.journal(&record);
            self.take_down(&*driver, &record);
        }
        self.nothing_left(&*driver);
    }

    fn held_by_host_local(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.dir.join("ipam/killed")).unwrap().flatten();
        let names = entries.map(|e| e.file_name().into_string().unwrap());
        names.filter(|n| n.parse::<std::net::IpAddr>().is_ok()).collect()
    }

    fn nothing_left(&self, driver: &dyn Driver) {
        let furniture = |l: &String| ["lo", "ntkgw", "ntkbr0"].contains(&l.as_str());
        let of_pods: Vec<String> = links().into_iter().filter(|l| !furniture(l)).collect();
        assert_eq!(driver.wait_gone(&of_pods, deadline()).unwrap(), Vec::<String>::new());
        assert_eq!(links().into_iter().filter(|l| !furniture(l)).collect::<Vec<_>>(), Vec::<String>::new());
        assert_eq!(driver.inventory().unwrap(), Inventory::default());
        driver.retire().unwrap();
        for place in ["netns", "pods", "state/netns", "state/cni/results", "state/cni/pending"] {
            let left: Vec<_> = fs::read_dir(self.dir.join(place)).into_iter().flatten().flatten().collect();
            assert!(
                left.iter().all(|e| place == "pods" && e.file_name().to_string_lossy().starts_with('.')),
                "{left:?}"
            );
        }
        let rules = ruleset();
        let elements = rules.lines().filter(|l| l.contains("elements = ") && !l.contains("224.0.0.0/4"));
        let of_pods: Vec<&str> =
            elements.filter(|l| l.contains("10.77.0.") || l.contains("10.88.0.")).collect();
        assert_eq!(of_pods, Vec::<&str>::new(), "{rules}");
        if self.dir.join("ipam").exists() {
            assert_eq!(self.held_by_host_local(), BTreeSet::new());
        }
    }
}

/// The link that shapes what a pod sends, which is no pod's end.
fn shaper(record: &Record) -> String {
    record.attachment.private["shaper"].as_str().unwrap_or_default().to_owned()
}

fn ruleset() -> String {
    String::from_utf8(Command::new("nft").args(["list", "ruleset"]).output().unwrap().stdout).unwrap()
}

fn tell() {
    let mut out = std::io::stdout().lock();
    out.write_all(b".").and_then(|()| out.flush()).unwrap();
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn links() -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    text.lines().skip(2).filter_map(|l| Some(l.split_once(':')?.0.trim().to_owned())).collect()
}

/// splitmix64: what is drawn may seed another one.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
