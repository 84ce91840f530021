//! Namespaces that stand for nodes and pods, and the plugins called on them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};

use serde_json::{Value, json};

/// Every version of the specification.
pub(crate) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Whether nothing may be left out.
pub(crate) fn everything() -> bool {
    std::env::var_os("CNI_EVERYTHING").is_some()
}

/// Our plugins in a directory.
pub(crate) struct Lab {
    dir: PathBuf,
    pub(crate) ours: PathBuf,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("net-plugins-{}", std::process::id()));
        let ours = dir.join("bin");
        netplugins::install_cni(&ours, &std::env::current_exe().unwrap()).unwrap();
        Self { dir, ours }
    }

    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

/// A network namespace that lives as long as the value.
pub(crate) struct Namespace {
    pub(crate) path: String,
    pub(crate) _end: Sender<()>,
}

impl Namespace {
    pub(crate) fn new() -> Self {
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
    pub(crate) fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let file = std::fs::File::open(&self.path).unwrap();
        let thread = std::thread::spawn(move || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    }

    /// Connects to a listener in `other` at that address; the address it is seen under.
    pub(crate) fn reach(&self, other: &Self, address: &str) -> String {
        let any = if address.contains(':') { "::" } else { "0.0.0.0" };
        let listener = other.inside(move || std::net::TcpListener::bind((any, 0)).unwrap());
        let to = (address.parse::<std::net::IpAddr>().unwrap(), listener.local_addr().unwrap().port());
        self.inside(move || {
            std::net::TcpStream::connect_timeout(&to.into(), std::time::Duration::from_secs(5))
                .unwrap_or_else(|e| panic!("{to:?}: {e}"));
        });
        listener.accept().unwrap().1.ip().to_string()
    }

    pub(crate) fn sh(&self, command: &str) -> String {
        self.try_sh(command).unwrap_or_else(|e| panic!("{command}: {e}"))
    }

    /// What a command printed, or its complaint.
    pub(crate) fn try_sh(&self, command: &str) -> Result<String, String> {
        let mut nsenter = Command::new("nsenter");
        let output =
            nsenter.arg(format!("--net={}", self.path)).args(["sh", "-c", command]).output().unwrap();
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout).unwrap());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// A node and one pod.
pub(crate) struct Site<'a> {
    pub(crate) node: Namespace,
    pub(crate) pod: Namespace,
    pub(crate) bin: &'a Path,
    pub(crate) container: &'a str,
    /// `CNI_ARGS`.
    pub(crate) args: &'a str,
}

impl<'a> Site<'a> {
    pub(crate) fn new(bin: &'a Path) -> Self {
        let node = Namespace::new();
        node.sh("ip link set lo up");
        Self { node, pod: Namespace::new(), bin, container: "c1", args: "" }
    }

    /// Another pod on the same node.
    pub(crate) fn beside(&self, container: &'a str) -> Self {
        let node = Namespace { path: self.node.path.clone(), _end: channel().0 };
        Self { node, pod: Namespace::new(), bin: self.bin, container, args: "" }
    }

    /// Runs a plugin on the node; exit status, and what it printed as JSON.
    pub(crate) fn call(&self, command: &str, conf: &Value) -> (bool, Value) {
        self.call_with(command, conf, &[])
    }

    pub(crate) fn call_with(&self, command: &str, conf: &Value, more: &[(&str, &str)]) -> (bool, Value) {
        use std::io::Write;
        let mut nsenter = Command::new("nsenter");
        nsenter
            .arg(format!("--net={}", self.node.path))
            .arg(self.bin.join(conf["type"].as_str().unwrap()))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", self.container)
            .env("CNI_NETNS", &self.pod.path)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", self.args)
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

    /// Runs plugins one after the other, each with the result of the one before; the last result, or the refusal.
    pub(crate) fn add_all(&self, plugins: &[Value]) -> Result<Value, Value> {
        let mut result = Value::Null;
        for plugin in plugins {
            let mut conf = plugin.clone();
            if !result.is_null() {
                conf["prevResult"] = result;
            }
            let (ok, printed) = self.call("ADD", &conf);
            if !ok {
                return Err(printed);
            }
            result = printed;
        }
        Ok(result)
    }

    /// Runs CHECK forward or DEL backward with a result.
    pub(crate) fn all(&self, command: &str, plugins: &[Value], result: &Value) {
        let mut order: Vec<&Value> = plugins.iter().collect();
        if command == "DEL" {
            order.reverse();
        }
        for plugin in order {
            let mut conf = plugin.clone();
            if !result.is_null() && conf["cniVersion"].as_str().is_some_and(|v| v >= "0.4.0") {
                conf["prevResult"] = result.clone();
            }
            self.done(command, &conf);
        }
    }

    pub(crate) fn done(&self, command: &str, conf: &Value) -> Value {
        let (ok, printed) = self.call(command, conf);
        assert!(ok, "{command} {conf}: {printed}");
        printed
    }
}

pub(crate) fn versioned(conf: &Value, version: &str) -> Value {
    let mut conf = conf.clone();
    conf["cniVersion"] = json!(version);
    conf["name"] = json!("testnet");
    conf
}

/// What the product does by an ioctl.
pub(crate) fn make_tap(tap: &netplugins::Tap) -> std::io::Result<()> {
    let mut ip = Command::new("ip");
    ip.args(["tuntap", "add", "mode", "tap", "name", &tap.name]);
    ip.args(tap.multi_queue.then_some("multi_queue"));
    for (word, id) in [("user", tap.owner), ("group", tap.group)] {
        ip.args(id.map(|id| [word.to_owned(), id.to_string()]).into_iter().flatten());
    }
    if ip.status()?.success() { Ok(()) } else { Err(std::io::Error::other("ip tuntap add")) }
}

/// Whether the kernel has a kind of link; the reason to leave a test out.
pub(crate) fn lacks(kind: &str) -> Option<String> {
    let node = Namespace::new();
    let make = match kind {
        "vlan" => {
            "ip link add x0 type veth peer name x1 && ip link add link x0 name y0 type vlan id 5".to_owned()
        }
        "ipvlan" => {
            "ip link add x0 type veth peer name x1 && ip link add link x0 name y0 type ipvlan".to_owned()
        }
        "vrf" => "ip link add y0 type vrf table 5".to_owned(),
        "tap" => "ip tuntap add mode tap name y0".to_owned(),
        "bridge vlans" => "ip link add y0 type bridge vlan_filtering 1".to_owned(),
        kind => format!("ip link add y0 type {kind}"),
    };
    node.try_sh(&make).err().map(|_| format!("this kernel has no {kind}"))
}
