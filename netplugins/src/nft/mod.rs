//! nf_tables over netlink: what `nft -f` does, without `nft`.
//!
//! [`Transaction`] collects changes of one `inet` table and commits them atomically: the kernel takes all or none.
//! [`rules`] works in tables that are shared with others, [`expr`] encodes the expressions of rules, [`ruleset`] is the one static table this crate installs, [`element`] the
//! set and map entries a pod adds to it. The encodings follow `linux/netfilter/nf_tables.h`; the golden test is
//! `nft --debug=netlink` and `nft list`.

pub(crate) mod element;
pub(crate) mod expr;
pub(crate) mod rules;
pub(crate) mod ruleset;

use crate::netlink::wire::{nest, put, put_be32, put_text};
use crate::netlink::{Batch, Failure, Refusal, Socket, flag};

use element::Element;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
/// `NFPROTO_*` of `linux/netfilter.h`.
pub(crate) const NFPROTO_INET: u8 = 1;
pub(crate) const NFPROTO_IPV4: u8 = 2;
pub(crate) const NFPROTO_BRIDGE: u8 = 7;
pub(crate) const NFPROTO_IPV6: u8 = 10;

const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_GETSETELEM: u16 = 13;
const NFT_MSG_DELSETELEM: u16 = 14;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
/// Entries per message: a nested attribute ends at 64 KiB and an entry takes at most 100 bytes.
const ENTRIES_PER_MESSAGE: usize = 256;

/// Where a base chain hooks in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook {
    /// `filter` or `nat`.
    pub(crate) kind: &'static str,
    /// `NF_INET_*` number.
    pub(crate) number: u32,
    /// Lower runs earlier.
    pub(crate) priority: i32,
}

/// Shape of a set or map: nft's type numbers, six bits each, and byte lengths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) key: (u32, u32),
    pub(crate) data: Option<(u32, u32)>,
    pub(crate) interval: bool,
}

/// Changes of one table that take effect together.
#[derive(Debug)]
pub(crate) struct Transaction<'a> {
    /// `NFPROTO_*`.
    family: u8,
    table: &'a str,
    batch: Batch,
    next_set: u32,
}

impl<'a> Transaction<'a> {
    /// Changes of a table of the `inet` family.
    pub(crate) fn new(table: &'a str) -> Self {
        Self::of(NFPROTO_INET, table)
    }

    /// Changes of a table of any family.
    pub(crate) fn of(family: u8, table: &'a str) -> Self {
        let mut batch = Batch::default();
        batch.push_silent(NFNL_MSG_BATCH_BEGIN, 0, bracket);
        Self { family, table, batch, next_set: 1 }
    }

    /// Creates the table; existing is fine.
    pub(crate) fn add_table(&mut self) -> &mut Self {
        let table = self.table;
        self.push(NFT_MSG_NEWTABLE, flag::CREATE, |out| put_text(out, 1, table))
    }

    /// Deletes the table with all it holds.
    pub(crate) fn delete_table(&mut self) -> &mut Self {
        let table = self.table;
        self.push(NFT_MSG_DELTABLE, 0, |out| put_text(out, 1, table))
    }

    /// Adds a chain; with a hook it is a base chain with policy accept.
    pub(crate) fn add_chain(&mut self, name: &str, hook: Option<Hook>) -> &mut Self {
        let table = self.table;
        self.push(NFT_MSG_NEWCHAIN, flag::CREATE, |out| {
            put_text(out, 1, table);
            put_text(out, 3, name);
            if let Some(hook) = hook {
                nest(out, 4, |out| {
                    put_be32(out, 1, hook.number);
                    put(out, 2, &hook.priority.to_be_bytes());
                });
                put_be32(out, 5, 1);
                put_text(out, 7, hook.kind);
            }
        })
    }

    /// Appends a rule.
    pub(crate) fn add_rule(&mut self, chain: &str, expressions: &[expr::Expr]) -> &mut Self {
        let table = self.table;
        self.push(NFT_MSG_NEWRULE, flag::CREATE | flag::APPEND, |out| {
            put_text(out, 1, table);
            put_text(out, 2, chain);
            list(out, 4, expressions.iter(), expr::Expr::encode);
        })
    }

    /// Removes all rules of a chain.
    pub(crate) fn flush_chain(&mut self, chain: &str) -> &mut Self {
        let table = self.table;
        self.push(NFT_MSG_DELRULE, 0, |out| {
            put_text(out, 1, table);
            put_text(out, 2, chain);
        })
    }

    /// Adds a set or map.
    pub(crate) fn add_set(&mut self, name: &str, shape: Shape) -> &mut Self {
        const INTERVAL: u32 = 4;
        const MAP: u32 = 8;
        let (table, id) = (self.table, self.next_set);
        self.next_set += 1;
        let flags = if shape.interval { INTERVAL } else { 0 } | if shape.data.is_some() { MAP } else { 0 };
        self.push(NFT_MSG_NEWSET, flag::CREATE, |out| {
            put_text(out, 1, table);
            put_text(out, 2, name);
            put_be32(out, 3, flags);
            put_be32(out, 4, shape.key.0);
            put_be32(out, 5, shape.key.1);
            if let Some((kind, length)) = shape.data {
                put_be32(out, 6, kind);
                put_be32(out, 7, length);
            }
            put_be32(out, 10, id);
        })
    }

    /// Adds entries. A key that exists with other data fails the commit with EEXIST.
    pub(crate) fn add_elements(&mut self, elements: &[Element]) -> &mut Self {
        self.elements(NFT_MSG_NEWSETELEM, flag::CREATE, elements)
    }

    /// Deletes entries. An absent one fails the commit with ENOENT.
    pub(crate) fn delete_elements(&mut self, elements: &[Element]) -> &mut Self {
        self.elements(NFT_MSG_DELSETELEM, 0, elements)
    }

    /// Takes effect, or fails as a whole.
    pub(crate) fn commit(mut self, socket: &mut Socket) -> Result<(), Refusal> {
        self.batch.push_silent(NFNL_MSG_BATCH_END, 0, bracket);
        socket.transact(&mut self.batch, |_, _| {})
    }

    /// One message per set (several for very long ones), in the order the sets first appear.
    fn elements(&mut self, message: u16, flags: u16, elements: &[Element]) -> &mut Self {
        let mut sets: Vec<&'static str> = Vec::new();
        elements.iter().for_each(|e| {
            if !sets.contains(&e.set) {
                sets.push(e.set);
            }
        });
        let table = self.table;
        for set in sets {
            let entries: Vec<&Element> = elements.iter().filter(|e| e.set == set).collect();
            for chunk in entries.chunks(ENTRIES_PER_MESSAGE) {
                self.push(message, flags, |out| {
                    put_text(out, 1, table);
                    put_text(out, 2, set);
                    list(out, 3, chunk.iter().copied(), Element::encode);
                });
            }
        }
        self
    }

    fn push(&mut self, message: u16, flags: u16, write: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        let family = self.family;
        self.batch.push(NFNL_SUBSYS_NFTABLES << 8 | message, flags, |out| {
            out.extend_from_slice(&[family, 0, 0, 0]);
            write(out);
        });
        self
    }
}

/// All entries of one of our sets; an absent table or set has none.
pub(crate) fn dump(socket: &mut Socket, table: &str, set: &'static str) -> Result<Vec<Element>, Failure> {
    dump_of(NFPROTO_INET, socket, table, set)
}

/// The same of a table of any family.
pub(crate) fn dump_of(
    family: u8,
    socket: &mut Socket,
    table: &str,
    set: &'static str,
) -> Result<Vec<Element>, Failure> {
    let mut body = vec![family, 0, 0, 0];
    put_text(&mut body, 1, table);
    put_text(&mut body, 2, set);
    let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETSETELEM;
    match socket.dump(kind, &body, |frame| Some(element::decode(set, frame.payload.get(4..)?))) {
        Ok(found) => Ok(found.into_iter().flatten().collect()),
        Err(e) if e.errno() == Some(rustix::io::Errno::NOENT) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// An attribute that holds a list.
fn list<'a, T: 'a>(
    out: &mut Vec<u8>,
    kind: u16,
    items: impl Iterator<Item = &'a T>,
    encode: fn(&T, &mut Vec<u8>),
) {
    nest(out, kind, |out| {
        for item in items {
            nest(out, NFTA_LIST_ELEM, |out| encode(item, out));
        }
    });
}

/// Body of a batch bracket: `struct nfgenmsg` whose resource is the nf_tables subsystem.
fn bracket(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&NFNL_SUBSYS_NFTABLES.to_be_bytes());
}

#[cfg(test)]
mod tests;
