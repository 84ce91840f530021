//! What daemon and supervisor say to each other: one datagram per message, tagged fields, descriptors beside it.
//!
//! Eight bytes of head (version, kind, two of zero, number of the request), then fields of tag u16, length u16 and value, all
//! little-endian. Kinds and tags are never reused and unknown fields are skipped, so that daemons and supervisors of different ages
//! understand each other. Every request is answered by one message with its number; number 0 is an event.

use std::io;
use std::os::fd::OwnedFd;

/// Version of the protocol.
pub(crate) const VERSION: u8 = 1;
/// Longest message.
pub(crate) const MAX: usize = 32 << 10;
/// Longest value of a field.
pub(crate) const MAX_VALUE: usize = 16 << 10;

/// Kinds of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Who are you and what runs? Answered by one `Container` per container, then `Ok`.
    Hello = 1,
    /// Make the pod's namespaces. Descriptors: network namespace if `HAS_NETNS`; user, UTS and IPC namespace if `HAS_USER`; `tasks`
    /// files.
    Setup = 2,
    /// Start a container. Descriptors: the plan, where it is no field, then those of `Has`, then those the plan refers to.
    Start = 3,
    /// Start a process in a container; descriptors as for `Start`.
    Exec = 4,
    /// Send a signal to a container or exec.
    Signal = 5,
    /// Use a new log file. Descriptor: the file.
    Reopen = 6,
    /// Set a terminal's size.
    Resize = 7,
    /// Copy output. Answered with stdin, stdout, stderr as far as wanted.
    Attach = 8,
    /// End.
    Shutdown = 9,
    /// Take over the pod of a supervisor that was killed. Descriptors: those of the `Ok` to its `Setup`.
    Adopt = 10,
    /// Take over a container. Fields and descriptors: those of a `Container`.
    Keep = 11,
    /// Go on as another program. Fields: its arguments, each a `Message`. Descriptor: the program. It answers, as to `Hello` without
    /// containers, or the old one says why not.
    Upgrade = 12,
    /// To a zygote: bear a supervisor. Fields: the pod's id in `Container`. Descriptors: the socket it is to listen at, the pod's directory,
    /// and if `HAS_CGROUP` where it is to be born. Answered with `Ok` and its pidfd.
    Fork = 13,
    /// Done. In answer to `Hello`, `Setup` and `Adopt` with the namespaces net, UTS, IPC, a detached copy of the pod's /dev/shm, if
    /// `HAS_USER` the user namespace and, if `POD_PID`, the pidfd of its first process.
    Ok = 32,
    /// A process runs. Descriptors: for an exec its terminal's master, if it has one; for a container as for `Container`.
    Started = 33,
    /// A step of the plan failed. `Message`: what a runtime has said on the container's standard error.
    Failed = 34,
    /// Something else failed.
    Error = 35,
    /// A container, in answer to `Hello`. Descriptors: its pidfd, then as far as `Has` says log, counter of OOM kills, terminal, our
    /// ends of stdin, stdout, stderr, the log's ledger, the stages of stdout and stderr, and the pipes of `Clients`.
    Container = 36,
    /// Event: a container has ended.
    Exited = 64,
    /// Event: an exec has ended.
    ExecExited = 65,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        let all = [
            Hello, Setup, Start, Exec, Signal, Reopen, Resize, Attach, Shutdown, Adopt, Keep, Upgrade, Fork,
            Ok, Started, Failed, Error, Container, Exited, ExecExited,
        ];
        all.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Tags of fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Tag {
    /// Container id.
    Container = 1,
    /// Number of an exec.
    Exec = 2,
    /// Signal number.
    Signal = 3,
    /// Terminal columns.
    Columns = 4,
    /// Terminal rows.
    Rows = 5,
    /// `CLONE_NEW*` flags.
    Flags = 6,
    /// Container whose PID namespace is joined; empty: the pod's.
    PidOf = 7,
    /// Host name.
    Hostname = 8,
    /// `key=value`; repeated.
    Sysctl = 9,
    /// Pid on the node.
    Pid = 10,
    /// Nanoseconds since the epoch.
    At = 11,
    /// Exit code.
    Code = 12,
    /// 1: killed for lack of memory.
    Oom = 13,
    /// For a person.
    Message = 14,
    /// errno(3).
    Errno = 15,
    /// Index of a step in a plan.
    Step = 16,
    /// Detail of a failure.
    Detail = 17,
    /// `HAS_*` bits.
    Has = 18,
    /// Time of the end, nanoseconds since the epoch.
    Ended = 19,
    /// Cgroup of a container; handed back in `Container`.
    Cgroup = 20,
    /// What the counter of OOM kills said when the container started.
    OomBefore = 21,
    /// Text of a line that has not ended, of stdout and of stderr.
    Partial = 22,
    /// Number of attached clients, of stdout and of stderr.
    Clients = 23,
    /// Plan of a process, instead of a descriptor.
    Plan = 24,
    /// SELinux label of the pod's file systems; in `Setup`, and handed back with the pod.
    MountLabel = 25,
}

/// Descriptors of a pod that are always there: namespaces net, UTS, IPC, and /dev/shm.
pub(crate) const POD_NAMESPACES: usize = 4;
/// A network namespace is attached.
pub(crate) const HAS_NETNS: u64 = 1;
/// A log file is attached.
pub(crate) const HAS_LOG: u64 = 1 << 1;
/// A cgroup v2 directory is attached.
pub(crate) const HAS_CGROUP: u64 = 1 << 2;
/// A file that counts OOM kills is attached.
pub(crate) const HAS_OOM: u64 = 1 << 3;
/// The process has, or the client wants, a stdin.
pub(crate) const STDIN: u64 = 1 << 4;
/// The client wants stdout.
pub(crate) const STDOUT: u64 = 1 << 5;
/// The client wants stderr.
pub(crate) const STDERR: u64 = 1 << 6;
/// The process runs on a terminal.
pub(crate) const TTY: u64 = 1 << 7;
/// stdin ends with its first client.
pub(crate) const STDIN_ONCE: u64 = 1 << 8;
/// The PID namespace is not a new one but that of `PidOf`.
pub(crate) const JOIN_PID: u64 = 1 << 9;
/// The pod has a PID namespace of its own.
pub(crate) const POD_PID: u64 = 1 << 10;
/// The ledger of a container's log is attached.
pub(crate) const LEDGER: u64 = 1 << 12;
/// The stage of stdout is attached.
pub(crate) const STAGE_OUT: u64 = 1 << 13;
/// The stage of stderr is attached.
pub(crate) const STAGE_ERR: u64 = 1 << 14;
/// The pod has a user namespace of its own: it, and the UTS and IPC namespaces it owns, are attached.
pub(crate) const HAS_USER: u64 = 1 << 15;
/// All processes of the exec's descent are killed.
pub(crate) const TREE: u64 = 1 << 11;
/// The process begins on the node and not in the container: a runtime makes what the request is about, and its process goes on in its
/// place.
pub(crate) const OUTSIDE: u64 = 1 << 18;
/// `Exec`: nobody waits until it runs. The last descriptor is a line for it alone, on which comes what else would be answered: a failure as
/// the child records it, an `Error`, or the `ExecExited`. In what is said of a pod: the supervisor knows this.
pub(crate) const LINE: u64 = 1 << 19;
/// `Has`: a connection to the agent of the plan's seccomp filter, behind the counter of OOM kills.
pub(crate) const HAS_AGENT: u64 = 1 << 16;
/// In what is said of a pod: the supervisor takes plans as fields. Older ones take descriptors alone.
pub(crate) const PLAN_FIELDS: u64 = 1 << 17;

/// A message.
#[derive(Debug)]
pub(crate) struct Message {
    bytes: Vec<u8>,
    /// Descriptors beside it.
    pub(crate) fds: Vec<OwnedFd>,
}

impl Message {
    /// A message without fields.
    pub(crate) fn new(kind: Kind, number: u32) -> Self {
        let mut bytes = vec![VERSION, kind as u8, 0, 0];
        bytes.extend_from_slice(&number.to_le_bytes());
        Self { bytes, fds: Vec::new() }
    }

    /// Adds a field; a longer one is cut at [`MAX_VALUE`].
    pub(crate) fn put(mut self, tag: Tag, value: &[u8]) -> Self {
        let value = &value[..value.len().min(MAX_VALUE)];
        self.bytes.extend_from_slice(&(tag as u16).to_le_bytes());
        self.bytes.extend_from_slice(&u16::try_from(value.len()).unwrap_or(0).to_le_bytes());
        self.bytes.extend_from_slice(value);
        self
    }

    /// Adds a number.
    pub(crate) fn number(self, tag: Tag, value: u64) -> Self {
        self.put(tag, &value.to_le_bytes())
    }

    /// The same message in answer to another request.
    pub(crate) fn with_number(mut self, number: u32) -> Self {
        self.bytes[4..8].copy_from_slice(&number.to_le_bytes());
        self
    }

    /// The same message once more, without descriptors.
    pub(crate) fn again(&self) -> Self {
        Self { bytes: self.bytes.clone(), fds: Vec::new() }
    }

    /// The same message as another kind.
    pub(crate) fn with_kind(mut self, kind: Kind) -> Self {
        self.bytes[1] = kind as u8;
        self
    }

    /// The datagram.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads a datagram; `None`: malformed, or of a version or kind not known here.
    pub(crate) fn parse(bytes: &[u8], fds: Vec<OwnedFd>) -> Option<Self> {
        let head = bytes.first_chunk::<8>()?;
        (head[0] == VERSION).then_some(())?;
        Kind::from_byte(head[1])?;
        let message = Self { bytes: bytes.to_vec(), fds };
        // The fields must fill the rest exactly.
        let mut rest = &bytes[8..];
        while !rest.is_empty() {
            rest = split_field(rest)?.2;
        }
        Some(message)
    }

    /// Kind.
    pub(crate) fn kind(&self) -> Kind {
        Kind::from_byte(self.bytes[1]).unwrap_or(Kind::Error)
    }

    /// Number of the request; 0: an event.
    pub(crate) fn request(&self) -> u32 {
        u32::from_le_bytes([self.bytes[4], self.bytes[5], self.bytes[6], self.bytes[7]])
    }

    /// All values of a tag.
    pub(crate) fn all(&self, tag: Tag) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[8..];
        std::iter::from_fn(move || {
            let (found, value, after) = split_field(rest)?;
            rest = after;
            Some((found, value))
        })
        .filter(move |(found, _)| *found == tag as u16)
        .map(|(_, value)| value)
    }

    /// First value of a tag as text; absent is empty.
    pub(crate) fn text(&self, tag: Tag) -> &str {
        self.all(tag).next().and_then(|v| std::str::from_utf8(v).ok()).unwrap_or_default()
    }

    /// All values of a tag as numbers.
    pub(crate) fn numbers(&self, tag: Tag) -> impl Iterator<Item = u64> {
        self.all(tag).map(|v| v.first_chunk::<8>().map_or(0, |v| u64::from_le_bytes(*v)))
    }

    /// First value of a tag as a number; absent is 0.
    pub(crate) fn get(&self, tag: Tag) -> u64 {
        self.numbers(tag).next().unwrap_or(0)
    }

    /// A number that is an i32 on both sides.
    pub(crate) fn int(&self, tag: Tag) -> i32 {
        u32::try_from(self.get(tag)).unwrap_or(0).cast_signed()
    }
}

/// Tag, value and rest of the first field.
fn split_field(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    let length = u16::from_le_bytes([head[2], head[3]]);
    let (value, rest) = rest.split_at_checked(length.into())?;
    Some((u16::from_le_bytes([head[0], head[1]]), value, rest))
}

/// An i32 as it is carried.
pub(crate) fn int(value: i32) -> u64 {
    value.cast_unsigned().into()
}

/// An error as the last word on a request.
pub(crate) fn error(what: &str, error: &io::Error) -> Message {
    let errno = error.raw_os_error().unwrap_or(0);
    Message::new(Kind::Error, 0)
        .put(Tag::Message, format!("{what}: {error}").as_bytes())
        .number(Tag::Errno, int(errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reads_back_as_written() {
        let message = Message::new(Kind::Setup, 7)
            .put(Tag::Hostname, b"web-0")
            .put(Tag::Sysctl, b"net.ipv4.ip_forward=1")
            .put(Tag::Sysctl, b"kernel.sem=1 2 3 4")
            .number(Tag::Code, 137);
        let back = Message::parse(message.bytes(), Vec::new()).unwrap();
        assert_eq!((back.kind(), back.request()), (Kind::Setup, 7));
        assert_eq!(back.text(Tag::Hostname), "web-0");
        assert_eq!(back.all(Tag::Sysctl).count(), 2);
        assert_eq!((back.get(Tag::Code), back.get(Tag::Pid)), (137, 0));
    }

    #[test]
    fn a_newer_field_is_skipped_and_a_cut_message_refused() {
        let mut message = Message::new(Kind::Hello, 1).number(Tag::Pid, 5);
        message.bytes.extend_from_slice(&[0xff, 0xff, 1, 0, 9]);
        assert_eq!(Message::parse(message.bytes(), Vec::new()).unwrap().get(Tag::Pid), 5);
        assert!(Message::parse(&message.bytes()[..message.bytes().len() - 1], Vec::new()).is_none());
        assert!(Message::parse(&[9, 1, 0, 0, 0, 0, 0, 0], Vec::new()).is_none(), "another version");
    }

    proptest::proptest! {
        #[test]
        fn no_datagram_makes_the_parser_panic(bytes: Vec<u8>) {
            if let Some(message) = Message::parse(&bytes, Vec::new()) {
                message.all(Tag::Sysctl).for_each(drop);
            }
        }
    }
}
