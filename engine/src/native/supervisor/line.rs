//! Execs of which only the end matters: who waits for it has a line to the supervisor that nobody else listens to, on the thread on which it
//! waits, and is woken once.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::unix::AsyncFd;

use super::super::child::Failure;
use super::super::failure;
use super::{Supervisor, datagram, exit, refused};
use crate::error::{Error, Kind};
use crate::exec::Exit;
use crate::exec::wire::{Kind as Word, Message};
use crate::sys::{self, socket};

/// Bytes of the longest message on a line: an end, or one sentence of why there is nothing to end.
const LONGEST: usize = 2 << 10;

/// What such an exec needs of descriptors.
#[derive(Debug)]
pub(in crate::native) struct Kit {
    /// Our end of the line.
    pub(super) line: OwnedFd,
    /// Our ends of the pipes for standard output and standard error.
    pub(super) outputs: [OwnedFd; 2],
    /// The exec's ends of these, and the supervisor's of the line.
    pub(super) theirs: ([OwnedFd; 2], OwnedFd),
}

impl Kit {
    pub(in crate::native) fn new() -> io::Result<Self> {
        let (line, theirs) = socket::pair()?;
        // A poller may be wrong, and who reads it has others to serve.
        rustix::io::ioctl_fionbio(&line, true)?;
        let ((stdout, out), (stderr, err)) = (pipe_with(PipeFlags::CLOEXEC)?, pipe_with(PipeFlags::CLOEXEC)?);
        Ok(Self { line, outputs: [stdout, stderr], theirs: ([out, err], theirs) })
    }
}

impl Supervisor {
    /// What an exec on a line of its own needs, if the supervisor is not too old for it. There is always one made ahead, while there was nothing else to do.
    pub(super) fn kit(&self) -> Result<Option<Kit>, Error> {
        if !self.lines.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let made = self.node.kit.lock().unwrap_or_else(PoisonError::into_inner).take();
        let kit = made.map_or_else(Kit::new, Ok);
        kit.map(Some).map_err(|e| Error::with(Kind::Internal, "make the descriptors of an exec", e))
    }

    /// How the exec ends whose line this is: the first that is said on it. Its outputs, whose `writers` are its own ends of them, come to no
    /// end before that, which would wake who waits once for each, and often on the processor on which the exec is about to end.
    pub(super) fn end_on(
        &self,
        line: AsyncFd<OwnedFd>,
        plan: Vec<u8>,
        writers: [OwnedFd; 2],
    ) -> impl Future<Output = Result<Exit, Error>> + use<> {
        let (pod, node) = (self.pod.clone(), self.node.clone());
        async move {
            let gone = || {
                Error::new(Kind::Unavailable, format!("the supervisor of pod {pod} ended before the exec"))
            };
            let said = datagram(&line, LONGEST).await;
            drop(writers);
            sys::later(move || {
                drop(line);
                *node.kit.lock().unwrap_or_else(PoisonError::into_inner) = Kit::new().ok();
            });
            let (said, fds) = said.map_err(|_| gone())?;
            if let Some(failed) = Failure::decode(&said) {
                return Err(failure::explain(&plan, failed));
            }
            let message = Message::parse(&said, fds).ok_or_else(gone)?;
            match message.kind() {
                Word::ExecExited => Ok(exit(&message)),
                _ => Err(refused(&pod, &message)),
            }
        }
    }
}
