//! The supervisor of one pod: a single thread that clones, logs, reaps and records.
//!
//! ```text
//!   daemon ──Start──▶ Starting ──exec succeeded──▶ Running ──SIGCHLD──▶ Ended ──▶ record on tmpfs, event
//!                        └──a step failed──▶ (forgotten; the daemon gets the failure)
//! ```
//!
//! In reading order: [`setup`] (namespaces and the template), [`connection`] and [`requests`], [`launch`] (clone), [`outside`]
//! (processes that a runtime makes), [`streams`] (output, logs, attach), [`ledger`], [`log`], [`record`], and how another one
//! ([`adopt`]) or another program ([`upgrade`]) takes over. It is forked by the daemon's [`zygote`], or started by the daemon itself,
//! from a sealed memfd with two descriptors, the listening socket (3) and the pod's directory (4), waits for `Setup`, and then serves
//! whoever of uid 0 connects, one daemon after the other, until `Shutdown`.
//! It owns the log files and the exit records; it spawns no thread, and reads no file but procfs and cgroupfs.

mod adopt;
mod connection;
mod launch;
mod ledger;
pub(crate) mod log;
mod outside;
pub(crate) mod record;
mod requests;
mod setup;
mod streams;
mod upgrade;
pub(crate) mod zygote;

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use rustix::event::{Timespec, epoll};

use self::connection::Connection;
use self::log::Log;
use self::streams::Output;
use self::zygote::Birth;
use super::wire::{self, Kind, Message, Tag};
use super::{Exit, nanos};
use crate::native::listener::Agent;
use crate::sys::process::{self, SingleThreaded, Told};
use crate::sys::{footprint, memory, socket, thread, trace};

/// Ended containers that are remembered for a daemon that comes back.
const REMEMBERED: usize = 128;

/// Bytes of the buffer for what is read. The allocator makes a mapping of its own of a piece this large, so that only as much of it takes
/// memory as was ever filled (mallopt(3), `M_MMAP_THRESHOLD`).
const BUFFER: usize = 128 << 10;
const _: () = assert!(BUFFER >= streams::CHUNK && BUFFER >= wire::MAX);

/// Who has nothing to do for this long is idle.
const IDLE: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// Second argument of a process that holds a cgroup's place.
pub(crate) const HOLD: &str = "hold";

/// Waits for the end of what was inherited. All signals are blocked, as the daemon starts it.
fn hold() -> io::Result<()> {
    let line = process::inherited(&SingleThreaded::prove()?, 3)?;
    rustix::io::read(&line, &mut [0])?;
    Ok(())
}

/// What a descriptor in the epoll set belongs to.
#[derive(Clone, Copy, Debug)]
enum Source {
    Listener,
    Signals,
    Connection,
    /// Error channel of a starting process.
    Channel(u64),
    /// Output 0 or 1 of a process.
    Output(u64, usize),
    /// Pipe of a client that is attached to output 0 or 1 of a process.
    Client(u64, usize),
    /// Pidfd of a process that is not our child.
    Adopted(u64),
}

/// A container's first process or an exec.
#[derive(Debug)]
struct Process {
    key: u64,
    container: String,
    cgroup: String,
    exec: Option<u64>,
    pid: i32,
    pidfd: OwnedFd,
    started: i64,
    starting: Option<Starting>,
    exit: Option<Exit>,
    terminal: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    stdin_once: bool,
    log: Log,
    outputs: [Option<Output>; 2],
    /// Counter of OOM kills of the cgroup, and its value at the start.
    oom: Option<(OwnedFd, u64)>,
    /// Where the end of an exec is told, if not to every daemon.
    line: Option<OwnedFd>,
}

/// A process that has not executed its program yet, and who is waiting for it.
#[derive(Debug)]
struct Starting {
    channel: OwnedFd,
    token: u64,
    connection: u64,
    request: u32,
    /// Who gets the listener of its seccomp filter.
    agent: Option<Agent>,
    /// Set for a process that makes another one outside, which goes on in its place.
    outside: Option<Outside>,
}

/// What belongs to the start of a process by a runtime.
#[derive(Debug, Default)]
struct Outside {
    /// Our ends of a container's outputs, not read from as long as it is the runtime who writes.
    outputs: [Option<OwnedFd>; 2],
    /// How the process ended, if it did before its start was complete: code and signal.
    ended: Option<(i32, i32)>,
}

/// Everything there is.
#[derive(Debug)]
struct Podd {
    proof: SingleThreaded,
    epoll: OwnedFd,
    listener: OwnedFd,
    dir: OwnedFd,
    signals: OwnedFd,
    own_pid_namespace: OwnedFd,
    /// Signals that we ignore.
    ignored: u64,
    /// Our own oom_score_adj, open for reading.
    oom_score: OwnedFd,
    /// The template was built before we were forked.
    template: bool,
    sources: BTreeMap<u64, Source>,
    last_token: u64,
    connections: BTreeMap<u64, Connection>,
    processes: Vec<Process>,
    /// Ended children that nobody knows, as long as a runtime may still name one of them: code and signal by pid.
    strays: BTreeMap<i32, (i32, i32)>,
    /// The pod's own user namespace, which its containers enter and we do not.
    user: Option<OwnedFd>,
    /// First process of the pod's own PID namespace.
    init: Option<OwnedFd>,
    /// SELinux label of the pod's file systems; empty: none.
    label: Vec<u8>,
    ready: bool,
    ending: bool,
    /// A container was started, and we have not been idle since.
    fresh: bool,
    buffer: Vec<u8>,
}

/// Entry point of `berth podd POD [STATE]`, to be called before any thread or runtime is started. `args` begin after `podd`. The pod's
/// id is there for ps(1) alone; STATE is the number of the descriptor that [`upgrade`] left. `berth podd UNIT hold` is no supervisor: it
/// stands in a cgroup until descriptor 3 comes to its end. `berth podd ROOM zygote HIERARCHY…` becomes one supervisor after the other.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter().skip(1);
    let word = args.next();
    if word.as_ref().is_some_and(|word| word == HOLD) {
        return hold().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    match begin(word.as_deref(), args).and_then(|podd| podd.map_or(Ok(()), |mut podd| podd.serve())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Becomes a supervisor, by what follows the pod's id among the arguments; `None`: a zygote whose daemon has gone.
fn begin(word: Option<&OsStr>, more: impl Iterator<Item = OsString>) -> io::Result<Option<Podd>> {
    let proof = SingleThreaded::prove()?;
    let ignored = thread::ignored_signals()?;
    if word.is_some_and(|word| word == zygote::ZYGOTE) {
        let hierarchies: Vec<_> =
            more.map(|name| CString::new(name.into_encoded_bytes())).collect::<Result<_, _>>()?;
        return zygote::serve(&proof, &hierarchies)?
            .map(|birth| Podd::new(proof, birth, true, ignored))
            .transpose();
    }
    let birth = Birth { listener: process::inherited(&proof, 3)?, dir: process::inherited(&proof, 4)? };
    let mut podd = Podd::new(proof, birth, false, ignored)?;
    if let Some(state) = word.and_then(|state| state.to_str()?.parse().ok()) {
        podd.resume(state)?;
    }
    Ok(Some(podd))
}

impl Podd {
    fn new(proof: SingleThreaded, birth: Birth, template: bool, ignored: u64) -> io::Result<Self> {
        let Birth { listener, dir } = birth;
        setup::harden(c"podd")?;
        let signals = thread::signalfd(1 << (libc::SIGCHLD - 1))?;
        let own_pid_namespace = std::fs::File::open("/proc/self/ns/pid")?.into();
        let oom_score = std::fs::File::open("/proc/self/oom_score_adj")?.into();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut buffer = vec![0; BUFFER];
        memory::keep_from_children(&mut buffer);
        let mut podd = Self {
            proof,
            epoll,
            listener,
            dir,
            signals,
            own_pid_namespace,
            ignored,
            oom_score,
            template,
            sources: BTreeMap::new(),
            last_token: 0,
            connections: BTreeMap::new(),
            processes: Vec::new(),
            strays: BTreeMap::new(),
            user: None,
            init: None,
            label: Vec::new(),
            ready: false,
            ending: false,
            fresh: false,
            buffer,
        };
        let (listener, signals) = (podd.listener.try_clone()?, podd.signals.try_clone()?);
        podd.watch(&listener, Source::Listener)?;
        podd.watch(&signals, Source::Signals)?;
        Ok(podd)
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(16);
        while !self.ending {
            let patience = self.fresh.then_some(&IDLE);
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), patience) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(0) => {
                    // What a start needs of the program is not needed again for long.
                    footprint::forget_program();
                    self.fresh = false;
                }
                other => drop(other?),
            }
            for event in events.drain(..) {
                let token = event.data.u64();
                match self.sources.get(&token).copied() {
                    Some(Source::Listener) => self.accept(),
                    Some(Source::Signals) => self.reap(),
                    Some(Source::Connection) => self.hear(token),
                    Some(Source::Channel(key)) => self.starting(key),
                    Some(Source::Output(key, which)) => self.output(key, which),
                    Some(Source::Client(key, which)) => self.client_left(key, which, token),
                    Some(Source::Adopted(key)) => self.adopted_ended(key, token),
                    // Removed by an event before it in the same batch.
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// Adds a descriptor to the epoll set, for what can be read from it.
    fn watch(&mut self, fd: &impl AsFd, source: Source) -> io::Result<u64> {
        self.watch_for(fd, source, epoll::EventFlags::IN)
    }

    /// Adds a descriptor to the epoll set, for these events and for its end.
    fn watch_for(&mut self, fd: &impl AsFd, source: Source, events: epoll::EventFlags) -> io::Result<u64> {
        self.last_token += 1;
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(self.last_token), events)?;
        self.sources.insert(self.last_token, source);
        Ok(self.last_token)
    }

    /// Takes a descriptor out of the epoll set, before it is closed: a child may still hold a copy that would keep it alive in there.
    fn unwatch(&mut self, fd: impl AsFd, token: u64) {
        let _ = epoll::delete(&self.epoll, fd);
        self.sources.remove(&token);
    }

    /// A key for a process, never given twice: not even one without anything to watch may share it.
    fn new_key(&mut self) -> u64 {
        self.last_token += 1;
        self.last_token
    }

    fn process(&mut self, key: u64) -> Option<&mut Process> {
        self.processes.iter_mut().find(|p| p.key == key)
    }

    /// The first process of a container.
    fn container(&mut self, id: &str) -> Option<&mut Process> {
        self.processes.iter_mut().find(|p| p.exec.is_none() && p.container == id)
    }

    /// Reaps every ended child: ours, and orphans of containers without a PID namespace. Its end is told first, since nobody who waits for
    /// that waits for the kernel to take it apart as well. Who is traced for its exit code goes on.
    fn reap(&mut self) {
        let _ = rustix::io::read(&self.signals, &mut [0; 128]);
        while let Ok(Some(told)) = process::told() {
            let (Told::Ended { pid, .. } | Told::Stopped { pid, .. }) = told;
            let key = self.processes.iter().find(|p| p.pid == pid && p.exit.is_none()).map(|p| p.key);
            match (told, key) {
                // One that died since is met again, as an ended one.
                (Told::Stopped { status, .. }, _) => drop(trace::go_on(pid, status, key.is_none())),
                (Told::Ended { code, signal, .. }, Some(key)) => self.child_ended(key, pid, code, signal),
                (Told::Ended { code, signal, .. }, None) => self.strayed(pid, code, signal),
            }
            if let Told::Ended { pid, .. } = told {
                process::reap(pid);
            }
        }
    }

    /// A child has ended that is one of the processes.
    fn child_ended(&mut self, key: u64, pid: i32, code: i32, signal: i32) {
        // What it said last may not have been read yet.
        self.starting(key);
        // Who ended may have been a go-between, as we have just learned.
        let Some(process) = self.process(key).filter(|p| p.pid == pid) else { return };
        match process.starting.as_mut().and_then(|starting| starting.outside.as_mut()) {
            // It is to be told of as started first.
            Some(outside) => outside.ended = Some((code, signal)),
            None => self.ended(key, code, signal),
        }
    }

    /// A process has ended: its last output, its record, the event.
    fn ended(&mut self, key: u64, code: i32, signal: i32) {
        let at = nanos(std::time::SystemTime::now());
        (0..2).for_each(|which| self.drain(key, which));
        let Some(process) = self.process(key) else { return };
        let killed = signal == libc::SIGKILL || code == 128 + libc::SIGKILL;
        let oom =
            killed && process.oom.take().is_some_and(|(file, before)| launch::oom_kills(&file) > before);
        let exit = Exit { code, oom, at };
        process.exit = Some(exit.clone());
        (process.stdin, process.terminal) =
            (None, process.terminal.take().filter(|_| process.exec.is_none()));
        let (container, exec, line) = (process.container.clone(), process.exec, process.line.take());
        let message = match exec {
            Some(exec) => Message::new(Kind::ExecExited, 0).number(Tag::Exec, exec),
            None => {
                let _ = record::write(self.dir.as_fd(), &container, &exit);
                Message::new(Kind::Exited, 0)
            }
        };
        let message = requests::describe_exit(message.put(Tag::Container, container.as_bytes()), &exit);
        match line {
            // Whoever has gone does not want to know.
            Some(line) => drop(socket::send(&line, message.bytes(), &[])),
            None => self.tell(&message),
        }
        if exec.is_some() {
            self.processes.retain(|p| p.key != key);
        }
        self.forget_oldest();
    }

    /// Bounds what is remembered of containers that have ended.
    fn forget_oldest(&mut self) {
        let over = |p: &Process| p.exit.is_some() && p.outputs.iter().all(Option::is_none);
        while self.processes.iter().filter(|p| over(p)).count() > REMEMBERED {
            let Some(at) = self.processes.iter().position(over) else { return };
            let name = format!("{}{}", record::PREFIX, self.processes.remove(at).container);
            let _ = rustix::fs::unlinkat(&self.dir, &*name, rustix::fs::AtFlags::empty());
        }
    }
}
