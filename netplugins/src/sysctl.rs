//! Settings of the node's network stack, through `/proc/sys/net`.
//!
//! These files belong to the network namespace of the thread that opens them. Pods' own are left alone: every name opened
//! in another namespace lengthens one chain of the dentry cache that all namespaces share.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

const NET: &str = "/proc/sys/net";

/// Writes one setting.
pub(crate) fn set(name: &str, value: &str) -> Result<(), Error> {
    let path = path(name);
    fs::write(&path, value).map_err(Error::file("write", path))
}

/// Reads one setting; `None`: this kernel does not have it.
pub(crate) fn get(name: &str) -> Result<Option<String>, Error> {
    let path = path(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::file("read", path)(e)),
    }
}

/// Whether links of this namespace, present and future, may have IPv6 addresses.
pub(crate) fn ipv6_enabled() -> bool {
    ["all", "default"].iter().all(|scope| {
        get(&format!("ipv6/conf/{scope}/disable_ipv6")).is_ok_and(|value| value.as_deref() == Some("0"))
    })
}

/// Makes the node forward packets, IPv4 and, if wanted, IPv6.
///
/// A forwarding node ignores router advertisements unless `accept_ra` is 2. Interfaces that live on them (1) are moved to
/// 2 first, else the node would lose its own IPv6 default route.
pub(crate) fn forward(ipv6: bool) -> Result<(), Error> {
    set_unless("ipv4/ip_forward", "1")?;
    if ipv6 && get("ipv6/conf/all/forwarding")?.as_deref() != Some("1") {
        let directory = Path::new(NET).join("ipv6/conf");
        for entry in fs::read_dir(&directory).map_err(Error::file("read", &directory))? {
            let name = entry.map_err(Error::file("read", &directory))?.file_name();
            let name = name.to_string_lossy();
            let setting = format!("ipv6/conf/{name}/accept_ra");
            let special = matches!(name.as_ref(), "all" | "default" | "lo");
            if !special && get(&setting)?.as_deref() == Some("1") {
                set(&setting, "2")?;
            }
        }
        set("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// Whether new links accept router advertisements although the node forwards.
pub(crate) fn hears_routers() -> bool {
    get("ipv6/conf/default/accept_ra").is_ok_and(|value| value.as_deref() == Some("2"))
}

fn set_unless(name: &str, value: &str) -> Result<(), Error> {
    if get(name)?.as_deref() == Some(value) { Ok(()) } else { set(name, value) }
}

fn path(name: &str) -> PathBuf {
    Path::new(NET).join(name)
}
