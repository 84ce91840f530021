//! Links of other kinds than a pair, and changes of links: what the CNI plugins ask of rtnetlink beyond [`super::op`].

use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::DefaultNla;
use netlink_packet_route::link::{
    AfSpecBridge, AfSpecInet, AfSpecUnspec, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoBridgePort,
    InfoData, InfoIpVlan, InfoKind, InfoMacVlan, InfoPortData, InfoPortKind, InfoVlan, InfoVrf,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::op::{Mac, mac_text};
use super::{flag, wire};

/// What a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Swallows everything.
    Dummy,
    /// Takes in what another link's ingress is redirected to.
    Ifb,
    /// Shares its parent's Ethernet address. `IPVLAN_MODE_*`: 0 is L2, 1 is L3, 2 is L3S.
    Ipvlan(u16),
    /// Has an Ethernet address of its own on its parent. `MACVLAN_MODE_*`: 1 private, 2 vepa, 4 bridge, 8 passthru.
    Macvlan {
        /// The mode.
        mode: u32,
        /// Broadcast queue length; 0: the kernel's choice.
        queue: u32,
    },
    /// One VLAN of its parent.
    Vlan(u16),
    /// A routing domain with that table.
    Vrf(u32),
}

/// A link or a change of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// A new link; existing is an error.
    Create(Create),
    /// Changes a link.
    Set {
        /// The link.
        link: String,
        /// What changes.
        change: Change,
    },
    /// Adds VLANs to a bridge's port, or takes them away.
    Vlans {
        /// The port.
        port: String,
        /// First and last.
        range: (u16, u16),
        /// Frames without a tag belong to it, in and out.
        untagged: bool,
        /// Take away instead of add.
        remove: bool,
    },
}

impl Device {
    /// A link goes to the target namespace under that name and alias.
    pub(crate) fn moved(link: &str, name: &str, alias: &str) -> Self {
        Self::Set { link: link.into(), change: Change::Moved { name: name.into(), alias: alias.into() } }
    }
}

/// A link that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Create {
    /// Its name.
    pub(crate) name: String,
    /// What it is.
    pub(crate) kind: Kind,
    /// The link it stands on, in the socket's namespace.
    pub(crate) parent: Option<String>,
    pub(crate) mtu: Option<u32>,
    pub(crate) mac: Option<Mac>,
    /// Born in the target namespace.
    pub(crate) away: bool,
}

/// One property of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Mtu(u32),
    Mac(Mac),
    Promiscuous(bool),
    AllMulticast(bool),
    /// Transmit queue length in packets.
    TxQueue(u32),
    Alias(String),
    Name(String),
    /// Goes to the target namespace under that name and alias.
    Moved {
        /// Its name there.
        name: String,
        /// Its alias there.
        alias: String,
    },
    /// Belongs to a bridge or routing domain, or to none.
    Controller(Option<String>),
    /// Announces its address when it comes up (`arp_notify` of ip-sysctl).
    ArpNotify,
    /// A bridge tells VLANs apart.
    VlanFiltering,
    /// How a bridge treats its port; for a link that is one.
    Port {
        /// May send packets back where they came from.
        hairpin: bool,
        /// Talks to ports that are not isolated only.
        isolated: bool,
    },
}

/// What a dump tells of a link beyond [`super::route::Link`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Details {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    pub(crate) mac: String,
    pub(crate) up: bool,
    /// How many want it promiscuous.
    pub(crate) promiscuity: u32,
    pub(crate) all_multicast: bool,
    pub(crate) tx_queue: u32,
    pub(crate) alias: String,
    /// Index of the bridge or routing domain it belongs to.
    pub(crate) controller: Option<u32>,
    /// Index of its parent, or of the other end of a pair, wherever that is.
    pub(crate) link: Option<u32>,
    /// `veth`, `bridge`…; empty for hardware.
    pub(crate) word: String,
    /// What it is, for the kinds of [`Kind`].
    pub(crate) kind: Option<Kind>,
}

impl Kind {
    /// As in `ip link add type …`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Dummy => "dummy",
            Self::Ifb => "ifb",
            Self::Ipvlan(_) => "ipvlan",
            Self::Macvlan { .. } => "macvlan",
            Self::Vlan(_) => "vlan",
            Self::Vrf(_) => "vrf",
        }
    }

    fn info(self) -> (InfoKind, Option<InfoData>) {
        match self {
            Self::Dummy => (InfoKind::Dummy, None),
            Self::Ifb => (InfoKind::Ifb, None),
            Self::Ipvlan(mode) => {
                (InfoKind::IpVlan, Some(InfoData::IpVlan(vec![InfoIpVlan::Mode(mode.into())])))
            }
            Self::Macvlan { mode, queue } => {
                let queue = (queue > 0).then_some(InfoMacVlan::BcQueueLen(queue));
                let data = std::iter::once(InfoMacVlan::Mode(mode.into())).chain(queue).collect();
                (InfoKind::MacVlan, Some(InfoData::MacVlan(data)))
            }
            Self::Vlan(id) => (InfoKind::Vlan, Some(InfoData::Vlan(vec![InfoVlan::Id(id)]))),
            Self::Vrf(table) => (InfoKind::Vrf, Some(InfoData::Vrf(vec![InfoVrf::TableId(table)]))),
        }
    }
}

/// Request flags and message, or the link name whose index is needed first.
pub(super) fn message(
    device: &Device,
    index: &HashMap<String, u32>,
    target: Option<BorrowedFd<'_>>,
) -> Result<(u16, Message), String> {
    let known = |link: &String| index.get(link).copied().ok_or_else(|| link.clone());
    Ok(match device {
        Device::Create(create) => {
            let parent = create.parent.as_ref().map(known).transpose()?;
            let away = target.filter(|_| create.away);
            (flag::CREATE | flag::EXCL, Message::NewLink(creation(create, parent, away)))
        }
        Device::Set { link, change } => {
            let message = change_of(link, change, &known, target)?;
            // What is particular to a kind of link is changed by the message that creates links: the other one carries
            // such attributes without a word and without effect.
            let particular = matches!(change, Change::VlanFiltering | Change::Port { .. });
            (0, if particular { Message::NewLink(message) } else { Message::SetLink(message) })
        }
        Device::Vlans { port, range, untagged, remove } => {
            let mut message = LinkMessage::default();
            message.header.interface_family = AddressFamily::Bridge;
            message.header.index = known(port)?;
            message.attributes.push(LinkAttribute::AfSpecBridge(vlans(*range, *untagged)));
            (0, if *remove { Message::DelLink(message) } else { Message::SetLink(message) })
        }
    })
}

fn creation(create: &Create, parent: Option<u32>, target: Option<BorrowedFd<'_>>) -> LinkMessage {
    let mut message = LinkMessage::default();
    let attributes = &mut message.attributes;
    attributes.push(LinkAttribute::IfName(create.name.clone()));
    attributes.extend(parent.map(LinkAttribute::Link));
    attributes.extend(create.mtu.map(LinkAttribute::Mtu));
    attributes.extend(create.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    attributes.extend(target.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
    let (kind, data) = create.kind.info();
    let info = std::iter::once(LinkInfo::Kind(kind)).chain(data.map(LinkInfo::Data));
    attributes.push(LinkAttribute::LinkInfo(info.collect()));
    message
}

fn change_of(
    link: &String,
    change: &Change,
    known: &impl Fn(&String) -> Result<u32, String>,
    target: Option<BorrowedFd<'_>>,
) -> Result<LinkMessage, String> {
    let mut message = LinkMessage::default();
    // A name in the message would be the new one, so that renaming goes by index.
    match change {
        Change::Name(_) | Change::Moved { .. } => message.header.index = known(link)?,
        _ => message.attributes.push(LinkAttribute::IfName(link.clone())),
    }
    let mut flags = |on: bool, bits: LinkFlags| {
        message.header.change_mask = bits;
        message.header.flags = if on { bits } else { LinkFlags::empty() };
    };
    match change {
        Change::Promiscuous(on) => flags(*on, LinkFlags::Promisc),
        Change::AllMulticast(on) => flags(*on, LinkFlags::Allmulti),
        Change::Moved { name, alias } => {
            message.attributes.extend(target.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
            message.attributes.push(LinkAttribute::IfName(name.clone()));
            message.attributes.push(LinkAttribute::IfAlias(alias.clone()));
        }
        other => {
            let attribute = property(other, known)?;
            message.attributes.extend(attribute);
        }
    }
    Ok(message)
}

/// The attribute behind a change that is no flag.
fn property(
    change: &Change,
    known: &impl Fn(&String) -> Result<u32, String>,
) -> Result<Option<LinkAttribute>, String> {
    Ok(Some(match change {
        Change::Mtu(mtu) => LinkAttribute::Mtu(*mtu),
        Change::Mac(mac) => LinkAttribute::Address(mac.to_vec()),
        Change::TxQueue(length) => LinkAttribute::TxQueueLen(*length),
        Change::Alias(alias) => LinkAttribute::IfAlias(alias.clone()),
        Change::Name(name) => LinkAttribute::IfName(name.clone()),
        Change::Controller(None) => LinkAttribute::Controller(0),
        Change::Controller(Some(name)) => LinkAttribute::Controller(known(name)?),
        Change::ArpNotify => {
            /// `IFLA_INET_CONF` and `IPV4_DEVCONF_ARP_NOTIFY`.
            const CONF: u16 = 1;
            const ARP_NOTIFY: u16 = 22;
            let mut settings = Vec::new();
            wire::put(&mut settings, ARP_NOTIFY, &1u32.to_ne_bytes());
            let inet = AfSpecInet::Other(DefaultNla::new(CONF, settings));
            LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![inet])])
        }
        Change::VlanFiltering => LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)])),
        ]),
        Change::Port { hairpin, isolated } => LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(*hairpin),
                InfoBridgePort::Isolated(*isolated),
            ])),
        ]),
        Change::Promiscuous(_) | Change::AllMulticast(_) | Change::Moved { .. } => return Ok(None),
    }))
}

/// One VLAN, or a range as the kernel writes it: its begin and its end.
fn vlans((first, last): (u16, u16), untagged: bool) -> Vec<AfSpecBridge> {
    let own = if untagged {
        BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged
    } else {
        BridgeVlanInfoFlags::empty()
    };
    let one = |vid, flags| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags: own | flags, vid });
    if first == last {
        return vec![one(first, BridgeVlanInfoFlags::empty())];
    }
    vec![one(first, BridgeVlanInfoFlags::RangeBegin), one(last, BridgeVlanInfoFlags::RangeEnd)]
}

/// Reads a link's answer.
pub(super) fn decode(message: LinkMessage) -> Details {
    let mut details = Details {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        all_multicast: message.header.flags.contains(LinkFlags::Allmulti),
        ..Details::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => details.name = name,
            LinkAttribute::Mtu(mtu) => details.mtu = mtu,
            LinkAttribute::Address(bytes) => {
                details.mac = Mac::try_from(bytes).map(mac_text).unwrap_or_default();
            }
            LinkAttribute::Promiscuity(count) => details.promiscuity = count,
            LinkAttribute::TxQueueLen(length) => details.tx_queue = length,
            LinkAttribute::IfAlias(alias) => details.alias = alias,
            LinkAttribute::Controller(index) => details.controller = Some(index).filter(|i| *i > 0),
            LinkAttribute::Link(index) => details.link = Some(index).filter(|i| *i > 0),
            LinkAttribute::LinkInfo(infos) => {
                let word = |info: &LinkInfo| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                };
                details.word = infos.iter().find_map(word).unwrap_or_default();
                details.kind = infos.iter().find_map(kind).or(match details.word.as_str() {
                    "dummy" => Some(Kind::Dummy),
                    "ifb" => Some(Kind::Ifb),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    details
}

fn kind(info: &LinkInfo) -> Option<Kind> {
    match info {
        LinkInfo::Data(InfoData::MacVlan(all)) => all.iter().find_map(|i| match i {
            InfoMacVlan::Mode(mode) => Some(Kind::Macvlan { mode: (*mode).into(), queue: 0 }),
            _ => None,
        }),
        LinkInfo::Data(InfoData::IpVlan(all)) => all.iter().find_map(|i| match i {
            InfoIpVlan::Mode(mode) => Some(Kind::Ipvlan((*mode).into())),
            _ => None,
        }),
        LinkInfo::Data(InfoData::Vlan(all)) => all.iter().find_map(|i| match i {
            InfoVlan::Id(id) => Some(Kind::Vlan(*id)),
            _ => None,
        }),
        LinkInfo::Data(InfoData::Vrf(all)) => all.iter().find_map(|i| match i {
            InfoVrf::TableId(table) => Some(Kind::Vrf(*table)),
            _ => None,
        }),
        _ => None,
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(create) => write!(f, "{create}"),
            Self::Set { link, change } => write!(f, "set {link} {change}"),
            Self::Vlans { port, range: (first, last), untagged, remove } => {
                let verb = if *remove { "delete" } else { "add" };
                let own = if *untagged { " pvid untagged" } else { "" };
                write!(f, "{verb} vlan {first}-{last} of {port}{own}")
            }
        }
    }
}

impl fmt::Display for Create {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "add link {}", self.name)?;
        let mut word = |name: &str, value: Option<String>| value.map_or(Ok(()), |v| write!(f, " {name} {v}"));
        word("link", self.parent.clone())?;
        word("address", self.mac.map(mac_text))?;
        word("mtu", self.mtu.map(|m| m.to_string()))?;
        word("type", Some(self.kind.word().to_owned()))?;
        match self.kind {
            Kind::Ipvlan(mode) => write!(f, " mode {mode}"),
            Kind::Macvlan { mode, queue: 0 } => write!(f, " mode {mode}"),
            Kind::Macvlan { mode, queue } => write!(f, " mode {mode} bcqueuelen {queue}"),
            Kind::Vlan(id) => write!(f, " id {id}"),
            Kind::Vrf(table) => write!(f, " table {table}"),
            Kind::Dummy | Kind::Ifb => Ok(()),
        }?;
        f.write_str(if self.away { " in the pod" } else { "" })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let switch = |on: &bool| if *on { "on" } else { "off" };
        match self {
            Self::Mtu(mtu) => write!(f, "mtu {mtu}"),
            Self::Mac(mac) => write!(f, "address {}", mac_text(*mac)),
            Self::Promiscuous(on) => write!(f, "promisc {}", switch(on)),
            Self::AllMulticast(on) => write!(f, "allmulticast {}", switch(on)),
            Self::TxQueue(length) => write!(f, "txqueuelen {length}"),
            Self::Alias(alias) => write!(f, "alias \"{alias}\""),
            Self::Name(name) => write!(f, "name {name}"),
            Self::Moved { name, alias } => write!(f, "elsewhere as {name} alias \"{alias}\""),
            Self::Controller(None) => f.write_str("nomaster"),
            Self::Controller(Some(name)) => write!(f, "master {name}"),
            Self::ArpNotify => f.write_str("arp_notify"),
            Self::VlanFiltering => f.write_str("vlan_filtering on"),
            Self::Port { hairpin, isolated } => {
                write!(f, "hairpin {} isolated {}", switch(hairpin), switch(isolated))
            }
        }
    }
}
