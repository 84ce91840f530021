//! Profiles: the JSON of Docker and of the OCI runtime specification (config-linux.md, "Seccomp"), and what it means on a node.

use std::ffi::CString;

use serde::Deserialize;

use super::Listener;
use super::arch::Arch;
use super::program::Action;

/// A profile as written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    /// OCI spelling: the architectures; absent: all the node can run.
    #[serde(default)]
    architectures: Option<Vec<String>>,
    /// Docker's spelling: per native architecture, what else runs on it.
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default)]
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<RuleText>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleText {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<ArgText>>,
    #[serde(default)]
    includes: Option<Conditions>,
    #[serde(default)]
    excludes: Option<Conditions>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArgText {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: Option<u64>,
    op: String,
}

/// When a rule of Docker's spelling applies.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conditions {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// What a profile depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) capabilities: u64,
    pub(super) kernel: (u32, u32),
    pub(super) native: Arch,
}

/// A profile resolved for a node: nothing is conditional any more but on the call itself.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) default: Action,
    pub(super) arches: Vec<Arch>,
    pub(super) rules: Vec<Rule>,
    pub(super) flags: u64,
    pub(super) listener: Option<Listener>,
    /// Calls newer than any the profile names answer ENOSYS, so that libraries fall back instead of failing with EPERM.
    pub(super) enosys_for_newer: bool,
}

/// One rule: the calls, what to do, and under which conditions on the arguments (all must hold).
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) names: Vec<String>,
    pub(super) action: Action,
    pub(super) conditions: Vec<Condition>,
}

/// A comparison of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) index: u32,
    pub(super) compare: Compare,
}

/// Comparison operators (`SCMP_CMP_*`, seccomp_rule_add(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    Ne(u64),
    Lt(u64),
    Le(u64),
    Eq(u64),
    Ge(u64),
    Gt(u64),
    /// mask, value
    Masked(u64, u64),
}

/// EPERM and ENOSYS (errno(3)); the generic numbers hold on every architecture of [`Arch`].
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Resolves a profile for a node. The error is a sentence without the profile's name.
pub(super) fn resolve(document: &Document, facts: &Facts) -> Result<Resolved, String> {
    let default = action(&document.default_action, document.default_errno_ret)
        .map_err(|why| format!("defaultAction: {why}"))?;
    if default == Action::Notify {
        return Err("defaultAction: SCMP_ACT_NOTIFY would stop the agent's own answer".into());
    }
    let mut rules = Vec::new();
    for (at, text) in document.syscalls.iter().flatten().enumerate() {
        let found = rule(text, facts).map_err(|why| format!("syscalls[{at}]: {why}"))?;
        rules.extend(found.into_iter().filter(|rule| rule.action != default));
    }
    let notifies = rules.iter().any(|rule| rule.action == Action::Notify);
    let listener = listener(document)?;
    if notifies && listener.is_none() {
        return Err("SCMP_ACT_NOTIFY needs listenerPath".into());
    }
    Ok(Resolved {
        default,
        arches: arches(document, facts)?,
        flags: flags(document, notifies)?,
        listener: listener.filter(|_| notifies),
        enosys_for_newer: !default.is_permissive() && default != Action::Errno(ENOSYS),
        rules,
    })
}

fn arches(document: &Document, facts: &Facts) -> Result<Vec<Arch>, String> {
    let mut arches = vec![facts.native];
    let mapped = document.arch_map.iter().flatten().filter(|m| m.architecture == facts.native.name());
    let named: Vec<&String> = document
        .architectures
        .iter()
        .flatten()
        .chain(mapped.flat_map(|m| m.sub_architectures.iter().flatten()))
        .collect();
    if document.architectures.is_none() && document.arch_map.is_none() {
        arches.extend(facts.native.family());
    }
    for name in named {
        match Arch::ALL.iter().find(|arch| arch.name() == name) {
            Some(arch) => arches.push(*arch),
            None if name.starts_with("SCMP_ARCH_") => {} // cannot run here
            None => return Err(format!("architectures: unknown architecture {name}")),
        }
    }
    arches.retain(|arch| facts.native.family().contains(arch));
    arches.sort_unstable();
    arches.dedup();
    Ok(arches)
}

/// The agent, whether or not a rule needs it.
fn listener(document: &Document) -> Result<Option<Listener>, String> {
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let metadata = text(&document.listener_metadata);
    let Some(path) = text(&document.listener_path) else {
        return match metadata {
            Some(_) => Err("listenerMetadata: there is no listenerPath to send it to".into()),
            None => Ok(None),
        };
    };
    if !path.starts_with('/') {
        return Err(format!("listenerPath: {path} must be an absolute path"));
    }
    let path = CString::new(path).map_err(|_| "listenerPath: contains a zero byte")?;
    Ok(Some(Listener { path, metadata }))
}

fn flags(document: &Document, notifies: bool) -> Result<u64, String> {
    /// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
    const NEW_LISTENER: u64 = 1 << 3;
    let mut bits = if notifies { NEW_LISTENER } else { 0 };
    for flag in document.flags.iter().flatten() {
        bits |= match flag.as_str() {
            // One thread installs the filter, so there is nobody to synchronise with.
            "SECCOMP_FILTER_FLAG_TSYNC" => 0,
            "SECCOMP_FILTER_FLAG_LOG" => 1 << 1,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => 1 << 2,
            // Of a filter without an agent the kernel does not take it.
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" if notifies => 1 << 5,
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => 0,
            other => return Err(format!("flags: unknown flag {other}")),
        };
    }
    Ok(bits)
}

/// A rule of a profile as zero or more resolved rules: a rule that names one argument twice means "either".
fn rule(text: &RuleText, facts: &Facts) -> Result<Vec<Rule>, String> {
    let names: Vec<String> = text.name.iter().chain(text.names.iter().flatten()).cloned().collect();
    if names.is_empty() {
        return Err("names no system call".into());
    }
    let action = action(&text.action, text.errno_ret).map_err(|why| format!("action: {why}"))?;
    let conditions = text
        .args
        .iter()
        .flatten()
        .map(condition)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|why| format!("args: {why}"))?;
    if action == Action::Notify && names.iter().any(|name| name == "write") {
        return Err("SCMP_ACT_NOTIFY on write would stop the hand-over of the listener".into());
    }
    if !applies(text, facts)? {
        return Ok(Vec::new());
    }
    let repeated =
        conditions.iter().enumerate().any(|(at, c)| conditions[..at].iter().any(|d| d.index == c.index));
    if !repeated {
        return Ok(vec![Rule { names, action, conditions }]);
    }
    Ok(conditions.into_iter().map(|c| Rule { names: names.clone(), action, conditions: vec![c] }).collect())
}

fn applies(text: &RuleText, facts: &Facts) -> Result<bool, String> {
    let arch = facts.native.docker_name();
    if let Some(only) = &text.includes {
        let wrong_arch =
            only.arches.as_ref().is_some_and(|list| !list.is_empty() && !list.iter().any(|a| a == arch));
        let old = match &only.min_kernel {
            Some(version) => facts.kernel < kernel(version)?,
            None => false,
        };
        if wrong_arch || old || !only.caps.iter().flatten().all(|name| has(facts, name)) {
            return Ok(false);
        }
    }
    if let Some(unless) = &text.excludes {
        let this_arch = unless.arches.iter().flatten().any(|a| a == arch);
        let new = match &unless.min_kernel {
            Some(version) => facts.kernel >= kernel(version)?,
            None => false,
        };
        if this_arch || new || unless.caps.iter().flatten().any(|name| has(facts, name)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn kernel(version: &str) -> Result<(u32, u32), String> {
    let mut parts = version.split('.').map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(format!("minKernel: \"{version}\" is not MAJOR.MINOR")),
    }
}

fn has(facts: &Facts, name: &str) -> bool {
    CAPABILITIES.iter().position(|known| *known == name).is_some_and(|bit| facts.capabilities >> bit & 1 == 1)
}

fn action(name: &str, errno: Option<u32>) -> Result<Action, String> {
    let data = errno.unwrap_or(EPERM);
    let data = u16::try_from(data).map_err(|_| format!("errnoRet {data} does not fit 16 bits"));
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_NOTIFY" => Action::Notify,
        "SCMP_ACT_ERRNO" => Action::Errno(data?.into()),
        "SCMP_ACT_TRACE" => Action::Trace(data?.into()),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        other => return Err(format!("unknown action {other}")),
    })
}

fn condition(text: &ArgText) -> Result<Condition, String> {
    if text.index > 5 {
        return Err(format!("index {} is above 5", text.index));
    }
    let value = text.value;
    let compare = match text.op.as_str() {
        "SCMP_CMP_NE" => Compare::Ne(value),
        "SCMP_CMP_LT" => Compare::Lt(value),
        "SCMP_CMP_LE" => Compare::Le(value),
        "SCMP_CMP_EQ" => Compare::Eq(value),
        "SCMP_CMP_GE" => Compare::Ge(value),
        "SCMP_CMP_GT" => Compare::Gt(value),
        "SCMP_CMP_MASKED_EQ" => Compare::Masked(value, text.value_two.unwrap_or(0)),
        other => return Err(format!("unknown operator {other}")),
    };
    Ok(Condition { index: text.index, compare })
}

/// Names by number (capabilities(7), linux/capability.h).
#[rustfmt::skip]
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
    "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
    "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
    "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
    "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
];
