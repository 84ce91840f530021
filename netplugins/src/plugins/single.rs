//! `dummy`, `ipvlan`, `macvlan` and `vlan`: plugins whose interface is one link, on a parent or on nothing.
//!
//! The link is born in the pod's namespace under its final name. Kernels before 6.13 refuse that while the node has a link
//! of the same name; only then it is born under another and renamed.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::interface::{self, describe, find, internal};
use super::{Answer, Command, Refusal, Request, code, delegate};
use crate::cni::result::Success;
use crate::error::Error;
use crate::netlink::device::{Change, Create, Details, Device, Kind};
use crate::netlink::op::{Mac, Op};
use crate::netlink::{Socket, policy, route};
use crate::netns::{self, inside, socket_in};
use crate::sysctl;

/// The highest VLAN; 4095 is reserved (IEEE 802.1Q).
const LAST_VLAN: u32 = 4094;

/// The link a new one stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Parent {
    None,
    Named(String),
    /// The one that default routes lead to.
    Default,
}

/// What a configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Settings {
    kind: Kind,
    parent: Parent,
    /// The parent is in the pod.
    inside: bool,
    mtu: Option<u32>,
    mac: Option<Mac>,
    /// Addresses come from the plugin before.
    chained: bool,
    /// Without addresses there is no point in it.
    needs_addresses: bool,
}

pub(super) fn run(kind: &str, request: &Request) -> Answer {
    match request.command {
        Command::Add => add(request, &settings(kind, request)?).map(Some),
        Command::Del => {
            delegate::forward(request)?;
            interface::delete(request).map(|()| None)
        }
        Command::Check => check(request, &settings(kind, request)?).map(|()| None),
        Command::Gc => delegate::forward(request).map(|()| None),
        Command::Status => {
            delegate::forward(request)?;
            status(&settings(kind, request)?).map(|()| None)
        }
    }
}

/// Reads the configuration; pure.
fn settings(kind: &str, request: &Request) -> Result<Settings, Refusal> {
    let conf = &request.conf;
    let mode = conf.text("mode")?.unwrap_or_default();
    let layer3 = delegate::manager(request)?.is_some();
    // At CHECK the previous result is this plugin's own.
    let chains = kind == "ipvlan" && request.command == Command::Add;
    let previous = if chains { request.previous()? } else { None };
    let master = conf.text("master")?.filter(|m| !m.is_empty()).map(str::to_owned);
    let parent = match (kind, master, &previous) {
        ("dummy", ..) => Parent::None,
        (_, Some(name), _) => Parent::Named(name),
        ("vlan", None, _) => {
            let msg =
                "\"master\" field is required. It specifies the host interface name to create the VLAN for";
            return Err(Refusal::config(msg));
        }
        (_, None, None) => Parent::Default,
        (_, None, Some(result)) => match result.interfaces.as_slice() {
            [one] if !one.name.is_empty() => Parent::Named(one.name.clone()),
            _ => {
                let msg = "chained master failure. PrevResult lacks a single named interface";
                return Err(Refusal::config(msg));
            }
        },
    };
    Ok(Settings {
        kind: kind_of(kind, mode, request)?,
        parent,
        inside: kind != "dummy" && conf.flag("linkInContainer")?,
        mtu: if kind == "dummy" { None } else { conf.number("mtu")?.filter(|mtu| *mtu > 0) },
        mac: if kind == "macvlan" { macvlan_mac(request)? } else { None },
        chained: !layer3 && previous.is_some_and(|p| !p.ips.is_empty()),
        needs_addresses: kind != "macvlan" || layer3,
    })
}

fn kind_of(kind: &str, mode: &str, request: &Request) -> Result<Kind, Refusal> {
    let conf = &request.conf;
    let unknown = || Refusal::config(format!("unknown {kind} mode: \"{mode}\""));
    Ok(match kind {
        "dummy" => Kind::Dummy,
        "vlan" => {
            let id = conf.number("vlanId")?.unwrap_or_default();
            let id = u16::try_from(id).ok().filter(|id| u32::from(*id) <= LAST_VLAN);
            let msg = "invalid VLAN ID (must be between 0 and 4094 inclusive)";
            Kind::Vlan(id.ok_or_else(|| Refusal::config(msg))?)
        }
        "ipvlan" => Kind::Ipvlan(match mode {
            "" | "l2" => 0,
            "l3" => 1,
            "l3s" => 2,
            _ => return Err(unknown()),
        }),
        _ => {
            let queue = conf.number("bcqueuelen")?.unwrap_or_default();
            let mode = match mode {
                "private" => 1,
                "vepa" => 2,
                "" | "bridge" => 4,
                "passthru" => 8,
                _ => return Err(unknown()),
            };
            Kind::Macvlan { mode, queue }
        }
    })
}

/// In rising order of weight: `mac`, `MAC` of CNI_ARGS, `args.cni.mac`, `runtimeConfig.mac`.
fn macvlan_mac(request: &Request) -> Result<Option<Mac>, Refusal> {
    let written =
        request.conf.text("mac")?.filter(|m| !m.is_empty()).map(interface::parse_mac).transpose()?;
    Ok(interface::wanted_mac(request)?.or(written))
}

/// The link to make (decided), or why its parent does not allow it.
fn plan(request: &Request, settings: &Settings, parent: Option<&Details>) -> Result<Create, Refusal> {
    if let (Some(mtu), Some(parent)) = (settings.mtu, parent)
        && mtu > parent.mtu
    {
        let msg = format!("invalid MTU {mtu}, must be [0, master MTU({})]", parent.mtu);
        return Err(Refusal::config(msg));
    }
    Ok(Create {
        name: request.interface.clone(),
        kind: settings.kind,
        parent: parent.map(|p| p.name.clone()),
        mtu: settings.mtu,
        mac: settings.mac,
        away: !settings.inside && parent.is_some(),
    })
}

fn add(request: &Request, settings: &Settings) -> Result<Success, Refusal> {
    let ns = request.open_netns()?;
    let mut pod = socket_in(ns.as_fd())?;
    let local = settings.inside || settings.parent == Parent::None;
    let mut socket = if local { socket_in(ns.as_fd())? } else { interface::node()? };
    let parent = parent(&mut socket, &settings.parent)?;
    let create = plan(request, settings, parent.as_ref())?;
    if settings.needs_addresses && !settings.chained {
        delegate::require(request)?;
    }
    let mut result = match (settings.chained, settings.needs_addresses) {
        (true, _) => request.previous()?.unwrap_or_default(),
        (false, true) => delegate::allocate(request)?,
        (false, false) => Success::default(),
    };
    let mut made = false;
    let done = (|| {
        make(&mut socket, &mut pod, &create, ns.as_fd())?;
        made = true;
        configure(request, settings, &mut pod, &result, ns.as_fd())
    })();
    if let Err(e) = done {
        if made {
            let _ = route::delete(&mut pod, &request.interface);
        }
        if !settings.chained {
            delegate::give_back(request);
        }
        return Err(e);
    }
    result.interfaces = vec![describe(&find(&mut pod, &request.interface)?, &interface::sandbox(request))];
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
    if settings.parent != Parent::None {
        // The network's `dns`, also where it is empty: these plugins never passed on the address manager's.
        result.dns.clear();
        interface::set_dns(request, &mut result)?;
    }
    Ok(result)
}

/// Addresses and routes; announcements, because a neighbour may know the address of an earlier owner.
fn configure(
    request: &Request,
    settings: &Settings,
    pod: &mut Socket,
    result: &Success,
    ns: BorrowedFd<'_>,
) -> Result<(), Refusal> {
    let link = &request.interface;
    let announces = matches!(settings.kind, Kind::Macvlan { .. } | Kind::Ipvlan(_)) && !result.ips.is_empty();
    let mut ops = Vec::new();
    if announces {
        ops.push(Op::Device(Device::Set { link: link.clone(), change: Change::ArpNotify }));
        if result.ips.iter().any(|ip| ip.address.0.is_ipv6()) {
            let setting = format!("ipv6/conf/{link}/ndisc_notify");
            // A kernel without IPv6 refuses the address itself below.
            let _ = inside(ns, || sysctl::set(&setting, "1"))?;
        }
    }
    ops.extend(interface::configure(link, result, true)?);
    Ok(netns::apply(pod, &ops, ns)?)
}

/// Makes the link, see above.
fn make(socket: &mut Socket, pod: &mut Socket, create: &Create, ns: BorrowedFd<'_>) -> Result<(), Refusal> {
    let op = |create: Create| [Op::Device(Device::Create(create))];
    match route::run(socket, &op(create.clone()), Some(ns)) {
        Err(Error::Kernel { source, .. }) if create.away && source.errno() == Some(Errno::EXIST) => {}
        other => return Ok(other?),
    }
    let [_, _, a, b, c, d] = interface::random_mac()?;
    let other = format!("cni{a:02x}{b:02x}{c:02x}{d:02x}");
    route::run(socket, &op(Create { name: other.clone(), ..create.clone() }), Some(ns))?;
    let renamed = Op::Device(Device::Set { link: other.clone(), change: Change::Name(create.name.clone()) });
    route::run(pod, &[renamed], None).map_err(|e| {
        let _ = route::delete(pod, &other);
        e.into()
    })
}

fn parent(socket: &mut Socket, parent: &Parent) -> Result<Option<Details>, Refusal> {
    let missing = |name: &str| {
        Refusal::new(code::INTERNAL, format!("failed to lookup master \"{name}\": Link not found"))
    };
    match parent {
        Parent::None => Ok(None),
        Parent::Named(name) => {
            route::details(socket, name).map_err(internal)?.ok_or_else(|| missing(name)).map(Some)
        }
        Parent::Default => {
            let paths = policy::paths(socket).map_err(internal)?;
            let index = paths.iter().find(|held| held.path.to.1 == 0).map(|held| held.link);
            let links = route::all_details(socket).map_err(internal)?;
            let found = links.into_iter().find(|link| Some(link.index) == index);
            found.map(Some).ok_or_else(|| Refusal::config("no default route interface found"))
        }
    }
}

fn check(request: &Request, settings: &Settings) -> Result<(), Refusal> {
    delegate::forward(request)?;
    let ns = request.open_netns()?;
    let mut pod = socket_in(ns.as_fd())?;
    let own = route::details(&mut pod, &request.interface).map_err(internal)?.unwrap_or_default();
    let alike = match (own.kind, settings.kind) {
        (Some(Kind::Macvlan { mode, .. }), Kind::Macvlan { mode: wanted, .. }) => mode == wanted,
        (found, wanted) => found == Some(wanted),
    };
    if !alike {
        let msg = format!("interface {} is {:?}, not {:?}", request.interface, own.kind, settings.kind);
        return Err(Refusal::new(code::INTERNAL, msg));
    }
    // One that was not written may have been the chain's, or the default route's of another day.
    if !settings.inside && matches!(settings.parent, Parent::Named(_)) {
        parent(&mut interface::node()?, &settings.parent)?;
    }
    interface::check(request)
}

/// Could an ADD find its parent?
fn status(settings: &Settings) -> Result<(), Refusal> {
    if settings.inside {
        return Ok(());
    }
    parent(&mut interface::node()?, &settings.parent)
        .map(drop)
        .map_err(|refusal| Refusal { code: code::NOT_AVAILABLE, ..refusal })
}

#[cfg(test)]
mod tests;
