//! A control plane of one node: etcd and kube-apiserver, and kubectl to talk to it.
//!
//! No scheduler and no controllers: the suite names the node in its pods, and nothing it uses needs more.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::node::tail;
use crate::shell;

/// Stands for the group of administrators.
const TOKEN: &str = "suite";
/// Stands for the user [`AGENT`], who may do what the suite says.
const AGENT_TOKEN: &str = "agent";
/// The user who `berth net agent` is.
pub(super) const AGENT: &str = "net-agent";

/// Running etcd and kube-apiserver; dropping them ends them.
#[derive(Debug)]
pub(super) struct Control {
    dir: PathBuf,
    kubectl: String,
    port: u16,
    /// For the kubelet and kubectl.
    pub(super) kubeconfig: PathBuf,
    processes: Vec<(String, Child)>,
}

/// The programs.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) etcd: String,
    pub(super) apiserver: String,
    pub(super) kubectl: String,
}

// === impl Control ===

impl Control {
    /// Starts both and waits until the API server is ready.
    pub(super) fn start(programs: &Programs, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let [store, peers, api] = [port()?, port()?, port()?];
        let kubeconfig = dir.join("kubeconfig.json");
        fs::write(&kubeconfig, kubeconfig_for(api).to_string())?;
        let kubectl = programs.kubectl.clone();
        let mut control = Self { dir: dir.to_owned(), kubectl, port: api, kubeconfig, processes: Vec::new() };
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        control.run(
            "etcd",
            &programs.etcd,
            &[
                format!("--data-dir={}", dir.join("etcd").display()),
                format!("--listen-client-urls={}", url(store)),
                format!("--advertise-client-urls={}", url(store)),
                format!("--listen-peer-urls={}", url(peers)),
                format!("--initial-advertise-peer-urls={}", url(peers)),
                format!("--initial-cluster=default={}", url(peers)),
                "--unsafe-no-fsync".to_owned(),
            ],
        )?;
        control.run("kube-apiserver", &programs.apiserver, &api_arguments(dir, &url(store), api)?)?;
        shell::eventually("the API server is ready", 120, || control.ready())?;
        Ok(control)
    }

    fn run(&mut self, name: &str, program: &str, args: &[String]) -> Result<()> {
        let log = fs::File::create(self.dir.join(format!("{name}.log")))?;
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {program}"))?;
        self.processes.push((name.to_owned(), child));
        Ok(())
    }

    fn ready(&mut self) -> Result<Option<()>> {
        for (name, child) in &mut self.processes {
            if let Some(status) = child.try_wait()? {
                bail!("{name} ended: {status}\n{}", tail(&self.dir.join(format!("{name}.log"))));
            }
        }
        Ok(self.kubectl(&["get", "--raw=/readyz"]).ok().map(drop))
    }

    /// A kubeconfig for [`AGENT`], which trusts the API server for its certificate alone.
    pub(super) fn for_agent(&self) -> Result<PathBuf> {
        let file = self.dir.join("agent.kubeconfig");
        let server = format!("https://127.0.0.1:{}", self.port);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "suite",
            "clusters": [{ "name": "suite", "cluster": { "server": server, "certificate-authority": "certs/apiserver.crt" } }],
            "users": [{ "name": "agent", "user": { "token": AGENT_TOKEN } }],
            "contexts": [{ "name": "suite", "context": { "cluster": "suite", "user": "agent" } }],
        });
        fs::write(&file, config.to_string())?;
        Ok(file)
    }

    /// kubectl with the arguments that lead to this cluster.
    pub(super) fn words(&self) -> Vec<String> {
        vec![
            self.kubectl.clone(),
            format!("--kubeconfig={}", self.kubeconfig.display()),
            format!("--cache-dir={}", self.dir.join("cache").display()),
        ]
    }

    /// Runs a kubectl verb and returns what it wrote.
    pub(super) fn kubectl(&self, args: &[&str]) -> Result<String> {
        let words = self.words();
        let all: Vec<&str> = words[1..].iter().map(String::as_str).chain(args.iter().copied()).collect();
        shell::run(120, &words[0], &all)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        for (_, child) in self.processes.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn api_arguments(dir: &Path, store: &str, port: u16) -> Result<Vec<String>> {
    let (key, tokens) = (dir.join("accounts.key"), dir.join("tokens.csv"));
    shell::run(
        30,
        "openssl",
        &["ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", &key.display().to_string()],
    )?;
    let known = format!("{TOKEN},suite,suite,system:masters\n{AGENT_TOKEN},{AGENT},{AGENT}\n");
    fs::write(&tokens, known)?;
    Ok(vec![
        format!("--etcd-servers={store}"),
        format!("--secure-port={port}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=192.0.2.2".to_owned(),
        format!("--cert-dir={}", dir.join("certs").display()),
        format!("--token-auth-file={}", tokens.display()),
        "--authorization-mode=RBAC".to_owned(),
        // The node's name is in no DNS.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--service-account-issuer=https://suite.test".to_owned(),
        format!("--service-account-signing-key-file={}", key.display()),
        format!("--service-account-key-file={}", key.display()),
        "--service-cluster-ip-range=10.96.0.0/24".to_owned(),
        // Its tokens are made by a controller.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
    ])
}

fn kubeconfig_for(port: u16) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "suite",
        "clusters": [{ "name": "suite", "cluster": { "server": format!("https://127.0.0.1:{port}"), "insecure-skip-tls-verify": true } }],
        "users": [{ "name": "suite", "user": { "token": TOKEN } }],
        "contexts": [{ "name": "suite", "context": { "cluster": "suite", "user": "suite" } }],
    })
}

/// A port nobody has. The machine is private: nobody takes it meanwhile.
fn port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
