//! Life after `kill -9`: what a supervisor hands to the daemon to keep, and how a new one takes it over.
//!
//! Everything that keeps a pod going is a descriptor: namespaces, the pods's /dev/shm, pidfds, pipes, logs. The daemon holds a copy of
//! each, so that the death of a supervisor closes no pipe and loses no exit; it starts another one and gives it the copies. No line is
//! lost or doubled ([`super::ledger`]), except that what had been read from a terminal and not written yet is gone: at most one read.
//! [`super::upgrade`] hands over the same in the same words, to itself.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::ledger::{self, Ledger};
use super::log::Log;
use super::streams::nonblocking;
use super::{Podd, Process, Source, requests};
use crate::exec::Exit;
use crate::exec::wire::{
    self, HAS_LOG, HAS_OOM, HAS_USER, Kind, LEDGER, LINE, Message, PLAN_FIELDS, POD_PID, STAGE_ERR,
    STAGE_OUT, STDERR, STDIN, STDIN_ONCE, STDOUT, TTY, Tag,
};
use crate::native::child::template;
use crate::sys::{process, thread, trace};

/// Exit code of a process whose end nobody can tell.
pub(super) const UNKNOWN: i32 = 255;

impl Process {
    /// The process with copies of all its descriptors.
    pub(super) fn describe(&self, kind: Kind, request: u32) -> Message {
        let [stdout, stderr] = &self.outputs;
        let parts = [
            (HAS_LOG, self.log.file()),
            (HAS_OOM, self.oom.as_ref().map(|(file, _)| file)),
            (TTY, self.terminal.as_ref()),
            // A stdin that ends with its first client must have no other holder; we ourselves are none.
            (STDIN, self.stdin.as_ref().filter(|_| !self.stdin_once || kind == Kind::Keep)),
            (STDOUT, stdout.as_ref().map(|o| &o.fd)),
            (STDERR, stderr.as_ref().map(|o| &o.fd)),
            (LEDGER, self.log.ledger().map(Ledger::file)),
            (STAGE_OUT, stdout.as_ref().and_then(|o| o.stage.as_ref())),
            (STAGE_ERR, stderr.as_ref().and_then(|o| o.stage.as_ref())),
            (LINE, self.line.as_ref()),
        ];
        let (mut has, mut fds) = (if self.stdin_once { STDIN_ONCE } else { 0 }, Vec::new());
        fds.extend(self.pidfd.try_clone());
        for (bit, fd) in parts {
            if let Some(copy) = fd.and_then(|fd| fd.try_clone().ok()) {
                has |= bit;
                fds.push(copy);
            }
        }
        let mut message = Message::new(kind, request)
            .put(Tag::Container, self.container.as_bytes())
            .put(Tag::Cgroup, self.cgroup.as_bytes())
            .number(Tag::Pid, wire::int(self.pid))
            .number(Tag::At, self.started.cast_unsigned())
            .number(Tag::Has, has)
            .number(Tag::OomBefore, self.oom.as_ref().map_or(0, |(_, before)| *before));
        if let Some(exit) = &self.exit {
            message = requests::describe_exit(message, exit);
        }
        message.fds = fds;
        message
    }
}

impl Process {
    /// Begins a ledger, and a stage for each pipe; without memory for them it goes without.
    pub(super) fn keep_ledger(&mut self) {
        if self.log.file().is_none() || self.outputs.iter().all(Option::is_none) {
            return;
        }
        let Ok(ledger) = ledger::file("berth-ledger") else { return };
        self.log.keep_ledger(ledger);
        for output in self.outputs.iter_mut().flatten() {
            output.stage = ledger::file("berth-stage").ok();
        }
    }

    /// Logs what a dead supervisor had taken from the pipes and not logged.
    fn resume(&mut self, stages: [Option<OwnedFd>; 2]) {
        for (which, (output, stage)) in self.outputs.iter_mut().zip(stages).enumerate() {
            if let (Some(output), Some(stage), Some(ledger)) = (output, stage, self.log.ledger()) {
                let rest = ledger::rest(&stage, ledger.done(which));
                self.log.write(&mut output.stream, &rest, Some((which, &stage)));
                output.stage = Some(stage);
            }
        }
    }
}

impl Podd {
    /// The pod with copies of all its descriptors; without any as long as it is not set up.
    pub(super) fn pod(&self, request: u32) -> Message {
        let message = Message::new(Kind::Ok, request).number(Tag::Pid, std::process::id().into());
        if !self.ready {
            return message;
        }
        let Ok(mut fds) = copies() else { return message };
        let (has, owned) = self.owned();
        fds.extend(owned);
        let mut message = message.number(Tag::Has, has | PLAN_FIELDS | LINE);
        if !self.label.is_empty() {
            message = message.put(Tag::MountLabel, &self.label);
        }
        message.fds = fds;
        message
    }

    /// Copies of the user namespace and of the first process, as far as the pod has its own, with their bits of `Has`.
    pub(super) fn owned(&self) -> (u64, Vec<OwnedFd>) {
        let (mut has, mut fds) = (0, Vec::new());
        for (bit, fd) in [(HAS_USER, &self.user), (POD_PID, &self.init)] {
            if let Some(copy) = fd.as_ref().and_then(|fd| fd.try_clone().ok()) {
                has |= bit;
                fds.push(copy);
            }
        }
        (has, fds)
    }

    /// Takes what `owned` has given.
    pub(super) fn own(&mut self, has: u64, fds: &mut impl Iterator<Item = OwnedFd>) -> io::Result<()> {
        for (bit, place) in [(HAS_USER, &mut self.user), (POD_PID, &mut self.init)] {
            if has & bit != 0 {
                *place = Some(fds.next().ok_or(io::ErrorKind::InvalidInput)?);
            }
        }
        Ok(())
    }

    /// Takes over a pod.
    pub(super) fn adopt(&mut self, message: &mut Message) -> io::Result<()> {
        let mut fds = std::mem::take(&mut message.fds).into_iter();
        let mut next = || fds.next().ok_or(io::Error::from(io::ErrorKind::InvalidInput));
        for kind in [libc::CLONE_NEWNET, libc::CLONE_NEWUTS, libc::CLONE_NEWIPC] {
            thread::setns(next()?.as_fd(), kind)?;
        }
        let shm = next()?;
        self.own(message.get(Tag::Has), &mut fds)?;
        for tasks in fds {
            rustix::io::write(&tasks, b"0")?;
        }
        thread::unshare(&self.proof, libc::CLONE_NEWNS)?;
        self.label = message.text(Tag::MountLabel).as_bytes().to_vec();
        self.complete_template(Some(shm), self.user.is_some())?;
        self.ready = true;
        Ok(())
    }

    /// Takes over a container.
    pub(super) fn keep(&mut self, mut message: Message) -> io::Result<()> {
        let mut fds = std::mem::take(&mut message.fds).into_iter();
        let has = message.get(Tag::Has);
        let pidfd = fds.next().ok_or(io::ErrorKind::InvalidInput)?;
        let mut next = |bit: u64| if has & bit != 0 { fds.next() } else { None };
        let (log, oom, terminal, stdin) = (next(HAS_LOG), next(HAS_OOM), next(TTY), next(STDIN));
        let outputs = [next(STDOUT), next(STDERR)];
        let (ledger, stages) = (next(LEDGER), [next(STAGE_OUT), next(STAGE_ERR)]);
        let line = next(LINE);
        let key = self.new_key();
        let ended = message.all(Tag::Ended).next().is_some();
        if !ended && !process::is_child(pidfd.as_fd()) {
            self.watch_end(&pidfd, message.int(Tag::Pid), key)?;
        }
        let mut process = Process {
            key,
            container: message.text(Tag::Container).to_owned(),
            cgroup: message.text(Tag::Cgroup).to_owned(),
            exec: message.numbers(Tag::Exec).next(),
            pid: message.int(Tag::Pid),
            pidfd,
            started: message.get(Tag::At).cast_signed(),
            starting: None,
            exit: ended.then(|| exit_of(&message)),
            terminal,
            stdin,
            stdin_once: has & STDIN_ONCE != 0,
            log: Log::new(log),
            outputs: [None, None],
            oom: oom.map(|file| (file, message.get(Tag::OomBefore))),
            line,
        };
        for (which, (fd, name)) in outputs.into_iter().zip(["stdout", "stderr"]).enumerate() {
            process.outputs[which] = fd.and_then(|fd| {
                nonblocking(&fd);
                let mut output = self.output_of(fd, key, which, name)?;
                output.stream.resume(message.all(Tag::Partial).nth(which).unwrap_or_default());
                let clients = message.numbers(Tag::Clients).nth(which).unwrap_or(0);
                let clients = fds.by_ref().take(usize::try_from(clients).unwrap_or(0));
                output.clients.extend(clients.filter_map(|fd| self.client_of(fd, key, which)));
                Some(output)
            });
        }
        if let Some(ledger) = ledger {
            process.log.recover(ledger);
            process.resume(stages);
        }
        self.processes.push(process);
        Ok(())
    }

    /// Watches a process that is not our child. Since Linux 6.15 a pidfd tells the exit code after its reaping, which is a hang-up.
    /// Before that a tracer is told as a parent is; of who cannot be traced any more only the end itself can be seen.
    fn watch_end(&mut self, pidfd: &OwnedFd, pid: i32, key: u64) -> io::Result<()> {
        let told = process::exit_info(pidfd.as_fd()).is_ok();
        if !told && trace(pidfd, pid) {
            return Ok(());
        }
        let token = self.watch(pidfd, Source::Adopted(key))?;
        if told {
            epoll::modify(&self.epoll, pidfd, epoll::EventData::new_u64(token), epoll::EventFlags::empty())?;
        }
        Ok(())
    }

    /// An adopted process has ended.
    pub(super) fn adopted_ended(&mut self, key: u64, token: u64) {
        let Some(pidfd) = self.process(key).and_then(|p| p.pidfd.try_clone().ok()) else { return };
        self.unwatch(&pidfd, token);
        let (code, signal) = process::exit_info(pidfd.as_fd()).ok().flatten().unwrap_or((UNKNOWN, 0));
        self.ended(key, code, signal);
    }
}

/// Traces a process for its exit code.
fn trace(pidfd: &OwnedFd, pid: i32) -> bool {
    if trace::seize(pid).is_err() {
        return false;
    }
    // Now the number is its own, or never was again: then somebody else's process stops and is let go of.
    let same = process::is_child(pidfd.as_fd());
    if !same {
        let _ = trace::interrupt(pid);
    }
    same
}

/// How a container has ended, out of a message.
fn exit_of(message: &Message) -> Exit {
    Exit {
        code: message.int(Tag::Code),
        oom: message.get(Tag::Oom) == 1,
        at: message.get(Tag::Ended).cast_signed(),
    }
}

/// Our namespaces, by the template's procfs, and a detached copy of the pod's /dev/shm.
fn copies() -> io::Result<Vec<OwnedFd>> {
    let mut fds: Vec<OwnedFd> = Vec::with_capacity(5);
    for name in ["net", "uts", "ipc"] {
        fds.push(std::fs::File::open(format!("/proc/self/ns/{name}"))?.into());
    }
    fds.push(open_tree(
        CWD,
        template::SHM,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?);
    Ok(fds)
}
