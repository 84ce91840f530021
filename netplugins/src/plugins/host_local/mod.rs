//! `host-local`: addresses from ranges, held by files on this node.
//!
//! The configuration and the files are those of the reference plugin, so that the two may follow one another on a node:
//! [`range`] is what may be given, [`store`] who holds what. A pool is gone through in turn, from the last address given.

mod range;
mod store;

use std::net::IpAddr;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::static_ipam::routes;
use super::{Answer, Command, Refusal, Request, code};
use crate::cni::result::{Ip, Success};

use range::Pool;
use store::Store;

const DATA_DIR: &str = "/var/lib/cni/networks";

/// The `ipam` object.
#[derive(Debug)]
struct Settings {
    /// One address is given of each.
    pools: Vec<Pool>,
    /// Addresses asked for by name.
    wanted: Vec<IpAddr>,
    store: Store,
}

pub(super) fn run(request: &Request) -> Answer {
    let settings = settings(request)?;
    let store = &settings.store;
    match request.command {
        Command::Add => add(request, &settings).map(Some),
        Command::Del => store.release(|c, i| c == request.container && i == request.interface).map(|()| None),
        Command::Check => match store.holds(&request.container, &request.interface)? {
            true => Ok(None),
            false => Err(Refusal::new(
                code::INTERNAL,
                format!("host-local: Failed to find address added by container {}", request.container),
            )),
        },
        Command::Gc => {
            let valid = request.valid();
            store.release(|c, i| !valid.iter().any(|(vc, vi)| vc == c && vi == i)).map(|()| None)
        }
        Command::Status => Ok(None),
    }
}

fn add(request: &Request, settings: &Settings) -> Result<Success, Refusal> {
    let ipam = request.conf.object("ipam")?.unwrap_or_else(|| request.conf.clone());
    let mut wanted = settings.wanted.clone();
    let locked = settings.store.lock()?;
    let mut ips: Vec<Ip> = Vec::new();
    for (index, pool) in settings.pools.iter().enumerate() {
        let named = wanted.iter().position(|ip| pool.holds(*ip)).map(|at| wanted.remove(at));
        let given = locked.give(index, pool, named, &request.container, &request.interface);
        let (address, range) = given.inspect_err(|_| {
            // All of them or none.
            for ip in &ips {
                let _ = locked.take_back(ip.address.0);
            }
        })?;
        ips.push(Ip { interface: None, address: (address, range.length()), gateway: range.gateway });
    }
    if let Some(left) = wanted.first() {
        for ip in &ips {
            locked.take_back(ip.address.0)?;
        }
        return Err(Refusal::config(format!("requested IP address {left} is not part of any range")));
    }
    let dns = match ipam.text("resolvConf")?.filter(|f| !f.is_empty()) {
        Some(file) => resolver(Path::new(file))?,
        None => Map::new(),
    };
    Ok(Success { ips, routes: routes(&ipam)?, dns, ..Success::default() })
}

fn settings(request: &Request) -> Result<Settings, Refusal> {
    let ipam =
        request.conf.object("ipam")?.ok_or_else(|| Refusal::config("IPAM config missing 'ipam' key"))?;
    let runtime = request.conf.object("runtimeConfig")?;
    let mut pools = Vec::new();
    if let Some(runtime) = &runtime {
        pools.extend(Pool::list(runtime, "ipRanges")?);
    }
    if ipam.text("subnet")?.is_some_and(|s| !s.is_empty()) {
        pools.push(Pool::single(&ipam)?);
    }
    pools.extend(Pool::list(&ipam, "ranges")?);
    if pools.is_empty() && request.command == Command::Add {
        return Err(Refusal::config("no IP ranges specified"));
    }
    range::check_overlap(&pools)?;

    let mut texts: Vec<String> = Vec::new();
    texts.extend(request.args.get("IP").into_iter().flat_map(|list| list.split(',')).map(str::to_owned));
    if let Some(cni) = request.conf.object("args")?.map(|a| a.object("cni")).transpose()?.flatten() {
        texts.extend(cni.texts("ips")?);
    }
    if let Some(runtime) = &runtime {
        texts.extend(runtime.texts("ips")?);
    }
    let parse = |t: &String| {
        let bare = t.split_once('/').map_or(t.as_str(), |(ip, _)| ip).trim();
        bare.parse().map_err(|_| Refusal::config(format!("invalid IP address {t}")))
    };
    let wanted = texts.iter().filter(|t| !t.is_empty()).map(parse).collect::<Result<_, _>>()?;
    let network = request.conf.text("name")?.unwrap_or_default();
    let directory = ipam.text("dataDir")?.filter(|d| !d.is_empty()).unwrap_or(DATA_DIR);
    Ok(Settings { pools, wanted, store: Store::new(&Path::new(directory).join(network)) })
}

/// resolv.conf(5) as a result's `dns`.
fn resolver(file: &Path) -> Result<Map<String, Value>, Refusal> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| Refusal::new(code::IO, format!("cannot read {}: {e}", file.display())))?;
    let (mut servers, mut search, mut options, mut domain) =
        (Vec::new(), Vec::new(), Vec::new(), String::new());
    for line in text.lines().map(str::trim).filter(|l| !l.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(words.next().map(str::to_owned)),
            Some("domain") => domain = words.next().unwrap_or_default().to_owned(),
            Some("search") => search.extend(words.map(str::to_owned)),
            Some("options") => options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    let mut dns = Map::new();
    for (key, values) in [("nameservers", servers), ("search", search), ("options", options)] {
        if !values.is_empty() {
            dns.insert(key.into(), json!(values));
        }
    }
    if !domain.is_empty() {
        dns.insert("domain".into(), json!(domain));
    }
    Ok(dns)
}
