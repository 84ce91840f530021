//! Agents that answer SCMP_ACT_NOTIFY: who gets a filter's notifications, and what is told of the process (runtime-spec,
//! config-linux.md, "Seccomp", `listenerPath` and "The Container Process State").
//!
//! The agent's socket is connected to before the clone, in the node's mount namespace. The child installs its filter, says under which
//! number it has the listener, and waits. Whoever cloned it fetches the listener by its pidfd, sends it with the state, and lets
//! the child go on: so nothing of the hand-over needs a system call in the child that the filter might stop, but write(2) and
//! read(2), and read(2) may even be one that the agent decides on.

use std::ffi::CStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, sendmsg, socket_with,
};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use serde_json::Value;

use super::plan::{self, Step};
use super::seccomp::{Filter, Listener};
use crate::error::{Error, Kind};

/// How long an agent may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest state, in bytes: every annotation a container can have, and more.
const MAX_STATE: usize = 1 << 20;

/// A filter as it goes into a plan: with the state for its agent, if it has one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard<'a> {
    pub(crate) filter: &'a Filter,
    pub(crate) state: &'a [u8],
}

impl<'a> Guard<'a> {
    pub(crate) fn new(filter: &'a Filter, agent: Option<&'a Agent>) -> Self {
        Self { filter, state: agent.map_or(&[], |agent| &agent.state) }
    }

    /// The step that installs it.
    pub(crate) fn step(self) -> Step<'a> {
        let Filter { program, flags, listener } = self.filter;
        match listener {
            Some(Listener { path, .. }) => {
                Step::Notify { flags: *flags, program, agent: path, state: self.state }
            }
            None => Step::Seccomp { flags: *flags, program },
        }
    }

    /// Whether somebody has to be there to hand its listener over.
    pub(crate) fn notifies(self) -> bool {
        self.filter.listener.is_some()
    }
}

/// An agent that waits for one process.
#[derive(Debug)]
pub(crate) struct Agent {
    /// A connection for one state; it is closed behind it.
    pub(crate) socket: OwnedFd,
    /// What is sent, with a zero byte, which no JSON text has, wherever the process id belongs.
    pub(crate) state: Vec<u8>,
}

impl Agent {
    /// Connects to the agent of a filter, if it has one. `about` is the container's state without a process id (runtime-spec,
    /// runtime.md, "State"). Blocking, for five seconds at most.
    ///
    /// # Errors
    /// Name the socket.
    pub(crate) fn reach(filter: &Filter, about: &Value) -> Result<Option<Self>, Error> {
        let Some(listener) = &filter.listener else { return Ok(None) };
        let path = listener.path.to_string_lossy();
        let failed = |e: io::Error| {
            Error::with(Kind::FailedPrecondition, format!("connect to the seccomp agent at {path}"), e)
        };
        let state = state(about, listener.metadata.as_deref());
        if state.len() > MAX_STATE {
            return Err(Error::invalid("annotations", "are more than a seccomp agent is told"));
        }
        let socket = open(&listener.path, state.len()).map_err(failed)?;
        Ok(Some(Self { socket, state }))
    }

    /// Fetches listener `number` of a process and sends it to the agent, with the state. Does not block.
    pub(crate) fn hand_over(&self, process: BorrowedFd<'_>, pid: i32, number: i32) -> io::Result<()> {
        let listener = pidfd_getfd(process, number, PidfdGetfdFlags::empty())?;
        let text = fill(&self.state, pid);
        let fds = [listener.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut sent = 0;
        while let Some(rest) = text.get(sent..).filter(|rest| !rest.is_empty()) {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if sent == 0 {
                control.push(SendAncillaryMessage::ScmRights(&fds));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.socket, &[IoSlice::new(rest)], &mut control, flags) {
                Err(rustix::io::Errno::INTR) => {}
                other => sent += other?,
            }
        }
        Ok(())
    }
}

/// A connected socket that takes a state of this length without waiting for its reader.
fn open(path: &CStr, length: usize) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Connecting waits for room in the agent's backlog as long as sending may wait (unix(7)).
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    // What the kernel keeps of a message counts with its own overhead.
    sockopt::set_socket_send_buffer_size_force(&socket, 4 * length + (256 << 10))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// The container process state, with holes for the process id.
fn state(about: &Value, metadata: Option<&str>) -> Vec<u8> {
    let version = &about["ociVersion"];
    let metadata = metadata.map_or_else(String::new, |text| format!("\"metadata\":{},", Value::from(text)));
    let about = about.to_string();
    let about = about.strip_prefix('{').unwrap_or("}");
    format!(
        "{{\"ociVersion\":{version},\"fds\":[\"seccompFd\"],\"pid\":\0,{metadata}\"state\":{{\"pid\":\0,{about}}}"
    )
    .into_bytes()
}

/// A state with the process id in its holes.
fn fill(state: &[u8], pid: i32) -> Vec<u8> {
    let pid = pid.to_string();
    let parts: Vec<&[u8]> = state.split(|byte| *byte == 0).collect();
    parts.join(pid.as_bytes())
}

/// The state that a plan's filter is to be handed over with.
pub(crate) fn state_in(plan: &[u8]) -> Option<Vec<u8>> {
    plan::steps(plan)?.find_map(|step| match step {
        Step::Notify { state, .. } => Some(state.to_vec()),
        _ => None,
    })
}

/// What a child is told: 0, or the errno with which it fails.
pub(crate) fn verdict(handed: &io::Result<()>) -> u8 {
    const EIO: u8 = 5;
    let errno = |e: &io::Error| e.raw_os_error().and_then(|errno| u8::try_from(errno).ok());
    match handed {
        Ok(()) => 0,
        Err(e) => errno(e).filter(|errno| *errno != 0).unwrap_or(EIO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_json_with_the_process_id_in_both_places() {
        let about = serde_json::json!({
            "ociVersion": "1.2.1", "id": "c1", "status": "creating", "bundle": "/b", "annotations": { "a": "zero: \0" },
        });
        let text = fill(&state(&about, Some("say \"so\"")), 4422);
        let expected = serde_json::json!({
            "ociVersion": "1.2.1", "fds": ["seccompFd"], "pid": 4422, "metadata": "say \"so\"",
            "state": { "ociVersion": "1.2.1", "id": "c1", "status": "creating", "pid": 4422, "bundle": "/b", "annotations": { "a": "zero: \0" } },
        });
        assert_eq!(serde_json::from_slice::<Value>(&text).unwrap(), expected);
        let bare = serde_json::from_slice::<Value>(&fill(&state(&about, None), 1)).unwrap();
        assert_eq!(bare.get("metadata"), None);
    }
}
