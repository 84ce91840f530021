//! Blocking netlink: many messages in one datagram, every one of them answered for.
//!
//! A socket belongs to the network namespace of the thread that opened it, wherever it is used later. Requests of
//! rtnetlink and nf_tables run to their end inside `sendmsg`, so all answers are queued when it returns; reading them
//! never waits in practice, and the receive timeout is only a last resort. A datagram of rtnetlink messages is *not*
//! atomic: the kernel goes on after a refusal. Callers look at the result and roll back.
//!
//! In reading order: [`wire`] (frames and attributes), this file (socket and batch), [`op`] and [`route`] (links,
//! addresses, routes), [`device`] and [`policy`] (what only plugins ask for), [`tc`] (queues), [`tunnel`] (between nodes), [`watch`] (link events),
//! [`dad`] (duplicate address detection), [`conntrack`] (flows).

pub(crate) mod conntrack;
pub(crate) mod dad;
pub(crate) mod device;
pub(crate) mod op;
pub(crate) mod policy;
pub(crate) mod route;
pub(crate) mod tc;
pub(crate) mod tunnel;
pub(crate) mod watch;
pub(crate) mod wire;

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_sys::SocketAddr;
use rustix::net::sockopt;

pub(crate) use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

/// Request flags of netlink(7).
pub(crate) mod flag {
    pub(crate) const REQUEST: u16 = 0x1;
    pub(crate) const ACK: u16 = 0x4;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const REPLACE: u16 = 0x100;
    pub(crate) const EXCL: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Set in an error message that carries extended acknowledgement attributes.
const NLM_F_ACK_TLVS: u16 = 0x200;
/// Set in a dump that a concurrent change made inconsistent.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// The kernel never fills more into one datagram of a dump.
const RECEIVE_BYTES: usize = 32 << 10;
/// A request that takes longer than this is a hung kernel.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Room for one atomic nf_tables batch of a full node.
const SEND_BUFFER: usize = 8 << 20;
const DUMP_TRIES: usize = 8;

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The kernel refused the request.
    #[error("{errno}{}{text}", if text.is_empty() { "" } else { ": " })]
    Refused {
        /// The errno it gave.
        errno: io::Error,
        /// Its extended acknowledgement text; may be empty.
        text: String,
    },
    /// A call on the socket failed.
    #[error("netlink {call}")]
    Socket {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel sent something that is not netlink, or a request does not fit the format.
    #[error("malformed netlink message: {0}")]
    Malformed(&'static str),
    /// Another node has an IPv6 address that was to be used.
    #[error("an IPv6 address is in use elsewhere on the link")]
    Duplicate,
    /// The kernel did not finish checking an IPv6 address.
    #[error("an IPv6 address is still tentative after five seconds")]
    Tentative,
    /// A dump was interrupted by changes every time it was tried.
    #[error("the table changed during each of {DUMP_TRIES} dumps")]
    Restless,
}

impl Failure {
    /// The errno of a refusal.
    pub(crate) fn errno(&self) -> Option<rustix::io::Errno> {
        match self {
            Self::Refused { errno, .. } => rustix::io::Errno::from_io_error(errno),
            _ => None,
        }
    }
}

/// A failure, and which message of the batch met it.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Index of the message; `None`: the batch as a whole.
    pub(crate) index: Option<usize>,
    pub(crate) failure: Failure,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self { index: None, failure }
    }
}

/// Messages that travel in one datagram.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// For each message, whether an answer is due.
    answered: Vec<bool>,
}

/// A netlink socket and its receive buffer.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: netlink_sys::Socket,
    next_sequence: u32,
    buffer: Vec<u8>,
}

// === impl Batch ===

impl Batch {
    pub(crate) fn len(&self) -> usize {
        self.answered.len()
    }

    /// Adds a message whose body `write` appends. Asks for an acknowledgement.
    pub(crate) fn push(&mut self, kind: u16, flags: u16, write: impl FnOnce(&mut Vec<u8>)) {
        let flags = if flags & flag::DUMP == flag::DUMP { flags } else { flags | flag::ACK };
        self.frame(kind, flags, true, write);
    }

    /// Adds a message that the kernel does not answer (the brackets of an nf_tables batch).
    pub(crate) fn push_silent(&mut self, kind: u16, flags: u16, write: impl FnOnce(&mut Vec<u8>)) {
        self.frame(kind, flags, false, write);
    }

    fn frame(&mut self, kind: u16, flags: u16, answered: bool, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        let index = u32::try_from(self.answered.len()).unwrap_or(u32::MAX);
        wire::begin_frame(&mut self.bytes, kind, flags | flag::REQUEST, index);
        write(&mut self.bytes);
        wire::end_frame(&mut self.bytes, start);
        self.answered.push(answered);
    }
}

// === impl Socket ===

impl Socket {
    /// A socket in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> Result<Self, Failure> {
        let mut socket = netlink_sys::Socket::new(protocol).map_err(failed("socket"))?;
        socket.bind_auto().map_err(failed("bind"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connect"))?;
        // Refusals carry the kernel's own words, and not a copy of the request.
        socket.set_ext_ack(true).map_err(failed("NETLINK_EXT_ACK"))?;
        socket.set_cap_ack(true).map_err(failed("NETLINK_CAP_ACK"))?;
        if protocol == NETLINK_ROUTE {
            // Dumps honour their filters, unknown attributes are refused. Kernels before 4.20 do without.
            let _ = socket.set_netlink_get_strict_chk(true);
        }
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(RECEIVE_TIMEOUT))
            .map_err(|e| Failure::Socket { call: "SO_RCVTIMEO", source: e.into() })?;
        Ok(Self { socket, next_sequence: 1, buffer: Vec::new() })
    }

    /// Lets this socket send one datagram of up to 8 MiB. Needs CAP_NET_ADMIN in the initial user namespace.
    pub(crate) fn widen(&self) -> Result<(), Failure> {
        sockopt::set_socket_send_buffer_size_force(&self.socket, SEND_BUFFER)
            .map_err(|e| Failure::Socket { call: "SO_SNDBUFFORCE", source: e.into() })
    }

    /// Sends the batch and reads every answer; `reply` sees each message that is no acknowledgement, with the index of
    /// its request. The first refusal wins; later messages may have been carried out nevertheless.
    pub(crate) fn transact(
        &mut self,
        batch: &mut Batch,
        mut reply: impl FnMut(usize, wire::Frame<'_>),
    ) -> Result<(), Refusal> {
        let count = u32::try_from(batch.len()).map_err(|_| Failure::Malformed("too many messages"))?;
        let first = self.next_sequence;
        self.next_sequence = first.wrapping_add(count).max(1);
        wire::renumber(&mut batch.bytes, first);
        self.socket.send(&batch.bytes, 0).map_err(failed("send"))?;

        let mut pending = batch.answered.clone();
        let mut open = pending.iter().filter(|p| **p).count();
        let mut refusal: Option<Refusal> = None;
        while open > 0 {
            if !self.receive(refusal.is_some())? {
                break; // an aborted nf_tables batch leaves messages unanswered
            }
            for frame in wire::frames(&self.buffer) {
                let frame = frame?;
                let index = frame.sequence.wrapping_sub(first) as usize;
                let Some(due) = pending.get_mut(index) else { continue }; // answer to an older, abandoned request
                match judge(&frame)? {
                    Verdict::Data => reply(index, frame),
                    Verdict::Done => open -= usize::from(std::mem::take(due)),
                    Verdict::Refused(failure) => {
                        open -= usize::from(std::mem::take(due));
                        if refusal.as_ref().is_none_or(|r| r.index.is_some_and(|i| i > index)) {
                            refusal = Some(Refusal { index: Some(index), failure });
                        }
                    }
                }
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Sends one dump request and collects what `decode` makes of each object; starts over when the table changed
    /// meanwhile.
    pub(crate) fn dump<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        mut decode: impl FnMut(wire::Frame<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Failure> {
        for _ in 0..DUMP_TRIES {
            let mut found = Vec::new();
            let mut interrupted = false;
            let mut batch = Batch::default();
            batch.push(kind, flag::DUMP, |b| b.extend_from_slice(body));
            let outcome = self.transact(&mut batch, |_, frame| {
                interrupted |= frame.flags & NLM_F_DUMP_INTR != 0;
                found.extend(decode(frame));
            });
            match outcome {
                Ok(()) if !interrupted => return Ok(found),
                Ok(()) => {}
                Err(r) if r.failure.errno() == Some(rustix::io::Errno::INTR) => {}
                Err(r) => return Err(r.failure),
            }
        }
        Err(Failure::Restless)
    }

    /// Reads one datagram into the buffer. `false`: nothing is queued and `poll` was asked for.
    fn receive(&mut self, poll: bool) -> Result<bool, Failure> {
        const MSG_TRUNC: i32 = 0x20;
        const MSG_DONTWAIT: i32 = 0x40;
        let flags = if poll { MSG_TRUNC | MSG_DONTWAIT } else { MSG_TRUNC };
        loop {
            self.buffer.clear();
            self.buffer.reserve(RECEIVE_BYTES);
            match self.socket.recv(&mut self.buffer, flags) {
                Ok(n) if n > self.buffer.len() => {
                    return Err(Failure::Malformed("datagram larger than the buffer"));
                }
                Ok(_) => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if poll && e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(failed("recv")(e)),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

enum Verdict {
    Data,
    Done,
    Refused(Failure),
}

/// What one received message says about its request.
fn judge(frame: &wire::Frame<'_>) -> Result<Verdict, Failure> {
    match frame.kind {
        NLMSG_ERROR => {
            let code = wire::i32_at(frame.payload, 0).ok_or(Failure::Malformed("short error"))?;
            if code == 0 {
                return Ok(Verdict::Done);
            }
            let text =
                if frame.flags & NLM_F_ACK_TLVS != 0 { extended_text(frame.payload) } else { String::new() };
            Ok(Verdict::Refused(refused(code, text)))
        }
        NLMSG_DONE => match wire::i32_at(frame.payload, 0) {
            Some(code) if code < 0 => Ok(Verdict::Refused(refused(code, String::new()))),
            _ => Ok(Verdict::Done),
        },
        _ => Ok(Verdict::Data),
    }
}

/// The text attribute behind `struct nlmsgerr` (errno and the capped request header, 20 bytes).
fn extended_text(payload: &[u8]) -> String {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let attributes = payload.get(20..).unwrap_or_default();
    wire::attributes(attributes)
        .find(|a| a.kind == NLMSGERR_ATTR_MSG)
        .map(|a| String::from_utf8_lossy(a.value).trim_end_matches('\0').to_owned())
        .unwrap_or_default()
}

fn refused(code: i32, text: String) -> Failure {
    Failure::Refused { errno: io::Error::from_raw_os_error(code.saturating_neg()), text }
}

fn failed(call: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |source| Failure::Socket { call, source }
}

#[cfg(test)]
mod tests;
