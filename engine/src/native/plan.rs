//! The plan: what a cloned child does before it becomes the container's process, as flat bytes.
//!
//! The daemon compiles a plan and seals it into a memfd; the supervisor checks that all of it decodes and maps it into the child,
//! which executes one step after the other without allocating. Integers are little-endian u64; texts and byte strings carry their
//! length, texts a NUL behind it so that they can be handed to the kernel in place. Numbers of steps are never reused.

use std::ffi::CStr;

/// First bytes of a plan: its format and version.
const MAGIC: &[u8; 8] = b"berthpl1";
/// Largest plan: two full argument areas (MAX_ARG_STRLEN × 32) and a filter.
pub(crate) const MAX_PLAN: usize = 16 << 20;

/// A field of a step.
trait Field<'p>: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(input: &mut &'p [u8]) -> Option<Self>;
}

impl<'p> Field<'p> for u64 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }

    fn take(input: &mut &'p [u8]) -> Option<Self> {
        let (value, rest) = input.split_first_chunk::<8>()?;
        *input = rest;
        Some(u64::from_le_bytes(*value))
    }
}

impl<'p> Field<'p> for &'p [u8] {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        out.extend_from_slice(self);
    }

    fn take(input: &mut &'p [u8]) -> Option<Self> {
        let length = usize::try_from(u64::take(input)?).ok()?;
        let (value, rest) = input.split_at_checked(length)?;
        *input = rest;
        Some(value)
    }
}

impl<'p> Field<'p> for &'p CStr {
    fn put(&self, out: &mut Vec<u8>) {
        self.to_bytes_with_nul().put(out);
    }

    fn take(input: &mut &'p [u8]) -> Option<Self> {
        CStr::from_bytes_with_nul(<&[u8]>::take(input)?).ok()
    }
}

/// Defines the steps: number, name, fields, and what the step does in words for an error message.
macro_rules! steps {
    ($($(#[$doc:meta])* $code:literal $name:ident { $($field:ident: $kind:ty),* } $words:literal)*) => {
        /// One step of a plan.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Step<'p> {
            $($(#[$doc])* $name { $($field: $kind),* },)*
        }

        impl<'p> Step<'p> {
            /// Appends the step.
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$name { $($field),* } => {
                        u64::put(&$code, out);
                        $(Field::put($field, out);)*
                    })*
                }
            }

            /// Takes the next step off the input.
            fn take(input: &mut &'p [u8]) -> Option<Self> {
                match u64::take(input)? {
                    $($code => Some(Self::$name { $($field: Field::take(input)?),* }),)*
                    _ => None,
                }
            }

            /// What the step does, to complete "cannot …".
            pub(crate) fn words(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => $words,)*
                }
            }
        }
    };
}

steps! {
    /// Moves this process into cgroups v1 by writing "0" to `count` open `tasks` files, from descriptor `first` on.
    1 JoinCgroups { first: u64, count: u64 } "join the container's cgroups"
    /// Leaves namespaces (`CLONE_NEW*`) for new ones.
    2 Unshare { flags: u64 } "make the container's namespaces"
    /// Enters namespaces of a running process.
    3 JoinProcess { pidfd: u64, flags: u64 } "enter the container's namespaces"
    /// Attaches the root file system, given as a detached mount; later paths are resolved in it.
    4 Root { fd: u64 } "attach the root file system"
    /// Makes a directory of the root, with everything above it.
    5 Directory { at: &'p CStr, mode: u64 } "make directory"
    /// Mounts a file system of its own. `options`: `key\0value\0…`; `attributes`: `MOUNT_ATTR_*`. No part of `at` may be a symlink.
    6 Mount { kind: &'p CStr, options: &'p [u8], attributes: u64, at: &'p CStr } "mount"
    /// Attaches a detached mount; makes the mount point, a directory or a file, when it is missing. `propagation`: `MS_*` or 0.
    7 Attach { fd: u64, at: &'p CStr, directory: u64, set: u64, propagation: u64, recursive: u64 } "mount volume at"
    /// Mounts a directory of the pod's template (its /dev/shm).
    8 Share { from: &'p CStr, at: &'p CStr } "mount the pod's shared directory at"
    /// Makes a device node; an existing one is replaced only if it is the same device.
    9 Node { at: &'p CStr, mode: u64, device: u64, uid: u64, gid: u64 } "make device"
    /// Makes a symbolic link in a directory just mounted.
    10 Link { at: &'p CStr, target: &'p CStr } "link"
    /// Opens a terminal in the container's devpts, sends its master to the supervisor, makes it the standard descriptors and, when
    /// `mount` is set, /dev/console.
    11 Terminal { uid: u64, mount: u64 } "open a terminal"
    /// Hides a path, if it exists.
    12 Mask { at: &'p CStr } "mask"
    /// Makes a path read-only with everything below, if it exists.
    13 ReadOnly { at: &'p CStr } "make read-only"
    /// Makes the root file system the root directory and lets go of everything else.
    14 Pivot {} "change the root directory"
    /// Makes the root mount read-only.
    15 ReadOnlyRoot {} "make the root file system read-only"
    /// Sets oom_score_adj (as i64), as far down as we may.
    16 OomScore { value: u64 } "set the OOM score"
    /// Sets a resource limit (setrlimit(2)), as far up as we may.
    17 Limit { resource: u64, soft: u64, hard: u64 } "set a resource limit"
    /// Makes descriptors the standard ones; `u64::MAX` stands for /dev/null. Pipes are given to `uid`.
    18 Stdio { stdin: u64, stdout: u64, stderr: u64, uid: u64 } "connect the standard streams"
    /// Joins a new session keyring.
    19 Keyring { name: &'p CStr } "join a session keyring"
    /// Drops capabilities that are not in `keep` from the bounding set.
    20 Bounding { keep: u64 } "limit the capabilities"
    /// Becomes the user. `groups`: u32, little-endian.
    21 Identity { uid: u64, gid: u64, groups: &'p [u8] } "become the user"
    /// Sets the capability sets.
    22 Capabilities { permitted: u64, effective: u64, inheritable: u64, ambient: u64 } "set the capabilities"
    /// Gives up gaining privileges by execve(2).
    23 NoNewPrivs {} "set no_new_privs"
    /// Installs a seccomp filter.
    24 Seccomp { flags: u64, program: &'p [u8] } "install the seccomp filter"
    /// Changes to the working directory.
    25 Chdir { path: &'p CStr } "change to the working directory"
    /// Executes; both lists are NUL-terminated strings one behind the other. A command without a slash is looked for in PATH.
    26 Exec { arguments: &'p [u8], environment: &'p [u8] } "run"
    /// Makes this process the leader of a new session.
    27 Session {} "start a session"
    /// Stays as the first process of a PID namespace and reaps until it is told to end.
    28 Idle {} "wait as the pod's first process"
    /// Sets attributes of the mount at a path.
    29 Attributes { at: &'p CStr, set: u64 } "set attributes of the mount at"
    /// Enters a user namespace as its root and goes on in a new process there, with these namespaces (`CLONE_NEW*`) of its own. The
    /// supervisor is told of the new process; this one ends.
    31 User { fd: u64, flags: u64 } "enter the pod's user namespace"
    /// Mounts a device file of the template.
    32 ShareFile { from: &'p CStr, at: &'p CStr } "mount device"
    /// Installs a seccomp filter whose listener goes to an agent with `state`, in which a zero byte stands for the process id.
    33 Notify { flags: u64, program: &'p [u8], agent: &'p CStr, state: &'p [u8] } "install the seccomp filter of the agent"
    /// Asks a security module for the label after execve(2), by writing to a file below /proc.
    30 Label { file: &'p CStr, value: &'p [u8] } "set the security label"
    /// Gives a directory the SELinux label `value`; no part of `at` may be a symlink.
    34 Relabel { at: &'p CStr, value: &'p [u8] } "set the SELinux label of"
    /// Mounts the directory that cgroup v1 hierarchies are mounted in: the template's, or a new one where it has none.
    35 Hierarchies { at: &'p CStr } "mount the directory of cgroups at"

    // From here on: what only OCI bundles need (`native::child::bundle`).
    /// Tells the starter that a stage is reached and waits until it says to go on.
    64 Sync { stage: u64 } "wait for the runtime"
    /// Makes a mount namespace's template of its own. `null`: descriptor of a detached null device; `keep`: the node's tree stays in
    /// reach for hooks until the root is changed; `sysfs`: a user namespace needs one in sight to mount another; `label`: the SELinux
    /// label of what hides directories, or nothing.
    65 Template { null: u64, keep: u64, sysfs: u64, label: &'p [u8] } "make the template mount namespace"
    /// Attaches the root file system at its own path in the node's tree that the template keeps.
    66 RootAt { fd: u64, at: &'p CStr } "attach the root file system"
    /// Takes the root file system as a tree that no mount namespace holds, for a process that stays in the node's. `label`: as above.
    67 RootAlone { fd: u64, null: u64, label: &'p [u8] } "take the root file system"
    /// Sets the host name.
    68 Hostname { name: &'p [u8] } "set the host name"
    /// Sets the NIS domain name.
    69 Domainname { name: &'p [u8] } "set the domain name"
    /// Writes a file below /proc/sys.
    70 Sysctl { path: &'p CStr, value: &'p [u8] } "set sysctl"
    /// Mounts a file system of its own at a place that may be reached by links of the image. `propagation`: `MS_*` or 0.
    71 FileSystem { kind: &'p CStr, options: &'p [u8], attributes: u64, propagation: u64, at: &'p CStr } "mount"
    /// Runs a program and waits for it; `before`, the process id and `after` are what it reads. `host`: in the node's tree.
    72 Hook { path: &'p CStr, arguments: &'p [u8], environment: &'p [u8], before: &'p [u8], after: &'p [u8], seconds: u64, host: u64 } "run hook"
    /// Reports being ready, then waits for a byte on `go`; failures from here on are told on `verdict`.
    73 Await { go: u64, verdict: u64 } "wait to be started"
    /// The process's own umask.
    74 Umask { mask: u64 } "set the umask"
    /// Leaves this many descriptors from 3 on to the program.
    75 Preserve { count: u64 } "pass descriptors on"
    /// Becomes root of the user namespace it was born into.
    76 NamespaceRoot {} "become root of the user namespace"
    /// Enters a namespace (`CLONE_NEW*`) by its descriptor.
    77 Enter { fd: u64, kind: u64 } "enter a namespace"
    /// Changes how mounts travel from and to the root file system. `propagation`: `MS_*`.
    78 Propagation { propagation: u64, recursive: u64 } "set the propagation of the root file system"
    /// Sets the execution domain (personality(2)).
    79 Personality { domain: u64 } "set the personality"
    /// Changes the root directory to that of a running container which has no mount namespace of its own.
    80 ChangeRoot { fd: u64 } "change the root directory"
    /// Attaches a bind of the bundle, asked for by its number: so mounts come into being, and are listed, in the bundle's order.
    81 Bind { index: u64, at: &'p CStr } "mount"
    /// Sets the scheduling policy with what belongs to it (sched_setattr(2)); `nice` as i64, times in nanoseconds.
    82 Scheduler { policy: u64, flags: u64, nice: u64, priority: u64, runtime: u64, deadline: u64, period: u64 } "set the scheduler"
    /// Sets the I/O class and priority (ioprio_set(2)).
    83 IoPriority { value: u64 } "set the I/O priority"

    // From here on: what only external runtimes need (`native::child::outside`).
    /// Enters a private copy of the node's mount namespace, with the pod's /dev/shm attached there at a path of its own.
    96 NodeTree { fd: u64, shm: &'p CStr } "enter a copy of the node's mount namespace"
    /// Runs a program, the first of its arguments, with our standard streams, and waits for its end for so long.
    97 Run { arguments: &'p [u8], environment: &'p [u8], seconds: u64 } "run"
    /// Takes the terminal's master that a program has sent to a listening socket, and sends it to the supervisor.
    98 Console { fd: u64 } "take the terminal from the runtime"
    /// Tells the supervisor which process goes on in our place: the one whose number is in the file.
    99 Successor { path: &'p CStr } "read the process id that the runtime has written to"
    /// Tells the supervisor that all is done, and ends.
    100 Done {} "end"
}

impl Step<'_> {
    /// What the step is about, as far as it has a name.
    pub(crate) fn object(&self) -> String {
        let text = match self {
            Self::Directory { at, .. }
            | Self::Mount { at, .. }
            | Self::Attach { at, .. }
            | Self::Share { at, .. }
            | Self::ShareFile { at, .. }
            | Self::Node { at, .. }
            | Self::Link { at, .. }
            | Self::Mask { at }
            | Self::ReadOnly { at }
            | Self::Attributes { at, .. }
            | Self::RootAt { at, .. }
            | Self::Relabel { at, .. }
            | Self::Hierarchies { at }
            | Self::Bind { at, .. }
            | Self::FileSystem { at, .. } => at,
            Self::Chdir { path }
            | Self::Sysctl { path, .. }
            | Self::Hook { path, .. }
            | Self::Successor { path } => path,
            Self::Notify { agent, .. } => agent,
            Self::Label { value, .. } => return String::from_utf8_lossy(value).into_owned(),
            Self::Exec { arguments, .. } | Self::Run { arguments, .. } => {
                strings(arguments).next().unwrap_or_default()
            }
            _ => return String::new(),
        };
        text.to_string_lossy().into_owned()
    }
}

/// Mount options with the SELinux label of everything in the file system, as in [`Step::Mount`]; an empty label changes nothing.
pub(crate) fn labelled(options: &[u8], label: &[u8]) -> Vec<u8> {
    let parts: &[&[u8]] = if label.is_empty() { &[options] } else { &[options, b"context\0", label, b"\0"] };
    parts.concat()
}

/// Builds a plan.
#[derive(Debug)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new() -> Self {
        Self(MAGIC.to_vec())
    }

    pub(crate) fn push(&mut self, step: Step<'_>) {
        step.put(&mut self.0);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// The steps of a plan; ends early at the first byte that does not decode, which [`verify`] has ruled out.
#[derive(Clone, Debug)]
pub(crate) struct Steps<'p>(&'p [u8]);

/// Opens a plan.
pub(crate) fn steps(plan: &[u8]) -> Option<Steps<'_>> {
    plan.strip_prefix(MAGIC).map(Steps)
}

/// Whether all of a plan decodes, names no group that there cannot be, and ends in a step that does not return.
pub(crate) fn verify(plan: &[u8]) -> bool {
    let Some(mut steps) = steps(plan) else { return false };
    let mut last = None;
    for step in steps.by_ref() {
        if !has_groups(&step) {
            return false;
        }
        last = Some(step);
    }
    steps.0.is_empty() && matches!(last, Some(Step::Exec { .. } | Step::Idle {} | Step::Done {}))
}

/// Whether the groups of a step are whole numbers of groups; 4294967295 is none (credentials(7)).
fn has_groups(step: &Step<'_>) -> bool {
    let Step::Identity { groups, .. } = step else { return true };
    let (groups, rest) = groups.as_chunks::<4>();
    rest.is_empty() && groups.iter().all(|group| *group != [0xFF; 4])
}

impl<'p> Iterator for Steps<'p> {
    type Item = Step<'p>;

    fn next(&mut self) -> Option<Step<'p>> {
        let mut input = self.0;
        let step = Step::take(&mut input)?;
        self.0 = input;
        Some(step)
    }
}

/// The strings of a list as in [`Step::Exec`].
pub(crate) fn strings(list: &[u8]) -> impl Iterator<Item = &CStr> {
    list.split_inclusive(|b| *b == 0).filter_map(|s| CStr::from_bytes_with_nul(s).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_reads_back_as_written() {
        let steps_in = [
            Step::Root { fd: 3 },
            Step::Mount { kind: c"proc", options: b"hidepid\x002\0", attributes: 14, at: c"/proc" },
            Step::Exec { arguments: b"sh\0-c\0", environment: b"A=\xff\0" },
        ];
        let mut writer = Writer::new();
        steps_in.iter().for_each(|s| writer.push(*s));
        let bytes = writer.finish();
        assert!(verify(&bytes));
        assert_eq!(steps(&bytes).unwrap().collect::<Vec<_>>(), steps_in);
        assert_eq!(strings(b"sh\0-c\0").collect::<Vec<_>>(), [c"sh", c"-c"]);
    }

    #[test]
    fn a_label_is_one_more_mount_option() {
        let options = b"mode\x00755\0size\x0064k\0";
        assert_eq!(labelled(options, b""), options);
        let with = labelled(options, b"u:o:f:s0:c1,c2");
        let expected = [c"mode", c"755", c"size", c"64k", c"context", c"u:o:f:s0:c1,c2"];
        assert_eq!(strings(&with).collect::<Vec<_>>(), expected);
        assert_eq!(strings(&labelled(b"", b"u:o:f")).collect::<Vec<_>>(), [c"context", c"u:o:f"]);
    }

    #[test]
    fn a_cut_or_garbled_plan_is_refused() {
        let mut writer = Writer::new();
        writer.push(Step::Chdir { path: c"/tmp" });
        writer.push(Step::Exec { arguments: b"a\0", environment: b"" });
        let bytes = writer.finish();
        for cut in 0..bytes.len() {
            assert!(!verify(&bytes[..cut]), "cut at {cut}");
        }
        let mut wild = bytes;
        wild[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(!verify(&wild), "a length beyond the end");
        let mut no_exec = Writer::new();
        no_exec.push(Step::Pivot {});
        assert!(!verify(&no_exec.finish()), "a plan that returns");
    }

    #[test]
    fn a_plan_with_a_group_that_is_none_is_refused() {
        for (groups, sound) in [(&[7, 0, 0, 0][..], true), (&[0xFF; 4], false), (&[7, 0, 0], false)] {
            let mut writer = Writer::new();
            writer.push(Step::Identity { uid: 1, gid: 1, groups });
            writer.push(Step::Exec { arguments: b"a\0", environment: b"" });
            assert_eq!(verify(&writer.finish()), sound, "{groups:?}");
        }
    }

    /// CVE-2021-43784: a length does not fit the field it is written to, and what it belongs to becomes steps.
    #[test]
    fn a_field_of_any_length_stays_one_field() {
        let mut hidden = Writer::new();
        hidden.push(Step::Chdir { path: c"/hidden" });
        let long = [vec![b'x'; 0x1_0000], hidden.finish().split_off(MAGIC.len())].concat();
        let written =
            [Step::Sysctl { path: c"p", value: &long }, Step::Exec { arguments: b"a\0", environment: &long }];
        let mut writer = Writer::new();
        written.iter().for_each(|step| writer.push(*step));
        let bytes = writer.finish();
        assert!(verify(&bytes));
        assert_eq!(steps(&bytes).unwrap().collect::<Vec<_>>(), written);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            let mut plan = MAGIC.to_vec();
            plan.extend_from_slice(&bytes);
            verify(&plan);
        }
    }
}
