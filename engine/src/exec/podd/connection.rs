//! Connections of daemons: what cannot be sent at once is held, never dropped.
//!
//! A daemon that does not read for a while fills its socket, after some hundred messages. It is then not read from either, so that
//! what is held is bounded: by the answers that it asked for before, and by the processes there are.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{SocketFlags, accept_with, sockopt};

use super::{Podd, Source};
use crate::exec::wire::{self, Message};
use crate::sys::socket;

/// One daemon's end.
#[derive(Debug)]
pub(super) struct Connection {
    pub socket: OwnedFd,
    /// What waits until there is room in the socket. While it does, we are woken by room and not by requests.
    held: VecDeque<Message>,
}

impl Connection {
    /// Sends what is held, as far as there is room; an error: nobody is there any more.
    fn flush(&mut self) -> io::Result<()> {
        while let Some(message) = self.held.front() {
            let fds: Vec<_> = message.fds.iter().map(AsFd::as_fd).collect();
            match socket::send(&self.socket, message.bytes(), &fds) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                other => other?,
            }
            self.held.pop_front();
        }
        Ok(())
    }
}

impl Podd {
    /// A daemon connects. Only root's may: the directory is 0700, and this is the second lock.
    pub(super) fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(connection) = accept_with(&self.listener, flags) else { return };
        if sockopt::socket_peercred(&connection).is_ok_and(|peer| peer.uid.is_root()) {
            let _ = self.connected(connection);
        }
    }

    /// Serves a connection from now on.
    pub(super) fn connected(&mut self, socket: OwnedFd) -> io::Result<u64> {
        let token = self.watch(&socket, Source::Connection)?;
        self.connections.insert(token, Connection { socket, held: VecDeque::new() });
        Ok(token)
    }

    /// A request, or room for what is held, or the end of a connection.
    pub(super) fn hear(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if !connection.held.is_empty() {
            return self.send(token, true);
        }
        let bytes = &mut self.buffer[..wire::MAX];
        let mut fds = Vec::new();
        match socket::receive(&connection.socket, bytes, &mut fds) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Ok(length @ 1..) => match Message::parse(&bytes[..length], fds) {
                Some(message) => self.request(token, message),
                None => {
                    self.say(token, wire::error("malformed message", &io::ErrorKind::InvalidData.into()));
                }
            },
            Ok(0) | Err(_) => self.hang_up(token),
        }
    }

    /// Sends to one connection, now or when there is room.
    pub(super) fn say(&mut self, token: u64, message: Message) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let turn = connection.held.is_empty();
        connection.held.push_back(message);
        if turn {
            self.send(token, false);
        }
    }

    /// Sends an event to everybody.
    pub(super) fn tell(&mut self, message: &Message) {
        for token in self.connections.keys().copied().collect::<Vec<_>>() {
            self.say(token, message.again());
        }
    }

    /// Sends what is held; the rest when the socket has room, and until then no request is heard. `waited`: that is so already.
    fn send(&mut self, token: u64, waited: bool) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let mut sent = connection.flush();
        let waits = !connection.held.is_empty();
        if sent.is_ok() && waits != waited {
            let next = if waits { EventFlags::OUT } else { EventFlags::IN };
            let woken = epoll::modify(&self.epoll, &connection.socket, EventData::new_u64(token), next);
            sent = woken.map_err(Into::into);
        }
        if sent.is_err() {
            self.hang_up(token);
        }
    }

    /// Forgets a connection. One that leaves before the pod is set up leaves nothing to supervise.
    fn hang_up(&mut self, token: u64) {
        if let Some(connection) = self.connections.remove(&token) {
            self.unwatch(&connection.socket, token);
        }
        self.give_up(token);
        self.ending |= !self.ready && self.connections.is_empty();
    }

    /// There is nothing that some daemon has not been sent yet.
    pub(super) fn all_sent(&self) -> bool {
        self.connections.values().all(|connection| connection.held.is_empty())
    }
}
