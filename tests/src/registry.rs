//! The loopback registry the suites pull from, and the mirror files that lead there.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::images::Image;
use crate::shell;

/// Where it listens: a private machine has no other use for the port.
pub const ADDRESS: &str = "127.0.0.1:5000";

/// The hosts whose images it holds.
const HOSTS: [&str; 4] = ["registry.k8s.io", "k8s.gcr.io", "gcr.io", "public.ecr.aws"];

/// A running registry; dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    /// Directory with `HOST/hosts.toml` files that name the registry as mirror of the public hosts.
    pub mirrors: PathBuf,
    /// Its log: one line per request, in Apache's combined format, and its own words.
    pub log: PathBuf,
}

// === impl Registry ===

impl Registry {
    /// Starts Debian's `docker-registry` with its data below `dir`.
    ///
    /// # Errors
    /// It cannot be started, or does not listen within 20 seconds.
    pub fn start(dir: &Path) -> Result<Self> {
        let mirrors = dir.join("certs.d");
        for host in HOSTS {
            fs::create_dir_all(mirrors.join(host))?;
            let text = format!(
                "server = \"http://{ADDRESS}\"\n\n[host.\"http://{ADDRESS}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
            );
            fs::write(mirrors.join(host).join("hosts.toml"), text)?;
        }
        let own = mirrors.join(ADDRESS);
        fs::create_dir_all(&own)?;
        fs::write(own.join("hosts.toml"), format!("server = \"http://{ADDRESS}\"\n"))?;
        let config = dir.join("registry.yml");
        fs::write(&config, configuration(&dir.join("registry")))?;
        let path = dir.join("registry.log");
        let log = fs::File::create(&path)?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start docker-registry")?;
        let registry = Self { process, mirrors, log: path };
        shell::eventually("the registry listens", 20, || Ok(TcpStream::connect(ADDRESS).ok()))?;
        Ok(registry)
    }

    /// Copies an image into the registry under each of its names.
    ///
    /// # Errors
    /// `skopeo` failed.
    pub fn push(&self, image: &Image) -> Result<()> {
        for name in &image.names {
            let path = name.split_once('/').map_or(name.as_str(), |(_, path)| path);
            let (from, to) =
                (format!("oci:{}", image.layout.display()), format!("docker://{ADDRESS}/{path}"));
            let mut args = vec!["--insecure-policy", "copy", "--quiet", "--all", "--dest-tls-verify=false"];
            args.extend(image.format.map(|format| ["--format", format]).into_iter().flatten());
            args.extend([from.as_str(), to.as_str()]);
            shell::run(300, "skopeo", &args)?;
        }
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn configuration(data: &Path) -> String {
    let mut text = String::from("version: 0.1\nlog:\n  level: warn\n");
    let _ = writeln!(text, "storage:\n  filesystem:\n    rootdirectory: {}", data.display());
    let _ = writeln!(text, "  delete:\n    enabled: true\nhttp:\n  addr: {ADDRESS}");
    text
}
