//! The few netlink questions a trial asks by itself: which nft objects carry its mark, and away with them.
//!
//! Independent of the network driver on purpose: the leak count must not be made by what is being counted. Formats:
//! netlink(7), `linux/netfilter/nf_tables.h`. Encoding and decoding are pure.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// nlmsghdr flags (`linux/netlink.h`).
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
/// Message types of every protocol.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NFNL_SUBSYS_NFTABLES << 8` and the messages used.
const NFT: u16 = 10 << 8;
const GET_TABLE: u16 = NFT | 1;
const DELETE_TABLE: u16 = NFT | 2;
const GET_SET: u16 = NFT | 10;
const GET_ELEMENTS: u16 = NFT | 13;
/// `NFNL_MSG_BATCH_BEGIN` and `END`; the resource id of the first is the subsystem.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// One table, or one set or map in it with its number of elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftObject {
    /// Address family (`NFPROTO_*`).
    pub family: u8,
    /// Table name.
    pub table: String,
    /// Set or map name; `None`: the table itself.
    pub set: Option<String>,
    /// Keys of its elements in hexadecimal.
    pub elements: Vec<String>,
}

/// Tables whose name begins with `prefix`, with their sets and elements. A kernel without nftables has none.
pub fn nft_objects(prefix: &str) -> io::Result<Vec<NftObject>> {
    let Some(socket) = open()? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for message in dump(&socket, &nft_message(GET_TABLE, REQUEST | DUMP, 0, 0, &[]))? {
        if let Some((family, table)) = named(&message).filter(|(_, name)| name.starts_with(prefix)) {
            found.push(NftObject { family, table, set: None, elements: Vec::new() });
        }
    }
    for table in found.clone() {
        let of_table = attribute(1, table.table.as_bytes());
        for message in dump(&socket, &nft_message(GET_SET, REQUEST | DUMP, table.family, 0, &of_table))? {
            let name =
                attributes(nft_body(&message)).find(|(kind, _)| *kind == 2).map(|(_, value)| text(value));
            let Some(set) = name else { continue };
            let of_set = [of_table.clone(), attribute(2, set.as_bytes())].concat();
            let elements =
                dump(&socket, &nft_message(GET_ELEMENTS, REQUEST | DUMP, table.family, 0, &of_set))?
                    .iter()
                    .flat_map(|message| element_keys(nft_body(message)))
                    .collect();
            found.push(NftObject { set: Some(set), elements, ..table.clone() });
        }
    }
    Ok(found)
}

/// Removes a table with everything in it.
pub fn delete_nft_table(family: u8, table: &str) -> io::Result<()> {
    let Some(socket) = open()? else { return Ok(()) };
    let batch = [
        nft_message(BATCH_BEGIN, REQUEST, 0, 10, &[]),
        nft_message(DELETE_TABLE, REQUEST | ACK, family, 0, &attribute(1, table.as_bytes())),
        nft_message(BATCH_END, REQUEST, 0, 10, &[]),
    ]
    .concat();
    acknowledged(&socket, &batch)
}

// === the socket ===

/// A socket to nf_tables; `None` where the kernel does not have it.
fn open() -> io::Result<Option<OwnedFd>> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    );
    match socket {
        Ok(socket) => {
            let patience = Some(std::time::Duration::from_secs(5));
            rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, patience)?;
            Ok(Some(socket))
        }
        Err(rustix::io::Errno::PROTONOSUPPORT | rustix::io::Errno::AFNOSUPPORT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sends a dump request and collects its messages (type and body).
fn dump(socket: &OwnedFd, request: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    rustix::net::send(socket, request, SendFlags::empty())?;
    let mut buffer = vec![0u8; 64 * 1024];
    let mut found = Vec::new();
    loop {
        let (length, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())?;
        for (kind, body) in messages(&buffer[..length]) {
            match kind {
                DONE => return Ok(found),
                // A table that vanished between two dumps holds nothing.
                ERROR if error_of(body) == Some(rustix::io::Errno::NOENT.raw_os_error()) => return Ok(found),
                ERROR => return Err(io::Error::from_raw_os_error(error_of(body).unwrap_or(0))),
                _ => found.push(body.to_vec()),
            }
        }
    }
}

/// Sends a request and waits for its acknowledgement; what is not there is already removed.
fn acknowledged(socket: &OwnedFd, request: &[u8]) -> io::Result<()> {
    rustix::net::send(socket, request, SendFlags::empty())?;
    let mut buffer = [0u8; 4096];
    loop {
        let (length, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())?;
        for (kind, body) in messages(&buffer[..length]) {
            let gone =
                [rustix::io::Errno::NOENT, rustix::io::Errno::NODEV].map(rustix::io::Errno::raw_os_error);
            match error_of(body).filter(|_| kind == ERROR) {
                Some(0) => return Ok(()),
                Some(code) if gone.contains(&code) => return Ok(()),
                Some(code) => return Err(io::Error::from_raw_os_error(code)),
                None => {}
            }
        }
    }
}

// === encoding ===

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(16 + body.len());
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]); // sequence, port: the kernel's answer goes to the only asker
    bytes.extend_from_slice(body);
    bytes
}

/// A message with nfgenmsg header: family, version 0, resource id in network order.
fn nft_message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let [high, low] = resource.to_be_bytes();
    message(kind, flags, &[&[family, 0, high, low], attributes].concat())
}

/// A string attribute with its terminating zero, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len() + 1).unwrap_or(u16::MAX);
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value, &[0]].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

// === decoding ===

/// The messages of a datagram as type and body; stops at the first one that does not fit.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The attributes of a message body as type (without its flags) and value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The errno of an error message, positive; 0 is an acknowledgement.
fn error_of(body: &[u8]) -> Option<i32> {
    Some(-i32::from_ne_bytes(body.get(..4)?.try_into().ok()?))
}

/// What follows the nfgenmsg header.
fn nft_body(body: &[u8]) -> &[u8] {
    body.get(4..).unwrap_or_default()
}

/// Family and first attribute (the name) of a table message.
fn named(body: &[u8]) -> Option<(u8, String)> {
    let (_, name) = attributes(nft_body(body)).find(|(kind, _)| *kind == 1)?;
    Some((*body.first()?, text(name)))
}

/// Keys of an element list: list (3) → element (1) → key (1) → value (1).
fn element_keys(body: &[u8]) -> Vec<String> {
    let inside = |bytes: &[u8], wanted: u16| {
        attributes(bytes)
            .filter(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value.to_vec())
            .collect::<Vec<_>>()
    };
    let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let elements = inside(body, 3).into_iter().flat_map(|list| inside(&list, 1));
    elements
        .map(|element| {
            inside(&element, 1).first().and_then(|key| inside(key, 1).first().map(|v| hexadecimal(v)))
        })
        .map(|key| key.unwrap_or_else(|| "catch-all".to_owned()))
        .collect()
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_are_read_back_as_written() {
        let body = [attribute(1, b"abc"), attribute(2, b"de")].concat();
        let datagram = [nft_message(GET_SET, REQUEST, 1, 0, &body), message(DONE, 0, &[0; 4])].concat();
        let read: Vec<_> = messages(&datagram).collect();
        assert_eq!(read.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [GET_SET, DONE]);
        assert_eq!(named(read[0].1), Some((1, "abc".to_owned())));
        let values: Vec<_> =
            attributes(nft_body(read[0].1)).map(|(kind, value)| (kind, text(value))).collect();
        assert_eq!(values, [(1, "abc".to_owned()), (2, "de".to_owned())]);
    }

    #[test]
    fn cut_off_bytes_end_the_reading_and_never_loop() {
        let whole = nft_message(GET_TABLE, REQUEST, 1, 0, &attribute(1, b"abcdefgh"));
        for length in 0..whole.len() {
            assert_eq!(messages(&whole[..length]).count(), 0);
            assert!(attributes(&whole[..length]).count() <= length);
        }
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(attributes(&[0; 64]).count(), 0);
    }

    /// The oracle is nft(8) itself.
    #[test]
    fn a_table_made_by_nft_is_listed_with_its_elements_and_removed() {
        let name = format!("berthtest{}", std::process::id());
        let script = format!(
            "table inet {name} {{ set pods {{ type ipv4_addr; elements = {{ 10.1.2.3, 10.1.2.4 }}; }};
             map ports {{ type inet_service : ipv4_addr; elements = {{ 80 : 10.1.2.3 }}; }}; }}"
        );
        let made = std::process::Command::new("nft").args([&script]).status();
        assert!(made.is_ok_and(|status| status.success()), "nft(8) could not make the table");
        let found = nft_objects(&name).unwrap();
        delete_nft_table(1, &name).unwrap();
        let mut shown: Vec<_> = found.iter().map(|o| (o.set.as_deref(), o.elements.clone())).collect();
        shown.iter_mut().for_each(|(_, elements)| elements.sort());
        assert_eq!(
            shown,
            [
                (None, vec![]),
                (Some("pods"), vec!["0a010203".to_owned(), "0a010204".to_owned()]),
                (Some("ports"), vec!["0050".to_owned()]),
            ]
        );
        assert_eq!(nft_objects(&name).unwrap(), []);
    }

    #[test]
    fn removing_what_is_not_there_is_done_already() {
        delete_nft_table(1, "berth-no-such-table").unwrap();
    }
}
