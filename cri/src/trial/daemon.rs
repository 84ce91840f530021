//! The private daemon of a run: this executable in its `serve` role, on the run's own directories.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};

use super::site::{ProcessId, Site, SiteError};

/// How long a daemon may take to say that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long it may take to end after SIGTERM.
const STOPPED_WITHIN: Duration = Duration::from_secs(15);
/// How much of its log an error shows.
const LOG_SHOWN: u64 = 2048;

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Its files.
    #[error("prepare {path}")]
    Prepare {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The marker.
    #[error("note the daemon in the marker")]
    Marker(#[from] SiteError),
    /// It could not be started.
    #[error("start /proc/self/exe serve")]
    Spawn(#[source] io::Error),
    /// It ended before it was ready.
    #[error("the daemon ended with {status} before it was ready; its log ends with:\n{log}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// Its last words.
        log: String,
    },
    /// It did not say that it is ready.
    #[error("the daemon was not ready within {READY_WITHIN:?}; its log ends with:\n{log}")]
    NotReady {
        /// Its last words.
        log: String,
    },
    /// It had to be killed.
    #[error("the daemon did not end within {STOPPED_WITHIN:?} of SIGTERM and was killed")]
    Killed,
    /// Its end could not be seen.
    #[error("wait for the daemon")]
    Wait(#[source] io::Error),
    /// It ended with an error after SIGTERM.
    #[error("the daemon ended with {status} after SIGTERM; its log ends with:\n{log}")]
    Failed {
        /// How.
        status: ExitStatus,
        /// Its last words.
        log: String,
    },
}

/// A running daemon. Dropping it does not end it: [`Daemon::stop`] does, or the next run's clean-up.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it and waits for its readiness message (sd_notify(3)), or for its end.
    pub async fn start(site: &mut Site) -> Result<Self, DaemonError> {
        let prepare = |path: &PathBuf| {
            let path = path.clone();
            move |source| DaemonError::Prepare { path, source }
        };
        let config = site.directory.join("config.toml");
        std::fs::write(&config, configuration(site)).map_err(prepare(&config))?;
        let log = site.directory.join("daemon.log");
        let output = std::fs::File::create(&log).map_err(prepare(&log))?;
        let errors = output.try_clone().map_err(prepare(&log))?;
        let notify = site.directory.join("notify.sock");
        let _ = std::fs::remove_file(&notify);
        let readiness = UnixDatagram::bind(&notify).map_err(prepare(&notify))?;

        let child = Command::new("/proc/self/exe")
            .arg("serve")
            .arg("--root")
            .arg(site.root())
            .arg("--state")
            .arg(site.state())
            .arg("--config")
            .arg(&config)
            .arg("--listen")
            .arg(format!("unix://{}", site.socket().display()))
            .env("NOTIFY_SOCKET", &notify)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            // Its own group: Ctrl-C at the terminal is for us alone, and we stop it in order.
            .process_group(0)
            .spawn()
            .map_err(DaemonError::Spawn)?;
        let mut daemon = Self { child, log };
        site.daemon = daemon.child.id().and_then(|pid| ProcessId::of(pid.cast_signed()));
        site.write_marker()?;
        daemon.ready(&readiness).await?;
        Ok(daemon)
    }

    async fn ready(&mut self, readiness: &UnixDatagram) -> Result<(), DaemonError> {
        let mut message = [0u8; 1024];
        let deadline = tokio::time::sleep(READY_WITHIN);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                received = readiness.recv(&mut message) => {
                    let length = received.map_err(DaemonError::Wait)?;
                    if message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                        return Ok(());
                    }
                }
                ended = self.child.wait() => {
                    let status = ended.map_err(DaemonError::Wait)?;
                    return Err(DaemonError::Ended { status, log: self.last_words() });
                }
                () = &mut deadline => return Err(DaemonError::NotReady { log: self.last_words() }),
            }
        }
    }

    /// Pid.
    pub fn pid(&self) -> Option<i32> {
        self.child.id().map(u32::cast_signed)
    }

    /// Ends it with SIGTERM, which leaves pods alone.
    pub async fn stop(mut self) -> Result<(), DaemonError> {
        if let Some(pid) = self.pid().and_then(Pid::from_raw) {
            // Already ended is what we want.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        match tokio::time::timeout(STOPPED_WITHIN, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(DaemonError::Failed { status, log: self.last_words() }),
            Ok(Err(error)) => Err(DaemonError::Wait(error)),
            Err(_) => {
                self.child.kill().await.map_err(DaemonError::Wait)?;
                Err(DaemonError::Killed)
            }
        }
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let read = || -> io::Result<String> {
            let file = std::fs::File::open(&self.log)?;
            let start = file.metadata()?.len().saturating_sub(LOG_SHOWN);
            let mut bytes = vec![0u8; usize::try_from(LOG_SHOWN).unwrap_or(0)];
            let length = file.read_at(&mut bytes, start)?;
            Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
        };
        read().unwrap_or_else(|error| format!("{}: {error}", self.log.display()))
    }
}

/// What the private daemon is told: names of its own, nothing that changes behaviour.
fn configuration(site: &Site) -> String {
    use toml::{Table, Value};
    let path = |path: PathBuf| Value::String(path.display().to_string());
    let cidrs = site.subnets.iter().cloned().map(Value::String).collect();
    let network = Table::from_iter([
        ("link_prefix".to_owned(), Value::String(site.link_prefix.clone())),
        ("pod_cidrs".to_owned(), Value::Array(cidrs)),
        ("netns_dir".to_owned(), path(site.netns())),
        ("conf_dir".to_owned(), path(site.directory.join("no-cni"))),
    ]);
    let supervisors = Value::String(format!("{}/podd", site.cgroup));
    let native = Table::from_iter([("supervisor_cgroup".to_owned(), supervisors)]);
    Table::from_iter([
        ("network".to_owned(), Value::Table(network)),
        ("native".to_owned(), Value::Table(native)),
    ])
    .to_string()
}
