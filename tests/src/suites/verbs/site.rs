//! Registries of a site: one with TLS, client certificates and passwords, and one without anything.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::shell;

/// `user` with the password `secret` (htpasswd, bcrypt).
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A registry behind TLS; dropping it ends it.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) address: String,
    dir: PathBuf,
    process: Child,
}

impl Site {
    /// Makes an authority, certificates for server and client, and starts the registry.
    pub(super) fn start(dir: &Path, program: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let openssl = |args: &str| {
            let here = dir.display().to_string();
            let mut line = vec!["-c", "cd \"$0\" && exec openssl \"$@\" 2>&1", here.as_str()];
            line.extend(args.split(' '));
            shell::run(30, "sh", &line)
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
        openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=site"))?;
        for name in ["server", "node"] {
            openssl(
                &format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}")
                    .replace(" -days 2", ""),
            )?;
            fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1\n")?;
            let sign = format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.crt"
            );
            openssl(&sign)?;
        }
        fs::write(dir.join("htpasswd"), HTPASSWD)?;
        let address = free_address()?;
        let path = |name: &str| dir.join(name).display().to_string();
        let config = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n  tls:\n    certificate: {}\n    key: {}\n    clientcas:\n      - {}\nauth:\n  htpasswd:\n    realm: site\n    path: {}\n",
            path("data"),
            path("server.crt"),
            path("server.key"),
            path("ca.crt"),
            path("htpasswd")
        );
        let process = start(dir, program, &config, &address)?;
        Ok(Self { address, dir: dir.to_owned(), process })
    }

    /// Tells a node how to reach it; `trusted`: also whom to trust, and what to show.
    pub(super) fn install(&self, mirrors: &Path, trusted: bool) -> Result<()> {
        let own = mirrors.join(&self.address);
        fs::create_dir_all(&own)?;
        let file = |name: &str| self.dir.join(name).display().to_string();
        if !trusted {
            return Ok(fs::write(
                own.join("hosts.toml"),
                format!("server = \"https://{}\"\n", self.address),
            )?);
        }
        let text = format!(
            "server = \"https://{}\"\nca = {:?}\nclient = [[{:?}, {:?}]]\n",
            self.address,
            file("ca.crt"),
            file("node.crt"),
            file("node.key")
        );
        Ok(fs::write(own.join("hosts.toml"), text)?)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A registry without TLS that can be restarted on its port.
#[derive(Debug)]
pub(super) struct Plain {
    pub(super) address: String,
    dir: PathBuf,
    config: String,
    process: Child,
}

impl Plain {
    pub(super) fn start(dir: &Path) -> Result<Self> {
        let address = free_address()?;
        let data = dir.join("data").display().to_string();
        let config = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {data}\nhttp:\n  addr: {address}\n"
        );
        let process = start(dir, "docker-registry", &config, &address)?;
        Ok(Self { address, dir: dir.to_owned(), config, process })
    }

    pub(super) fn restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = start(&self.dir, "docker-registry", &self.config, &self.address)?;
        Ok(())
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start(dir: &Path, program: &str, config: &str, address: &str) -> Result<Child> {
    let file = dir.join("registry.yml");
    fs::write(&file, config)?;
    let log = fs::File::options().create(true).append(true).open(dir.join("registry.log"))?;
    let process = Command::new(program)
        .arg("serve")
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    shell::eventually("the registry listens", 20, || Ok(TcpStream::connect(address).ok()))?;
    Ok(process)
}

/// An address nobody listens on: a private machine has no one who could take it in between.
fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
