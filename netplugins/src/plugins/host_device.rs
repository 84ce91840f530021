//! `host-device`: a device of the node that becomes the pod's, and comes back.
//!
//! Moving, renaming and writing the old name into the device's alias are one message, so that nobody on the node ever sees
//! the device under another name. Where userspace drives the device (DPDK), nothing is moved.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::interface::{self, describe, find, internal};
use super::{Answer, Command, Refusal, Request, code, delegate};
use crate::cni::result::{Interface, Success};
use crate::netlink::device::{Details, Device};
use crate::netlink::op::Op;
use crate::netlink::{Socket, route};
use crate::netns::{self, socket_in};

const PCI: &str = "/sys/bus/pci/devices";
const AUXILIARY: &str = "/sys/bus/auxiliary/devices";
/// Drivers that hand a device to userspace.
const USERSPACE: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// How the device is told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Name(String),
    Mac(String),
    /// A directory that holds one network device.
    Directory(PathBuf),
    /// A PCI device, which may have its network device behind a virtio one.
    Pci(String),
}

pub(super) fn run(request: &Request) -> Answer {
    match request.command {
        Command::Add => add(request).map(Some),
        Command::Del => {
            delegate::forward(request)?;
            if request.netns.is_some() && !driven_by_userspace(&wanted(request)?) {
                give_back(request)?;
            }
            Ok(None)
        }
        Command::Check => {
            delegate::forward(request)?;
            if driven_by_userspace(&wanted(request)?) {
                return Ok(None);
            }
            interface::check(request).map(|()| None)
        }
        Command::Gc => delegate::forward(request).map(|()| None),
        Command::Status => {
            delegate::forward(request)?;
            wanted(request).map(|_| None)
        }
    }
}

/// Which device; `runtimeConfig.deviceID` wins over what is written.
fn wanted(request: &Request) -> Result<Wanted, Refusal> {
    let conf = &request.conf;
    let text = |key: &str| conf.text(key).map(|t| t.filter(|t| !t.is_empty()).map(str::to_owned));
    let device = conf.object("runtimeConfig")?.map(|r| r.text("deviceID").map(|t| t.map(str::to_owned)));
    let mut pci = text("pciBusID")?;
    let mut auxiliary = None;
    if let Some(id) = device.transpose()?.flatten().filter(|id| !id.is_empty()) {
        let plain = !id.contains('/') && id != "." && id != "..";
        if plain && Path::new(PCI).join(&id).exists() {
            pci = Some(id);
        } else if plain && Path::new(AUXILIARY).join(&id).exists() {
            (pci, auxiliary) = (None, Some(id));
        } else {
            let msg = format!("runtime config DeviceID {id} not found or unsupported");
            return Err(Refusal::config(msg));
        }
    }
    if let Some(path) = text("kernelpath")?.filter(|p| !p.starts_with("/sys/devices/") || p.contains("..")) {
        let msg = format!("kernel device path \"{path}\" must be absolute and begin with /sys/devices/");
        return Err(Refusal::config(msg));
    }
    if let Some(id) = pci.as_ref().filter(|id| id.contains('/') || id.contains("..")) {
        return Err(Refusal::config(format!("pciBusID \"{id}\" is a path")));
    }
    let found = text("device")?.map(Wanted::Name);
    let found = found.or(text("hwaddr")?.map(|mac| Wanted::Mac(mac.to_ascii_lowercase())));
    let found = found.or(text("kernelpath")?.map(|p| Wanted::Directory(Path::new(&p).join("net"))));
    let found = found.or(pci.map(Wanted::Pci));
    let found = found.or(auxiliary.map(|id| Wanted::Directory(Path::new(AUXILIARY).join(id).join("net"))));
    found.ok_or_else(|| {
        Refusal::config("specify either \"device\", \"hwaddr\", \"kernelpath\" or \"pciBusID\"")
    })
}

fn driven_by_userspace(wanted: &Wanted) -> bool {
    let Wanted::Pci(id) = wanted else { return false };
    let driver = fs::read_link(Path::new(PCI).join(id).join("driver")).unwrap_or_default();
    driver.file_name().is_some_and(|name| USERSPACE.iter().any(|u| name == *u))
}

fn add(request: &Request) -> Result<Success, Refusal> {
    let wanted = wanted(request)?;
    let ns = request.open_netns()?;
    let mut pod = socket_in(ns.as_fd())?;
    let moved = !driven_by_userspace(&wanted);
    let mut result = delegate::allocate_if_asked(request)?;
    let done: Result<Interface, Refusal> = (|| {
        let sandbox = interface::sandbox(request);
        if !moved {
            return Ok(Interface { name: request.interface.clone(), sandbox, ..Interface::default() });
        }
        let mut node = interface::node()?;
        let device = device(&mut node, &wanted)?;
        let entering = Op::Device(Device::moved(&device.name, &request.interface, &device.name));
        route::run(&mut node, &[entering], Some(ns.as_fd()))?;
        let ops = interface::configure(&request.interface, &result, true)?;
        netns::apply(&mut pod, &ops, ns.as_fd()).inspect_err(|_| {
            let _ = give_back(request);
            if device.up {
                let _ = route::run(&mut node, &[Op::Up(device.name.clone())], None);
            }
        })?;
        Ok(describe(&find(&mut pod, &request.interface)?, &sandbox))
    })();
    let interface = done.inspect_err(|_| delegate::give_back(request))?;
    result.interfaces = vec![interface];
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
    result.dns.clear();
    if !result.ips.is_empty() {
        interface::set_dns(request, &mut result)?;
    }
    Ok(result)
}

/// Moves the device back under the name its alias holds; a device that is gone is fine.
fn give_back(request: &Request) -> Result<(), Refusal> {
    let Some(ns) = request.netns_if_there() else { return Ok(()) };
    let mut pod = socket_in(ns.as_fd())?;
    let Some(device) = route::details(&mut pod, &request.interface).map_err(internal)? else { return Ok(()) };
    if device.alias.is_empty() {
        let msg = format!("failed to find original ifname for \"{}\" (alias is not set)", request.interface);
        return Err(Refusal::new(code::INTERNAL, msg));
    }
    let leaving = Op::Device(Device::moved(&request.interface, &device.alias, ""));
    let node =
        netns::current().map_err(|e| Refusal::new(code::IO, format!("cannot open this namespace: {e}")))?;
    Ok(route::run(&mut pod, &[leaving], Some(node.as_fd()))?)
}

fn device(node: &mut Socket, wanted: &Wanted) -> Result<Details, Refusal> {
    let links = route::all_details(node).map_err(internal)?;
    let name = match wanted {
        Wanted::Name(name) => name.clone(),
        Wanted::Mac(mac) => {
            let found = links.into_iter().find(|link| link.mac == *mac);
            return found.ok_or_else(|| missing(&format!("with address {mac}")));
        }
        Wanted::Directory(directory) => first_in(directory)?,
        Wanted::Pci(id) => {
            let device = Path::new(PCI).join(id);
            let behind = fs::read_dir(&device).into_iter().flatten().flatten().map(|e| e.path());
            let virtio =
                behind.filter(|p| p.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"virtio")));
            let direct = std::iter::once(device.join("net"));
            let nets = direct.chain(virtio.map(|p| p.join("net")));
            let net = nets.into_iter().find(|p| p.is_dir());
            first_in(&net.ok_or_else(|| missing(&format!("of PCI device {id}")))?)?
        }
    };
    links.into_iter().find(|link| link.name == name).ok_or_else(|| missing(&format!("\"{name}\"")))
}

fn first_in(directory: &Path) -> Result<String, Refusal> {
    let mut entries = fs::read_dir(directory).map_err(|e| {
        Refusal::new(code::IO, format!("failed to read directory {}: {e}", directory.display()))
    })?;
    let first = entries.next().and_then(Result::ok).and_then(|e| e.file_name().into_string().ok());
    first.ok_or_else(|| missing(&format!("in {}", directory.display())))
}

fn missing(which: &str) -> Refusal {
    Refusal::new(code::INTERNAL, format!("failed to find host device {which}: Link not found"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::testing::request;

    #[test]
    fn a_device_is_told_in_one_of_five_ways() {
        for (conf, want) in [
            (json!({"device": "ens5", "hwaddr": "00:11:22:33:44:55"}), Wanted::Name("ens5".into())),
            (json!({"hwAddr": "00:AA:22:33:44:55"}), Wanted::Mac("00:aa:22:33:44:55".into())),
            (json!({"kernelPath": "/sys/devices/x"}), Wanted::Directory("/sys/devices/x/net".into())),
            (json!({"pciBusID": "0000:00:1f.6"}), Wanted::Pci("0000:00:1f.6".into())),
        ] {
            assert_eq!(wanted(&request("ADD", conf.clone())).unwrap(), want, "{conf}");
        }
        for (conf, why) in [
            (json!({}), "specify either"),
            (json!({"kernelpath": "/etc"}), "must be absolute and begin with /sys/devices/"),
            (json!({"kernelpath": "/sys/devices/../../etc"}), "must be absolute"),
            (json!({"pciBusID": "../../x"}), "is a path"),
            (json!({"runtimeConfig": {"deviceID": "nope"}}), "DeviceID nope not found or unsupported"),
            (json!({"runtimeConfig": {"deviceID": "../.."}}), "not found or unsupported"),
        ] {
            let refusal = wanted(&request("ADD", conf.clone())).unwrap_err();
            assert!(refusal.msg.contains(why), "{conf}: {refusal}");
        }
    }
}
