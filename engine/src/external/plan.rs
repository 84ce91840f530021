//! What the go-between does: the plans that have a runtime make and start a process. Pure.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Bundle, Runtime};
use crate::error::Error;
use crate::exec::PreparedMount;
use crate::native::compile::{list, text, volume_at};
use crate::native::plan::{Step, Writer};

/// What a runtime finds in its environment.
const ENVIRONMENT: &[u8] = b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\0";
/// No descriptor.
const NONE: u64 = u64::MAX;

/// What the plans of containers and execs share. Descriptors: `tasks` files, the node's mount namespace, then the listening socket of
/// the terminal if there is to be one.
#[derive(Debug)]
pub(crate) struct Common<'a> {
    /// The runtime.
    pub(crate) runtime: &'a Runtime,
    /// The container's bundle.
    pub(crate) bundle: &'a Bundle,
    /// Container id.
    pub(crate) id: &'a str,
    /// Number of `tasks` files.
    pub(crate) tasks: usize,
    /// The process that is to run.
    pub(crate) command: &'a str,
    /// Runs on a terminal.
    pub(crate) tty: bool,
    /// User on the node, who gets the pipes.
    pub(crate) uid: u32,
    /// oom_score_adj.
    pub(crate) oom_score: u64,
    /// What the names of its files in the bundle end in.
    pub(crate) suffix: &'a str,
}

impl Common<'_> {
    /// Number behind these descriptors.
    pub(crate) fn end(&self) -> u64 {
        self.tasks as u64 + 1 + u64::from(self.tty)
    }

    /// A file of this start.
    pub(crate) fn file(&self, name: &str) -> String {
        format!("{name}{}", self.suffix)
    }

    /// All of them.
    pub(crate) fn files(&self) -> Vec<String> {
        ["pid", "log", "tty", "process"].map(|name| self.file(name)).into()
    }

    fn begin(&self, plan: &mut Writer, streams: [u64; 3], shm: &Path) -> Result<(), Error> {
        plan.push(Step::JoinCgroups { first: 0, count: self.tasks as u64 });
        plan.push(Step::OomScore { value: self.oom_score });
        plan.push(Step::Session {});
        // While the template's null device is in reach.
        let [stdin, stdout, stderr] = streams;
        plan.push(Step::Stdio { stdin, stdout, stderr, uid: self.uid.into() });
        plan.push(Step::NodeTree { fd: self.tasks as u64, shm: &path(shm)? });
        Ok(())
    }

    /// Runs a command that makes a process, and hands that over.
    fn make(&self, plan: &mut Writer, command: &[&str], options: &[&Path]) -> Result<(), Error> {
        let (pid, console) = (self.bundle.at(&self.file("pid")), self.bundle.at(&self.file("tty")));
        let mut words: Vec<Vec<u8>> = command.iter().map(|word| word.as_bytes().to_vec()).collect();
        words.extend(options.iter().map(|option| option.as_os_str().as_bytes().to_vec()));
        words.push(b"--pid-file".to_vec());
        words.push(pid.as_os_str().as_bytes().to_vec());
        if self.tty {
            words.push(b"--console-socket".to_vec());
            words.push(console.as_os_str().as_bytes().to_vec());
        }
        self.run(plan, words)?;
        plan.push(Step::Successor { path: &path(&pid)? });
        if self.tty {
            plan.push(Step::Console { fd: self.tasks as u64 + 1 });
        }
        Ok(())
    }

    /// Runs a command of the runtime on the container.
    fn run(&self, plan: &mut Writer, command: Vec<Vec<u8>>) -> Result<(), Error> {
        let mut words = self.runtime.words(&self.bundle.at(&self.file("log")));
        words.extend(command);
        words.push(self.id.as_bytes().to_vec());
        let arguments = list("handler arguments", words.iter().map(Vec::as_slice))?;
        plan.push(Step::Run {
            arguments: &arguments,
            environment: ENVIRONMENT,
            seconds: self.runtime.seconds(),
        });
        Ok(())
    }
}

fn path(path: &Path) -> Result<CString, Error> {
    text("bundle", &path.to_string_lossy())
}

/// The name of the directory or file in the bundle at which a volume is attached.
pub(crate) fn volume(number: usize) -> String {
    format!("m{number}")
}

/// The plan of a container. Descriptors behind the common ones: the root, the mounts, then the supervisor's stdout, stderr, stdin.
/// `shm`: the pod has a /dev/shm of its own.
pub(crate) fn container(
    common: &Common<'_>,
    mounts: &[PreparedMount],
    stdin: bool,
    shm: bool,
) -> Result<Vec<u8>, Error> {
    let mut plan = Writer::new();
    let root = common.end();
    let first = root + 1 + mounts.len() as u64;
    let streams = [if stdin { first + 2 } else { NONE }, first, first + 1];
    let shm = if shm { common.bundle.at("shm") } else { Default::default() };
    common.begin(&mut plan, if common.tty { [NONE; 3] } else { streams }, &shm)?;
    plan.push(Step::Attach {
        fd: root,
        at: &path(&common.bundle.at("rootfs"))?,
        directory: 1,
        set: 0,
        propagation: libc::MS_PRIVATE,
        recursive: 1,
    });
    for (number, mount) in mounts.iter().enumerate() {
        let at = path(&common.bundle.at(&volume(number)))?;
        volume_at(&mut plan, mount, root + 1 + number as u64, &at)?;
    }
    common.make(&mut plan, &["create", "--bundle"], &[common.bundle.dir()])?;
    common.run(&mut plan, vec![b"start".to_vec()])?;
    plan.push(Step::Done {});
    Ok(plan.finish())
}

/// The plan of an exec. Descriptors behind the common ones: those of the streams that are wanted.
pub(crate) fn exec(common: &Common<'_>, streams: [bool; 3]) -> Result<Vec<u8>, Error> {
    let mut plan = Writer::new();
    let mut next = common.end();
    let numbers = streams.map(|there| {
        let fd = if there { next } else { NONE };
        next += u64::from(there);
        fd
    });
    common.begin(&mut plan, numbers, Path::new(""))?;
    let process = common.bundle.at(&common.file("process"));
    common.make(&mut plan, &["exec", "--detach", "--process"], &[&process])?;
    plan.push(Step::Done {});
    Ok(plan.finish())
}
