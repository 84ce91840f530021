//! Built-in CNI plugins: the same code in process, and as an executable chosen by its name.
//!
//! A plugin is a function from a [`Request`] to a result. The frame around it, in this file, is what the specification asks
//! of every executable: environment, versions, errors on standard output. Keys of a configuration are matched without
//! regard to case, because some runtimes send Go field names. What a plugin does not know it refuses by name.
//!
//! In reading order: this file, [`conf`] (access to JSON), [`delegate`] (address management by another plugin),
//! [`interface`] (what the plugins with an interface share), then one file per plugin; [`single`] is four of them.
//! Each reads its configuration and decides its steps in pure functions; the steps are carried out by
//! [`route::run`](crate::netlink::route::run).

mod bandwidth;
mod bridge;
mod conf;
mod delegate;
mod firewall;
mod flannel;
mod host_device;
mod host_local;
mod interface;
mod loopback;
mod masquerade;
mod owner;
mod portmap;
mod ptp;
mod sbr;
mod single;
mod spoof;
mod static_ipam;
mod tap;
#[cfg(test)]
mod testing;
mod tuning;
mod vrf;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::cni::chain::Target;
use crate::cni::config::{NEWEST, VERSIONS};
use crate::cni::json;
use crate::cni::result::Success;
use crate::error::Error;
use crate::{name, netns};

use conf::Conf;
pub use tap::{MakeTap, Tap, no_tap};

/// A configuration with its previous result.
const MAX_INPUT: u64 = 4 << 20;

/// Names of the built-in plugins.
pub const NAMES: [&str; 18] = [
    "bandwidth",
    "bridge",
    "dummy",
    "firewall",
    "flannel",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tap",
    "tuning",
    "vlan",
    "vrf",
];

/// What a plugin is asked to do.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) command: Command,
    pub(crate) container: String,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) interface: String,
    /// `CNI_ARGS`.
    pub(crate) args: BTreeMap<String, String>,
    /// `CNI_PATH`.
    pub(crate) path: Vec<PathBuf>,
    pub(crate) conf: Conf,
    /// Version of the result.
    pub(crate) version: String,
    /// Makes tap links.
    pub(crate) tap: MakeTap,
}

/// Commands of the specification, but for VERSION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
}

/// An error as the specification has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: u32,
    pub(crate) msg: String,
    pub(crate) details: String,
}

/// Error codes of the specification.
pub(crate) mod code {
    pub(crate) const VERSION: u32 = 1;
    pub(crate) const UNSUPPORTED: u32 = 2;
    pub(crate) const ENVIRONMENT: u32 = 4;
    pub(crate) const IO: u32 = 5;
    pub(crate) const DECODE: u32 = 6;
    pub(crate) const CONFIG: u32 = 7;
    pub(crate) const NETNS: u32 = 8;
    pub(crate) const NOT_AVAILABLE: u32 = 50;
    pub(crate) const INTERNAL: u32 = 999;
}

/// A plugin's answer: a result for ADD, nothing for the other commands.
pub(crate) type Answer = Result<Option<Success>, Refusal>;

impl Refusal {
    pub(crate) fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    pub(crate) fn config(msg: impl Into<String>) -> Self {
        Self::new(code::CONFIG, msg)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.details.is_empty() { "" } else { "; " };
        write!(f, "{}{separator}{}", self.msg, self.details)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::new(code::INTERNAL, error.chain())
    }
}

impl Command {
    const ALL: [(&'static str, Self); 5] = [
        ("ADD", Self::Add),
        ("DEL", Self::Del),
        ("CHECK", Self::Check),
        ("GC", Self::Gc),
        ("STATUS", Self::Status),
    ];

    /// As in `CNI_COMMAND`.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, c)| *c == self).map_or("", |(name, _)| name)
    }

    /// Variables that must not be empty.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Gc | Self::Status => &["CNI_PATH"],
        }
    }
}

impl Request {
    /// A request of this program to itself.
    pub(crate) fn in_process(
        command: &str,
        target: Option<&Target<'_>>,
        path: &[PathBuf],
        tap: MakeTap,
        config: &Value,
    ) -> Result<Self, Refusal> {
        let known = Command::ALL.into_iter().find(|(name, _)| *name == command);
        let (_, command) = known
            .ok_or_else(|| Refusal::new(code::ENVIRONMENT, format!("unknown CNI_COMMAND: {command}")))?;
        let request = Self {
            command,
            container: target.map_or("", |t| t.container).to_owned(),
            netns: target.and_then(|t| t.netns).map(Path::to_owned),
            interface: target.map_or("", |t| t.interface).to_owned(),
            args: arguments(target.map_or("", |t| t.args)),
            path: path.to_vec(),
            version: String::new(),
            conf: Conf::new(config.clone())?,
            tap,
        };
        check(request, false)
    }

    /// The pod's namespace; for commands that have one.
    pub(crate) fn open_netns(&self) -> Result<OwnedFd, Refusal> {
        let path = self.netns.as_deref().unwrap_or(Path::new(""));
        let file = fs::File::open(path).map_err(|e| {
            Refusal::new(code::NETNS, format!("failed to open netns \"{}\": {e}", path.display()))
        })?;
        Ok(file.into())
    }

    /// The namespace, or `None` if it is gone: DEL succeeds then.
    pub(crate) fn netns_if_there(&self) -> Option<OwnedFd> {
        self.netns.as_deref().and_then(|path| fs::File::open(path).ok()).map(OwnedFd::from)
    }

    /// Result of the plugins before this one.
    pub(crate) fn previous(&self) -> Result<Option<Success>, Refusal> {
        let Some(value) = self.conf.get("prevResult") else { return Ok(None) };
        let decoded = Success::decode(value, &self.version);
        decoded.map(Some).map_err(|e| Refusal::new(code::DECODE, format!("could not parse prevResult: {e}")))
    }

    /// The `cni.dev/valid-attachments` of GC, as container and interface.
    pub(crate) fn valid(&self) -> Vec<(String, String)> {
        let list =
            ["cni.dev/valid-attachments", "cni.dev/attachments"].iter().find_map(|key| self.conf.get(key));
        let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let entries = list.and_then(Value::as_array).into_iter().flatten();
        entries.map(|v| (text(v, "containerID"), text(v, "ifname"))).collect()
    }
}

/// Runs a built-in plugin; `None`: there is none of that name.
pub(crate) fn run(kind: &str, request: &Request) -> Option<Answer> {
    Some(match kind {
        "bandwidth" => bandwidth::run(request),
        "bridge" => bridge::run(request),
        "dummy" | "ipvlan" | "macvlan" | "vlan" => single::run(kind, request),
        "firewall" => firewall::run(request),
        "flannel" => flannel::run(request),
        "host-device" => host_device::run(request),
        "host-local" => host_local::run(request),
        "loopback" => loopback::run(request),
        "portmap" => portmap::run(request),
        "ptp" => ptp::run(request),
        "sbr" => sbr::run(request),
        "static" => static_ipam::run(request),
        "tap" => tap::run(request),
        "tuning" => tuning::run(request),
        "vrf" => vrf::run(request),
        _ => return None,
    })
}

/// The executable's face: acts as the plugin whose name `argv0` ends in. `None`: that is no plugin's name.
///
/// Must be called before the process has other threads in other namespaces; reads standard input, writes standard output.
/// `tap` makes tap links.
pub fn cni_main(argv0: &str, tap: MakeTap) -> Option<ExitCode> {
    let kind =
        NAMES.into_iter().find(|name| Path::new(argv0).file_name().is_some_and(|file| file == *name))?;
    let variable = |name: &str| std::env::var_os(name).unwrap_or_default();
    let mut out = io::stdout().lock();
    let printed = match variable("CNI_COMMAND").to_str() {
        Some("") => {
            let versions = VERSIONS.join(", ");
            return writeln!(
                io::stderr(),
                "Berth's {kind} plugin. CNI protocol versions supported: {versions}"
            )
            .map_or(Some(ExitCode::FAILURE), |()| Some(ExitCode::SUCCESS));
        }
        Some("VERSION") => Ok(Some(json!({ "cniVersion": NEWEST, "supportedVersions": VERSIONS }))),
        _ => answer(kind, variable, tap),
    };
    let (value, exit) = match printed {
        Ok(value) => (value, ExitCode::SUCCESS),
        Err((refusal, version)) => (Some(complaint(&refusal, &version)), ExitCode::FAILURE),
    };
    let written = value.map_or(Ok(()), |value| writeln!(out, "{value:#}"));
    Some(if written.is_ok() { exit } else { ExitCode::FAILURE })
}

/// Makes `<directory>/<plugin>` a symbolic link to `binary` for every built-in plugin, replacing what is there.
///
/// # Errors
///
/// The directory cannot be written.
pub fn install(directory: &Path, binary: &Path) -> Result<Vec<PathBuf>, Error> {
    fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
    let mut made = Vec::new();
    for plugin in NAMES {
        let link = directory.join(plugin);
        let staged = directory.join(format!(".{plugin}.new"));
        let _ = fs::remove_file(&staged);
        symlink(binary, &staged).map_err(Error::file("create", &staged))?;
        fs::rename(&staged, &link).map_err(Error::file("create", &link))?;
        made.push(link);
    }
    Ok(made)
}

fn answer(
    kind: &str,
    variable: impl Fn(&str) -> OsString,
    tap: MakeTap,
) -> Result<Option<Value>, (Refusal, String)> {
    let early = |refusal| (refusal, NEWEST.to_owned());
    let mut input = Vec::new();
    io::stdin()
        .take(MAX_INPUT)
        .read_to_end(&mut input)
        .map_err(|e| early(Refusal::new(code::IO, format!("error reading from stdin: {e}"))))?;
    let request = request(&input, variable, tap).map_err(early)?;
    let late = |refusal| (refusal, request.version.clone());
    let answered = run(kind, &request).unwrap_or(Ok(None)).map_err(late)?;
    let encode = |s: Success| s.encode(&request.version).map_err(|e| late(Refusal::new(code::INTERNAL, e)));
    answered.map(encode).transpose()
}

fn request(input: &[u8], variable: impl Fn(&str) -> OsString, tap: MakeTap) -> Result<Request, Refusal> {
    let text = |name: &str| variable(name).into_string().unwrap_or_default();
    let command = text("CNI_COMMAND");
    let Some((_, command)) = Command::ALL.into_iter().find(|(name, _)| *name == command) else {
        return Err(Refusal::new(code::ENVIRONMENT, format!("unknown CNI_COMMAND: {command}")));
    };
    let missing: Vec<&str> = command.required().iter().copied().filter(|v| variable(v).is_empty()).collect();
    if !missing.is_empty() {
        let missing = missing.join(",");
        return Err(Refusal::new(code::ENVIRONMENT, format!("required env variables [{missing}] missing")));
    }
    let value = json::parse(input)
        .map_err(|e| Refusal::new(code::DECODE, format!("error unmarshall network config: {e}")))?;
    let netns = Some(PathBuf::from(variable("CNI_NETNS"))).filter(|p| !p.as_os_str().is_empty());
    let request = Request {
        command,
        container: text("CNI_CONTAINERID"),
        netns,
        interface: text("CNI_IFNAME"),
        args: arguments(&text("CNI_ARGS")),
        path: std::env::split_paths(&variable("CNI_PATH")).collect(),
        version: String::new(),
        conf: Conf::new(value)?,
        tap,
    };
    let overridden = matches!(text("CNI_NETNS_OVERRIDE").as_str(), "1" | "true");
    check(request, overridden)
}

/// What holds for every request, however it came in.
fn check(mut request: Request, netns_override: bool) -> Result<Request, Refusal> {
    let version = request.conf.text("cniVersion")?.filter(|v| !v.is_empty()).unwrap_or("0.1.0").to_owned();
    if !VERSIONS.contains(&version.as_str()) {
        let msg = "incompatible CNI versions";
        let details = format!("config is \"{version}\", plugin supports {VERSIONS:?}");
        return Err(Refusal { code: code::VERSION, msg: msg.into(), details });
    }
    request.version = version;
    let network = request.conf.text("name")?.unwrap_or_default();
    name::check_id(network, "a network").map_err(|e| Refusal::config(e.to_string()))?;
    if !matches!(request.command, Command::Gc | Command::Status) {
        name::check_id(&request.container, "a container")
            .map_err(|e| Refusal::new(code::ENVIRONMENT, e.to_string()))?;
        check_interface(&request.interface)?;
    }
    if matches!(request.command, Command::Add | Command::Del)
        && !netns_override
        && is_own(request.netns.as_deref())
    {
        return Err(Refusal::new(
            code::NETNS,
            "plugin's netns and netns from CNI_NETNS should not be the same",
        ));
    }
    Ok(request)
}

fn check_interface(interface: &str) -> Result<(), Refusal> {
    name::check_link(interface)
        .map_err(|_| Refusal::new(code::ENVIRONMENT, format!("interface name \"{interface}\" is invalid")))
}

fn is_own(netns: Option<&Path>) -> bool {
    let Some(path) = netns else { return false };
    let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let own = netns::current().ok().and_then(|fd| rustix::fs::fstat(fd).ok()).map(identity);
    own.is_some() && rustix::fs::stat(path).ok().map(identity) == own
}

/// `K=V;K=V`
fn arguments(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
    pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn complaint(refusal: &Refusal, version: &str) -> Value {
    let mut value = json!({ "cniVersion": version, "code": refusal.code, "msg": refusal.msg });
    if let Some(object) = value.as_object_mut().filter(|_| !refusal.details.is_empty()) {
        object.insert("details".into(), json!(refusal.details));
    }
    value
}

#[cfg(test)]
mod tests;
