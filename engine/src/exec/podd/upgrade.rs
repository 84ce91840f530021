//! Another program in the same process: what a supervisor leaves to itself over execve(2).
//!
//! A memfd holds everything it knows as messages of the protocol, each after its length and the numbers of its descriptors, which stay
//! open over the exec. Process, children, connections and namespaces are the same afterwards, so nobody notices: exits wait as
//! zombies, output waits in its pipes, and requests wait in their sockets. Should the new program not come up, the process ends, and
//! another one adopts the pod ([`super::adopt`]).

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};

use super::{Podd, Process};
use crate::exec::wire::{Kind, Message, Tag};
use crate::sys::process::{self, SingleThreaded, Strings};

impl Podd {
    /// Goes on as another program. Returns only if that cannot be now, and then everything is as it was.
    pub(super) fn upgrade(&mut self, connection: u64, message: &mut Message) -> io::Result<Infallible> {
        if self.processes.iter().any(|process| process.starting.is_some()) || !self.all_sent() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let program = message.fds.pop().ok_or(io::ErrorKind::InvalidInput)?;
        let left = self.left(connection, message.request());
        let mut state = File::from(memfd_create("berth-podd-state", MemfdFlags::CLOEXEC)?);
        for message in &left {
            state.write_all(&frame(message))?;
        }
        let state_number = state.as_raw_fd().to_string();
        let words = message.all(Tag::Message).chain([state_number.as_bytes()]);
        let words: Vec<CString> = words.map(CString::new).collect::<Result<_, _>>()?;
        let staying = left.iter().flat_map(|message| &message.fds).map(AsFd::as_fd);
        let staying: Vec<_> =
            staying.chain([self.listener.as_fd(), self.dir.as_fd(), state.as_fd()]).collect();
        let mark = |flags| staying.iter().try_for_each(|fd| fcntl_setfd(fd, flags));
        let error = match mark(FdFlags::empty()) {
            Ok(()) => process::execveat(program.as_fd(), &Strings::new(words.iter().map(CString::as_c_str))),
            Err(e) => e.into(),
        };
        mark(FdFlags::CLOEXEC)?;
        Err(error)
    }

    /// What the next program has to know, with copies of all descriptors; connections last, whose requests it then hears.
    fn left(&self, connection: u64, request: u32) -> Vec<Message> {
        let (has, owned) = self.owned();
        let mut pod = Message::new(Kind::Adopt, 0).number(Tag::Has, has).put(Tag::MountLabel, &self.label);
        pod.fds = owned;
        let mut left = vec![pod];
        left.extend(self.processes.iter().map(Process::leave));
        left.extend(self.connections.iter().map(|(token, one)| {
            let mut message = Message::new(Kind::Hello, if *token == connection { request } else { 0 });
            message.fds.extend(one.socket.try_clone());
            message
        }));
        left
    }

    /// Takes up what the program before has left under this number.
    pub(super) fn resume(&mut self, state: RawFd) -> io::Result<()> {
        let mut state = File::from(process::inherited(&self.proof, state)?);
        let mut bytes = Vec::new();
        state.rewind()?;
        state.read_to_end(&mut bytes)?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (message, after) = unframe(&self.proof, rest)?;
            rest = after;
            match message.kind() {
                Kind::Adopt => self.same_pod(message)?,
                Kind::Keep => self.keep(message)?,
                Kind::Hello => self.same_connection(message)?,
                _ => {}
            }
        }
        self.reap();
        Ok(())
    }

    fn same_pod(&mut self, mut message: Message) -> io::Result<()> {
        let fds = std::mem::take(&mut message.fds);
        self.own(message.get(Tag::Has), &mut fds.into_iter())?;
        self.label = message.text(Tag::MountLabel).as_bytes().to_vec();
        self.ready = true;
        Ok(())
    }

    /// Goes on with a connection, and answers the one that asked for the upgrade.
    fn same_connection(&mut self, mut message: Message) -> io::Result<()> {
        let socket = message.fds.pop().ok_or(io::ErrorKind::InvalidData)?;
        let token = self.connected(socket)?;
        if message.request() != 0 {
            let pod = self.pod(message.request());
            self.say(token, pod);
        }
        Ok(())
    }
}

impl Process {
    /// The process with everything that the next program needs of it.
    fn leave(&self) -> Message {
        let mut message = self.describe(Kind::Keep, 0);
        if let Some(exec) = self.exec {
            message = message.number(Tag::Exec, exec);
        }
        let mut clients = Vec::new();
        for output in &self.outputs {
            // What lies on a stage is read from there again.
            let partial = output.as_ref().filter(|o| o.stage.is_none()).map(|o| o.stream.partial());
            message = message.put(Tag::Partial, partial.unwrap_or_default());
            let copies =
                output.iter().flat_map(|o| &o.clients).filter_map(|client| client.fd.try_clone().ok());
            let before = clients.len();
            clients.extend(copies);
            message = message.number(Tag::Clients, (clients.len() - before) as u64);
        }
        message.fds.extend(clients);
        message
    }
}

/// A message as it lies in the state: its length, how many descriptors, their numbers, itself.
fn frame(message: &Message) -> Vec<u8> {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    let mut out = number(message.bytes().len()).to_vec();
    out.extend(number(message.fds.len()));
    for fd in &message.fds {
        out.extend(fd.as_raw_fd().to_le_bytes());
    }
    out.extend(message.bytes());
    out
}

/// The first message of the state, with its descriptors, and the rest.
fn unframe<'a>(proof: &SingleThreaded, bytes: &'a [u8]) -> io::Result<(Message, &'a [u8])> {
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(cut)?;
    let (count, mut rest) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
    let mut fds: Vec<OwnedFd> = Vec::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let (number, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        fds.push(process::inherited(proof, RawFd::from_le_bytes(*number))?);
        rest = after;
    }
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (message, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
    Ok((Message::parse(message, fds).ok_or(io::ErrorKind::InvalidData)?, rest))
}
