//! The interpreter: what a cloned child does, one step of the plan after the other, until it is the container's process.
//!
//! It runs in a copy of the single-threaded supervisor, inside a copy of the pod's template mount namespace in which nothing of the
//! node is visible. It allocates nothing: what needs memory is in [`Prepared`], made before the clone. The first failure is
//! sent as one [`Failure`] and ends the process.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "integers cross the kernel's boundary in its own widths and signs"
)]

mod bundle;
mod credentials;
mod mounts;
mod outside;
mod paths;
mod program;

use std::ffi::{CStr, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::thread::Gid;

use crate::native::plan::{self, Step};
use crate::sys::process::{self, Cloned, SingleThreaded, Strings};
use crate::sys::{socket, thread};

pub(crate) use self::credentials::become_root;
pub(crate) use self::mounts::new_mount;

/// Where podd's template keeps what children mount. Paths inside the template mount namespace.
pub(crate) mod template {
    use std::ffi::CStr;
    /// A procfs of podd's PID namespace, for writes that must not be led astray by a container's /proc.
    pub(crate) const PROC: &CStr = c"/proc";
    /// The pod's /dev/shm.
    pub(crate) const SHM: &CStr = c"/shm";
    /// An empty read-only directory.
    pub(crate) const MASK: &CStr = c"/mask";
    /// A read-only directory with one for each cgroup v1 hierarchy; only a zygote's template has it.
    pub(crate) const HIERARCHIES: &CStr = c"/cgroup";
    /// What it is made with.
    pub(crate) const HIERARCHIES_OPTIONS: &[u8] = b"mode\x00755\0size\x0064k\0";
    /// A null device on a read-only mount.
    pub(crate) const NULL: &CStr = c"/null";
    /// Devices that a pod with a user namespace cannot make itself: path, and minor number (major 1; `/tty`: 5, 0).
    pub(crate) const DEVICES: [(&CStr, u32, u32); 5] =
        [(c"/zero", 1, 5), (c"/full", 1, 7), (c"/random", 1, 8), (c"/urandom", 1, 9), (c"/tty", 5, 0)];
    /// A sysfs, without which a pod with a user namespace may not mount its own.
    pub(crate) const SYS: &CStr = c"/sys";
}

/// First byte of a message on the child's channel: a failure follows.
pub(crate) const FAILED: u8 = b'F';
/// First byte of a message on the child's channel: the pidfd of the process that goes on in its place is attached.
pub(crate) const SIBLING: u8 = b'S';
/// First byte of a message on the child's channel: the master of its terminal is attached.
pub(crate) const TERMINAL: u8 = b'T';
/// First byte of a message on the child's channel: the stage in the second byte is reached, and a byte is waited for.
pub(crate) const STAGE: u8 = b'W';
/// First byte of a message on the child's channel: the bind whose number follows (u16) is wanted.
pub(crate) const BIND: u8 = b'B';
/// First byte of a message on the child's channel: the number (i32) of a seccomp filter's listener follows, and a byte is waited for,
/// 0 or the errno with which to fail.
pub(crate) const LISTENER: u8 = b'L';
/// First byte of a message on the child's channel: everything is done but the program.
pub(crate) const READY: u8 = b'R';
/// First byte of a message on the child's channel: the number (i32) of the process that goes on in its place follows.
pub(crate) const SUCCESSOR: u8 = b'P';

/// The one error record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Index of the step in the plan.
    pub(crate) step: u32,
    /// errno(3).
    pub(crate) errno: i32,
    /// What errno alone does not say.
    pub(crate) detail: Detail,
}

/// What errno alone does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Detail {
    /// Nothing.
    None = 0,
    /// The command exists; what its first line or ELF header names as its interpreter does not.
    Interpreter = 1,
    /// The directory lies outside of the root.
    Outside = 2,
    /// A path component that must be a directory of the image's own is a symbolic link.
    Symlink = 3,
    /// The path lies in /proc, where a volume would deceive the runtime and the container alike.
    InProc = 4,
    /// A hook ended with an error, or not in time.
    Hook = 5,
    /// It is the working directory that could not be entered.
    Directory = 6,
}

impl Failure {
    /// The record as it is sent.
    fn encode(self) -> [u8; 10] {
        let mut out = [FAILED; 10];
        out[1..5].copy_from_slice(&self.step.to_le_bytes());
        out[5..9].copy_from_slice(&self.errno.to_le_bytes());
        out[9] = self.detail as u8;
        out
    }

    /// Reads a record.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[FAILED, a, b, c, d, e, f, g, h, detail], []) = bytes.split_first_chunk::<10>()? else {
            return None;
        };
        Some(Self::from_parts(u32::from_le_bytes([a, b, c, d]), i32::from_le_bytes([e, f, g, h]), detail))
    }

    /// A failure out of a message's numbers.
    pub(crate) fn from_parts(step: u32, errno: i32, detail: u8) -> Self {
        let detail = match detail {
            1 => Detail::Interpreter,
            2 => Detail::Outside,
            3 => Detail::Symlink,
            4 => Detail::InProc,
            5 => Detail::Hook,
            6 => Detail::Directory,
            _ => Detail::None,
        };
        Self { step, errno, detail }
    }
}

/// Why a step failed.
pub(crate) type Cause = (Errno, Detail);
/// Result of a step.
pub(crate) type Done = Result<(), Cause>;

/// An errno without further detail.
fn plain(error: impl Into<std::io::Error>) -> Cause {
    (Errno::from_io_error(&error.into()).unwrap_or(Errno::IO), Detail::None)
}

/// What a child has of its parent, and its program is to have only if the plan says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inherited {
    /// Signals that may be ignored ([`thread::ignored_signals`]).
    pub(crate) ignored: u64,
    /// oom_score_adj; `None`: it is not known.
    pub(crate) oom_score: Option<i64>,
}

/// What is made before the clone so that the child need not allocate.
#[derive(Debug)]
pub(crate) struct Prepared<'p> {
    plan: &'p [u8],
    arguments: Strings<'p>,
    environment: Strings<'p>,
    /// The program as it is called.
    command: Option<&'p CStr>,
    /// Where it is looked for (environ(7), PATH).
    path: &'p [u8],
    groups: Vec<Gid>,
    inherited: Inherited,
}

impl<'p> Prepared<'p> {
    /// Checks a plan and lays out its lists. `None`: the plan does not decode.
    pub(crate) fn new(plan: &'p [u8], inherited: Inherited) -> Option<Self> {
        plan::verify(plan).then_some(())?;
        let (mut arguments, mut environment): (&[u8], &[u8]) = (&[], &[]);
        let mut groups = Vec::new();
        for step in plan::steps(plan)? {
            match step {
                Step::Exec { arguments: a, environment: e } => (arguments, environment) = (a, e),
                Step::Identity { groups: list, .. } => {
                    groups = list
                        .as_chunks::<4>()
                        .0
                        .iter()
                        .map(|g| Gid::from_raw(u32::from_le_bytes(*g)))
                        .collect();
                }
                _ => {}
            }
        }
        let path = plan::strings(environment).find_map(|e| e.to_bytes().strip_prefix(b"PATH="));
        Some(Self {
            plan,
            arguments: Strings::new(plan::strings(arguments)),
            environment: Strings::new(plan::strings(environment)),
            command: plan::strings(arguments).next(),
            path: path.unwrap_or(b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            groups,
            inherited,
        })
    }
}

/// The child's state.
struct Child<'p> {
    prepared: &'p Prepared<'p>,
    proof: &'p SingleThreaded,
    /// Descriptors the steps refer to by index.
    fds: Vec<OwnedFd>,
    channel: OwnedFd,
    /// The root that paths are resolved in.
    root: Option<OwnedFd>,
    /// A working directory that root may not enter, to be tried again as the user.
    cwd: Option<&'p CStr>,
    /// What covers of masks are made of, where there is no template to find it in.
    alone: Option<bundle::Alone>,
    /// The node's tree, for hooks.
    node: Option<OwnedFd>,
    /// Descriptors from 3 on that the program gets.
    preserved: u32,
    /// Nothing but standard and preserved descriptors survives execve(2) any more.
    closed: bool,
    umask: u32,
}

/// Where there is code and where there are constants of the interpreter: the linker is told to place what supervisors and their children
/// run around it (`.cargo/supervisor.ld`).
pub(crate) fn places() -> [*const c_void; 2] {
    let code: fn(&Prepared<'_>, &SingleThreaded, Vec<OwnedFd>, OwnedFd) -> ! = run;
    [code as *const c_void, template::PROC.as_ptr().cast()]
}

/// Executes the plan; ends in another program, or in `exit` after sending the failure.
pub(crate) fn run(prepared: &Prepared<'_>, proof: &SingleThreaded, fds: Vec<OwnedFd>, channel: OwnedFd) -> ! {
    let mut child = Child {
        prepared,
        proof,
        fds,
        channel,
        root: None,
        cwd: None,
        alone: None,
        node: None,
        preserved: 0,
        closed: false,
        umask: 0o022,
    };
    let failure = child.steps();
    // write(2) is the one call that works on a socket and a pipe, and that a filter cannot be without.
    let _ = rustix::io::write(&child.channel, &failure.encode());
    process::exit(127)
}

impl<'p> Child<'p> {
    /// Runs until a step fails.
    fn steps(&mut self) -> Failure {
        let mut step = 0;
        // Modes in the plan are exact until the process gets its own umask.
        rustix::process::umask(rustix::fs::Mode::empty());
        for next in plan::steps(self.prepared.plan).into_iter().flatten() {
            if let Err((errno, detail)) = self.step(next) {
                return Failure { step, errno: errno.raw_os_error(), detail };
            }
            step += 1;
        }
        Failure { step, errno: libc::EINVAL, detail: Detail::None }
    }

    /// One step.
    fn step(&mut self, step: Step<'p>) -> Done {
        match step {
            Step::JoinCgroups { first, count } => self.join_cgroups(first, count),
            Step::Unshare { flags } => thread::unshare(self.proof, flags as i32).map_err(plain),
            Step::JoinProcess { pidfd, flags } => self.join_process(pidfd, flags),
            Step::Root { fd } => self.attach_root(fd),
            Step::Directory { at, mode } => self.make_directory(at, mode),
            Step::Mount { kind, options, attributes, at } => self.mount(kind, options, attributes, at),
            Step::Attach { fd, at, directory, set, propagation, recursive } => {
                self.attach(fd, at, directory != 0, set, propagation, recursive != 0)
            }
            Step::Share { from, at } => self.share(from, at),
            Step::Hierarchies { at } => self.hierarchies(at),
            Step::Node { at, mode, device, uid, gid } => self.node(at, mode, device, uid, gid),
            Step::Link { at, target } => self.link(at, target),
            Step::Terminal { uid, mount } => self.terminal(uid, mount != 0),
            Step::Mask { at } => self.mask(at),
            Step::ReadOnly { at } => self.read_only(at),
            Step::Pivot {} => self.pivot(),
            Step::Attributes { at, set } => self.set_attributes(at, set),
            Step::ReadOnlyRoot {} => self.read_only_root(),
            Step::User { fd, flags } => self.enter_user(fd, flags),
            Step::ShareFile { from, at } => self.share_file(from, at),
            Step::Label { file, value } => self.write_proc(file, value).map_err(plain),
            Step::Relabel { at, value } => self.relabel(at, value),
            Step::OomScore { value } => self.oom_score(value.cast_signed()),
            Step::Limit { resource, soft, hard } => credentials::limit(resource, soft, hard),
            Step::Stdio { stdin, stdout, stderr, uid } => self.stdio([stdin, stdout, stderr], uid),
            Step::Keyring { name } => {
                // A full key quota of the user must not keep pods from starting; the old keyring is root's and stays unreadable.
                let _ = thread::new_session_keyring(name);
                Ok(())
            }
            Step::Bounding { keep } => credentials::bounding(keep),
            Step::Identity { uid, gid, .. } => self.identity(uid, gid),
            Step::Capabilities { permitted, effective, inheritable, ambient } => {
                credentials::capabilities(permitted, effective, inheritable, ambient)
            }
            Step::NoNewPrivs {} => rustix::thread::set_no_new_privs(true).map_err(plain),
            Step::Seccomp { flags, program } => {
                self.close_on_exec()?;
                thread::seccomp(program, flags as u32).map_err(plain)
            }
            Step::Notify { flags, program, .. } => self.notify(flags as u32, program),
            Step::Chdir { path } => self.chdir(path),
            Step::Exec { .. } => self.exec(),
            Step::Session {} => rustix::process::setsid().map(drop).map_err(plain),
            Step::Idle {} => process::idle(self.proof),
            other => self.bundle_step(other),
        }
    }

    /// A descriptor by the number the plan uses.
    fn fd(&self, index: u64) -> Result<BorrowedFd<'_>, Cause> {
        let fd = usize::try_from(index).ok().and_then(|index| self.fds.get(index));
        fd.map(AsFd::as_fd).ok_or((Errno::BADF, Detail::None))
    }

    /// The root that paths are resolved in.
    fn root(&self) -> Result<BorrowedFd<'_>, Cause> {
        self.root.as_ref().map(AsFd::as_fd).ok_or((Errno::BADF, Detail::None))
    }

    /// Moving oneself by "0" costs no grace period of the kernel, unlike moving somebody by pid.
    fn join_cgroups(&self, first: u64, count: u64) -> Done {
        for index in first..first.saturating_add(count) {
            rustix::io::write(self.fd(index)?, b"0").map_err(plain)?;
        }
        Ok(())
    }

    /// Enters a container; from here on paths are the container's own.
    fn join_process(&mut self, pidfd: u64, flags: u64) -> Done {
        self.fd(pidfd)?;
        // From behind, and so without a write to memory that is in common with the supervisor.
        let behind = self.fds.len() - 1 - pidfd as usize;
        let mut fds = std::mem::take(&mut self.fds).into_iter();
        let fd = fds.nth_back(behind).ok_or((Errno::BADF, Detail::None))?;
        // What is open now is the supervisor's; from inside a container it must not be seen for an instant (CVE-2016-9962).
        std::mem::forget(fds);
        thread::close_others(self.proof, 3 + self.preserved, &[fd.as_fd(), self.channel.as_fd()])
            .map_err(plain)?;
        thread::setns(fd.as_fd(), flags as i32).map_err(plain)?;
        if flags & libc::CLONE_NEWUSER as u64 != 0 {
            credentials::become_root()?;
        }
        self.root = Some(paths::open_root().map_err(plain)?);
        Ok(())
    }

    /// Enters the pod's user namespace. What the new process makes belongs to that namespace, which clone3(2) alone could not do for
    /// one that exists already.
    fn enter_user(&self, fd: u64, flags: u64) -> Done {
        thread::setns(self.fd(fd)?, libc::CLONE_NEWUSER).map_err(plain)?;
        credentials::become_root()?;
        match process::clone_sibling(self.proof, flags, None).map_err(plain)? {
            Cloned::Child => Ok(()),
            Cloned::Parent { pidfd, .. } => {
                let _ = socket::send(&self.channel, &[SIBLING], &[pidfd.as_fd()]);
                process::exit(0)
            }
        }
    }

    /// The directory that root may not enter is tried as the user, before any filter and with the user's rights alone.
    fn identity(&mut self, uid: u64, gid: u64) -> Done {
        credentials::become_user(uid, gid, &self.prepared.groups)?;
        if let Some(path) = self.cwd.take() {
            rustix::process::chdir(path).map_err(|e| (e, Detail::Directory))?;
            program::below_root()?;
        }
        Ok(())
    }

    /// Installs a filter whose listener somebody outside of it fetches, who then says how that went (`native::listener`).
    fn notify(&mut self, flags: u32, program: &[u8]) -> Done {
        self.close_on_exec()?;
        let listener = thread::seccomp_listener(program, flags).map_err(plain)?;
        let [a, b, c, d] = listener.as_raw_fd().to_le_bytes();
        rustix::io::write(&self.channel, &[LISTENER, a, b, c, d]).map_err(plain)?;
        let mut errno = [0];
        match rustix::io::read(&self.channel, &mut errno).map_err(plain)? {
            0 => Err((Errno::PIPE, Detail::None)),
            _ if errno[0] != 0 => Err((Errno::from_raw_os_error(errno[0].into()), Detail::None)),
            _ => Ok(()),
        }
    }

    /// Lowering the score below what we have needs CAP_SYS_RESOURCE; without it the process keeps ours. To find the file of a process that
    /// is new takes longer than most steps.
    fn oom_score(&self, value: i64) -> Done {
        if self.prepared.inherited.oom_score == Some(value) {
            return Ok(());
        }
        let mut text = [0; 24];
        match self.write_proc(c"self/oom_score_adj", paths::decimal(value, &mut text)) {
            Err(Errno::ACCESS | Errno::PERM) => Ok(()),
            other => other.map_err(plain),
        }
    }
}
