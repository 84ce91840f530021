//! The place of one run: its directory, its names, and the marker by which a later run finds what an earlier one left.
//!
//! The marker `/run/berth-try/<pid>.json` is written before anything else exists and removed last, so whatever a
//! `kill -9` leaves behind can be named. Format: one line of JSON with a `version`, then its sha256 on a line.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::image::digest;
use super::leaks::Marks;
use super::leaks::parse::{self, Subnet};
use super::links::{self, Place};

/// Where markers lie.
const MARKERS: &str = "/run/berth-try";
/// Version of the marker's format.
const VERSION: u32 = 1;
/// Longest path of a socket (unix(7), `sun_path`).
const SOCKET_PATH_MAX: usize = 107;

/// Why a run has no place.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// The node's links and routes.
    #[error("list the node's links and routes")]
    Network(#[source] io::Error),
    /// A file operation.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The temporary directory's name is too long for a socket in it.
    #[error("{0} is too long for a socket path; set TMPDIR to a shorter directory")]
    LongPath(PathBuf),
    /// Every candidate subnet is routed somewhere already.
    #[error("no free pod subnet: 10.200.0.0/16 to 10.254.0.0/16 are all routed on this machine")]
    NoSubnet,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SiteError {
    let path = path.to_owned();
    move |source| SiteError::Io { action, path, source }
}

/// A process that cannot be confused with a later one of the same pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Pid.
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = parse::stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        (stat.state != 'Z').then_some(Self { pid, start: stat.start })
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }
}

/// One run's place. Everything in it is derived from the pid of the run, so two runs never share a name; all names have
/// the same length, so none is the beginning of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    version: u32,
    boot: String,
    /// The `berth try` itself.
    owner: ProcessId,
    /// Its daemon, once started.
    pub daemon: Option<ProcessId>,
    /// Temporary directory; root, state, socket and logs are in it.
    pub directory: PathBuf,
    /// Parent cgroup of all its pods, in cgroupfs spelling.
    pub cgroup: String,
    /// Prefix of its links and name of its nft table.
    pub link_prefix: String,
    /// Pod subnets, IPv4 first.
    pub subnets: Vec<String>,
}

impl Site {
    /// Names for this process: nothing is created yet.
    pub async fn plan() -> Result<Self, SiteError> {
        let pid = std::process::id().cast_signed();
        let stat = PathBuf::from("/proc/self/stat");
        let owner = ProcessId::of(pid)
            .ok_or_else(|| failed("read", &stat)(io::Error::from(io::ErrorKind::InvalidData)))?;
        let directory = std::env::temp_dir().join(format!("berth-try-{pid:07}"));
        let network = links::network().await.map_err(SiteError::Network)?;
        let third = free_subnet(&network.routes, pid.unsigned_abs()).ok_or(SiteError::NoSubnet)?;
        let site = Self {
            version: VERSION,
            boot: boot_id(),
            owner,
            daemon: None,
            directory,
            cgroup: format!("/berth-try-{pid:07}"),
            link_prefix: format!("t{}", base36(pid.unsigned_abs())),
            subnets: vec![
                format!("10.{third}.0.0/16"),
                format!("fd00:be27:{:x}:{:x}::/64", pid >> 16, pid & 0xffff),
            ],
        };
        if site.socket().as_os_str().len() > SOCKET_PATH_MAX {
            return Err(SiteError::LongPath(site.directory));
        }
        Ok(site)
    }

    /// Makes it real: the marker first, then the directories.
    pub fn create(&self) -> Result<(), SiteError> {
        self.write_marker()?;
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        for directory in [self.directory.clone(), self.root(), self.state(), self.logs(), self.netns()] {
            builder.create(&directory).map_err(failed("create directory", &directory))?;
        }
        Ok(())
    }

    /// Writes the marker durably: a new file in place of the old one.
    pub fn write_marker(&self) -> Result<(), SiteError> {
        fs::create_dir_all(MARKERS).map_err(failed("create directory", Path::new(MARKERS)))?;
        let marker = self.marker();
        let next = marker.with_extension("next");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&next)
            .map_err(failed("create", &next))?;
        file.write_all(self.encode().as_bytes()).map_err(failed("write", &next))?;
        fs::rename(&next, &marker).map_err(failed("rename into place", &marker))
    }

    /// Removes the directory and, when that has worked, the marker.
    pub fn erase(&self) -> Result<(), SiteError> {
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &self.directory)(error))
            }
            _ => {
                let marker = self.marker();
                fs::remove_file(&marker).map_err(failed("remove", &marker))?;
                // Only the last run can remove the directory of markers.
                let _ = fs::remove_dir(MARKERS);
                Ok(())
            }
        }
    }

    /// Runs that ended without cleaning up, and markers that cannot be read.
    pub fn leftovers() -> (Vec<Self>, Vec<PathBuf>) {
        let (mut sites, mut unreadable) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(MARKERS).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match fs::read_to_string(&path).ok().and_then(|text| Self::decode(&text)) {
                Some(site) if site.boot == boot_id() && site.owner.is_alive() => {}
                Some(site) => sites.push(site),
                None => unreadable.push(path),
            }
        }
        (sites, unreadable)
    }

    /// Whether the machine was started anew since; then only files can be left.
    pub fn is_from_another_boot(&self) -> bool {
        self.boot != boot_id()
    }

    /// Pid of the run.
    pub fn pid(&self) -> i32 {
        self.owner.pid
    }

    /// By what its objects are known; pods and containers are added by whoever makes them.
    pub fn marks(&self) -> Marks {
        Marks {
            words: vec![self.directory.display().to_string(), self.cgroup.clone()],
            link_prefix: self.link_prefix.clone(),
            subnets: self.subnets.iter().filter_map(|subnet| Subnet::parse(subnet)).collect(),
            directories: vec![self.root(), self.state(), self.netns()],
        }
    }

    fn marker(&self) -> PathBuf {
        Path::new(MARKERS).join(format!("{}.json", self.owner.pid))
    }

    /// `--root` of the daemon.
    pub fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// `--state` of the daemon.
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Log directory of the pods.
    pub fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// Where network namespaces are mounted.
    pub fn netns(&self) -> PathBuf {
        self.directory.join("netns")
    }

    /// The CRI socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("berth.sock")
    }

    fn encode(&self) -> String {
        let line = serde_json::to_string(self).unwrap_or_default();
        let sum = digest(line.as_bytes());
        format!("{line}\n{sum}\n")
    }

    fn decode(text: &str) -> Option<Self> {
        let (line, sum) = text.split_once('\n')?;
        let site: Self = serde_json::from_str(line).ok()?;
        (sum.trim_end() == digest(line.as_bytes()) && site.version == VERSION).then_some(site)
    }
}

/// Second byte of a 10.x.0.0/16 that no route of this machine touches, the default route aside.
fn free_subnet(routes: &[Place], seed: u32) -> Option<u8> {
    let candidates = (0..55u32).map(|step| u8::try_from(200 + (seed + step) % 55).unwrap_or(200));
    let taken = |byte: u8| {
        let candidate = Subnet { address: std::net::Ipv4Addr::new(10, byte, 0, 0).into(), prefix: 16 };
        routes.iter().any(|route| route.subnet.prefix > 0 && route.subnet.overlaps(&candidate))
    };
    candidates.into_iter().find(|byte| !taken(*byte))
}

/// A pid in five letters, because link names are short. Linux has no pid above 2^22.
fn base36(number: u32) -> String {
    let places = [1_679_616, 46_656, 1296, 36, 1];
    places.iter().map(|place| char::from_digit(number / place % 36, 36).unwrap_or('0')).collect()
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_marker_is_read_back_and_a_damaged_one_is_not() {
        let site = Site::plan().await.unwrap();
        let text = site.encode();
        assert_eq!(Site::decode(&text), Some(site));
        assert_eq!(Site::decode(&text.replace("/berth-try-", "/berth-cry-")), None);
        assert_eq!(Site::decode(&text[..text.len() / 2]), None);
        assert_eq!(Site::decode(""), None);
    }

    #[tokio::test]
    async fn names_fit_where_they_are_used() {
        let site = Site::plan().await.unwrap();
        assert!(site.link_prefix.len() <= 6, "{}", site.link_prefix);
        assert_eq!((base36(4_194_304), base36(1)), ("2hwcg".to_owned(), "00001".to_owned()));
        assert!(site.socket().starts_with(&site.directory));
        assert_eq!(site.marks().subnets.len(), 2);
    }

    #[test]
    fn a_routed_subnet_is_not_taken() {
        let route = |text| Place { subnet: Subnet::parse(text).unwrap(), link: "x".into() };
        assert_eq!(free_subnet(&[route("0.0.0.0/0")], 3), Some(203));
        assert_eq!(free_subnet(&[route("10.203.7.0/24")], 3), Some(204));
        assert_eq!(free_subnet(&[route("10.254.0.0/16")], 54), Some(200));
        assert_eq!(free_subnet(&[route("10.0.0.0/8")], 3), None);
    }

    #[test]
    fn a_pid_that_was_reused_is_another_process() {
        let own = ProcessId::of(std::process::id().cast_signed()).unwrap();
        assert!(own.is_alive());
        assert!(!ProcessId { start: own.start + 1, ..own }.is_alive());
    }
}
