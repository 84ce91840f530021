//! Output of containers: to the log, and to whoever is attached.

use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use super::log::Stream;
use super::{Podd, Process, ledger};
use crate::exec::wire::{STDERR, STDIN, STDOUT};

/// Most bytes read from one stream before others get their turn.
const CHUNK: usize = 64 << 10;
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
    /// Pipes of attached clients.
    pub(super) clients: Vec<OwnedFd>,
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
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(CHUNK, 0);
        let process = self.processes.iter_mut().find(|p| p.key == key)?;
        let Process { outputs, log, .. } = process;
        let output = outputs[which].as_mut()?;
        let read = output.take(&mut buffer);
        let staged = output.stage.as_ref().map(|stage| (which, stage));
        let result = match read {
            Ok(length @ 1..) => {
                log.write(&mut output.stream, &buffer[..length], staged);
                // A client that is full or has gone is let go of: the container never waits for it.
                output.clients.retain(|client| rustix::io::write(client, &buffer[..length]) == Ok(length));
                Some(length)
            }
            Err(Errno::AGAIN) => None,
            // End of file, or (EIO) a terminal that nobody has open any more.
            Ok(_) | Err(_) => {
                log.end(&mut output.stream, staged);
                if let Some(output) = outputs[which].take() {
                    self.unwatch(&output.fd, output.token);
                }
                None
            }
        };
        self.buffer = buffer;
        result
    }
}

impl Process {
    /// Pipes for a client, in the order stdin, stdout, stderr as far as `wanted` and there.
    pub(super) fn attach(&mut self, wanted: u64) -> std::io::Result<(u64, Vec<OwnedFd>)> {
        let (mut given, mut fds) = (0, Vec::new());
        if wanted & STDIN != 0 {
            let once = self.stdin_once;
            let stdin = match (&self.terminal, &self.stdin) {
                (Some(terminal), _) => Some(terminal.try_clone()?),
                // The client gets the last writing end there is: when it leaves, the process sees the end.
                (None, Some(_)) if once => self.stdin.take(),
                (None, Some(stdin)) => Some(stdin.try_clone()?),
                (None, None) => None,
            };
            if let Some(stdin) = stdin {
                given |= STDIN;
                fds.push(stdin);
            }
        }
        for (bit, output) in [STDOUT, STDERR].into_iter().zip(&mut self.outputs) {
            if let (true, Some(output)) = (wanted & bit != 0, output) {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
                nonblocking(&write);
                let _ = fcntl_setpipe_size(&write, CLIENT_BUFFER);
                output.clients.push(write);
                given |= bit;
                fds.push(read);
            }
        }
        Ok((given, fds))
    }
}
