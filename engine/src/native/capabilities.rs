//! Capabilities: names, the default set, and the five sets of a process (capabilities(7)).

use crate::error::Error;
use crate::spec::ContainerSecurity;

/// Names by number, without `CAP_`.
pub(crate) const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container gets that asks for nothing: what images have come to expect.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The mask of CAP_SYS_ADMIN.
pub(crate) const SYS_ADMIN: u64 = 1 << 21;

/// The sets of a process as bit masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    /// Bounding, permitted and effective.
    pub(crate) main: u64,
    /// Inheritable: only what is ambient, because more would let file capabilities give it back (CVE-2022-24769).
    pub(crate) inheritable: u64,
    /// Ambient.
    pub(crate) ambient: u64,
}

/// Bit mask of one name; `ALL` is everything the kernel may ever know.
pub(crate) fn mask(field: &str, name: &str) -> Result<u64, Error> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if short == "ALL" {
        return Ok(u64::MAX);
    }
    let bit = NAMES.iter().position(|n| *n == short);
    bit.map(|bit| 1 << bit)
        .ok_or_else(|| Error::invalid(field, format!("no capability is called \"{name}\"")))
}

/// Union of names.
pub(crate) fn masks(field: &str, names: &[String]) -> Result<u64, Error> {
    names.iter().try_fold(0, |all, name| Ok(all | mask(field, name)?))
}

/// The default set, unless the node's configuration names another.
pub(crate) fn default_set(configured: Option<&[String]>) -> Result<u64, Error> {
    let field = "default_capabilities";
    match configured {
        Some(configured) => masks(field, configured),
        None => DEFAULT.iter().try_fold(0, |all, name| Ok(all | mask(field, name)?)),
    }
}

/// The sets of a container's process. `available`: our own bounding set; more cannot be given, and asking for ALL is no error.
pub(crate) fn compute(security: &ContainerSecurity, default: u64, available: u64) -> Result<Sets, Error> {
    if security.privileged {
        return Ok(Sets { main: available, ..Sets::default() });
    }
    let add = masks("capabilities.add", &security.add_capabilities)?;
    let drop = masks("capabilities.drop", &security.drop_capabilities)?;
    let ambient = masks("capabilities.add_ambient", &security.add_ambient_capabilities)?;
    // "drop ALL, add X" leaves X; "add ALL, drop X" leaves all but X.
    let base = if drop == u64::MAX { 0 } else { default };
    let add = add | ambient;
    let main = if add == u64::MAX { !named(drop) } else { (base & !named(drop)) | (add & !named(drop)) };
    let main = main & available;
    let ambient = ambient & main;
    Ok(Sets { main, inheritable: ambient, ambient })
}

/// What a drop list takes away by name; `ALL` only empties the base.
fn named(drop: u64) -> u64 {
    if drop == u64::MAX { 0 } else { drop }
}

/// Our own bounding set, from the text of /proc/self/status.
pub(crate) fn bounding_set(status: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix("CapBnd:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn administrators_are_known_by_number() {
        assert_eq!(mask("", "CAP_SYS_ADMIN").unwrap(), SYS_ADMIN);
    }

    fn security(add: &[&str], drop: &[&str], ambient: &[&str]) -> ContainerSecurity {
        let own = |names: &[&str]| names.iter().map(|s| (*s).to_owned()).collect();
        ContainerSecurity {
            add_capabilities: own(add),
            drop_capabilities: own(drop),
            add_ambient_capabilities: own(ambient),
            ..Default::default()
        }
    }

    #[test]
    fn add_and_drop_read_as_in_a_pod_manifest() {
        let default = default_set(None).unwrap();
        let bit = |n| mask("", n).unwrap();
        let main =
            |add: &[&str], drop: &[&str]| compute(&security(add, drop, &[]), default, u64::MAX).unwrap().main;
        assert_eq!(main(&[], &[]), default);
        assert_eq!(default.count_ones(), 14);
        assert_eq!(main(&["NET_ADMIN"], &[]), default | bit("CAP_NET_ADMIN"));
        assert_eq!(main(&[], &["cap_chown"]), default & !bit("CHOWN"));
        assert_eq!(main(&["NET_BIND_SERVICE"], &["ALL"]), bit("NET_BIND_SERVICE"));
        assert_eq!(main(&[], &["ALL"]), 0);
        assert_eq!(main(&["ALL"], &["CHOWN"]), !bit("CHOWN"));
        assert_eq!(main(&["ALL"], &["ALL"]), u64::MAX);
    }

    #[test]
    fn nothing_is_inheritable_unless_ambient() {
        let sets =
            compute(&security(&["NET_ADMIN"], &[], &["NET_RAW"]), default_set(None).unwrap(), u64::MAX)
                .unwrap();
        assert_eq!(sets.inheritable, mask("", "NET_RAW").unwrap());
        assert_eq!(sets.ambient, sets.inheritable);
    }

    #[test]
    fn what_we_do_not_have_is_not_given() {
        let privileged = ContainerSecurity { privileged: true, ..Default::default() };
        assert_eq!(compute(&privileged, 0, 0b101).unwrap().main, 0b101);
        assert_eq!(compute(&security(&["ALL"], &[], &[]), 0, 0b101).unwrap().main, 0b101);
    }

    #[test]
    fn an_unknown_name_is_an_error_that_names_it() {
        let error = compute(&security(&["CAP_FLY"], &[], &[]), 0, 0).unwrap_err();
        assert_eq!(error.to_string(), "capabilities.add: no capability is called \"CAP_FLY\"");
    }
}
