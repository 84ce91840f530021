//! What a bundle says of a process (config.md, "Process"), as steps. Pure.

use oci_spec::runtime::{Capability, LinuxPersonality, LinuxPersonalityDomain, PosixRlimitType, Process};

use crate::error::{Error, Kind};
use crate::native::compile::{list, still_able, text};
use crate::native::listener::Guard;
use crate::native::plan::{Step, Writer};

/// Resource limits, while we may still raise them.
pub(super) fn limits(plan: &mut Writer, process: &Process) {
    for limit in process.rlimits().iter().flatten() {
        plan.push(Step::Limit {
            resource: resource(limit.typ()).into(),
            soft: limit.soft(),
            hard: limit.hard(),
        });
    }
}

/// setrlimit(2)'s number.
fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
    }
}

/// Everything that takes privileges away but the filter of a process that can gain none.
pub(super) fn identity(
    plan: &mut Writer,
    process: &Process,
    available: u64,
    filter: Option<Guard<'_>>,
) -> Result<(), Error> {
    let sets = Sets::of(process, available);
    // Before the filter, which may have no good word for getcwd(2).
    let cwd = text("process.cwd", process.cwd().to_str().unwrap_or_default())?;
    plan.push(Step::Chdir { path: &cwd });
    let secure = process.no_new_privileges() == Some(true);
    if secure {
        plan.push(Step::NoNewPrivs {});
    }
    plan.push(Step::Bounding { keep: sets.bounding });
    if let Some(mask) = process.user().umask() {
        plan.push(Step::Umask { mask: u64::from(mask & 0o777) });
    }
    let groups: Vec<u8> =
        process.user().additional_gids().iter().flatten().flat_map(|g| g.to_le_bytes()).collect();
    let (uid, gid) = (process.user().uid().into(), process.user().gid().into());
    plan.push(Step::Identity { uid, gid, groups: &groups });
    if let (false, Some(filter)) = (secure, filter) {
        plan.push(still_able(available));
        plan.push(filter.step());
    }
    plan.push(Step::Capabilities {
        permitted: sets.permitted,
        effective: sets.effective,
        inheritable: sets.inheritable,
        ambient: sets.ambient,
    });
    if let (true, Some(filter)) = (secure, filter.filter(|filter| filter.notifies())) {
        // Its listener is handed over by whoever waits for us now.
        plan.push(filter.step());
    }
    Ok(())
}

/// The filter of a process that can gain no privileges, and the program.
pub(super) fn program(plan: &mut Writer, process: &Process, filter: Option<Guard<'_>>) -> Result<(), Error> {
    let silent = filter.filter(|filter| !filter.notifies());
    if let (Some(true), Some(filter)) = (process.no_new_privileges(), silent) {
        plan.push(filter.step());
    }
    let arguments = list("process.args", process.args().iter().flatten().map(String::as_bytes))?;
    let environment = list("process.env", process.env().iter().flatten().map(String::as_bytes))?;
    plan.push(Step::Exec { arguments: &arguments, environment: &environment });
    Ok(())
}

/// The five sets, as far as we have them to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::oci) struct Sets {
    pub(in crate::oci) bounding: u64,
    pub(in crate::oci) permitted: u64,
    pub(in crate::oci) effective: u64,
    pub(in crate::oci) inheritable: u64,
    pub(in crate::oci) ambient: u64,
}

impl Sets {
    /// A process without `capabilities` gets none. An ambient capability must be permitted and inheritable (capabilities(7)).
    pub(in crate::oci) fn of(process: &Process, available: u64) -> Self {
        let Some(wanted) = process.capabilities() else {
            return Self { bounding: 0, permitted: 0, effective: 0, inheritable: 0, ambient: 0 };
        };
        let mask = |set: &Option<std::collections::HashSet<Capability>>| {
            set.iter().flatten().fold(0, |mask, capability| mask | bit(*capability)) & available
        };
        let bounding = mask(wanted.bounding());
        let permitted = mask(wanted.permitted());
        let inheritable = mask(wanted.inheritable());
        Self {
            bounding,
            permitted,
            effective: mask(wanted.effective()) & permitted,
            inheritable,
            ambient: mask(wanted.ambient()) & permitted & inheritable,
        }
    }
}

/// The bit of a capability, by its name (capabilities(7)).
fn bit(capability: Capability) -> u64 {
    crate::native::capabilities::mask("capabilities", &capability.to_string()).unwrap_or(0)
}

/// personality(2)'s number.
pub(super) fn personality(personality: &LinuxPersonality) -> Result<u64, Error> {
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(Error::new(Kind::InvalidArgument, "linux.personality.flags: none is defined"));
    }
    Ok(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    })
}
