//! `state`, `list`, `spec`, `features`, `version`.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::args::Parsed;
use super::store::{Record, Status};
use super::{Context, HOOKS, Outcome, SPEC_VERSION, hooks, say};
use crate::error::{Error, Kind};

/// `state ID`: the specification's state, with what runc adds.
pub(super) fn state(context: &Context, parsed: &Parsed) -> Outcome {
    let record = context.store.read(parsed.id()?)?;
    say(&format!("{}\n", pretty(&described(context, &record))));
    Ok(0)
}

/// What is told of a container.
fn described(context: &Context, record: &Record) -> Value {
    let status = context.store.status(record);
    let pid = if status == Status::Stopped { 0 } else { record.pid };
    let mut state = hooks::state(&record.id, status.word(), Some(pid), &record.bundle, &record.spec);
    if let Some(object) = state.as_object_mut() {
        object.insert("rootfs".into(), json!(record.rootfs));
        object.insert("created".into(), json!(record.created));
        object.insert("owner".into(), json!(""));
    }
    state
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// `list`: one line per container, or JSON.
pub(super) fn list(context: &Context, parsed: &Parsed) -> Outcome {
    let mut all = Vec::new();
    for id in context.store.ids()? {
        match context.store.read(&id) {
            Ok(record) => all.push((record.clone(), described(context, &record))),
            // It may be on its way, or gone since; the others are worth showing all the same.
            Err(error) => context.log.warn(&error.chain()),
        }
    }
    if parsed.has("quiet") {
        all.iter().for_each(|(record, _)| say(&format!("{}\n", record.id)));
        return Ok(0);
    }
    match parsed.string("format")?.as_deref() {
        Some("json") => {
            let states: Vec<_> = all.into_iter().map(|(_, state)| state).collect();
            say(&format!("{}\n", json!(states)));
        }
        None | Some("table") => table(context, &all),
        Some(other) => return Err(Error::invalid("--format", format!("{other} is neither table nor json"))),
    }
    Ok(0)
}

fn table(context: &Context, all: &[(Record, Value)]) {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    for (record, state) in all {
        let text = |key: &str| state[key].as_str().unwrap_or_default().to_owned();
        let owner = std::fs::metadata(context.store.dir(&record.id)).map(|m| m.uid()).unwrap_or(0);
        let owner = if owner == 0 { "root".into() } else { format!("#{owner}") };
        rows.push([
            record.id.clone(),
            state["pid"].to_string(),
            text("status"),
            record.bundle.display().to_string(),
            record.created.clone(),
            owner,
        ]);
    }
    let widths: Vec<usize> =
        (0..6).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0).max(11)).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$} "));
        say(&format!("{}\n", cells.collect::<String>().trim_end()));
    }
}

/// `spec`: a configuration to start from.
pub(super) fn spec(_context: &Context, parsed: &Parsed) -> Outcome {
    if parsed.has("rootless") {
        return Err(Error::new(Kind::Unimplemented, "--rootless is not built: `berth oci` needs root"));
    }
    let path = parsed.path("bundle").unwrap_or_else(|| PathBuf::from(".")).join("config.json");
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
    file.and_then(|mut file| file.write_all(format!("{}\n", pretty(&template())).as_bytes()))
        .map_err(|e| Error::with(Kind::InvalidArgument, format!("write {}", path.display()), e))?;
    Ok(0)
}

/// A shell on a terminal, confined as is usual.
fn template() -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let usual = ["nosuid", "noexec", "nodev"];
    let read_only = ["nosuid", "noexec", "nodev", "ro"];
    let namespaces: Vec<Value> =
        ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({ "type": kind })).to_vec();
    json!({
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "berth",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &usual),
            mount("/sys", "sysfs", &read_only),
            mount("/sys/fs/cgroup", "cgroup", &read_only),
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": namespaces,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        }
    })
}

/// `features`: what this runtime understands (features.md).
pub(super) fn features(_context: &Context, _parsed: &Parsed) -> Outcome {
    let off = json!({ "enabled": false });
    let described = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": HOOKS,
        "mountOptions": [
            "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "iversion", "lazytime", "loud",
            "mand", "noatime", "nodev", "nodiratime", "noexec", "noiversion", "nolazytime", "nomand", "norelatime",
            "nostrictatime", "nosuid", "nosymfollow", "private", "ratime", "rbind", "rdev", "rdiratime", "relatime",
            "rexec", "rnoatime", "rnodev", "rnodiratime", "rnoexec", "rnorelatime", "rnostrictatime", "rnosuid",
            "rnosymfollow", "ro", "rprivate", "rrelatime", "rro", "rrw", "rshared", "rslave", "rstrictatime", "rsuid",
            "rsymfollow", "runbindable", "rw", "shared", "silent", "slave", "strictatime", "suid", "symfollow", "sync",
            "unbindable"
        ],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": crate::native::capabilities::NAMES.map(|name| format!("CAP_{name}")).to_vec(),
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": true },
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD",
                    "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
                    "SCMP_CMP_NE"
                ],
                "knownFlags": FILTER_FLAGS,
                "supportedFlags": FILTER_FLAGS,
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": true, "schemata": true, "monitoring": true },
            "mountExtensions": { "idmap": off },
            "netDevices": off,
        },
        "potentiallyUnsafeConfigAnnotations": [],
    });
    say(&format!("{}\n", pretty(&described)));
    Ok(0)
}

/// Flags of filters that profiles may name.
const FILTER_FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

/// `version`.
pub(super) fn version(_context: &Context, _parsed: &Parsed) -> Outcome {
    say(&format!("berth oci {}\nspec: {SPEC_VERSION}\n", env!("CARGO_PKG_VERSION")));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{bundle, compile};

    #[test]
    fn the_configuration_to_start_from_is_one_we_accept() {
        let spec = bundle::parse(template().to_string().as_bytes()).unwrap();
        bundle::check(&spec).unwrap();
        for mount in spec.mounts().iter().flatten() {
            compile::mounts::request(mount).unwrap();
        }
    }
}
