//! Links, addresses and routes of the node, asked of the kernel through the rtnetlink crate.
//!
//! Independent of the network driver on purpose: the leak count must not be made by what is being counted. The connection
//! lives for one question: it is in the network namespace of the thread that opens it, which is the node's.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::{Error, Handle, RouteMessageBuilder};

use super::leaks::parse::Subnet;

/// What the node's network is made of.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// Interfaces.
    pub links: Vec<Link>,
    /// Addresses of interfaces, with the name of the interface.
    pub addresses: Vec<Place>,
    /// Routes of the main and local tables.
    pub routes: Vec<Place>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in this namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// A destination or address at an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where to, or which address with its prefix length.
    pub subnet: Subnet,
    /// Through which interface; empty: none, as for `unreachable` routes.
    pub link: String,
}

/// Everything there is now.
pub async fn network() -> io::Result<Network> {
    ask(async |handle| {
        let links: Vec<Link> = handle.link().get().execute().map_ok(link).try_collect().await?;
        let names: HashMap<u32, String> = links.iter().map(|link| (link.index, link.name.clone())).collect();
        let addresses: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
        let four = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        let mut routes: Vec<RouteMessage> = four.try_collect().await?;
        let six = handle.route().get(RouteMessageBuilder::<Ipv6Addr>::new().build()).execute();
        routes.extend(six.try_collect::<Vec<_>>().await?);
        Ok(Network {
            addresses: addresses.iter().filter_map(|message| address(message, &names)).collect(),
            routes: routes.iter().filter_map(|message| route(message, &names)).collect(),
            links,
        })
    })
    .await
}

/// Removes an interface; a veth takes its other end along. One that is not there is removed already.
pub async fn delete(index: u32) -> io::Result<()> {
    ask(async |handle| match handle.link().del(index).execute().await {
        Err(Error::NetlinkError(refusal))
            if refusal.raw_code() == -rustix::io::Errno::NODEV.raw_os_error() =>
        {
            Ok(())
        }
        outcome => outcome,
    })
    .await
}

/// Opens a connection for one question.
async fn ask<T, F: Future<Output = Result<T, Error>>>(question: impl FnOnce(Handle) -> F) -> io::Result<T> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let answer = question(handle).await;
    connection.abort();
    answer.map_err(|error| match error {
        Error::NetlinkError(refusal) => refusal.to_io(),
        other => io::Error::other(other),
    })
}

fn link(message: LinkMessage) -> Link {
    let name = message.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    });
    Link { index: message.header.index, name: name.unwrap_or_default() }
}

fn address(message: &AddressMessage, names: &HashMap<u32, String>) -> Option<Place> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })?;
    let link = names.get(&message.header.index).cloned().unwrap_or_default();
    Some(Place { subnet: Subnet { address, prefix: message.header.prefix_len }, link })
}

fn route(message: &RouteMessage, names: &HashMap<u32, String>) -> Option<Place> {
    let mut place = Place {
        // A route without a destination is the default route of its family.
        subnet: Subnet { address: unspecified(message), prefix: message.header.destination_prefix_length },
        link: String::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(to)) => place.subnet.address = (*to).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(to)) => place.subnet.address = (*to).into(),
            RouteAttribute::Destination(_) => return None,
            RouteAttribute::Oif(index) => place.link = names.get(index).cloned().unwrap_or_default(),
            _ => {}
        }
    }
    Some(place)
}

fn unspecified(message: &RouteMessage) -> IpAddr {
    match message.header.address_family {
        rtnetlink::packet_route::AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The oracle is ip(8).
    #[tokio::test]
    async fn a_link_with_its_address_and_route_is_listed_as_ip_made_it_and_removed() {
        let name = format!("bt{}", std::process::id());
        let ip = |arguments: &str| {
            let done = Command::new("ip").args(arguments.split(' ')).status();
            assert!(done.is_ok_and(|status| status.success()), "ip {arguments}");
        };
        ip(&format!("link add {name} type veth peer name {name}p"));
        ip(&format!("address add 203.0.113.9/32 dev {name}"));
        ip(&format!("link set {name} up"));
        ip(&format!("link set {name}p up"));
        ip(&format!("-6 address add 2001:db8::9/128 dev {name} nodad"));
        ip(&format!("route add 198.51.100.0/24 dev {name}"));
        let found = network().await.unwrap();
        let link = found.links.iter().find(|link| link.name == name).unwrap();
        delete(link.index).await.unwrap();

        let place = |text| Place { subnet: Subnet::parse(text).unwrap(), link: name.clone() };
        for expected in ["203.0.113.9/32", "2001:db8::9/128"] {
            assert!(found.addresses.contains(&place(expected)), "{expected}");
        }
        for expected in ["198.51.100.0/24", "2001:db8::9/128"] {
            assert!(found.routes.contains(&place(expected)), "{expected}");
        }
        let after = network().await.unwrap();
        assert!(!after.links.iter().any(|link| link.name.starts_with(&name)), "its other end went with it");
        assert!(!after.routes.iter().chain(&after.addresses).any(|place| place.link == name));
    }

    #[tokio::test]
    async fn removing_what_is_not_there_is_done_already() {
        delete(i32::MAX.cast_unsigned()).await.unwrap();
    }
}
