//! A pod's supervisor as the daemon sees it: calls, answers, events.

mod kept;
mod launch;
mod line;
mod outside;

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

pub(super) use self::kept::Kept;
pub(super) use self::line::Kit;
use super::Node;
use crate::error::{Error, Kind};
use crate::exec::wire::{self, Kind as Word, LINE, Message, PLAN_FIELDS, STDERR, STDIN, STDOUT, TREE, Tag};
use crate::exec::{
    self, Call, Connection, ContainerLaunch, Event, Exec, ExecLaunch, Exit, Process, Started, Stdio,
    Survivor, cgroup, nanos,
};
use crate::sys::{self, process, socket};

/// How long a supervisor may take for what is not a start.
const CALL_TIME: Duration = Duration::from_secs(10);
/// How long a start may take; a volume's file system may be slow.
const START_TIME: Duration = Duration::from_secs(120);

/// One connection to one supervisor.
pub(crate) struct Supervisor {
    pod: String,
    /// The pod's directory: what is shown to those who ask for a bundle.
    dir: PathBuf,
    node: Arc<Node>,
    socket: AsyncFd<OwnedFd>,
    pid: AtomicI32,
    /// It takes plans as fields of messages.
    plan_fields: AtomicBool,
    /// It tells of an exec on a line of its own.
    lines: AtomicBool,
    last_request: AtomicU32,
    last_exec: AtomicU64,
    waiting: Mutex<Waiting>,
}

/// Who waits for what.
#[derive(Default)]
struct Waiting {
    gone: bool,
    answers: HashMap<u32, oneshot::Sender<Message>>,
    execs: HashMap<u64, oneshot::Sender<Exit>>,
    /// Cgroups of the containers.
    cgroups: HashMap<String, String>,
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("pod", &self.pod).field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// Runs blocking work on the blocking pool.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::with(Kind::Internal, "blocking work was lost", e))?
}

/// Reaps a supervisor that is our child when it ends.
pub(super) fn reap(pidfd: &OwnedFd) -> Result<(), Error> {
    let failed = |e| Error::with(Kind::Internal, "watch the supervisor", e);
    let pidfd = sys::watch(pidfd.try_clone().map_err(failed)?).map_err(failed)?;
    tokio::spawn(async move {
        let _ = pidfd.readable().await;
        let _ = process::wait(pidfd.get_ref());
    });
    Ok(())
}

impl Supervisor {
    /// Greets the supervisor and learns what it has.
    pub(super) async fn resume(
        pod: &str,
        dir: &Path,
        connection: OwnedFd,
        node: Arc<Node>,
    ) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<Event>, Vec<Survivor>), Error> {
        let supervisor = Self::over(pod, dir, connection, node)?;
        let survivors = tokio::time::timeout(CALL_TIME, supervisor.greet())
            .await
            .map_err(|_| supervisor.silent("Hello"))??;
        let events = supervisor.hear();
        Ok((supervisor, events, survivors))
    }

    /// Has a supervisor that was just started set its pod up: there is nothing to learn yet, and so one exchange is enough.
    pub(super) async fn begin(
        pod: &str,
        dir: &Path,
        connection: OwnedFd,
        node: Arc<Node>,
        setup: Message,
        time: Duration,
    ) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<Event>, Vec<Survivor>), Error> {
        let supervisor = Self::over(pod, dir, connection, node)?;
        let events = supervisor.hear();
        let pod = supervisor.call(setup, time).await?;
        supervisor.pid.store(pod.int(Tag::Pid), Ordering::Relaxed);
        supervisor.keep_pod(pod);
        Ok((supervisor, events, Vec::new()))
    }

    fn over(pod: &str, dir: &Path, connection: OwnedFd, node: Arc<Node>) -> Result<Arc<Self>, Error> {
        let socket = sys::watch(connection)
            .map_err(|e| Error::with(Kind::Internal, format!("watch the supervisor of pod {pod}"), e))?;
        Ok(Arc::new(Self {
            pod: pod.to_owned(),
            dir: dir.to_owned(),
            node,
            socket,
            pid: AtomicI32::new(0),
            plan_fields: AtomicBool::new(false),
            lines: AtomicBool::new(false),
            last_request: AtomicU32::new(1),
            // Unique over restarts of the daemon as well.
            last_exec: AtomicU64::new(nanos(SystemTime::now()).cast_unsigned()),
            waiting: Mutex::default(),
        }))
    }

    /// Starts to listen to what it says by itself, and to its answers.
    fn hear(self: &Arc<Self>) -> mpsc::UnboundedReceiver<Event> {
        let (sender, events) = mpsc::unbounded_channel();
        let reader = self.clone();
        tokio::spawn(async move { reader.listen(&sender).await });
        events
    }

    /// Says hello. Events that come before the answer are in the answer.
    async fn greet(&self) -> Result<Vec<Survivor>, Error> {
        self.send(Message::new(Word::Hello, 1).bytes(), &[]).await.map_err(|e| self.lost(e))?;
        let mut survivors = Vec::new();
        loop {
            let message = self.receive().await.map_err(|e| self.lost(e))?;
            match message.kind() {
                Word::Container => {
                    self.waiting()
                        .cgroups
                        .insert(message.text(Tag::Container).into(), message.text(Tag::Cgroup).into());
                    survivors.push(survivor(&message));
                    self.keep(message);
                }
                Word::Ok => {
                    self.pid.store(message.int(Tag::Pid), Ordering::Relaxed);
                    self.keep_pod(message);
                    return Ok(survivors);
                }
                _ => {}
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The supervisor is not there any more.
    fn lost(&self, e: io::Error) -> Error {
        Error::with(Kind::Unavailable, format!("the supervisor of pod {} has gone", self.pod), e)
    }

    /// The supervisor does not answer.
    fn silent(&self, what: &str) -> Error {
        Error::new(
            Kind::DeadlineExceeded,
            format!("the supervisor of pod {} does not answer {what}", self.pod),
        )
    }

    async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            match socket::send(self.socket.get_ref(), bytes, fds) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    sys::writable(self.socket.get_ref().try_clone()?).await?;
                }
                result => return result,
            }
        }
    }

    async fn receive(&self) -> io::Result<Message> {
        loop {
            let (bytes, fds) = datagram(&self.socket, wire::MAX).await?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(message) = Message::parse(&bytes, fds) {
                return Ok(message);
            }
        }
    }

    /// Reads until the supervisor has gone; then everybody who waits is told.
    async fn listen(&self, events: &mpsc::UnboundedSender<Event>) {
        while let Ok(message) = self.receive().await {
            match message.kind() {
                Word::Exited => {
                    let container = message.text(Tag::Container).to_owned();
                    self.keep_end(&container, &message);
                    let _ = events.send(Event::Exited { container, exit: exit(&message) });
                }
                Word::ExecExited => {
                    if let Some(waiter) = self.waiting().execs.remove(&message.get(Tag::Exec)) {
                        let _ = waiter.send(exit(&message));
                    }
                }
                _ => {
                    if let Some(waiter) = self.waiting().answers.remove(&message.request()) {
                        let _ = waiter.send(message);
                    }
                }
            }
        }
        let mut waiting = self.waiting();
        waiting.gone = true;
        waiting.answers.clear();
        waiting.execs.clear();
        drop(waiting);
        let _ = events.send(Event::Gone);
    }

    /// One request and its answer; anything but success is an error.
    pub(super) async fn call(&self, message: Message, time: Duration) -> Result<Message, Error> {
        let what = format!("{:?}", message.kind());
        let answer = self.ask(message, time).await?;
        match answer.kind() {
            Word::Error => Err(refused(&self.pod, &answer)),
            Word::Ok | Word::Started | Word::Failed => Ok(answer),
            other => Err(Error::new(
                Kind::Internal,
                format!("the supervisor of pod {} answered {other:?} to {what}", self.pod),
            )),
        }
    }

    async fn ask(&self, message: Message, time: Duration) -> Result<Message, Error> {
        let number = self.last_request.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
        let what = format!("{:?}", message.kind());
        let message = message.with_number(number);
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if waiting.gone {
                return Err(self.lost(io::ErrorKind::BrokenPipe.into()));
            }
            waiting.answers.insert(number, sender);
        }
        let exchange = async {
            let fds: Vec<_> = message.fds.iter().map(AsFd::as_fd).collect();
            self.send(message.bytes(), &fds).await.map_err(|e| self.lost(e))?;
            answer.await.map_err(|_| self.lost(io::ErrorKind::BrokenPipe.into()))
        };
        let result = tokio::time::timeout(time, exchange).await.unwrap_or_else(|_| Err(self.silent(&what)));
        self.waiting().answers.remove(&number);
        result
    }

    /// Learns from what it says of its pod what it is able to do.
    fn able(&self, pod: &Message) {
        let has = pod.get(Tag::Has);
        self.plan_fields.store(has & PLAN_FIELDS != 0, Ordering::Relaxed);
        self.lines.store(has & LINE != 0, Ordering::Relaxed);
    }

    async fn attach(&self, container: &str, wanted: u64) -> Result<Stdio, Error> {
        let message =
            Message::new(Word::Attach, 0).put(Tag::Container, container.as_bytes()).number(Tag::Has, wanted);
        let answer = self.call(message, CALL_TIME).await?;
        let given = answer.get(Tag::Has);
        let mut fds = answer.fds.into_iter();
        let mut next = |bit: u64| if given & bit != 0 { fds.next() } else { None };
        Ok(Stdio { stdin: next(STDIN), stdout: next(STDOUT), stderr: next(STDERR) })
    }

    /// Sends a signal; an ended process is fine.
    async fn send_signal(&self, container: &str, exec: Option<u64>, signal: i32) -> Result<(), Error> {
        let mut message = Message::new(Word::Signal, 0)
            .put(Tag::Container, container.as_bytes())
            .number(Tag::Signal, wire::int(signal));
        if let Some(exec) = exec {
            message = message.number(Tag::Exec, exec).number(Tag::Has, TREE);
        }
        match self.call(message, CALL_TIME).await {
            Err(e) if e.kind() == Kind::NotFound => Ok(()),
            other => other.map(drop),
        }
    }

    /// Has it go on as another program.
    pub(super) async fn upgrade(&self, program: OwnedFd, arguments: &[CString]) -> Result<(), Error> {
        let mut message = Message::new(Word::Upgrade, 0);
        for word in arguments {
            message = message.put(Tag::Message, word.as_bytes());
        }
        message.fds.push(program);
        self.able(&self.call(message, CALL_TIME).await?);
        Ok(())
    }

    async fn shutdown(&self) -> Result<(), Error> {
        // Whatever happens now, nobody is to bring this pod back.
        self.node.forget(&self.pod);
        if self.waiting().gone {
            return Ok(());
        }
        let pid = rustix::process::Pid::from_raw(self.pid.load(Ordering::Relaxed));
        let pidfd =
            pid.and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok());
        let asked = self.call(Message::new(Word::Shutdown, 0), CALL_TIME).await;
        let Some(pidfd) = pidfd else { return Ok(()) };
        if asked.is_err() {
            let _ = process::signal(pidfd.as_fd(), libc::SIGKILL);
        }
        let pidfd = sys::watch(pidfd).map_err(|e| {
            Error::with(Kind::Internal, format!("watch the supervisor of pod {}", self.pod), e)
        })?;
        let ended = tokio::time::timeout(CALL_TIME, pidfd.readable()).await;
        ended.map(drop).map_err(|_| self.silent("Shutdown"))
    }
}

/// What is said next on a socket, in at most so many bytes, with its descriptors; nothing, if the other end has gone.
async fn datagram(socket: &AsyncFd<OwnedFd>, most: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    loop {
        let mut ready = socket.readable().await?;
        // Made when there is something for it: of supervisors that say nothing there are many.
        let (mut bytes, mut fds) = (vec![0; most], Vec::new());
        if let Ok(length) = ready.try_io(|socket| socket::receive(socket.get_ref(), &mut bytes, &mut fds)) {
            bytes.truncate(length?);
            return Ok((bytes, fds));
        }
    }
}

/// What the supervisor of a pod could not do.
fn refused(pod: &str, answer: &Message) -> Error {
    let kind = match answer.int(Tag::Errno) {
        libc::ENOENT | libc::ESRCH => Kind::NotFound,
        _ => Kind::Internal,
    };
    Error::new(kind, format!("pod {pod}: {}", answer.text(Tag::Message)))
}

/// How a process ended, out of a message.
fn exit(message: &Message) -> Exit {
    Exit {
        code: message.int(Tag::Code),
        oom: message.get(Tag::Oom) == 1,
        at: message.get(Tag::Ended).cast_signed(),
    }
}

/// A container in answer to `Hello`.
fn survivor(message: &Message) -> Survivor {
    let ended = message.all(Tag::Ended).next().is_some();
    Survivor {
        id: message.text(Tag::Container).to_owned(),
        pid: message.int(Tag::Pid),
        started: message.get(Tag::At).cast_signed(),
        exit: ended.then(|| exit(message)),
    }
}

impl exec::Supervisor for Supervisor {
    fn pid(&self) -> i32 {
        self.pid.load(Ordering::Relaxed)
    }

    fn user_namespace(&self) -> Option<OwnedFd> {
        self.user()
    }

    fn start<'a>(&'a self, launch: ContainerLaunch<'a>) -> Call<'a, Started> {
        Box::pin(self.start(launch))
    }

    fn exec<'a>(
        &'a self,
        container: &'a str,
        process: &'a Process,
        launch: ExecLaunch<'a>,
    ) -> Call<'a, Exec> {
        Box::pin(async move {
            match &self.node.runtime {
                Some(runtime) => self.exec_outside(runtime, container, process, launch).await,
                None => self.exec(container, process, launch).await,
            }
        })
    }

    fn signal<'a>(&'a self, container: &'a str, signal: i32) -> Call<'a, ()> {
        Box::pin(async move {
            match &self.node.runtime {
                Some(runtime) => self.signal_outside(runtime, container, signal).await,
                None => self.send_signal(container, None, signal).await,
            }
        })
    }

    fn kill<'a>(&'a self, container: &'a str) -> Call<'a, ()> {
        Box::pin(async move {
            let cgroup = self.waiting().cgroups.get(container).cloned();
            match cgroup {
                Some(cgroup) => blocking(move || cgroup::kill(&cgroup)).await,
                None => self.send_signal(container, None, libc::SIGKILL).await,
            }
        })
    }

    fn kill_exec<'a>(&'a self, container: &'a str, exec: u64) -> Call<'a, ()> {
        Box::pin(self.send_signal(container, Some(exec), libc::SIGKILL))
    }

    fn reopen_log<'a>(&'a self, container: &'a str, log: OwnedFd) -> Call<'a, ()> {
        let mut message = Message::new(Word::Reopen, 0).put(Tag::Container, container.as_bytes());
        Box::pin(async move {
            let copy = log.try_clone().map_err(|e| Error::with(Kind::Internal, "duplicate the log", e))?;
            message.fds.push(log);
            self.call(message, CALL_TIME).await?;
            self.keep_log(container, copy);
            Ok(())
        })
    }

    fn resize<'a>(&'a self, container: &'a str, exec: Option<u64>, columns: u16, rows: u16) -> Call<'a, ()> {
        let mut message = Message::new(Word::Resize, 0)
            .put(Tag::Container, container.as_bytes())
            .number(Tag::Columns, columns.into())
            .number(Tag::Rows, rows.into());
        if let Some(exec) = exec {
            message = message.number(Tag::Exec, exec);
        }
        Box::pin(async move { self.call(message, CALL_TIME).await.map(drop) })
    }

    fn attach<'a>(&'a self, container: &'a str, stdin: bool, stdout: bool, stderr: bool) -> Call<'a, Stdio> {
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        Box::pin(self.attach(container, bit(stdin, STDIN) | bit(stdout, STDOUT) | bit(stderr, STDERR)))
    }

    fn shutdown(&self) -> Call<'_, ()> {
        Box::pin(self.shutdown())
    }
}

/// A resumed connection as the driver hands it out.
pub(super) fn connection(
    (supervisor, events, survivors): (Arc<Supervisor>, mpsc::UnboundedReceiver<Event>, Vec<Survivor>),
) -> Connection {
    Connection { supervisor, events, survivors }
}
