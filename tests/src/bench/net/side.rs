//! The sides of the comparison, each on a node of its own: a network namespace.

use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use netplugins::{Attachment, Config, Driver, Endpoint, HostPort, NetNs, Protocol};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};

use crate::shell;

/// The port that pods serve at.
const SERVED: u16 = 80;

/// One way to connect pods.
#[derive(Debug)]
pub(super) struct Side {
    /// As the table calls it.
    pub(super) name: &'static str,
    /// Whether this is what Berth is measured against.
    pub(super) rival: bool,
    node: File,
    /// Makes namespaces for every side, so that they cost all the same; for Berth's it does the rest too.
    driver: Arc<dyn Driver>,
    executed: Option<Executed>,
}

/// Plugins that are executed one after the other, with nothing around them.
#[derive(Debug)]
struct Executed {
    bin: PathBuf,
    plugins: Vec<Value>,
}

/// A connected pod.
#[derive(Debug)]
pub(super) struct Pod {
    id: String,
    ns: NetNs,
    address: IpAddr,
    port: Option<u16>,
    made: Made,
}

/// What letting it go needs.
#[derive(Debug)]
enum Made {
    Attached(Box<Attachment>),
    /// The last result, and what the runtime had asked for.
    Result(Value, Value),
}

// === impl Side ===

impl Side {
    /// Berth's routed network.
    pub(super) fn built_in(dir: &Path) -> Result<Self> {
        Self::make("built-in", dir, None, None)
    }

    /// Berth's own plugins, in process, by the list that the reference plugins get.
    pub(super) fn same_list(dir: &Path) -> Result<Self> {
        Self::make("same list, in process", dir, Some(list(dir, None)), None)
    }

    /// The reference plugins of a directory.
    pub(super) fn reference(
        name: &'static str,
        dir: &Path,
        bin: &Path,
        backend: Option<&str>,
    ) -> Result<Self> {
        let plugins = list(dir, backend)["plugins"].as_array().cloned().unwrap_or_default();
        Self::make(name, dir, None, Some(Executed { bin: bin.to_owned(), plugins }))
    }

    fn make(
        name: &'static str,
        dir: &Path,
        configured: Option<Value>,
        executed: Option<Executed>,
    ) -> Result<Self> {
        fs::create_dir_all(dir.join("net.d"))?;
        if let Some(list) = configured {
            fs::write(dir.join("net.d/10-pods.conflist"), list.to_string())?;
        }
        let config = Config {
            pod_cidrs: vec!["10.88.0.0/16".into()],
            conf_dir: dir.join("net.d"),
            max_networks: 1,
            bin_dirs: vec![],
            // Where a node has them: in memory.
            netns_dir: Path::new("/run").join(dir.file_name().unwrap_or_default()),
            state_dir: dir.join("state"),
            link_prefix: "bench".into(),
            tap: netplugins::no_tap,
        };
        let rival = executed.is_some();
        let (node, driver) = on_thread(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            shell::run(10, "ip", &["link", "set", "lo", "up"])?;
            let driver = netplugins::open(config)?;
            if !rival {
                driver.restore(&[])?;
            }
            Ok((File::open("/proc/thread-self/ns/net")?, driver))
        })?;
        Ok(Self { name, rival, node, driver, executed })
    }

    /// Works on this side's node.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_thread(|| {
            setns(&self.node, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// A namespace, connected; on the node.
    pub(super) fn add(&self, id: &str, port: Option<u16>) -> Result<Pod> {
        let Some(executed) = &self.executed else { return self.attach(id, port) };
        let ns = self.driver.create_namespace(id)?;
        let wanted = match port {
            Some(port) => json!([{ "hostPort": port, "containerPort": SERVED, "protocol": "tcp" }]),
            None => Value::Null,
        };
        let result = executed.add(id, &ns.path, &wanted)?;
        let address = result["ips"][0]["address"].as_str().unwrap_or_default();
        let address = address.split('/').next().unwrap_or_default();
        let address = address.parse().with_context(|| result.to_string())?;
        Ok(Pod { id: id.to_owned(), ns, address, port, made: Made::Result(result, wanted) })
    }

    fn attach(&self, id: &str, port: Option<u16>) -> Result<Pod> {
        let publish = |host_port| HostPort {
            protocol: Protocol::Tcp,
            host_port,
            container_port: SERVED,
            host_ip: None,
        };
        let host_ports = port.map(publish).into_iter().collect();
        let endpoint = Endpoint { id: id.to_owned(), host_ports, ..Endpoint::default() };
        let reserved = self.driver.reserve(&endpoint)?;
        let ns = self.driver.create_namespace(id)?;
        let attachment = self.driver.attach(&ns, &endpoint, reserved)?;
        let (address, _) = *attachment.addresses.first().context("a pod without an address")?;
        Ok(Pod { id: id.to_owned(), ns, address, port, made: Made::Attached(Box::new(attachment)) })
    }

    /// Lets a pod go, with its namespace; on the node.
    pub(super) fn del(&self, pod: Pod) -> Result<()> {
        let Pod { id, ns, made, .. } = pod;
        match (made, &self.executed) {
            (Made::Attached(attachment), _) => self.driver.detach(Some(&ns), &attachment)?,
            (Made::Result(result, wanted), Some(executed)) => {
                executed.del(&id, &ns.path, &wanted, &result)?;
            }
            (Made::Result(..), None) => {}
        }
        drop(ns);
        Ok(self.driver.remove_namespace(&id)?)
    }

    /// Waits until the links of pods are gone, which the kernel does by itself; on the node.
    pub(super) fn settle(&self) -> Result<()> {
        let text = fs::read_to_string("/proc/thread-self/net/dev")?;
        let names = text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
        let pods: Vec<String> =
            names.filter(|name| !["lo", "benchgw", "cni0"].contains(&name.as_str())).collect();
        let left = self.driver.wait_gone(&pods, Instant::now() + Duration::from_secs(60))?;
        ensure!(left.is_empty(), "{}: links are left: {left:?}", self.name);
        Ok(())
    }
}

// === impl Pod ===

impl Pod {
    /// The node reaches the pod by its address, and by its port of the node; on the node.
    pub(super) fn reached(&self) -> Result<()> {
        let listener = on_thread(|| {
            setns(&self.ns, CloneFlags::CLONE_NEWNET)?;
            Ok(TcpListener::bind(("0.0.0.0", SERVED))?)
        })?;
        let own = SocketAddr::from((self.address, SERVED));
        let published = self.port.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        for to in std::iter::once(own).chain(published) {
            let client = TcpStream::connect_timeout(&to, Duration::from_secs(5));
            client.with_context(|| format!("pod {} by {to}", self.id))?;
            listener.accept()?;
        }
        Ok(())
    }
}

// === impl Executed ===

impl Executed {
    fn add(&self, id: &str, netns: &Path, wanted: &Value) -> Result<Value> {
        self.call("ADD", &loopback(), (id, netns, "lo"))?;
        let mut result = Value::Null;
        for plugin in &self.plugins {
            result = self.call("ADD", &with(plugin, wanted, &result), (id, netns, "eth0"))?;
        }
        Ok(result)
    }

    fn del(&self, id: &str, netns: &Path, wanted: &Value, result: &Value) -> Result<()> {
        for plugin in self.plugins.iter().rev() {
            self.call("DEL", &with(plugin, wanted, result), (id, netns, "eth0"))?;
        }
        self.call("DEL", &loopback(), (id, netns, "lo")).map(drop)
    }

    /// One execution, as libcni does it.
    fn call(
        &self,
        command: &str,
        conf: &Value,
        (id, netns, interface): (&str, &Path, &str),
    ) -> Result<Value> {
        let kind = conf["type"].as_str().unwrap_or_default();
        let mut child = Command::new(self.bin.join(kind))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", interface)
            .env("CNI_ARGS", "")
            .env("CNI_PATH", &self.bin)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| kind.to_owned())?;
        child.stdin.take().context("stdin")?.write_all(conf.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        let printed = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{kind} {command}: {printed}");
        if command == "ADD" { Ok(serde_json::from_str(&printed)?) } else { Ok(Value::Null) }
    }
}

/// The list of containerd's own documentation, with one family.
fn list(dir: &Path, backend: Option<&str>) -> Value {
    let mut list = json!({
        "cniVersion": "1.0.0", "name": "pods", "plugins": [
            { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "promiscMode": true,
              "ipam": { "type": "host-local", "dataDir": dir.join("ipam"), "ranges": [[{ "subnet": "10.88.0.0/16" }]],
                        "routes": [{ "dst": "0.0.0.0/0" }] } },
            { "type": "portmap", "capabilities": { "portMappings": true } }
        ]
    });
    if let Some(backend) = backend {
        list["plugins"][0]["ipMasqBackend"] = backend.into();
        list["plugins"][1]["backend"] = backend.into();
    }
    list
}

fn loopback() -> Value {
    json!({ "cniVersion": "1.0.0", "name": "cni-loopback", "type": "loopback" })
}

/// A plugin's object with what a runtime adds to it.
fn with(plugin: &Value, ports: &Value, previous: &Value) -> Value {
    let mut conf = plugin.clone();
    conf["cniVersion"] = "1.0.0".into();
    conf["name"] = "pods".into();
    if !previous.is_null() {
        conf["prevResult"] = previous.clone();
    }
    if !ports.is_null() && conf.get("capabilities").is_some() {
        conf["runtimeConfig"] = json!({ "portMappings": ports });
    }
    conf
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join().map_err(|_| anyhow!("a thread panicked"))?)
}
