//! Who holds which address: `<dataDir>/<network>/<address>` holds `<container>\r\n<interface>`.
//!
//! `last_reserved_ip.<pool>` remembers where the turn is; `lock` is locked for every change. This is the reference plugin's
//! format, byte for byte.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::range::{Pool, Range};
use super::{Refusal, code};

const LOCK: &str = "lock";
const LAST: &str = "last_reserved_ip.";

/// The directory of one network.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
}

/// The directory while nobody else changes it.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    directory: &'a Path,
    _lock: File,
}

impl Store {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    pub(super) fn lock(&self) -> Result<Locked<'_>, Refusal> {
        fs::create_dir_all(&self.directory).map_err(io_error("create", &self.directory))?;
        let path = self.directory.join(LOCK);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io_error("open", &path))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(|e| io_error("lock", &path)(e.into()))?;
        Ok(Locked { directory: &self.directory, _lock: lock })
    }

    /// Frees the addresses whose holder, container and interface, is chosen.
    pub(super) fn release(&self, chosen: impl Fn(&str, &str) -> bool) -> Result<(), Refusal> {
        if !self.directory.exists() {
            return Ok(());
        }
        let locked = self.lock()?;
        for (address, container, interface) in locked.holders()? {
            if chosen(&container, &interface) {
                locked.take_back(address)?;
            }
        }
        Ok(())
    }

    /// Whether the holder has an address.
    pub(super) fn holds(&self, container: &str, interface: &str) -> Result<bool, Refusal> {
        if !self.directory.exists() {
            return Ok(false);
        }
        Ok(self.lock()?.holders()?.iter().any(|(_, c, i)| c == container && i == interface))
    }
}

impl Locked<'_> {
    /// Gives an address of the pool: the one asked for, or the next free one.
    pub(super) fn give<'p>(
        &self,
        index: usize,
        pool: &'p Pool,
        named: Option<IpAddr>,
        container: &str,
        interface: &str,
    ) -> Result<(IpAddr, &'p Range), Refusal> {
        let held = self.holders()?;
        if let Some((ip, ..)) =
            held.iter().find(|(ip, c, i)| c == container && i == interface && pool.holds(*ip))
        {
            return Err(Refusal::new(
                code::INTERNAL,
                format!("{ip} has been allocated to {container}, duplicate allocation is not allowed"),
            ));
        }
        if let Some(ip) = named {
            let range = pool.range_of(ip).ok_or_else(|| Refusal::config(format!("{ip} is in no range")))?;
            if range.gateway == Some(ip) {
                return Err(Refusal::config(format!("requested ip {ip} is subnet's gateway")));
            }
            if !self.reserve(ip, container, interface)? {
                return Err(Refusal::config(format!(
                    "requested IP address {ip} is not available in the pool"
                )));
            }
            return Ok((ip, range));
        }
        let last_file = self.directory.join(format!("{LAST}{index}"));
        let last = fs::read_to_string(&last_file).ok().and_then(|t| t.trim().parse().ok());
        for (ip, range) in pool.turn(last) {
            if range.gateway != Some(ip) && self.reserve(ip, container, interface)? {
                fs::write(&last_file, ip.to_string()).map_err(io_error("write", &last_file))?;
                return Ok((ip, range));
            }
        }
        let pods: std::collections::BTreeSet<&str> = held.iter().map(|(_, c, _)| c.as_str()).collect();
        let some: Vec<&str> = pods.iter().take(5).copied().collect();
        Err(Refusal {
            code: code::INTERNAL,
            msg: format!("no IP addresses available in range set {index}"),
            details: format!(
                "{} are held, by {} containers, among them {}",
                held.len(),
                pods.len(),
                some.join(", ")
            ),
        })
    }

    /// `false`: somebody has it.
    fn reserve(&self, ip: IpAddr, container: &str, interface: &str) -> Result<bool, Refusal> {
        let path = self.directory.join(ip.to_string());
        let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(e) => return Err(io_error("create", &path)(e)),
        };
        write!(file, "{container}\r\n{interface}").map_err(|e| {
            let _ = fs::remove_file(&path);
            io_error("write", &path)(e)
        })?;
        Ok(true)
    }

    pub(super) fn take_back(&self, ip: IpAddr) -> Result<(), Refusal> {
        let path = self.directory.join(ip.to_string());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// All addresses with container and interface; files of old versions name no interface.
    fn holders(&self) -> Result<Vec<(IpAddr, String, String)>, Refusal> {
        let entries = fs::read_dir(self.directory).map_err(io_error("read", self.directory))?;
        let mut holders = Vec::new();
        for entry in entries.flatten() {
            let Some(ip) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            let Ok(text) = fs::read_to_string(entry.path()) else { continue };
            let (container, interface) = text.trim().split_once("\r\n").unwrap_or((text.trim(), ""));
            holders.push((ip, container.to_owned(), interface.to_owned()));
        }
        Ok(holders)
    }
}

fn io_error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Refusal {
    let path = path.to_owned();
    move |e| Refusal::new(code::IO, format!("cannot {verb} {}: {e}", path.display()))
}
