//! Execs of which only the end matters: who waits for it has a line to the supervisor that nobody else listens to, on the thread on which it
//! waits, and is woken once.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use tokio::io::unix::AsyncFd;

use super::super::child::Failure;
use super::super::failure;
use super::{Supervisor, datagram, exit, refused};
use crate::error::{Error, Kind};
use crate::exec::Exit;
use crate::exec::wire::{Kind as Word, Message};
use crate::sys::{self, socket};

/// Our end of a line.
pub(super) type Line = AsyncFd<OwnedFd>;

impl Supervisor {
    /// Both ends of a new line, if the supervisor is not too old for it.
    pub(super) fn line(&self) -> Result<Option<(Line, OwnedFd)>, Error> {
        if !self.lines.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let failed = |e| Error::with(Kind::Internal, "make a line to the supervisor", e);
        let (ours, theirs) = socket::pair().map_err(failed)?;
        // A poller may be wrong, and who reads it has others to serve.
        rustix::io::ioctl_fionbio(&ours, true).map_err(|e| failed(e.into()))?;
        Ok(Some((sys::watch(ours).map_err(failed)?, theirs)))
    }

    /// How the exec ends whose line this is: the first that is said on it.
    pub(super) fn end_on(
        &self,
        line: Line,
        plan: Vec<u8>,
    ) -> impl Future<Output = Result<Exit, Error>> + use<> {
        let pod = self.pod.clone();
        async move {
            let gone = || {
                Error::new(Kind::Unavailable, format!("the supervisor of pod {pod} ended before the exec"))
            };
            let (said, fds) = datagram(&line).await.map_err(|_| gone())?;
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
