//! Starting processes: read the plan, make pipes, clone, and wait for the child's verdict without blocking.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

use super::log::{Log, Stream};
use super::streams::{Output, nonblocking};
use super::{Outside, Podd, Process, Source, Starting};
use crate::exec::nanos;
use crate::exec::wire::{
    self, HAS_AGENT, HAS_CGROUP, HAS_LOG, HAS_OOM, JOIN_PID, Kind, Message, OUTSIDE, STDIN, STDIN_ONCE, TTY,
    Tag,
};
use crate::native::child::{
    self, Failure, Inherited, LISTENER, Prepared, READY, SIBLING, SUCCESSOR, TERMINAL,
};
use crate::native::listener::{self, Agent};
use crate::native::plan::MAX_PLAN;
use crate::sys::memory::Sealed;
use crate::sys::process::{self, Cloned};
use crate::sys::{socket, thread};

/// What a failed launch answers.
type Refusal = (&'static str, io::Error);

/// Our ends of a container's pipes.
#[derive(Default)]
struct Ends {
    stdin: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
}

impl Podd {
    /// Starts a container or an exec; the answer follows when the child has executed its program or failed. With a `line`, which is taken
    /// if the child is there, nobody waits for the one, and the child itself tells the other.
    pub(super) fn launch(
        &mut self,
        connection: u64,
        mut message: Message,
        line: &mut Option<OwnedFd>,
    ) -> Result<(), Refusal> {
        let refuse = |what: &'static str| move |e: io::Error| (what, e);
        let has = message.get(Tag::Has);
        let exec = (message.kind() == Kind::Exec).then(|| message.get(Tag::Exec));
        let id = message.text(Tag::Container).to_owned();
        if exec.is_none() && self.container(&id).is_some() {
            return Err((
                "start",
                io::Error::new(io::ErrorKind::AlreadyExists, "the container was started before"),
            ));
        }
        let mut fds = std::mem::take(&mut message.fds).into_iter();
        let mut sealed = None;
        let plan = plan(&message, &mut fds, &mut sealed).map_err(refuse("read the plan"))?;
        let mut next = |bit: u64| if has & bit != 0 { fds.next() } else { None };
        let (log, cgroup, oom, agent) = (next(HAS_LOG), next(HAS_CGROUP), next(HAS_OOM), next(HAS_AGENT));
        let mut slots: Vec<OwnedFd> = fds.collect();

        let prepared = Prepared::new(plan, self.inherited())
            .ok_or(("read the plan", io::ErrorKind::InvalidData.into()))?;
        let agent = agent.zip(listener::state_in(plan)).map(|(socket, state)| Agent { socket, state });
        let outside = has & OUTSIDE != 0;
        let mut ends = if exec.is_some() {
            // Who is outside is given no way in: the runtime knows its own.
            let running = self.running(&id)?;
            slots.extend((!outside).then_some(running));
            Ends::default()
        } else {
            pipes(has, &mut slots).map_err(refuse("make pipes"))?
        };
        let (ours, theirs) = channel(line.is_none()).map_err(refuse("make a channel"))?.unzip();
        let cgroup = cgroup.as_ref().map(AsFd::as_fd);
        let (pid, pidfd) = match self.clone_for(&message, &slots, cgroup)? {
            Cloned::Child => match theirs.or_else(|| line.take()) {
                Some(theirs) => child::run(&prepared, &self.proof, slots, theirs),
                None => process::exit(127),
            },
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop((theirs, slots));
        let oom = oom.map(|file| (oom_kills(&file), file)).map(|(before, file)| (file, before));
        let key = self.new_key();
        let outside =
            outside.then(|| Outside { outputs: std::mem::take(&mut ends.outputs), ..Outside::default() });
        let starting = ours.map(|channel| {
            let token = self.watch(&channel, Source::Channel(key))?;
            Ok(Starting { channel, token, connection, request: message.request(), agent, outside })
        });
        let starting = starting.transpose().map_err(refuse("watch the child"))?;
        let mut process = Process {
            key,
            container: id,
            cgroup: message.text(Tag::Cgroup).to_owned(),
            exec,
            pid,
            pidfd,
            started: nanos(std::time::SystemTime::now()),
            starting,
            exit: None,
            terminal: None,
            stdin: ends.stdin,
            stdin_once: has & STDIN_ONCE != 0,
            log: Log::new(log),
            outputs: [None, None],
            oom,
            line: line.take(),
        };
        for (which, (fd, name)) in ends.outputs.into_iter().zip(["stdout", "stderr"]).enumerate() {
            process.outputs[which] = fd.and_then(|fd| self.output_of(fd, key, which, name));
        }
        process.keep_ledger();
        self.processes.push(process);
        Ok(())
    }

    /// What a child has of us. The score is asked for each time: it is anybody's to change who may.
    fn inherited(&self) -> Inherited {
        let mut text = [0; 8];
        let length = rustix::io::pread(&self.oom_score, &mut text, 0).unwrap_or(0);
        let oom_score = std::str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse().ok());
        Inherited { ignored: self.ignored, oom_score }
    }

    /// Clones what a message asks for, into the PID namespace that it belongs to. Where an exec goes is the last of its descriptors.
    fn clone_for(
        &mut self,
        message: &Message,
        slots: &[OwnedFd],
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Cloned, Refusal> {
        let has = message.get(Tag::Has);
        let inside = has & OUTSIDE == 0;
        let namespace;
        let joined = if message.kind() == Kind::Exec {
            slots.last().filter(|_| inside)
        } else {
            let join = inside && has & JOIN_PID != 0;
            namespace = self.pid_namespace(join, message.text(Tag::PidOf))?;
            namespace.as_ref()
        };
        self.clone_in(joined, message.get(Tag::Flags), cgroup)
    }

    /// Clones, into a PID namespace that is there if one is given.
    fn clone_in(
        &self,
        joined: Option<&OwnedFd>,
        flags: u64,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Cloned, Refusal> {
        if let Some(joined) = joined {
            thread::setns(joined.as_fd(), libc::CLONE_NEWPID).map_err(|e| ("enter the PID namespace", e))?;
        }
        let cloned = process::clone(&self.proof, flags, cgroup);
        if joined.is_some() && !matches!(cloned, Ok(Cloned::Child)) {
            thread::setns(self.own_pid_namespace.as_fd(), libc::CLONE_NEWPID)
                .map_err(|e| ("leave the PID namespace", e))?;
        }
        cloned.map_err(|e| ("clone", e))
    }

    /// Watches one output of a process.
    pub(super) fn output_of(
        &mut self,
        fd: OwnedFd,
        key: u64,
        which: usize,
        name: &'static str,
    ) -> Option<Output> {
        let token = self.watch(&fd, Source::Output(key, which)).ok()?;
        Some(Output { fd, token, stream: Stream::new(name), stage: None, clients: Vec::new() })
    }

    /// The pidfd of a running container.
    fn running(&mut self, id: &str) -> Result<OwnedFd, Refusal> {
        let ended = || ("enter the container", io::Error::new(io::ErrorKind::NotFound, "it is not running"));
        let process =
            self.container(id).filter(|p| p.exit.is_none() && p.starting.is_none()).ok_or_else(ended)?;
        process.pidfd.try_clone().map_err(|e| ("enter the container", e))
    }

    /// Whose PID namespace a new container is born into; `None`: its own new one, or ours.
    fn pid_namespace(&mut self, join: bool, of: &str) -> Result<Option<OwnedFd>, Refusal> {
        if !join {
            return Ok(None);
        }
        if !of.is_empty() {
            return self.running(of).map(Some);
        }
        let init =
            self.init.as_ref().ok_or(("enter the pod's PID namespace", io::ErrorKind::NotFound.into()))?;
        init.try_clone().map(Some).map_err(|e| ("enter the pod's PID namespace", e))
    }

    /// News from a child that has not executed yet: its terminal, its failure, or (end of file) success.
    pub(super) fn starting(&mut self, key: u64) {
        loop {
            let Some(process) = self.process(key) else { return };
            let Some(starting) = &process.starting else { return };
            let (mut bytes, mut fds) = ([0; 16], Vec::new());
            match socket::receive(&starting.channel, &mut bytes, &mut fds) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Ok(length @ 1..) if bytes[0] == TERMINAL && length == 1 => {
                    self.terminal_opened(key, fds.pop());
                }
                Ok(1) if bytes[0] == SIBLING => self.succeeded_by(key, fds.pop()),
                Ok(5) if bytes[0] == SUCCESSOR => {
                    self.made(key, i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]));
                }
                Ok(1) if bytes[0] == READY => return self.verdict(key, None),
                Ok(5) if bytes[0] == LISTENER => {
                    self.filtered(key, i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]));
                }
                // Its end alone says nothing of what a runtime has come to.
                Ok(0) | Err(_) if starting.outside.is_some() => {
                    return self.verdict(key, Some(Failure::from_parts(u32::MAX, libc::ECHILD, 0)));
                }
                Ok(length) => return self.verdict(key, Failure::decode(&bytes[..length])),
                Err(_) => return self.verdict(key, None),
            }
        }
    }

    /// The child has entered the pod's user namespace and another process goes on there in its place, a child of ours as well.
    fn succeeded_by(&mut self, key: u64, pidfd: Option<OwnedFd>) {
        let pid = pidfd.as_ref().and_then(|pidfd| process::pid_of_pidfd(pidfd.as_fd()).ok());
        if let (Some(process), Some(pidfd), Some(pid)) = (self.process(key), pidfd, pid) {
            (process.pid, process.pidfd) = (pid, pidfd);
        }
    }

    /// The child has its seccomp filter: the agent gets the listener, and the child hears how that went. The connection to the agent
    /// is for this one message.
    fn filtered(&mut self, key: u64, number: i32) {
        let Some(process) = self.process(key) else { return };
        let Some(starting) = &mut process.starting else { return };
        let handed = match starting.agent.take() {
            Some(agent) => agent.hand_over(process.pidfd.as_fd(), process.pid, number),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        let _ = rustix::io::write(&starting.channel, &[listener::verdict(&handed)]);
    }

    /// The child sent its terminal's master.
    fn terminal_opened(&mut self, key: u64, master: Option<OwnedFd>) {
        let Some(master) = master else { return };
        let is_container = self.process(key).is_some_and(|p| p.exec.is_none());
        if is_container {
            nonblocking(&master);
            let output = master.try_clone().ok().and_then(|fd| self.output_of(fd, key, 0, "stdout"));
            if let Some(process) = self.process(key) {
                process.outputs[0] = output;
            }
        }
        if let Some(process) = self.process(key) {
            process.terminal = Some(master);
        }
    }

    /// The program runs, or never will.
    fn verdict(&mut self, key: u64, failure: Option<Failure>) {
        let Some(starting) = self.process(key).and_then(|p| p.starting.take()) else { return };
        self.unwatch(&starting.channel, starting.token);
        let answer = match failure {
            Some(failure) => {
                self.discard(key, starting.outside.is_some());
                Message::new(Kind::Failed, starting.request)
                    .put(Tag::Message, &starting.outside.as_ref().map(Outside::said).unwrap_or_default())
                    .number(Tag::Step, failure.step.into())
                    .number(Tag::Errno, wire::int(failure.errno))
                    .number(Tag::Detail, failure.detail as u64)
            }
            None => self.started(key, starting.request),
        };
        self.fresh |= self.process(key).is_some_and(|process| process.exec.is_none());
        self.say(starting.connection, answer);
        if let Some((code, signal)) = starting.outside.and_then(|outside| outside.ended) {
            self.ended(key, code, signal);
        }
        if self.processes.iter().all(|p| !p.starts_outside()) {
            self.strays.clear();
        }
    }

    /// The answer for a running process.
    fn started(&mut self, key: u64, request: u32) -> Message {
        let Some(process) = self.process(key) else {
            return wire::error("start", &io::ErrorKind::NotFound.into()).with_number(request);
        };
        process.started = nanos(std::time::SystemTime::now());
        if process.exec.is_none() {
            return process.describe(Kind::Started, request);
        }
        let mut answer = Message::new(Kind::Started, request)
            .number(Tag::Pid, wire::int(process.pid))
            .number(Tag::At, process.started.cast_unsigned());
        answer.fds.extend(process.terminal.as_ref().and_then(|t| t.try_clone().ok()));
        answer
    }

    /// Forgets a process that never executed; the child is ending by itself and is reaped as a stranger.
    fn discard(&mut self, key: u64, outside: bool) {
        if outside {
            self.end_unstarted(key);
        }
        for which in 0..2 {
            let output = self.process(key).and_then(|p| p.outputs[which].take());
            self.unwatch_output(output);
        }
        self.processes.retain(|p| p.key != key);
    }
}

/// The plan of a launch: a field, or sealed memory when it is long or comes from an older daemon.
fn plan<'a>(
    message: &'a Message,
    fds: &mut impl Iterator<Item = OwnedFd>,
    sealed: &'a mut Option<Sealed>,
) -> io::Result<&'a [u8]> {
    if let Some(plan) = message.all(Tag::Plan).next() {
        return Ok(plan);
    }
    let fd = fds.next().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(sealed.insert(Sealed::map(fd, MAX_PLAN)?).bytes())
}

/// The pipes of a container without a terminal; the child's ends go behind the descriptors of its plan, in the order stdout, stderr,
/// stdin.
fn pipes(has: u64, slots: &mut Vec<OwnedFd>) -> io::Result<Ends> {
    let mut ends = Ends::default();
    if has & TTY != 0 {
        return Ok(ends);
    }
    for output in &mut ends.outputs {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        nonblocking(&read);
        slots.push(write);
        *output = Some(read);
    }
    if has & STDIN != 0 {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        slots.push(read);
        ends.stdin = Some(write);
    }
    Ok(ends)
}

/// The channel on which a child reports, if it is to be us; execve closes its end.
fn channel(to_us: bool) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
    if !to_us {
        return Ok(None);
    }
    let (ours, theirs) = socket::pair()?;
    nonblocking(&ours);
    Ok(Some((ours, theirs)))
}

/// The `oom_kill` line of memory.events (v2) or memory.oom_control (v1); 0 once the cgroup is gone.
pub(super) fn oom_kills(file: &OwnedFd) -> u64 {
    let mut bytes = [0; 512];
    let length = rustix::io::pread(file, &mut bytes, 0).unwrap_or(0);
    let text = std::str::from_utf8(&bytes[..length]).unwrap_or_default();
    text.lines().find_map(|l| l.strip_prefix("oom_kill ")).and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}
