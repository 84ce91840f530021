//! Parsers of hostile bytes, each with what must hold whatever the bytes are: called by the fuzz targets in `engine/fuzz` and, on
//! random bytes, by the tests below. Every function panics when its property does not hold.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a panic is how a property fails"
)]

use std::path::Path;

use crate::exec::user;
use crate::native::child::{Inherited, Prepared};
use crate::native::{plan, seccomp};

/// Plans: a plan that is accepted is read to its end, ends in a step that does not return, and every step has words for its failure.
pub fn plan(bytes: &[u8]) {
    let mut whole = b"berthpl1".to_vec();
    whole.extend_from_slice(bytes);
    for candidate in [bytes, &whole] {
        let accepted = plan::verify(candidate);
        let steps = plan::steps(candidate).into_iter().flatten().inspect(|step| {
            assert!(!step.words().is_empty());
            let _ = step.object();
        });
        let last = steps.last();
        let ends = matches!(last, Some(plan::Step::Exec { .. } | plan::Step::Idle {}));
        assert!(!accepted || ends, "accepted without an end");
        assert_eq!(accepted, Prepared::new(candidate, Inherited { ignored: 0, oom_score: None }).is_some());
    }
}

/// passwd(5) and group(5) as an image has them, and who asks: numbers are themselves, nobody is 4294967295, groups are bounded.
pub fn users(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.splitn(3, '\0');
    let [who, passwd, group] = [(); 3].map(|()| parts.next().unwrap_or_default());
    let Ok(found) = user::look_up(&crate::spec::UserSpec::default(), who, passwd, group) else { return };
    assert!(found.uid != u32::MAX && found.gid != u32::MAX && !found.groups.contains(&u32::MAX));
    assert!(found.groups.contains(&found.gid));
    let name = who.split(':').next().unwrap_or_default();
    if !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit()) {
        assert_eq!(name.parse(), Ok(found.uid), "a number was looked up as a name");
    }
}

/// seccomp profiles in either spelling: a filter that comes out is one the kernel could take, and has a listener if it has an agent.
pub fn seccomp(bytes: &[u8]) {
    let cache = seccomp::Cache::new(seccomp::Node { kernel: (6, 18) });
    if let Ok(Some(filter)) = cache.text("fuzzed", bytes, 0) {
        assert!(filter.program.len().is_multiple_of(8) && (8..=4096 * 8).contains(&filter.program.len()));
        const NEW_LISTENER: u64 = 1 << 3;
        assert_eq!(
            filter.listener.is_some(),
            filter.flags & NEW_LISTENER != 0,
            "an agent and no listener for it"
        );
    }
}

/// OCI configurations: read, checked and compiled without a panic; cgroup paths stay below their hierarchy.
pub fn config(bytes: &[u8]) {
    crate::oci::fuzzed(bytes);
}

/// Log paths: nothing is opened or made but below the directory.
pub fn log_path(directory: &Path, bytes: &[u8]) {
    use std::os::unix::ffi::OsStrExt;
    let path = Path::new(std::ffi::OsStr::from_bytes(bytes));
    if let Ok(log) = crate::volume::log::open(directory, path) {
        use std::os::fd::AsRawFd;
        let opened = std::fs::read_link(format!("/proc/self/fd/{}", log.as_raw_fd())).unwrap();
        let directory = directory.canonicalize().unwrap();
        assert!(opened.starts_with(&directory), "{} is not below {}", opened.display(), directory.display());
        let _ = std::fs::remove_file(opened);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Texts of the kind that parsers break on.
    fn lines() -> impl Strategy<Value = String> {
        let field = "[a-z0-9:,\\-+]{0,8}|root|0|4294967295|4294967296|-1|é|\\PC{0,3}";
        proptest::collection::vec(proptest::collection::vec(field, 0..8).prop_map(|f| f.join(":")), 0..6)
            .prop_map(|lines| lines.join("\n"))
    }

    proptest! {
        #[test]
        fn plans_hold_for_any_bytes(bytes: Vec<u8>) {
            super::plan(&bytes);
        }

        #[test]
        fn users_hold_for_any_files(who in "[a-z0-9:\\-+]{0,12}", passwd in lines(), group in lines()) {
            super::users(format!("{who}\0{passwd}\0{group}").as_bytes());
        }

        #[test]
        fn profiles_hold_for_any_rules(
            action in "SCMP_ACT_(ALLOW|ERRNO|KILL|LOG|TRACE|NOTIFY|NONE)",
            name in "(read|write|clone|openat2|nothing|socketcall)",
            op in "SCMP_CMP_(EQ|NE|LT|LE|GT|GE|MASKED_EQ|X)",
            index in 0u32..8,
            value: u64,
        ) {
            super::seccomp(format!(
                r#"{{"defaultAction":"{action}","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X32"],"syscalls":[{{"names":["{name}"],
                "action":"SCMP_ACT_ALLOW","args":[{{"index":{index},"value":{value},"valueTwo":{value},"op":"{op}"}}]}}]}}"#
            ).as_bytes());
        }

        #[test]
        fn configurations_hold_for_any_text(version in "1.0.[0-9]|[a-z.0-9]{0,6}", place in "/?(\\.\\.|[a-z]{1,4}|/|\\PC){0,6}",
            kind in "(tmpfs|proc|bind|cgroup|)", option in "(ro|rbind|rslave|size=1|\\PC{0,4})") {
            let config = serde_json::json!({
                "ociVersion": version, "root": { "path": "r" },
                "process": { "user": { "uid": 0, "gid": 0 }, "cwd": place, "args": [place] },
                "mounts": [{ "destination": place, "type": kind, "source": place, "options": [option] }],
                "linux": { "namespaces": [{ "type": "mount" }], "cgroupsPath": place, "maskedPaths": [place] },
            });
            super::config(config.to_string().as_bytes());
        }

        #[test]
        fn log_paths_hold_for_any_names(name in "(\\.\\.|\\.|[a-z]{1,3}|/|\\PC){0,8}") {
            let directory = std::env::temp_dir().join(format!("fuzzing-{}", std::process::id()));
            std::fs::create_dir_all(&directory).unwrap();
            super::log_path(&directory, name.as_bytes());
            std::fs::remove_dir_all(&directory).unwrap();
        }
    }
}
