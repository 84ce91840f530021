//! What a runtime outside makes: its process becomes our child when the runtime ends, because we adopt orphans.
//!
//! We learn its number from the runtime, and it may have ended, and been reaped by us as a stranger, before that: so the ends of
//! strangers are remembered while somebody may name one.

use std::os::fd::AsFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::adopt::UNKNOWN;
use super::{Outside, Podd, Process};
use crate::sys::process;

/// So much of what a runtime says goes into an answer.
const MAX_SAID: usize = 1 << 10;

impl Outside {
    /// What the runtime has said on the container's standard error before it failed.
    pub(super) fn said(&self) -> Vec<u8> {
        let mut said = vec![0; MAX_SAID];
        let length = self.outputs[1].as_ref().and_then(|fd| rustix::io::read(fd, &mut said[..]).ok());
        said.truncate(length.unwrap_or(0));
        said
    }
}

impl Process {
    /// Whether a runtime may still name the process that goes on in its place.
    pub(super) fn starts_outside(&self) -> bool {
        self.starting.as_ref().is_some_and(|starting| starting.outside.is_some())
    }
}

impl Podd {
    /// A child has ended that is none of the processes.
    pub(super) fn strayed(&mut self, pid: i32, code: i32, signal: i32) {
        if self.processes.iter().any(Process::starts_outside) {
            self.strays.insert(pid, (code, signal));
        }
    }

    /// A runtime has made this process, and from here on it is the one that is meant; what it writes is read.
    pub(super) fn made(&mut self, key: u64, pid: i32) {
        let stray = self.strays.remove(&pid);
        let Some(process) = self.process(key) else { return };
        let Some(outside) = process.starting.as_mut().and_then(|starting| starting.outside.as_mut()) else {
            return;
        };
        process.pid = pid;
        let opened = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        match (stray, opened) {
            (Some(end), _) => outside.ended = Some(end),
            (None, Some(pidfd)) => process.pidfd = pidfd,
            (None, None) => outside.ended = Some((UNKNOWN, 0)),
        }
        let outputs = std::mem::take(&mut outside.outputs);
        for (which, (fd, name)) in outputs.into_iter().zip(["stdout", "stderr"]).enumerate() {
            let output = fd.and_then(|fd| self.output_of(fd, key, which, name));
            if let Some(process) = self.process(key).filter(|_| output.is_some()) {
                process.outputs[which] = output;
            }
        }
        if let Some(process) = self.process(key) {
            process.keep_ledger();
        }
    }

    /// Kills what a runtime has made and could not start.
    pub(super) fn end_unstarted(&mut self, key: u64) {
        if let Some(process) = self.process(key) {
            let _ = process::signal(process.pidfd.as_fd(), libc::SIGKILL);
        }
    }

    /// Ends what was being started for a daemon that has gone: the next one is told only of what runs, and takes this for failed.
    pub(super) fn give_up(&mut self, connection: u64) {
        for process in self.processes.iter().filter(|p| p.starts_outside()) {
            if process.starting.as_ref().is_some_and(|starting| starting.connection == connection) {
                let _ = process::signal(process.pidfd.as_fd(), libc::SIGKILL);
            }
        }
    }
}
