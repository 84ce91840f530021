//! What is kept of a container: `<root>/<id>/` with its record, its pipes to the waiting process, its plan.
//!
//! | file | what |
//! |---|---|
//! | `record` | [`Record`]: a line with format, version and SHA-256, then JSON |
//! | `plan` | the plan of the first process, to explain a failure of `start` |
//! | `go`, `verdict` | pipes; there while the container waits to be started |

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Kind};
use crate::exec::cgroup::{self, CgroupDriver};
use crate::journal::file;

/// Format and version of the record.
const FORMAT: &str = "berth-oci-container 1";
/// Largest record that is read, in bytes: a configuration and a little more.
const MAX_RECORD: u64 = 32 << 20;
/// Longest id, in bytes: it is a file name and part of cgroup names.
const MAX_ID: usize = 128;

/// What is known of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its id.
    pub(super) id: String,
    /// Pid of the first process; 0: not made yet.
    pub(super) pid: i32,
    /// Start of that process in clock ticks since boot (proc(5)), so that a pid used again is not taken for it.
    pub(super) started: u64,
    /// The bundle's directory.
    pub(super) bundle: PathBuf,
    /// The root file system on the node.
    pub(super) rootfs: PathBuf,
    /// When it was created (RFC 3339).
    pub(super) created: String,
    /// Its cgroup, in cgroupfs spelling.
    pub(super) cgroup: String,
    /// The cgroup is a unit of systemd's.
    #[serde(default)]
    pub(super) systemd: bool,
    /// Its configuration as it was when it was created.
    pub(super) spec: Spec,
}

impl Record {
    /// Who has made its cgroup.
    pub(super) fn manager(&self) -> cgroup::Manager {
        cgroup::Manager::new(if self.systemd { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs })
    }
}

/// Where a container is in its life (runtime.md, "State").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// `create` has not come to its end, or was killed.
    Creating,
    /// Waits to be started.
    Created,
    /// Runs.
    Running,
    /// All its processes are frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl Status {
    /// The word of the specification.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// All containers of a `--root`.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let text = format!("{what} {}", path.display());
    move |e| Error::with(Kind::Internal, text, e)
}

/// SHA-256 in hexadecimal.
fn checksum(body: &str) -> String {
    use std::fmt::Write;
    Sha256::digest(body).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Ids become file and cgroup names.
fn check(id: &str) -> Result<(), Error> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+-.".contains(&b);
    if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(allowed) || id == "." || id == ".." {
        let rule = "1 to 128 letters, digits and any of _ + - .";
        return Err(Error::invalid("ID", format!("{id:?} is not made of {rule}")));
    }
    Ok(())
}

impl Store {
    /// The containers below a directory.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory of a container.
    pub(super) fn dir(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// Claims an id.
    pub(super) fn claim(&self, id: &str) -> Result<PathBuf, Error> {
        check(id)?;
        file::make_dir(&self.root)
            .map_err(|e| Error::with(Kind::Internal, format!("make {}", self.root.display()), e))?;
        let dir = self.dir(id);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => Ok(dir),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(Error::new(
                Kind::AlreadyExists,
                format!("container with id exists: \"{id}\" ({})", dir.display()),
            )),
            Err(e) => Err(failed("make", &dir)(e)),
        }
    }

    /// Writes a container's record.
    pub(super) fn write(&self, record: &Record) -> Result<(), Error> {
        let path = self.dir(&record.id).join("record");
        let body = serde_json::to_string(record)
            .map_err(|e| Error::with(Kind::Internal, "write the container's record down", e))?;
        let text = format!("{FORMAT} {}\n{body}", checksum(&body));
        let temporary = path.with_extension("tmp");
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(failed("write", &path))
    }

    /// Reads a container's record.
    pub(super) fn read(&self, id: &str) -> Result<Record, Error> {
        check(id)?;
        let dir = self.dir(id);
        if !dir.is_dir() {
            return Err(Error::new(Kind::NotFound, format!("container does not exist: \"{id}\"")));
        }
        let path = dir.join("record");
        let damaged = |why: &str| Error::new(Kind::Internal, format!("{}: {why}", path.display()));
        let mut text = String::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_RECORD).read_to_string(&mut text))
            .map_err(failed("read", &path))?;
        let (head, body) = text.split_once('\n').ok_or_else(|| damaged("is cut off"))?;
        if head != format!("{FORMAT} {}", checksum(body)) {
            return Err(damaged("is of another format or version, or damaged"));
        }
        serde_json::from_str(body).map_err(|e| damaged(&e.to_string()))
    }

    /// Ids of all containers, sorted.
    pub(super) fn ids(&self) -> Result<Vec<String>, Error> {
        let names = file::names(&self.root)
            .map_err(|e| Error::with(Kind::Internal, format!("list {}", self.root.display()), e))?;
        Ok(names.into_iter().filter(|name| check(name).is_ok()).collect())
    }

    /// Forgets a container; absent is fine.
    pub(super) fn remove(&self, id: &str) -> Result<(), Error> {
        check(id)?;
        file::remove_tree(&self.dir(id))
            .map_err(|e| Error::with(Kind::Internal, format!("forget container \"{id}\""), e))
    }

    /// Whether there is anything by that id.
    pub(super) fn exists(&self, id: &str) -> bool {
        check(id).is_ok() && self.dir(id).is_dir()
    }

    /// The plan of the first process.
    pub(super) fn plan(&self, id: &str) -> Vec<u8> {
        let mut plan = Vec::new();
        let limit = crate::native::plan::MAX_PLAN as u64;
        if let Ok(file) = File::open(self.dir(id).join("plan")) {
            let _ = file.take(limit).read_to_end(&mut plan);
        }
        plan
    }

    /// Keeps the plan of the first process.
    pub(super) fn keep_plan(&self, id: &str, plan: &[u8]) -> Result<(), Error> {
        let path = self.dir(id).join("plan");
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(plan)).map_err(failed("write", &path))
    }

    /// Makes the two pipes of a waiting process and opens them for it: both ways, so that it never sees their end.
    pub(super) fn make_pipes(&self, id: &str) -> Result<[File; 2], Error> {
        let make = |name: &str| {
            let path = self.dir(id).join(name);
            mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                .map_err(|e| failed("make", &path)(e.into()))?;
            OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open", &path))
        };
        Ok([make("go")?, make("verdict")?])
    }

    /// Opens one of the pipes; `None`: the container is not waiting.
    pub(super) fn pipe(&self, id: &str, name: &str, write: bool) -> Result<Option<File>, Error> {
        let path = self.dir(id).join(name);
        let mut options = OpenOptions::new();
        options.read(!write).write(write).custom_flags(libc::O_NONBLOCK);
        match options.open(&path) {
            Ok(file) => Ok(Some(file)),
            // Nobody reads any more: the process has ended.
            Err(e) if [Some(libc::ENOENT), Some(libc::ENXIO)].contains(&e.raw_os_error()) => Ok(None),
            Err(e) => Err(failed("open", &path)(e)),
        }
    }

    /// The container does not wait any more.
    pub(super) fn remove_pipes(&self, id: &str) {
        for name in ["go", "verdict"] {
            let _ = fs::remove_file(self.dir(id).join(name));
        }
    }

    /// Where a container is in its life.
    pub(super) fn status(&self, record: &Record) -> Status {
        if record.pid == 0 {
            return Status::Creating;
        }
        if !alive(record) {
            return Status::Stopped;
        }
        if self.dir(&record.id).join("go").exists() {
            return Status::Created;
        }
        if cgroup::is_frozen(&record.cgroup).unwrap_or(false) { Status::Paused } else { Status::Running }
    }
}

/// Whether the first process still runs: the same process under that pid, and no zombie.
fn alive(record: &Record) -> bool {
    matches!(process(record.pid), Some((state, started)) if started == record.started && !"ZX".contains(state))
}

/// State letter and start time of a process (proc(5), `/proc/PID/stat`).
pub(super) fn process(pid: i32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, parentheses included.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_cannot_leave_the_directory() {
        for good in ["a", "cri-1_2+3.4", "0123456789abcdef"] {
            check(good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", "../x", "a b", "a\n", "é", &"x".repeat(129)] {
            check(bad).unwrap_err();
        }
    }

    #[test]
    fn a_pid_used_again_is_another_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let (state, started) = process(pid).unwrap();
        assert!("RS".contains(state), "{state}");
        let record = Record {
            id: "a".into(),
            pid,
            started,
            bundle: PathBuf::new(),
            rootfs: PathBuf::new(),
            created: String::new(),
            cgroup: String::new(),
            systemd: false,
            spec: Spec::default(),
        };
        assert!(alive(&record));
        assert!(!alive(&Record { started: started + 1, ..record }));
    }
}
