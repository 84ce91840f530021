//! Output of containers: to the log, and to whoever is attached.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use super::log::Stream;
use super::{Podd, Process, Source, ledger};
use crate::exec::wire::{STDERR, STDIN, STDOUT};

/// Most bytes read from one stream before others get their turn.
pub(super) const CHUNK: usize = 64 << 10;
/// Most bytes read from a stream after its process has ended, before the end is reported; the rest follows.
const LAST_WORDS: usize = 4 << 20;
/// How much an attached client may lag behind.
const CLIENT_BUFFER: usize = 1 << 20;

/// One output of a process.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) fd: OwnedFd,
    pub(super) token: u64,
    pub(super) stream: Stream,
    /// Where what is taken from the pipe lies until it is in the log; none for a terminal, and without a log.
    pub(super) stage: Option<OwnedFd>,
    /// Who is attached.
    pub(super) clients: Vec<Client>,
}

/// The pipe to an attached client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) fd: OwnedFd,
    token: u64,
}

impl Output {
    /// What there is to read, up to the buffer's length. A stage that has no memory left costs the promise, not the output.
    fn take(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        loop {
            let taken = match &self.stage {
                Some(stage) => ledger::take(&self.fd, stage, buffer),
                None => rustix::io::read(&self.fd, &mut *buffer),
            };
            match taken {
                Err(Errno::INTR) => {}
                Err(e) if e != Errno::AGAIN && self.stage.take().is_some() => {}
                other => return other,
            }
        }
    }
}

/// Makes reads and writes return instead of waiting. Concerns our end alone.
pub(super) fn nonblocking(fd: &OwnedFd) {
    if let Ok(flags) = fcntl_getfl(fd) {
        let _ = fcntl_setfl(fd, flags | OFlags::NONBLOCK);
    }
}

impl Podd {
    /// An output is readable, or at its end.
    pub(super) fn output(&mut self, key: u64, which: usize) {
        let _ = self.pump(key, which);
    }

    /// Reads what is left in an output.
    pub(super) fn drain(&mut self, key: u64, which: usize) {
        let mut total = 0;
        while let Some(length @ 1..) = self.pump(key, which) {
            total += length;
            if total > LAST_WORDS {
                return;
            }
        }
    }

    /// One read, one append to the log, one write per client; how much it was. `None`: nothing now, or nothing ever again.
    fn pump(&mut self, key: u64, which: usize) -> Option<usize> {
        let buffer = &mut self.buffer[..CHUNK];
        let process = self.processes.iter_mut().find(|p| p.key == key)?;
        let Process { outputs, log, .. } = process;
        let output = outputs[which].as_mut()?;
        let read = output.take(buffer);
        let staged = output.stage.as_ref().map(|stage| (which, stage));
        match read {
            Ok(length @ 1..) => {
                log.write(&mut output.stream, &buffer[..length], staged);
                // A client that is full or has gone is let go of: the container never waits for it.
                let lost =
                    |client: &mut Client| rustix::io::write(&client.fd, &buffer[..length]) != Ok(length);
                let lost: Vec<_> = output.clients.extract_if(.., lost).collect();
                lost.iter().for_each(|client| self.unwatch(&client.fd, client.token));
                Some(length)
            }
            Err(Errno::AGAIN) => None,
            // End of file, or (EIO) a terminal that nobody has open any more.
            Ok(_) | Err(_) => {
                log.end(&mut output.stream, staged);
                let ended = outputs[which].take();
                self.unwatch_output(ended);
                None
            }
        }
    }

    /// Takes an output, and whoever is attached to it, out of the epoll set.
    pub(super) fn unwatch_output(&mut self, output: Option<Output>) {
        if let Some(output) = output {
            self.unwatch(&output.fd, output.token);
            output.clients.iter().for_each(|client| self.unwatch(&client.fd, client.token));
        }
    }

    /// A client whose end of the pipe is watched, so that it is let go of when it leaves and not at the next output.
    pub(super) fn client_of(&mut self, fd: OwnedFd, key: u64, which: usize) -> Option<Client> {
        let token = self.watch_for(&fd, Source::Client(key, which), EventFlags::empty()).ok()?;
        Some(Client { fd, token })
    }

    /// An attached client has closed its end.
    pub(super) fn client_left(&mut self, key: u64, which: usize, token: u64) {
        let output = self.process(key).and_then(|process| process.outputs[which].as_mut());
        let left = output.and_then(|output| output.clients.extract_if(.., |c| c.token == token).next());
        if let Some(client) = left {
            self.unwatch(&client.fd, token);
        }
    }

    /// Pipes for a client of a process, in the order stdin, stdout, stderr as far as `wanted` and there.
    pub(super) fn pipes_for_client(&mut self, key: u64, wanted: u64) -> io::Result<(u64, Vec<OwnedFd>)> {
        let (mut given, mut fds) = (0, Vec::new());
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        if wanted & STDIN != 0
            && let Some(stdin) = self.process(key).ok_or_else(gone)?.stdin_for_client()?
        {
            given |= STDIN;
            fds.push(stdin);
        }
        for (which, bit) in [STDOUT, STDERR].into_iter().enumerate() {
            let there = self.process(key).is_some_and(|process| process.outputs[which].is_some());
            if wanted & bit == 0 || !there {
                continue;
            }
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            nonblocking(&write);
            let _ = fcntl_setpipe_size(&write, CLIENT_BUFFER);
            let client = self.client_of(write, key, which);
            if let Some(output) = self.process(key).and_then(|process| process.outputs[which].as_mut()) {
                output.clients.extend(client);
            }
            given |= bit;
            fds.push(read);
        }
        Ok((given, fds))
    }
}

impl Process {
    /// A writing end of the standard input.
    fn stdin_for_client(&mut self) -> io::Result<Option<OwnedFd>> {
        match (&self.terminal, &self.stdin) {
            (Some(terminal), _) => terminal.try_clone().map(Some),
            // The client gets the last writing end there is: when it leaves, the process sees the end.
            (None, Some(_)) if self.stdin_once => Ok(self.stdin.take()),
            (None, Some(stdin)) => stdin.try_clone().map(Some),
            (None, None) => Ok(None),
        }
    }
}
