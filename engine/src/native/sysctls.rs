//! Which sysctls a pod may set: those of namespaces that are its own (sysctl(8), namespaces(7)). Everything else would reach the node.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::spec::{NamespaceMode, PodSpec};

/// Sysctls of the IPC namespace besides `fs.mqueue.*`.
const IPC: [&str; 9] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "kernel.auto_msgmni",
];

/// The pod's sysctls with keys in the dotted spelling, checked one by one.
pub(crate) fn check(pod: &PodSpec) -> Result<BTreeMap<String, String>, Error> {
    let checked = pod.sysctls.iter().map(|(key, value)| Ok((one(pod, key, value)?, value.clone())));
    checked.collect()
}

/// Either all dots or, as soon as there is a slash, slashes separate and dots belong to names (an interface `eth0.1`).
fn one(pod: &PodSpec, key: &str, value: &str) -> Result<String, Error> {
    let bad = |why: &str| Error::invalid("sysctls", format!("{key:?}: {why}"));
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    if key.is_empty() || !key.chars().all(allowed) {
        return Err(bad("not a sysctl name"));
    }
    if value.contains(|c: char| c.is_control() && c != '\t') {
        return Err(bad("the value has control characters"));
    }
    let slashes = key.contains('/');
    if slashes && key.contains('.') {
        return Err(bad("mixes dots and slashes"));
    }
    let dotted = key.replace('/', ".");
    if dotted.split('.').any(str::is_empty) {
        return Err(bad("not a sysctl name"));
    }
    let namespaces = &pod.security.namespaces;
    let node = |mode| mode == NamespaceMode::Node;
    if dotted.starts_with("net.") {
        return if node(namespaces.network) {
            Err(bad("the pod uses the node's network"))
        } else {
            Ok(dotted)
        };
    }
    if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        return if node(namespaces.ipc) {
            Err(bad("the pod uses the node's IPC namespace"))
        } else {
            Ok(dotted)
        };
    }
    if dotted == "kernel.domainname" && !node(namespaces.network) {
        return Ok(dotted);
    }
    Err(bad("not a sysctl of a namespace that is the pod's own"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(key: &str, value: &str, host: bool) -> Result<BTreeMap<String, String>, Error> {
        let mut pod = PodSpec { sysctls: [(key.to_owned(), value.to_owned())].into(), ..Default::default() };
        if host {
            pod.security.namespaces.network = NamespaceMode::Node;
            pod.security.namespaces.ipc = NamespaceMode::Node;
        }
        check(&pod)
    }

    #[test]
    fn only_sysctls_of_the_pods_own_namespaces_pass() {
        for key in [
            "net.ipv4.ip_forward",
            "net/ipv4/ip_forward",
            "kernel.shmmax",
            "fs.mqueue.msg_max",
            "kernel.domainname",
        ] {
            verdict(key, "1", false).unwrap();
            verdict(key, "1", true).unwrap_err();
        }
        for key in [
            "kernel.core_pattern",
            "kernel.hostname",
            "vm.overcommit_memory",
            "fs.file-max",
            "user.max_user_namespaces",
        ] {
            verdict(key, "1", false).unwrap_err();
        }
    }

    #[test]
    fn no_spelling_smuggles_another_key_or_line() {
        for key in [
            "net.ipv4+kernel.core_pattern",
            "net/../kernel/core_pattern",
            "net..x",
            ".net",
            "net.ipv4/x",
            "net.\u{e9}",
            "",
        ] {
            verdict(key, "1", false).unwrap_err();
        }
        verdict("net.ipv4.ip_forward", "1\nkernel.core_pattern=|/x", false).unwrap_err();
        verdict("kernel.sem", "250\t32000 100 128", false).unwrap();
    }
}
