//! External OCI runtimes as handlers: the native driver with somebody else's program in the place of our interpreter.
//!
//! ```text
//!   daemon ──Start──▶ podd ──clone──▶ go-between: a private copy of the node's mounts, root and volumes attached in the bundle
//!                      ▲                 ├─ RUNTIME create ──▶ the container's process, an orphan when the runtime ends
//!                      └──── adopts it ──┤                                                       │ waits
//!                                        └─ RUNTIME start  ──────────────────────────────────────▼ runs
//! ```
//!
//! Everything else is as with native pods: the supervisor holds the pod's namespaces (which the runtime is born into), streams, logs
//! and exits; the cgroup with its limits is made by us before the runtime puts the container there. So the daemon may go and come
//! back, and an adopting supervisor takes over, whoever made the container.
//!
//! [`document`] is the bundle's config.json, [`plan`] what the go-between does; both are pure. This file is what the daemon itself asks
//! of a runtime. Files owned: `<pod's directory>/<beginning of the container's id>/` (the bundle), and through the runtime its root.

pub(crate) mod document;
pub(crate) mod plan;

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

use crate::error::{Error, Kind};
use crate::exec::program;
use crate::journal::file;

/// So much of a container's id is the name of its bundle: the path of a terminal's socket has to fit sun_path (unix(7)).
const SHORT: usize = 12;
/// So much of a runtime's log is looked at.
const MAX_LOG: u64 = 64 << 10;

/// A handler whose containers are run by another program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Handler name under which it is offered.
    pub name: String,
    /// The program.
    pub path: PathBuf,
    /// Where it keeps its state (`--root`), best on a tmpfs.
    pub root: PathBuf,
    /// Further global arguments, before the command.
    pub arguments: Vec<String>,
    /// How long each call of it may take, at least a second; then it is killed.
    pub timeout: Duration,
}

impl Config {
    /// How long a call may take if nothing else is said: more than a busy node needs, and less than a start may take altogether.
    pub const TIMEOUT: Duration = Duration::from_secs(30);
}

/// A runtime that answers.
#[derive(Debug)]
pub(crate) struct Runtime {
    config: Config,
}

impl Runtime {
    /// Asks a runtime for its version, to see that it is there and runs. Blocking.
    pub(crate) fn open(config: Config) -> Result<Self, Error> {
        let runtime = Self { config };
        runtime.make_root()?;
        let mut command = Command::new(&runtime.config.path);
        command.args(&runtime.config.arguments).arg("--version");
        runtime.run(command, "--version")?;
        Ok(runtime)
    }

    /// Our own program, which needs no asking.
    pub(crate) fn own(config: Config) -> Self {
        Self { config }
    }

    /// Makes the directory for its state.
    pub(crate) fn make_root(&self) -> Result<(), Error> {
        Ok(file::make_dir(&self.config.root)?)
    }

    /// Whether it has made this container, and not deleted it.
    pub(crate) fn knows(&self, container: &str) -> bool {
        self.config.root.join(container).exists()
    }

    /// How long a call may take, in whole seconds.
    fn seconds(&self) -> u64 {
        self.config.timeout.as_secs().max(1)
    }

    /// The handler's name.
    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// The runtime's words before a command: itself, and its global options.
    fn words(&self, log: &Path) -> Vec<Vec<u8>> {
        let config = &self.config;
        let mut words = vec![config.path.as_os_str().as_bytes().to_vec()];
        words.extend(config.arguments.iter().map(|word| word.as_bytes().to_vec()));
        for (option, value) in [("--root", config.root.as_path()), ("--log", log)] {
            words.push(option.into());
            words.push(value.as_os_str().as_bytes().to_vec());
        }
        words.extend(["--log-format", "json"].map(Into::into));
        words
    }

    /// Runs a command of the runtime to its end.
    fn call(&self, words: &[&str]) -> Result<(), Error> {
        let mut all = self.words(Path::new("/dev/null")).into_iter();
        let mut command = Command::new(OsStr::from_bytes(&all.next().unwrap_or_default()));
        command.args(all.map(|word| OsStr::from_bytes(&word).to_owned())).args(words);
        self.run(command, words.first().copied().unwrap_or_default())
    }

    fn run(&self, command: Command, verb: &str) -> Result<(), Error> {
        let named = |kind, why: String| {
            let Config { name, path, .. } = &self.config;
            Error::new(kind, format!("handler \"{name}\": {} {verb}: {why}", path.display()))
        };
        match program::run(command, "", self.config.timeout) {
            Ok((Some(status), _)) if status.success() => Ok(()),
            Ok((Some(status), said)) if said.is_empty() => {
                Err(named(Kind::FailedPrecondition, status.to_string()))
            }
            Ok((Some(_), said)) => Err(named(Kind::FailedPrecondition, said.replace('\n', "; "))),
            Ok((None, _)) => {
                let why = format!("did not end within {:?} and was killed", self.config.timeout);
                Err(named(Kind::DeadlineExceeded, why))
            }
            Err(e) => Err(named(Kind::FailedPrecondition, e.to_string())),
        }
    }

    /// Sends a signal to a container's first process. Blocking.
    pub(crate) fn kill(&self, container: &str, signal: i32) -> Result<(), Error> {
        self.call(&["kill", container, &signal.to_string()])
    }

    /// Removes what runtime and we keep of a container of which no process is left; absent is fine. Blocking.
    pub(crate) fn delete(&self, container: &str, dir: &Path) -> Result<(), Error> {
        let state = self.config.root.join(container);
        if self.knows(container) {
            // Of what it was killed over it may not want to know; with its processes gone that is nothing but files.
            if let Err(error) = self.call(&["delete", "--force", container]) {
                tracing::warn!(container, "its files are removed without the runtime: {}", error.chain());
            }
            file::remove_tree(&state)?;
        }
        Ok(file::remove_tree(&Bundle::path(dir, container))?)
    }
}

/// The directory that a container's runtime is given.
#[derive(Debug)]
pub(crate) struct Bundle {
    path: PathBuf,
}

impl Bundle {
    fn path(dir: &Path, container: &str) -> PathBuf {
        dir.join(container.get(..SHORT).unwrap_or(container))
    }

    /// A container's bundle in its pod's directory.
    pub(crate) fn of(dir: &Path, container: &str) -> Result<Self, Error> {
        // Without links: the runtime checks what it finds there against what it was told.
        let dir = fs::canonicalize(dir)
            .map_err(|e| Error::with(Kind::Internal, format!("find {}", dir.display()), e))?;
        Ok(Self { path: Self::path(&dir, container) })
    }

    /// Makes the directory.
    pub(crate) fn make(&self) -> Result<(), Error> {
        DirBuilder::new().mode(0o700).create(&self.path).map_err(|e| self.failed("make", &self.path, e))
    }

    fn failed(&self, what: &str, path: &Path, e: std::io::Error) -> Error {
        Error::with(Kind::Internal, format!("{what} {}", path.display()), e)
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file for the runtime to read.
    pub(crate) fn write(&self, name: &str, text: &serde_json::Value) -> Result<(), Error> {
        let path = self.at(name);
        fs::write(&path, text.to_string()).map_err(|e| self.failed("write", &path, e))
    }

    /// A socket on which a runtime hands over a terminal.
    pub(crate) fn listen(&self, name: &str) -> Result<OwnedFd, Error> {
        let path = self.at(name);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let made = (|| {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            bind(&socket, &SocketAddrUnix::new(&path)?)?;
            listen(&socket, 1)?;
            Ok(socket)
        })();
        made.map_err(|e: rustix::io::Errno| self.failed("listen for a terminal on", &path, e.into()))
    }

    /// Removes the files of these names; absent is fine.
    pub(crate) fn clear(&self, names: &[String]) {
        for name in names {
            let _ = fs::remove_file(self.at(name));
        }
    }

    /// What the runtime has said last in its log of this name (`--log-format json`): of errors, else of anything.
    pub(crate) fn said(&self, name: &str) -> Option<String> {
        let mut text = String::new();
        fs::File::open(self.at(name)).ok()?.take(MAX_LOG).read_to_string(&mut text).ok()?;
        last_words(&text)
    }
}

/// The last message of a log, errors first.
fn last_words(log: &str) -> Option<String> {
    let lines: Vec<serde_json::Value> =
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let error = lines.iter().rfind(|line| line["level"] == "error" || line["level"] == "fatal");
    let message = error.or(lines.last())?["msg"].as_str()?;
    Some(message.trim().replace('\n', "; ")).filter(|message| !message.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_speaks_for_a_runtime() {
        let log = concat!(
            "{\"level\":\"warning\",\"msg\":\"odd\"}\n",
            "{\"level\":\"error\",\"msg\":\"first\"}\n{\"msg\":\"no such\\nfile\",\"level\":\"error\"}\n",
            "{\"level\":\"debug\",\"msg\":\"ends\"}\nnot json\n",
        );
        assert_eq!(last_words(log).as_deref(), Some("no such; file"));
        assert_eq!(last_words("{\"level\":\"warning\",\"msg\":\"odd\"}\n").as_deref(), Some("odd"));
        assert_eq!(last_words("{\"level\":\"error\",\"msg\":\"\"}\n"), None);
        assert_eq!(last_words(""), None);
    }

    #[test]
    fn a_runtime_that_is_not_there_or_does_not_run_is_named_with_its_path() {
        let root = std::env::temp_dir().join(format!("berth-external-{}", std::process::id()));
        for (path, expected) in [("/no/such/runtime", "No such file"), ("/bin/false", "exit status: 1")] {
            let config = Config {
                name: "other".into(),
                path: path.into(),
                root: root.clone(),
                arguments: Vec::new(),
                timeout: Config::TIMEOUT,
            };
            let error = Runtime::open(config).unwrap_err().chain();
            assert!(error.contains("handler \"other\"") && error.contains(path), "{error}");
            assert!(error.contains(expected), "{error}");
        }
        fs::remove_dir_all(root).unwrap();
    }
}
