//! What a bundle says of a process (config.md, "Process"), as steps. Pure.

use oci_spec::runtime::{
    Capability, IOPriorityClass, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, PosixRlimitType, Process, Scheduler,
};

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

/// Scheduling policy and I/O priority, while we may still choose them (config.md, "Scheduler" and "I/O Priority").
pub(super) fn scheduling(plan: &mut Writer, process: &Process) -> Result<(), Error> {
    if let Some(wanted) = process.scheduler() {
        plan.push(scheduler(wanted)?);
    }
    if let Some(wanted) = process.io_priority() {
        let class: u64 = match wanted.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        let priority = wanted.priority();
        let level = u64::try_from(priority).ok().filter(|level| *level < 8).ok_or_else(|| {
            Error::invalid("process.ioPriority.priority", format!("{priority} is not one of 0 to 7"))
        })?;
        // IOPRIO_CLASS_SHIFT of linux/ioprio.h.
        plan.push(Step::IoPriority { value: class << 13 | level });
    }
    Ok(())
}

/// The step for a scheduler. What the policy has no use for is refused: it would have no effect.
fn scheduler(wanted: &Scheduler) -> Result<Step<'static>, Error> {
    use LinuxSchedulerPolicy::{
        SchedBatch, SchedDeadline, SchedFifo, SchedIdle, SchedIso, SchedOther, SchedRr,
    };
    let field = |name: &str| format!("process.scheduler.{name}");
    let policy = match wanted.policy() {
        SchedOther => libc::SCHED_OTHER,
        SchedFifo => libc::SCHED_FIFO,
        SchedRr => libc::SCHED_RR,
        SchedBatch => libc::SCHED_BATCH,
        // Reserved, and never part of Linux.
        SchedIso => return Err(Error::invalid(&field("policy"), "SCHED_ISO is not a policy of Linux")),
        SchedIdle => libc::SCHED_IDLE,
        SchedDeadline => libc::SCHED_DEADLINE,
    };
    let nice = wanted.nice().unwrap_or(0);
    if !(-20..20).contains(&nice) {
        return Err(Error::invalid(&field("nice"), format!("{nice} is not one of -20 to 19")));
    }
    let fixed = matches!(wanted.policy(), SchedFifo | SchedRr);
    let priority = wanted.priority().unwrap_or(0);
    if priority != 0 && !fixed {
        let why = format!("is for SCHED_FIFO and SCHED_RR, not for {}", wanted.policy());
        return Err(Error::invalid(&field("priority"), why));
    }
    if fixed && !(1..100).contains(&priority) {
        return Err(Error::invalid(&field("priority"), format!("{priority} is not one of 1 to 99")));
    }
    let times = [("runtime", wanted.runtime()), ("deadline", wanted.deadline()), ("period", wanted.period())];
    for (name, value) in times {
        if value.is_some_and(|value| value != 0) && *wanted.policy() != SchedDeadline {
            let why = format!("is for SCHED_DEADLINE, not for {}", wanted.policy());
            return Err(Error::invalid(&field(name), why));
        }
    }
    let [runtime, deadline, period] = times.map(|(_, value)| value.unwrap_or(0));
    Ok(Step::Scheduler {
        policy: u64::from(policy.cast_unsigned()),
        flags: wanted.flags().iter().flatten().fold(0, |all, flag| all | bit_of(*flag)),
        nice: i64::from(nice).cast_unsigned(),
        priority: u64::from(priority.unsigned_abs()),
        runtime,
        deadline,
        period,
    })
}

/// `SCHED_FLAG_*` of linux/sched.h.
fn bit_of(flag: LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
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
