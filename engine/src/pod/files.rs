//! hosts, hostname and resolv.conf of a pod.

use std::fs;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::config::Config;
use crate::spec::{Dns, NamespaceMode, PodSpec};
use crate::{Error, Kind};

/// Path in the container and name in the pod's directory.
pub const FILES: [(&str, &str); 3] =
    [("/etc/hosts", "hosts"), ("/etc/hostname", "hostname"), ("/etc/resolv.conf", "resolv.conf")];

/// A node's hosts or resolv.conf larger than this is not copied.
const LIMIT: u64 = 1 << 20;

/// Writes the files into `dir`. `spec` is the effective one.
pub fn write(dir: &Path, config: &Config, spec: &PodSpec, ips: &[IpAddr]) -> Result<(), Error> {
    let own_network = spec.security.namespaces.network == NamespaceMode::Pod;
    let hosts = if own_network { hosts(&spec.hostname, ips) } else { copy(&config.hosts_file)? };
    let hostname = if own_network { spec.hostname.clone() } else { node_name() };
    let resolv = match &spec.dns {
        Some(dns) => resolv_conf(dns).into_bytes(),
        None => copy(&config.resolv_conf)?,
    };
    put(&dir.join("hosts"), &hosts)?;
    put(&dir.join("hostname"), format!("{hostname}\n").as_bytes())?;
    put(&dir.join("resolv.conf"), &resolv)
}

/// The node's host name.
pub fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn hosts(hostname: &str, ips: &[IpAddr]) -> Vec<u8> {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for ip in ips {
        text.push_str(&format!("{ip}\t{hostname}\n"));
    }
    text.into_bytes()
}

fn resolv_conf(dns: &Dns) -> String {
    let mut text: String = dns.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

fn copy(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    match fs::File::open(path).and_then(|file| file.take(LIMIT).read_to_end(&mut bytes)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::with(Kind::Internal, format!("read {}", path.display()), error))
        }
        _ => Ok(bytes),
    }
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(|e| Error::with(Kind::Internal, format!("write {}", path.display()), e))
}
