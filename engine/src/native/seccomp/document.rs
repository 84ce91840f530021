//! A resolved profile in the spelling of the OCI runtime specification (config-linux.md, "Seccomp").

use serde_json::{Value, json};

use super::profile::{Compare, Condition, Resolved, Rule};
use super::program::Action;

/// The profile as `linux.seccomp`; without its agent.
pub(super) fn of(profile: &Resolved) -> Value {
    let (action, errno) = action(profile.default);
    let mut out = json!({
        "defaultAction": action,
        "architectures": profile.arches.iter().map(|arch| arch.name()).collect::<Vec<_>>(),
        "flags": flags(profile.flags),
        "syscalls": profile.rules.iter().map(rule).collect::<Vec<_>>(),
    });
    if let Some(errno) = errno {
        out["defaultErrnoRet"] = errno.into();
    }
    out
}

fn rule(rule: &Rule) -> Value {
    let (action, errno) = action(rule.action);
    let mut out = json!({
        "names": rule.names,
        "action": action,
        "args": rule.conditions.iter().map(condition).collect::<Vec<_>>(),
    });
    if let Some(errno) = errno {
        out["errnoRet"] = errno.into();
    }
    out
}

fn condition(condition: &Condition) -> Value {
    let (op, value, second) = match condition.compare {
        Compare::Ne(value) => ("SCMP_CMP_NE", value, 0),
        Compare::Lt(value) => ("SCMP_CMP_LT", value, 0),
        Compare::Le(value) => ("SCMP_CMP_LE", value, 0),
        Compare::Eq(value) => ("SCMP_CMP_EQ", value, 0),
        Compare::Ge(value) => ("SCMP_CMP_GE", value, 0),
        Compare::Gt(value) => ("SCMP_CMP_GT", value, 0),
        Compare::Masked(mask, value) => ("SCMP_CMP_MASKED_EQ", mask, value),
    };
    json!({ "index": condition.index, "value": value, "valueTwo": second, "op": op })
}

/// An action and what belongs to it.
fn action(action: Action) -> (&'static str, Option<u32>) {
    match action {
        Action::Allow => ("SCMP_ACT_ALLOW", None),
        Action::Log => ("SCMP_ACT_LOG", None),
        Action::Trace(data) => ("SCMP_ACT_TRACE", Some(data)),
        Action::Notify => ("SCMP_ACT_NOTIFY", None),
        Action::Errno(errno) => ("SCMP_ACT_ERRNO", Some(errno)),
        Action::Trap => ("SCMP_ACT_TRAP", None),
        Action::KillThread => ("SCMP_ACT_KILL_THREAD", None),
        Action::KillProcess => ("SCMP_ACT_KILL_PROCESS", None),
    }
}

/// Flags that change what a filter does, without those of agents.
fn flags(bits: u64) -> Vec<&'static str> {
    let known = [(1 << 1, "SECCOMP_FILTER_FLAG_LOG"), (1 << 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW")];
    known.into_iter().filter_map(|(bit, name)| (bits & bit != 0).then_some(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Cache, Node, RUNTIME_DEFAULT};

    /// The text that other runtimes are given must mean what ours means: read back, it compiles to the same program.
    #[test]
    fn a_profile_written_for_others_compiles_to_the_same_filter() {
        let localhost = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"flags":["SECCOMP_FILTER_FLAG_LOG"],
            "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],"syscalls":[
            {"names":["read","write"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_CHOWN"]}},
            {"name":"clone","action":"SCMP_ACT_TRACE","errnoRet":7,"args":[{"index":0,"value":3,"valueTwo":1,"op":"SCMP_CMP_MASKED_EQ"}]},
            {"names":["socket"],"action":"SCMP_ACT_KILL","args":[{"index":0,"value":1,"op":"SCMP_CMP_GT"},{"index":0,"value":9,"op":"SCMP_CMP_NE"}]}]}"#;
        let cache = Cache::new(Node { kernel: (6, 12) });
        for (text, capabilities) in [
            (RUNTIME_DEFAULT, 0xa804_25fb),
            (RUNTIME_DEFAULT, u64::MAX),
            (localhost.as_bytes(), 1),
            (localhost.as_bytes(), 0),
        ] {
            let ours = cache.text("ours", text, capabilities).unwrap().unwrap();
            let written = super::of(&cache.resolved("ours", text, capabilities).unwrap()).to_string();
            let back = cache.text("written", written.as_bytes(), capabilities).unwrap().unwrap();
            assert_eq!((&ours.program, ours.flags), (&back.program, back.flags));
        }
    }
}
