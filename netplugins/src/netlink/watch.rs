//! Waiting for link events instead of polling: RTNLGRP_LINK of rtnetlink(7).

use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};

use super::{Failure, NETLINK_ROUTE, Socket, failed};

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV6_IFADDR: u32 = 9;

/// A subscription to link changes in one namespace: that of the thread that made it, unless it was given a socket of another.
#[derive(Debug)]
pub(crate) struct LinkWatch {
    socket: Socket,
}

impl LinkWatch {
    /// Subscribes. Look at the state of things *after* this, and nothing is missed.
    pub(crate) fn open() -> Result<Self, Failure> {
        Self::on(Socket::open(NETLINK_ROUTE)?)
    }

    /// Subscribes a route socket.
    pub(crate) fn on(socket: Socket) -> Result<Self, Failure> {
        Self::of(socket, RTNLGRP_LINK)
    }

    /// The same for IPv6 addresses.
    pub(crate) fn addresses() -> Result<Self, Failure> {
        Self::of(Socket::open(NETLINK_ROUTE)?, RTNLGRP_IPV6_IFADDR)
    }

    fn of(socket: Socket, group: u32) -> Result<Self, Failure> {
        socket.socket.add_membership(group).map_err(failed("NETLINK_ADD_MEMBERSHIP"))?;
        Ok(Self { socket })
    }

    /// Waits until some link changed, or the deadline. `false`: the deadline passed.
    ///
    /// What changed is not told: events may be lost under pressure (ENOBUFS), which also counts as a change, so the
    /// caller looks again anyway.
    pub(crate) fn changed(&mut self, deadline: Instant) -> Result<bool, Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(timeout) = rustix::event::Timespec::try_from(left) else { return Ok(false) };
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Failure::Socket { call: "poll", source: e.into() }),
        }
        loop {
            match self.socket.receive(true) {
                Ok(true) => {}
                Ok(false) => return Ok(true),
                Err(Failure::Socket { source, .. }) if source.raw_os_error() == Some(ENOBUFS) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

const ENOBUFS: i32 = rustix::io::Errno::NOBUFS.raw_os_error();
