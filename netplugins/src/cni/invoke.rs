//! Runs one CNI plugin: environment and standard input in, JSON out, inside bounds of time and size.
//!
//! The plugin leads a process group of its own and is killed with all of it at the deadline. Its configuration comes from
//! a sealed memory file, so that writing it can never block. Whatever it prints on standard error goes to the log.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::Deserialize;

/// A result is a few hundred bytes.
const MAX_STDOUT: usize = 1 << 20;
/// The end of what it complains about.
const MAX_STDERR: usize = 64 << 10;
/// A plugin that is being replaced cannot be run for a moment (ETXTBSY).
const BUSY_TRIES: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_millis(200);

/// Error codes of the specification that change what a caller does.
pub(crate) const TRY_AGAIN: u32 = 11;

/// What a plugin is asked to do (section 2 of the specification).
#[derive(Clone, Debug)]
pub(crate) struct Call<'a> {
    /// `ADD`, `DEL`, `CHECK`, `GC`, `STATUS` or `VERSION`.
    pub(crate) command: &'static str,
    /// Container id; empty for GC and STATUS.
    pub(crate) container: &'a str,
    /// Namespace path; `None`: it is gone, or the command has none.
    pub(crate) netns: Option<&'a Path>,
    /// Interface name in the container.
    pub(crate) interface: &'a str,
    /// `CNI_ARGS`.
    pub(crate) args: &'a str,
    /// Where plugins look for other plugins.
    pub(crate) path: &'a [PathBuf],
    /// When it is killed.
    pub(crate) deadline: Instant,
}

/// Why a plugin did not deliver.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("no plugin \"{kind}\" in {path}")]
    Missing { kind: String, path: String },
    #[error("plugin {plugin} cannot be started")]
    Start { plugin: PathBuf, source: io::Error },
    #[error("plugin {plugin} was killed: it took longer than {seconds} s")]
    Timeout { plugin: PathBuf, seconds: u64 },
    #[error("plugin {plugin} printed more than {MAX_STDOUT} bytes")]
    TooLong { plugin: PathBuf },
    #[error("plugin {plugin} failed: {text}")]
    Failed {
        plugin: PathBuf,
        /// The specification's error code; 0: it gave none.
        code: u32,
        text: String,
    },
    #[error("plugin {plugin}: its result cannot be read: {why}")]
    Result { plugin: PathBuf, why: String },
}

impl Failure {
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }
}

#[derive(Deserialize)]
struct Complaint {
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// What a plugin left behind.
struct Outcome {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    overflow: bool,
}

/// The executable of that name: the first regular file wins.
pub(crate) fn find(kind: &str, path: &[PathBuf]) -> Result<PathBuf, Failure> {
    path.iter().map(|dir| dir.join(kind)).find(|file| file.is_file()).ok_or_else(|| Failure::Missing {
        kind: kind.into(),
        path: path.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
    })
}

/// Runs a plugin; what it printed on standard output.
pub(crate) fn run(plugin: &Path, call: &Call<'_>, config: &[u8]) -> Result<Vec<u8>, Failure> {
    let started = Instant::now();
    let start = |source| Failure::Start { plugin: plugin.to_owned(), source };
    let child = spawn(plugin, call, config).map_err(start)?;
    let outcome = supervise(child, call.deadline).map_err(start)?;
    if !outcome.stderr.is_empty() {
        let text = String::from_utf8_lossy(&outcome.stderr);
        tracing::info!(plugin = %plugin.display(), command = call.command, container = call.container, "{}", text.trim_end());
    }
    let Outcome { status, stdout, stderr, overflow } = outcome;
    if status.success() && overflow {
        return Err(Failure::TooLong { plugin: plugin.to_owned() });
    }
    if status.success() {
        return Ok(stdout);
    }
    if Instant::now() >= call.deadline {
        let seconds = started.elapsed().as_secs();
        return Err(Failure::Timeout { plugin: plugin.to_owned(), seconds });
    }
    Err(complaint(plugin, status, &stdout, &stderr))
}

/// The error a plugin reported. The specification wants it on standard output; some write plain text, or to the other one.
fn complaint(plugin: &Path, status: ExitStatus, stdout: &[u8], stderr: &[u8]) -> Failure {
    let plugin = plugin.to_owned();
    let read = |bytes: &[u8]| serde_json::from_slice::<Complaint>(bytes).ok();
    if let Some(c) = read(stdout).or_else(|| read(stderr)) {
        let separator = if c.msg.is_empty() || c.details.is_empty() { "" } else { "; " };
        return Failure::Failed { plugin, code: c.code, text: format!("{}{separator}{}", c.msg, c.details) };
    }
    let printed = [stderr, stdout].map(|b| String::from_utf8_lossy(b).trim().to_owned());
    let printed = printed.into_iter().find(|t| !t.is_empty()).unwrap_or_else(|| "it said nothing".into());
    let printed: String = printed.chars().take(2000).collect();
    Failure::Failed { plugin, code: 0, text: format!("{status}: {printed}") }
}

fn spawn(plugin: &Path, call: &Call<'_>, config: &[u8]) -> io::Result<Child> {
    let mut tries = 0;
    loop {
        let stdin = rustix::fs::memfd_create("cni-config", MemfdFlags::CLOEXEC)?;
        let mut stdin = File::from(stdin);
        stdin.write_all(config)?;
        io::Seek::rewind(&mut stdin)?;
        let path = std::env::join_paths(call.path).map_err(io::Error::other)?;
        let spawned = Command::new(plugin)
            .env("CNI_COMMAND", call.command)
            .env("CNI_CONTAINERID", call.container)
            .env("CNI_NETNS", call.netns.unwrap_or(Path::new("")))
            .env("CNI_IFNAME", call.interface)
            .env("CNI_ARGS", call.args)
            .env("CNI_PATH", path)
            .env_remove("NOTIFY_SOCKET")
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn();
        match spawned {
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                std::thread::sleep(BUSY_PAUSE);
            }
            other => return other,
        }
    }
}

/// Reads until the plugin ends, or kills it at the deadline. Descendants that keep its pipes open do not count.
fn supervise(mut child: Child, deadline: Instant) -> io::Result<Outcome> {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let watched = group.map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty())).transpose();
    let mut stdout = Stream::new(child.stdout.take().map(OwnedFd::from), MAX_STDOUT)?;
    let mut stderr = Stream::new(child.stderr.take().map(OwnedFd::from), MAX_STDERR)?;
    let ended = match &watched {
        Ok(Some(pidfd)) => pump(pidfd, &mut stdout, &mut stderr, deadline)?,
        _ => false,
    };
    if !ended && let Some(group) = group {
        // The whole group: a plugin's own children must not outlive it.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let status = child.wait()?;
    stdout.drain()?;
    stderr.drain()?;
    Ok(Outcome { status, overflow: stdout.overflow, stdout: stdout.kept, stderr: stderr.kept })
}

/// `true`: the plugin ended by itself.
fn pump(pidfd: &OwnedFd, stdout: &mut Stream, stderr: &mut Stream, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = rustix::event::Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
        fds.extend(stdout.source.iter().chain(&stderr.source).map(|fd| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let ended = fds.first().is_some_and(|fd| !fd.revents().is_empty());
        drop(fds);
        stdout.drain()?;
        stderr.drain()?;
        if ended {
            return Ok(true);
        }
    }
}

/// A pipe's reading end and the first bytes that came through.
struct Stream {
    source: Option<File>,
    kept: Vec<u8>,
    limit: usize,
    overflow: bool,
}

impl Stream {
    fn new(source: Option<OwnedFd>, limit: usize) -> io::Result<Self> {
        if let Some(fd) = &source {
            let flags = rustix::fs::fcntl_getfl(fd.as_fd())?;
            rustix::fs::fcntl_setfl(fd.as_fd(), flags | OFlags::NONBLOCK)?;
        }
        Ok(Self { source: source.map(File::from), kept: Vec::new(), limit, overflow: false })
    }

    /// Takes what is there now; beyond the limit it is dropped.
    fn drain(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        // A writer faster than this reader must not keep it here for ever.
        for _ in 0..64 {
            let Some(source) = &mut self.source else { return Ok(()) };
            match source.read(&mut buffer) {
                Ok(0) => self.source = None,
                Ok(n) => {
                    let room = self.limit - self.kept.len();
                    self.overflow |= n > room;
                    self.kept.extend_from_slice(buffer.get(..n.min(room)).unwrap_or_default());
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
