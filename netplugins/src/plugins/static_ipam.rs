//! `static`: the addresses that are written down, overridden by arguments.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::conf::Conf;
use super::{Answer, Command, Refusal, Request};
use crate::cni::result::{Ip, Route, Success, parse_subnet};

pub(super) fn run(request: &Request) -> Answer {
    match request.command {
        Command::Add => add(request).map(Some),
        Command::Check => check(request).map(|()| None),
        Command::Del | Command::Gc | Command::Status => Ok(None),
    }
}

fn add(request: &Request) -> Result<Success, Refusal> {
    let ipam =
        request.conf.object("ipam")?.ok_or_else(|| Refusal::config("IPAM config missing 'ipam' key"))?;
    Ok(Success {
        ips: addresses(request, &ipam)?,
        routes: routes(&ipam)?,
        dns: dns(&ipam)?,
        ..Success::default()
    })
}

/// The addresses are still in the result that the runtime kept.
fn check(request: &Request) -> Result<(), Refusal> {
    let wanted = add(request)?;
    let previous = request.previous()?.unwrap_or_default();
    match wanted.ips.iter().find(|ip| !previous.ips.iter().any(|p| p.address == ip.address)) {
        None => Ok(()),
        Some(ip) => {
            let (address, length) = ip.address;
            Err(Refusal::config(format!("static: Failed to find address {address}/{length} in prevResult")))
        }
    }
}

/// In rising order of weight: `addresses`, `IP` and `GATEWAY` of CNI_ARGS, `args.cni.ips`, `runtimeConfig.ips`.
fn addresses(request: &Request, ipam: &Conf) -> Result<Vec<Ip>, Refusal> {
    let mut ips = Vec::new();
    for entry in ipam.objects("addresses")? {
        let text = entry.text("address")?.unwrap_or_default();
        ips.push(Ip { interface: None, address: subnet(text)?, gateway: entry.address("gateway")? });
    }
    if let Some(list) = request.args.get("IP").filter(|l| !l.is_empty()) {
        let gateways: Vec<IpAddr> = match request.args.get("GATEWAY").filter(|g| !g.is_empty()) {
            None => Vec::new(),
            Some(list) => list
                .split(',')
                .map(|g| {
                    g.trim().parse().map_err(|_| Refusal::config(format!("invalid gateway address: {g}")))
                })
                .collect::<Result<_, _>>()?,
        };
        ips = listed(list.split(','))?;
        for ip in &mut ips {
            ip.gateway = gateways.iter().copied().find(|g| g.is_ipv4() == ip.address.0.is_ipv4());
        }
    }
    for path in [["args", "cni"].as_slice(), &["runtimeConfig"]] {
        let mut at = Some(request.conf.clone());
        for key in path {
            at = at.map(|c| c.object(key)).transpose()?.flatten();
        }
        let wanted = at.map(|c| c.texts("ips")).transpose()?.unwrap_or_default();
        if !wanted.is_empty() {
            ips = listed(wanted.iter().map(String::as_str))?;
        }
    }
    Ok(ips)
}

fn listed<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<Ip>, Refusal> {
    texts.map(|t| Ok(Ip { interface: None, address: subnet(t.trim())?, gateway: None })).collect()
}

fn subnet(text: &str) -> Result<(IpAddr, u8), Refusal> {
    parse_subnet(text).ok_or_else(|| {
        Refusal::config(format!("the 'address' field is expected to be in CIDR notation, got: '{text}'"))
    })
}

/// `routes` of an `ipam` object.
pub(super) fn routes(ipam: &Conf) -> Result<Vec<Route>, Refusal> {
    ipam.list("routes")?.iter().map(|r| Route::decode(r).map_err(Refusal::config)).collect()
}

/// `dns` of an `ipam` object.
fn dns(ipam: &Conf) -> Result<Map<String, Value>, Refusal> {
    let Some(dns) = ipam.object("dns")? else { return Ok(Map::new()) };
    let mut out = Map::new();
    for key in ["nameservers", "search", "options"] {
        let values = dns.texts(key)?;
        if !values.is_empty() {
            out.insert(key.into(), json!(values));
        }
    }
    out.extend(dns.text("domain")?.filter(|d| !d.is_empty()).map(|d| ("domain".to_owned(), json!(d))));
    Ok(out)
}
