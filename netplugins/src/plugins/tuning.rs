//! `tuning`: settings of the pod's network stack and properties of its interface.
//!
//! What the interface was like is kept in a file until DEL, so that a device that goes back to the node goes back as it
//! came. Settings (`sysctl`) are not put back: they end with the pod's namespace.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use regex_lite::Regex;
use serde::{Deserialize, Serialize};

use super::interface::{self, internal};
use super::{Answer, Command, Refusal, Request, code};
use crate::cni::result::Success;
use crate::netlink::device::{Change, Details, Device};
use crate::netlink::op::{Mac, Op, mac_text};
use crate::netlink::route;
use crate::netns::{inside, socket_in};
use crate::sysctl;

const DATA_DIR: &str = "/run/cni/tuning";
/// One regular expression a line; without the file every setting is allowed.
const ALLOWED: &str = "/etc/cni/tuning/allowlist.conf";
const MAX_ALLOWED: u64 = 1 << 20;

/// What a configuration asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Settings {
    /// File below `/proc/sys/net` and value.
    sysctl: Vec<(String, String)>,
    mac: Option<Mac>,
    promiscuous: bool,
    mtu: Option<u32>,
    all_multicast: Option<bool>,
    tx_queue: Option<u32>,
}

/// What the interface was like, in the reference plugin's format.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Backup {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(default, skip_serializing_if = "is_zero")]
    mtu: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(default, rename = "txQLen", skip_serializing_if = "Option::is_none")]
    tx_queue: Option<u32>,
}

pub(super) fn run(request: &Request) -> Answer {
    match request.command {
        Command::Add => add(request, &settings(request)?).map(Some),
        Command::Del => restore(request).map(|()| None),
        Command::Check => check(request, &settings(request)?).map(|()| None),
        Command::Gc => collect(request).map(|()| None),
        Command::Status => {
            allowed(&settings(request)?, Path::new(ALLOWED))?;
            Ok(None)
        }
    }
}

/// Reads the configuration, arguments over what is written; pure.
fn settings(request: &Request) -> Result<Settings, Refusal> {
    let conf = &request.conf;
    let mut keys = conf.table("sysctl")?;
    let mut settings = Settings {
        promiscuous: conf.flag("promisc")?,
        mtu: conf.number("mtu")?,
        all_multicast: conf.switch("allmulti")?,
        tx_queue: conf.number("txQLen")?,
        ..Settings::default()
    };
    let mut mac = conf.text("mac")?.map(str::to_owned);
    mac = request.args.get("MAC").filter(|m| !m.is_empty()).cloned().or(mac);
    if let Some(runtime) = conf.object("runtimeConfig")? {
        mac = runtime.text("mac")?.filter(|m| !m.is_empty()).map(str::to_owned).or(mac);
    }
    if let Some(cni) = conf.object("args")?.map(|a| a.object("cni")).transpose()?.flatten() {
        for (key, value) in cni.table("sysctl")? {
            keys.retain(|(k, _)| *k != key);
            keys.push((key, value));
        }
        mac = cni.text("mac")?.map(str::to_owned).or(mac);
        settings.promiscuous = cni.switch("promisc")?.unwrap_or(settings.promiscuous);
        settings.mtu = cni.number("mtu")?.or(settings.mtu);
        settings.all_multicast = cni.switch("allmulti")?.or(settings.all_multicast);
        settings.tx_queue = cni.number("txQLen")?.or(settings.tx_queue);
    }
    settings.mtu = settings.mtu.filter(|mtu| *mtu > 0);
    settings.mac = mac.filter(|m| !m.is_empty()).map(|m| interface::parse_mac(&m)).transpose()?;
    let file = |(key, value): (String, String)| Ok((file(&key, &request.interface)?, value));
    settings.sysctl = keys.into_iter().map(file).collect::<Result<_, Refusal>>()?;
    Ok(settings)
}

/// `net.ipv4.conf.IFNAME.arp_filter` as a file below `/proc/sys/net`; nothing outside of it.
fn file(key: &str, interface: &str) -> Result<String, Refusal> {
    let refuse = || Refusal::config(format!("invalid net sysctl key: \"{key}\""));
    // Dots separate, but in an interface's name they are a part of it; then slashes separate.
    let path = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
    let path = path.strip_prefix('/').unwrap_or(&path).replacen("IFNAME", interface, 1);
    let below = path.strip_prefix("net/").ok_or_else(refuse)?;
    if below.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(refuse());
    }
    Ok(below.to_owned())
}

/// Refuses settings that the administrator's list does not allow.
fn allowed(settings: &Settings, list: &Path) -> Result<(), Refusal> {
    let unreadable = |e: io::Error| Refusal::new(code::IO, format!("cannot read {}: {e}", list.display()));
    let text = match fs::metadata(list) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(unreadable(e)),
        Ok(meta) if meta.len() > MAX_ALLOWED => {
            return Err(unreadable(io::Error::other("it is larger than 1 MiB")));
        }
        Ok(_) => fs::read_to_string(list).map_err(unreadable)?,
    };
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let parse = |line: &&str| {
        Regex::new(line).map_err(|e| Refusal::config(format!("{}: \"{line}\": {e}", list.display())))
    };
    let patterns: Vec<Regex> = lines.iter().map(parse).collect::<Result<_, _>>()?;
    let matches = |key: &str| patterns.iter().any(|p| p.is_match(key));
    let refused = settings.sysctl.iter().find(|(file, _)| {
        let path = format!("net/{file}");
        !matches(&path.replace('/', ".")) && !matches(&path)
    });
    match refused {
        None => Ok(()),
        Some((file, _)) => {
            let key = format!("net.{}", file.replace('/', "."));
            let msg =
                format!("Sysctl {key} is not allowed. Only the following sysctls are allowed: {lines:?}");
            Err(Refusal::config(msg))
        }
    }
}

/// Changes of the interface; pure.
fn plan(interface: &str, settings: &Settings) -> Vec<Op> {
    let changes = [
        settings.mac.map(Change::Mac),
        settings.promiscuous.then_some(Change::Promiscuous(true)),
        settings.mtu.map(Change::Mtu),
        settings.all_multicast.map(Change::AllMulticast),
        settings.tx_queue.map(Change::TxQueue),
    ];
    let set = |change| Op::Device(Device::Set { link: interface.into(), change });
    changes.into_iter().flatten().map(set).collect()
}

fn add(request: &Request, settings: &Settings) -> Result<Success, Refusal> {
    allowed(settings, Path::new(ALLOWED))?;
    let mut previous = request.previous()?.ok_or_else(|| Refusal::config("Required prevResult missing"))?;
    let ns = request.open_netns()?;
    inside(ns.as_fd(), || settings.sysctl.iter().try_for_each(|(file, value)| sysctl::set(file, value)))??;
    let ops = plan(&request.interface, settings);
    if ops.is_empty() {
        return Ok(previous);
    }
    let mut pod = socket_in(ns.as_fd())?;
    let before = details(&mut pod, &request.interface)?;
    keep(&backup_file(request)?, &backup(settings, &before))?;
    route::run(&mut pod, &ops, None)?;
    if let Some(mac) = settings.mac {
        let own = previous.interfaces.iter_mut().filter(|i| i.name == request.interface);
        own.for_each(|i| i.mac = mac_text(mac));
    }
    if let Some(mtu) = settings.mtu {
        let own = previous.interfaces.iter_mut().filter(|i| i.name == request.interface && i.mtu.is_some());
        own.for_each(|i| i.mtu = Some(mtu.into()));
    }
    Ok(previous)
}

fn details(pod: &mut crate::netlink::Socket, interface: &str) -> Result<Details, Refusal> {
    let found = route::details(pod, interface).map_err(internal)?;
    found
        .ok_or_else(|| Refusal::new(code::INTERNAL, format!("failed to get \"{interface}\": Link not found")))
}

/// What of the interface the settings change.
fn backup(settings: &Settings, before: &Details) -> Backup {
    Backup {
        mac: settings.mac.map(|_| before.mac.clone()).unwrap_or_default(),
        promisc: settings.promiscuous.then_some(before.promiscuity != 0),
        mtu: settings.mtu.map_or(0, |_| before.mtu),
        allmulti: settings.all_multicast.map(|_| before.all_multicast),
        tx_queue: settings.tx_queue.map(|_| before.tx_queue),
    }
}

fn data_dir(request: &Request) -> Result<PathBuf, Refusal> {
    Ok(request.conf.text("dataDir")?.filter(|d| !d.is_empty()).unwrap_or(DATA_DIR).into())
}

fn backup_file(request: &Request) -> Result<PathBuf, Refusal> {
    Ok(data_dir(request)?.join(format!("{}_{}.json", request.container, request.interface)))
}

fn keep(file: &Path, backup: &Backup) -> Result<(), Refusal> {
    let write = || {
        let directory = file.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(file)?;
        serde_json::to_writer_pretty(file, backup).map_err(io::Error::from)
    };
    write().map_err(|e: io::Error| Refusal::new(code::IO, format!("cannot write {}: {e}", file.display())))
}

/// Puts back what the file says; without namespace, interface or file there is nothing to do.
fn restore(request: &Request) -> Result<(), Refusal> {
    let file = backup_file(request)?;
    let kept: Option<Backup> = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if let (Some(kept), Some(ns)) = (kept, request.netns_if_there()) {
        let mut pod = socket_in(ns.as_fd())?;
        if route::details(&mut pod, &request.interface).map_err(internal)?.is_some() {
            route::run(&mut pod, &undo(&request.interface, &kept)?, None)?;
        }
    }
    match fs::remove_file(&file) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Refusal::new(code::IO, format!("cannot remove {}: {e}", file.display())))
        }
        _ => Ok(()),
    }
}

/// The changes back; pure.
fn undo(interface: &str, kept: &Backup) -> Result<Vec<Op>, Refusal> {
    let mac = Some(kept.mac.as_str()).filter(|m| !m.is_empty()).map(interface::parse_mac).transpose()?;
    let changes = [
        (kept.mtu > 0).then_some(Change::Mtu(kept.mtu)),
        mac.map(Change::Mac),
        kept.promisc.map(Change::Promiscuous),
        kept.allmulti.map(Change::AllMulticast),
        kept.tx_queue.map(Change::TxQueue),
    ];
    let set = |change| Op::Device(Device::Set { link: interface.into(), change });
    Ok(changes.into_iter().flatten().map(set).collect())
}

fn check(request: &Request, settings: &Settings) -> Result<(), Refusal> {
    request.previous()?.ok_or_else(|| Refusal::config("Required prevResult missing"))?;
    let ns = request.open_netns()?;
    let differs = |what: &str, wanted: String, found: String| {
        let msg = format!("configured value of {what} is {wanted}, current value is {found}");
        Err(Refusal::new(code::INTERNAL, msg))
    };
    for (file, wanted) in &settings.sysctl {
        let found = inside(ns.as_fd(), || sysctl::get(file))??.unwrap_or_default();
        if found.split_whitespace().ne(wanted.split_whitespace()) {
            return differs(file, wanted.clone(), found);
        }
    }
    let link = details(&mut socket_in(ns.as_fd())?, &request.interface)?;
    let compare = |what: &str, wanted: Option<String>, found: String| match wanted {
        Some(wanted) if wanted != found => differs(what, wanted, found),
        _ => Ok(()),
    };
    compare("mac", settings.mac.map(mac_text), link.mac)?;
    compare("promisc", Some(settings.promiscuous.to_string()), (link.promiscuity != 0).to_string())?;
    compare("mtu", settings.mtu.map(|m| m.to_string()), link.mtu.to_string())?;
    compare("allmulti", settings.all_multicast.map(|a| a.to_string()), link.all_multicast.to_string())?;
    compare("txQLen", settings.tx_queue.map(|t| t.to_string()), link.tx_queue.to_string())
}

/// Removes the files of attachments that no longer exist. The directory is shared by all networks, and a file names none:
/// it goes only if its interface cannot be put back any more either, because its network's list does not hold it.
fn collect(request: &Request) -> Result<(), Refusal> {
    if request.conf.text("dataDir")?.is_none_or(str::is_empty) {
        return Ok(());
    }
    let valid: Vec<String> = request.valid().iter().map(|(c, i)| format!("{c}_{i}.json")).collect();
    let directory = data_dir(request)?;
    for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".json") && name.contains('_') && !valid.contains(&name) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::testing::request;

    fn read(conf: Value) -> Result<Settings, Refusal> {
        settings(&request("ADD", conf))
    }

    #[test]
    fn settings_stay_below_net_and_may_name_the_interface() {
        let good = json!({"sysctl": {"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1",
            "net/ipv4/conf/eth0.5/arp_filter": "1", "/net/ipv6/conf/all/x": "2"}});
        let files: Vec<String> = read(good).unwrap().sysctl.into_iter().map(|(f, _)| f).collect();
        for file in
            ["core/somaxconn", "ipv4/conf/eth0/arp_filter", "ipv4/conf/eth0.5/arp_filter", "ipv6/conf/all/x"]
        {
            assert!(files.iter().any(|f| f == file), "{file} {files:?}");
        }
        for bad in ["kernel.panic", "net", "net..x", "net/../kernel/panic", "net/ipv4/./x", ""] {
            let refusal = read(json!({"sysctl": {bad: "1"}})).unwrap_err();
            assert!(refusal.msg.contains("invalid net sysctl key"), "{bad}: {refusal}");
        }
        assert!(
            read(json!({"sysctl": {"net.core.somaxconn": 500}})).unwrap_err().msg.contains("not a string")
        );
    }

    #[test]
    fn arguments_win_over_what_is_written() {
        let conf = json!({"mac": "c2:00:00:00:00:01", "mtu": 1400, "sysctl": {"net.core.somaxconn": "1"},
            "runtimeConfig": {"mac": "c2:00:00:00:00:02"},
            "args": {"cni": {"mtu": 1300, "allmulti": true, "txQLen": 5, "sysctl": {"net.core.somaxconn": "2"}}}});
        let read = read(conf).unwrap();
        let words: Vec<String> = plan("eth0", &read).iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            [
                "set eth0 address c2:00:00:00:00:02",
                "set eth0 mtu 1300",
                "set eth0 allmulticast on",
                "set eth0 txqueuelen 5",
            ]
        );
        assert_eq!(read.sysctl, [("core/somaxconn".to_owned(), "2".to_owned())]);
    }

    #[test]
    fn only_what_is_changed_is_kept_and_put_back() {
        let settings = read(json!({"mtu": 1400, "promisc": true})).unwrap();
        let before = Details { mtu: 1500, mac: "c2:00:00:00:00:01".into(), ..Details::default() };
        let kept = backup(&settings, &before);
        assert_eq!(serde_json::to_value(&kept).unwrap(), json!({"mtu": 1500, "promisc": false}));
        let words: Vec<String> = undo("eth0", &kept).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(words, ["set eth0 mtu 1500", "set eth0 promisc off"]);
    }

    #[test]
    fn the_administrators_list_is_obeyed() {
        let dir = crate::testing::TempDir::new("tuning");
        let list = dir.path().join("allowlist.conf");
        let settings = read(json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}})).unwrap();
        allowed(&settings, &list).unwrap();
        fs::write(&list, "\n^net.ipv4.conf.[a-z0-9]+.arp_filter$\n").unwrap();
        allowed(&settings, &list).unwrap();
        fs::write(&list, "^net.core.*$\n").unwrap();
        let refusal = allowed(&settings, &list).unwrap_err();
        assert!(refusal.msg.starts_with("Sysctl net.ipv4.conf.eth0.arp_filter is not allowed."), "{refusal}");
        fs::write(&list, "(\n").unwrap();
        assert!(allowed(&settings, &list).unwrap_err().msg.contains("allowlist.conf: \"(\""));
    }
}
