//! Sandbox requests.

use std::net::IpAddr;

use engine::Error;
use engine::spec::{Dns, NamespaceMode, PodSpec, PortMapping, Protocol};

use super::{absolute, known, no_nul, no_nuls, no_parent, no_windows, non_empty, required};
use super::{resources, security};
use crate::proto;

/// Longest host name the kernel keeps (`__NEW_UTS_LEN`, uname(2)).
const LONGEST_HOSTNAME: usize = 64;

/// Reads a sandbox configuration found at `at`.
pub fn pod(at: &str, config: Option<proto::PodSandboxConfig>, handler: String) -> Result<PodSpec, Error> {
    let config = required(at, config)?;
    no_windows(&format!("{at}.windows"), config.windows.as_ref())?;
    let metadata = required(&format!("{at}.metadata"), config.metadata)?;
    let linux = config.linux.unwrap_or_default();
    let security = security::pod(&format!("{at}.linux.security_context"), linux.security_context)?;
    let name = non_empty(&format!("{at}.metadata.name"), metadata.name)?;
    let hostname = no_nul(&format!("{at}.hostname"), config.hostname)?;
    if hostname.len() > LONGEST_HOSTNAME {
        let why = format!("longer than {LONGEST_HOSTNAME} characters");
        return Err(Error::invalid(&format!("{at}.hostname"), why));
    }
    Ok(PodSpec {
        hostname: host_name(hostname, &name, security.namespaces.network),
        name,
        namespace: non_empty(&format!("{at}.metadata.namespace"), metadata.namespace)?,
        uid: non_empty(&format!("{at}.metadata.uid"), metadata.uid)?,
        attempt: metadata.attempt,
        log_directory: match config.log_directory.as_str() {
            "" => Default::default(),
            _ => absolute(&format!("{at}.log_directory"), config.log_directory)?.into(),
        },
        dns: config.dns_config.map(|d| dns(&format!("{at}.dns_config"), d)).transpose()?,
        port_mappings: port_mappings(&format!("{at}.port_mappings"), config.port_mappings)?,
        labels: config.labels,
        annotations: config.annotations,
        cgroup_parent: cgroup_parent(&format!("{at}.linux.cgroup_parent"), linux.cgroup_parent)?,
        sysctls: linux.sysctls,
        security,
        overhead: linux
            .overhead
            .map(|r| resources::resources(&format!("{at}.linux.overhead"), Some(r)))
            .transpose()?,
        resources: linux
            .resources
            .map(|r| resources::resources(&format!("{at}.linux.resources"), Some(r)))
            .transpose()?,
        handler,
    })
}

/// A pod with a network of its own always has a host name: the given one, else its name as far as it fits.
fn host_name(given: String, pod: &str, network: NamespaceMode) -> String {
    if !given.is_empty() || network == NamespaceMode::Node {
        return given;
    }
    let mut name: String = pod.chars().filter(char::is_ascii).take(LONGEST_HOSTNAME - 1).collect();
    name.truncate(name.trim_end_matches(['-', '.', '_']).len());
    if name.is_empty() { "pod".to_owned() } else { name }
}

fn dns(at: &str, dns: proto::DnsConfig) -> Result<Dns, Error> {
    for (i, server) in dns.servers.iter().enumerate() {
        // A zone (`fe80::1%eth0`) is legal in resolv.conf(5) and no part of an address.
        let address = server.split('%').next().unwrap_or_default();
        if address.parse::<IpAddr>().is_err() {
            let why = format!("\"{server}\" is not an IP address");
            return Err(Error::invalid(&format!("{at}.servers[{i}]"), why));
        }
    }
    let words = |name: &str, list: Vec<String>| -> Result<Vec<String>, Error> {
        let field = format!("{at}.{name}");
        match list.iter().position(|word| word.contains(char::is_whitespace)) {
            Some(i) => Err(Error::invalid(&format!("{field}[{i}]"), "holds white space")),
            None => no_nuls(&field, list),
        }
    };
    Ok(Dns {
        servers: words("servers", dns.servers)?,
        searches: words("searches", dns.searches)?,
        options: words("options", dns.options)?,
    })
}

fn port_mappings(at: &str, mappings: Vec<proto::PortMapping>) -> Result<Vec<PortMapping>, Error> {
    let mapping = |(i, m): (usize, proto::PortMapping)| {
        let at = format!("{at}[{i}]");
        let port = |name: &str, value: i32, least: u16| {
            let port = u16::try_from(value).ok().filter(|p| *p >= least);
            let why = format!("{value} is not a port from {least} to 65535");
            port.ok_or_else(|| Error::invalid(&format!("{at}.{name}"), why))
        };
        if !m.host_ip.is_empty() && m.host_ip.parse::<IpAddr>().is_err() {
            let why = format!("\"{}\" is not an IP address", m.host_ip);
            return Err(Error::invalid(&format!("{at}.host_ip"), why));
        }
        Ok(PortMapping {
            protocol: match known(&format!("{at}.protocol"), m.protocol)? {
                proto::Protocol::Tcp => Protocol::Tcp,
                proto::Protocol::Udp => Protocol::Udp,
                proto::Protocol::Sctp => Protocol::Sctp,
            },
            container_port: port("container_port", m.container_port, 1)?,
            host_port: port("host_port", m.host_port, 0)?,
            host_ip: m.host_ip,
        })
    };
    mappings.into_iter().enumerate().map(mapping).collect()
}

/// A cgroup path in cgroupfs spelling, made absolute; empty stays empty.
fn cgroup_parent(field: &str, path: String) -> Result<String, Error> {
    let path = no_parent(field, no_nul(field, path)?)?;
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.is_empty() {
        return Ok(String::new());
    }
    Ok(format!("/{}", parts.join("/")))
}
