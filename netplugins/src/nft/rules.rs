//! Rules in tables that others write as well: found by their owner's comment, inserted, and deleted by handle.

use super::element::{comment, decode_comment};
use super::expr::Expr;
use super::{NFNL_SUBSYS_NFTABLES, NFT_MSG_DELRULE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, Transaction, list};
use crate::netlink::wire::{attribute, attributes, put, put_text};
use crate::netlink::{Failure, Socket, flag};

const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_GETRULE: u16 = 7;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;

/// Where a rule goes in its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    First,
    Last,
}

/// A rule that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) chain: String,
    pub(crate) handle: u64,
    pub(crate) comment: Option<String>,
    /// Chain of its jump, if it ends in one.
    pub(crate) jump: Option<String>,
}

impl Transaction<'_> {
    /// Adds a rule with its owner's name.
    pub(crate) fn owned_rule(&mut self, chain: &str, place: Place, owner: &str, rule: &[Expr]) -> &mut Self {
        let table = self.table.to_owned();
        let place = if place == Place::Last { flag::APPEND } else { 0 };
        self.push(NFT_MSG_NEWRULE, flag::CREATE | place, |out| {
            put_text(out, 1, &table);
            put_text(out, 2, chain);
            list(out, NFTA_RULE_EXPRESSIONS, rule.iter(), Expr::encode);
            put(out, NFTA_RULE_USERDATA, &comment(owner));
        })
    }

    /// Deletes a rule.
    pub(crate) fn delete_rule(&mut self, rule: &Rule) -> &mut Self {
        let table = self.table.to_owned();
        self.push(NFT_MSG_DELRULE, 0, |out| {
            put_text(out, 1, &table);
            put_text(out, 2, &rule.chain);
            put(out, NFTA_RULE_HANDLE, &rule.handle.to_be_bytes());
        })
    }
}

/// Names of a table's chains; none of an absent table.
pub(crate) fn chains(family: u8, socket: &mut Socket, table: &str) -> Result<Vec<String>, Failure> {
    let body = [family, 0, 0, 0];
    let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN;
    let found = socket.dump(kind, &body, |frame| {
        let body =
            frame.payload.get(4..).filter(|_| frame.kind == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWCHAIN)?;
        (text(body, 1)? == table).then(|| text(body, 3)).flatten()
    })?;
    Ok(found)
}

/// The rules of a chain; none of an absent one.
pub(crate) fn of_chain(
    family: u8,
    socket: &mut Socket,
    table: &str,
    chain: &str,
) -> Result<Vec<Rule>, Failure> {
    let mut body = vec![family, 0, 0, 0];
    put_text(&mut body, 1, table);
    put_text(&mut body, 2, chain);
    match socket
        .dump(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE, &body, |frame| decode(frame.payload.get(4..)?))
    {
        Ok(rules) => Ok(rules.into_iter().filter(|rule| rule.chain == chain).collect()),
        Err(e) if e.errno() == Some(rustix::io::Errno::NOENT) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

pub(crate) fn decode(body: &[u8]) -> Option<Rule> {
    let handle = attribute(body, NFTA_RULE_HANDLE).and_then(|b| <[u8; 8]>::try_from(b).ok())?;
    let comment = attribute(body, NFTA_RULE_USERDATA).and_then(decode_comment);
    let expressions = attribute(body, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
    let jump = attributes(expressions).filter_map(|e| jump(e.value)).last();
    Some(Rule { chain: text(body, 2)?, handle: u64::from_be_bytes(handle), comment, jump })
}

/// The chain an `immediate` expression jumps to.
fn jump(expression: &[u8]) -> Option<String> {
    if attribute(expression, 1)? != b"immediate\0" {
        return None;
    }
    let data = attribute(attribute(expression, 2)?, 2)?;
    text(attribute(data, 2)?, 2)
}

fn text(body: &[u8], kind: u16) -> Option<String> {
    Some(String::from_utf8_lossy(attribute(body, kind)?).trim_end_matches('\0').to_owned())
}
