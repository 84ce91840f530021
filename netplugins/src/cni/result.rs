//! Results of plugins, in every version of the specification.
//!
//! Inside there is one type, the newest form. Versions 0.1.0 and 0.2.0 know one address per family (`ip4`, `ip6`); 0.3.0
//! to 0.4.0 name each address's family; 1.0.0 drops that; 1.1.0 adds details of interfaces and routes.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::config::{VERSIONS, at_least};

/// What a chain of plugins made.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Success {
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) ips: Vec<Ip>,
    pub(crate) routes: Vec<Route>,
    pub(crate) dns: Map<String, Value>,
}

/// An interface; `sandbox` is empty on the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) mac: String,
    pub(crate) mtu: Option<u64>,
    pub(crate) sandbox: String,
    pub(crate) socket_path: String,
    pub(crate) pci_id: String,
}

/// An address.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ip {
    /// Index into the interfaces.
    pub(crate) interface: Option<usize>,
    pub(crate) address: (IpAddr, u8),
    pub(crate) gateway: Option<IpAddr>,
}

/// A route.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Route {
    pub(crate) to: (IpAddr, u8),
    pub(crate) via: Option<IpAddr>,
    /// `mtu`, `advmss`, `priority`, `table`, `scope` (1.1.0).
    pub(crate) details: Map<String, Value>,
}

const ROUTE_DETAILS: [&str; 5] = ["mtu", "advmss", "priority", "table", "scope"];

impl Success {
    /// Reads a result; one without `cniVersion` is of the version that was asked for.
    pub(crate) fn decode(value: &Value, asked: &str) -> Result<Self, String> {
        let object = value.as_object().ok_or("it is not an object")?;
        let version =
            object.get("cniVersion").and_then(Value::as_str).filter(|v| !v.is_empty()).unwrap_or(asked);
        if !VERSIONS.contains(&version) {
            return Err(format!("CNI version {version} is not known"));
        }
        let mut success = if at_least(version, "0.3.0") {
            Self::decode_lists(object)?
        } else {
            Self::decode_families(object)?
        };
        if let Some(Value::Object(dns)) = object.get("dns") {
            success.dns = dns.clone();
        }
        Ok(success)
    }

    /// Writes it the way that version does.
    pub(crate) fn encode(&self, version: &str) -> Result<Value, String> {
        let mut object =
            if at_least(version, "0.3.0") { self.encode_lists(version) } else { self.encode_families()? };
        object.insert("cniVersion".into(), json!(version));
        if !self.dns.is_empty() || !at_least(version, "1.0.0") {
            object.insert("dns".into(), Value::Object(self.dns.clone()));
        }
        Ok(Value::Object(object))
    }

    /// Addresses inside the container: those of interfaces with a sandbox, or of no interface at all.
    pub(crate) fn pod_addresses(&self) -> Vec<(IpAddr, u8)> {
        let inside = |index: Option<usize>| {
            index.and_then(|i| self.interfaces.get(i)).is_none_or(|interface| !interface.sandbox.is_empty())
        };
        self.ips.iter().filter(|ip| inside(ip.interface)).map(|ip| ip.address).collect()
    }

    fn decode_lists(object: &Map<String, Value>) -> Result<Self, String> {
        Ok(Self {
            interfaces: list(object, "interfaces")?
                .iter()
                .map(Interface::decode)
                .collect::<Result<_, _>>()?,
            ips: list(object, "ips")?.iter().map(Ip::decode).collect::<Result<_, _>>()?,
            routes: list(object, "routes")?.iter().map(Route::decode).collect::<Result<_, _>>()?,
            dns: Map::new(),
        })
    }

    fn decode_families(object: &Map<String, Value>) -> Result<Self, String> {
        let mut success = Self::default();
        for key in ["ip4", "ip6"] {
            let Some(Value::Object(family)) = object.get(key) else { continue };
            let address = subnet(family, "ip")?.ok_or(format!("\"{key}\" has no \"ip\""))?;
            success.ips.push(Ip { interface: None, address, gateway: address_of(family, "gateway")? });
            for route in list(family, "routes")? {
                success.routes.push(Route::decode(route)?);
            }
        }
        Ok(success)
    }

    fn encode_lists(&self, version: &str) -> Map<String, Value> {
        let mut object = Map::new();
        let mut add = |key: &str, values: Vec<Value>| {
            if !values.is_empty() {
                object.insert(key.into(), Value::Array(values));
            }
        };
        add("interfaces", self.interfaces.iter().map(|i| i.encode(version)).collect());
        add("ips", self.ips.iter().map(|ip| ip.encode(version)).collect());
        add("routes", self.routes.iter().map(|r| r.encode(version)).collect());
        object
    }

    fn encode_families(&self) -> Result<Map<String, Value>, String> {
        let mut object = Map::new();
        for (key, ipv4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.0.is_ipv4() == ipv4) else { continue };
            let mut family = Map::from_iter([("ip".to_owned(), json!(subnet_text(ip.address)))]);
            family.extend(ip.gateway.map(|g| ("gateway".to_owned(), json!(g))));
            let routes = self.routes.iter().filter(|r| r.to.0.is_ipv4() == ipv4);
            let routes: Vec<Value> = routes.map(|r| r.encode("0.2.0")).collect();
            if !routes.is_empty() {
                family.insert("routes".into(), Value::Array(routes));
            }
            object.insert(key.into(), Value::Object(family));
        }
        if object.is_empty() { Err("cannot convert: no valid IP addresses".into()) } else { Ok(object) }
    }
}

impl Interface {
    fn decode(value: &Value) -> Result<Self, String> {
        let text = |key| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        if !value.is_object() {
            return Err("an interface is not an object".into());
        }
        Ok(Self {
            name: text("name"),
            mac: text("mac"),
            mtu: value.get("mtu").and_then(Value::as_u64),
            sandbox: text("sandbox"),
            socket_path: text("socketPath"),
            pci_id: text("pciID"),
        })
    }

    fn encode(&self, version: &str) -> Value {
        let mut object = Map::from_iter([("name".to_owned(), json!(self.name))]);
        let mut add = |key: &str, value: &str| {
            if !value.is_empty() {
                object.insert(key.into(), json!(value));
            }
        };
        add("mac", &self.mac);
        add("sandbox", &self.sandbox);
        if at_least(version, "1.1.0") {
            add("socketPath", &self.socket_path);
            add("pciID", &self.pci_id);
            object.extend(self.mtu.filter(|m| *m > 0).map(|m| ("mtu".to_owned(), json!(m))));
        }
        Value::Object(object)
    }
}

impl Ip {
    fn decode(value: &Value) -> Result<Self, String> {
        let object = value.as_object().ok_or("an address is not an object")?;
        Ok(Self {
            interface: object.get("interface").and_then(Value::as_u64).and_then(|i| usize::try_from(i).ok()),
            address: subnet(object, "address")?.ok_or("an address has no \"address\"")?,
            gateway: address_of(object, "gateway")?,
        })
    }

    fn encode(&self, version: &str) -> Value {
        let mut object = Map::from_iter([("address".to_owned(), json!(subnet_text(self.address)))]);
        if !at_least(version, "1.0.0") {
            object.insert("version".into(), json!(if self.address.0.is_ipv4() { "4" } else { "6" }));
        }
        object.extend(self.interface.map(|i| ("interface".to_owned(), json!(i))));
        object.extend(self.gateway.map(|g| ("gateway".to_owned(), json!(g))));
        Value::Object(object)
    }
}

impl Route {
    /// Reads a route, of a result or of a configuration.
    pub(crate) fn decode(value: &Value) -> Result<Self, String> {
        let object = value.as_object().ok_or("a route is not an object")?;
        let details = ROUTE_DETAILS.iter().filter_map(|k| Some(((*k).to_owned(), object.get(*k)?.clone())));
        Ok(Self {
            to: subnet(object, "dst")?.ok_or("a route has no \"dst\"")?,
            via: address_of(object, "gw")?,
            details: details.collect(),
        })
    }

    pub(crate) fn encode(&self, version: &str) -> Value {
        let mut object = Map::from_iter([("dst".to_owned(), json!(subnet_text(self.to)))]);
        object.extend(self.via.map(|g| ("gw".to_owned(), json!(g))));
        if at_least(version, "1.1.0") {
            object.extend(self.details.clone());
        }
        Value::Object(object)
    }
}

/// `address/length`.
pub(crate) fn parse_subnet(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let length: u8 = length.parse().ok()?;
    (length <= crate::cidr::width(address)).then_some((address, length))
}

fn subnet_text((address, length): (IpAddr, u8)) -> String {
    format!("{address}/{length}")
}

fn list<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a [Value], String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(values)) => Ok(values),
        Some(_) => Err(format!("\"{key}\" is not a list")),
    }
}

fn subnet(object: &Map<String, Value>, key: &str) -> Result<Option<(IpAddr, u8)>, String> {
    let Some(value) = object.get(key).filter(|v| !v.is_null()) else { return Ok(None) };
    let parsed = value.as_str().and_then(parse_subnet);
    parsed.map(Some).ok_or_else(|| format!("{value} is not address/length"))
}

fn address_of(object: &Map<String, Value>, key: &str) -> Result<Option<IpAddr>, String> {
    let Some(value) = object.get(key).filter(|v| !v.is_null() && v.as_str() != Some("")) else {
        return Ok(None);
    };
    let parsed = value.as_str().and_then(|s| s.parse().ok());
    parsed.map(Some).ok_or_else(|| format!("{value} is not an address"))
}

#[cfg(test)]
mod tests;
