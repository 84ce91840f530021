//! Mounts of a bundle: what their options mean (config.md, "Mounts"; mount(8)). Pure.

use std::path::PathBuf;

use oci_spec::runtime::Mount;

use crate::error::{Error, Kind};
use crate::native::plan;

/// The two bits and more in which access times are encoded (mount_setattr(2), `MOUNT_ATTR__ATIME`).
const ATIME: u64 = libc::MOUNT_ATTR__ATIME;
/// `MOUNT_ATTR_NOSYMFOLLOW` (Linux 5.14).
const NOSYMFOLLOW: u64 = 0x0020_0000;

/// File systems whose files have labels of the kernel's, or none.
const BY_KERNEL: [&str; 5] = ["proc", "sysfs", "mqueue", "cgroup", "cgroup2"];

/// What one mount asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::oci) struct Request {
    /// Where, in the container.
    pub(in crate::oci) destination: String,
    /// What it is.
    pub(in crate::oci) kind: Kindred,
    /// Attributes of the mount to set and to clear (`MOUNT_ATTR_*`).
    pub(in crate::oci) set: u64,
    /// See `set`.
    pub(in crate::oci) clear: u64,
    /// The same with everything below.
    pub(in crate::oci) set_all: u64,
    /// See `set_all`.
    pub(in crate::oci) clear_all: u64,
    /// `MS_PRIVATE` and its like, or 0: unsaid.
    pub(in crate::oci) propagation: u64,
    /// Whether that concerns everything below, too.
    pub(in crate::oci) propagate_all: bool,
}

/// What is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::oci) enum Kindred {
    /// A file or directory of the node.
    Bind {
        /// Which one.
        source: PathBuf,
        /// With everything mounted below it.
        recursive: bool,
    },
    /// The container's cgroups, whatever hierarchies there are.
    #[default]
    Cgroups,
    /// A file system of its own, with options as `key\0value\0…`.
    FileSystem {
        /// Its type.
        kind: String,
        /// Its options.
        options: Vec<u8>,
    },
}

/// Reads a mount.
pub(in crate::oci) fn request(mount: &Mount) -> Result<Request, Error> {
    let destination = mount.destination().to_str().unwrap_or_default();
    let field = format!("mounts {destination:?}");
    if !destination.starts_with('/') || destination.contains('\0') {
        return Err(Error::invalid(&field, "the destination is not an absolute path"));
    }
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return Err(Error::new(Kind::Unimplemented, format!("{field}: idmapped mounts are not built")));
    }
    let mut request = Request { destination: destination.to_owned(), ..Request::default() };
    let mut bind = None;
    let mut options = Vec::new();
    for option in mount.options().iter().flatten() {
        match option.as_str() {
            "bind" => bind = bind.or(Some(false)),
            "rbind" => bind = Some(true),
            other if attribute(&mut request, other) || propagation(&mut request, other) => {}
            refused @ ("remount" | "idmap" | "ridmap" | "tmpcopyup" | "copy-symlink" | "src-nofollow"
            | "dest-nofollow") => {
                return Err(Error::new(
                    Kind::Unimplemented,
                    format!("{field}: option {refused} is not built"),
                ));
            }
            // What mount(8) keeps to itself, and what is the default.
            "defaults" | "auto" | "noauto" | "user" | "nouser" | "users" | "silent" | "loud" | "async"
            | "nomand" | "nolazytime" | "noiversion" => {}
            // Of a copy of somebody's mount the file system's own options are not ours to change.
            "sync" | "dirsync" | "mand" | "lazytime" | "iversion" if bind.is_some() => {}
            data => push(&field, &mut options, data)?,
        }
    }
    let kind = mount.typ().as_deref().unwrap_or_default();
    request.kind = match (bind, kind) {
        (Some(recursive), _) => bind_of(mount, &field, recursive)?,
        (None, "bind") => bind_of(mount, &field, true)?,
        (None, "cgroup" | "cgroup2") => Kindred::Cgroups,
        (None, "") => return Err(Error::invalid(&field, "has neither a type nor the option bind")),
        (None, kind) => {
            let source = mount.source().as_ref().and_then(|s| s.to_str()).filter(|s| !s.is_empty());
            if let Some(source) = source {
                push(&field, &mut options, &format!("source={source}"))?;
            }
            Kindred::FileSystem { kind: kind.to_owned(), options }
        }
    };
    Ok(request)
}

fn bind_of(mount: &Mount, field: &str, recursive: bool) -> Result<Kindred, Error> {
    let source = mount.source().clone().filter(|s| !s.as_os_str().is_empty());
    let source = source.ok_or_else(|| Error::invalid(field, "a bind mount needs a source"))?;
    Ok(Kindred::Bind { source, recursive })
}

/// The options of a file system with the SELinux label of everything in it, unless the kernel labels that itself, or the options say
/// something of labels already.
pub(super) fn labelled(kind: &str, options: &[u8], label: &[u8]) -> Vec<u8> {
    let words = ["context", "fscontext", "defcontext", "rootcontext"];
    let said =
        || options.split(|b| *b == 0).step_by(2).any(|key| words.iter().any(|word| word.as_bytes() == key));
    let label = if BY_KERNEL.contains(&kind) || said() { b"" } else { label };
    plan::labelled(options, label)
}

/// Adds one option of the file system's own.
fn push(field: &str, options: &mut Vec<u8>, text: &str) -> Result<(), Error> {
    if text.is_empty() || text.contains('\0') {
        return Err(Error::invalid(field, format!("option {text:?} is none")));
    }
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    for part in [key, value] {
        options.extend_from_slice(part.as_bytes());
        options.push(0);
    }
    Ok(())
}

/// Takes an option that is an attribute of the mount, alone or (with an `r` in front) with everything below.
fn attribute(request: &mut Request, option: &str) -> bool {
    let find = |name: &str| -> Option<(u64, u64)> {
        Some(match name {
            "ro" => (libc::MOUNT_ATTR_RDONLY, 0),
            "rw" => (0, libc::MOUNT_ATTR_RDONLY),
            "nosuid" => (libc::MOUNT_ATTR_NOSUID, 0),
            "suid" => (0, libc::MOUNT_ATTR_NOSUID),
            "nodev" => (libc::MOUNT_ATTR_NODEV, 0),
            "dev" => (0, libc::MOUNT_ATTR_NODEV),
            "noexec" => (libc::MOUNT_ATTR_NOEXEC, 0),
            "exec" => (0, libc::MOUNT_ATTR_NOEXEC),
            "noatime" => (libc::MOUNT_ATTR_NOATIME, ATIME),
            "strictatime" => (libc::MOUNT_ATTR_STRICTATIME, ATIME),
            "relatime" | "atime" | "norelatime" | "nostrictatime" => (0, ATIME),
            "nodiratime" => (libc::MOUNT_ATTR_NODIRATIME, 0),
            "diratime" => (0, libc::MOUNT_ATTR_NODIRATIME),
            "nosymfollow" => (NOSYMFOLLOW, 0),
            "symfollow" => (0, NOSYMFOLLOW),
            _ => return None,
        })
    };
    let apply = |set: &mut u64, clear: &mut u64, (on, off): (u64, u64)| {
        *set = (*set & !off) | on;
        *clear = (*clear & !on) | off;
    };
    if let Some(bits) = find(option) {
        apply(&mut request.set, &mut request.clear, bits);
        return true;
    }
    let Some(bits) = option.strip_prefix('r').and_then(find) else { return false };
    apply(&mut request.set_all, &mut request.clear_all, bits);
    true
}

/// Takes an option that says how mounts travel.
fn propagation(request: &mut Request, option: &str) -> bool {
    let Some((flag, all)) = propagation_of(option) else { return false };
    (request.propagation, request.propagate_all) = (flag, all);
    true
}

/// A word for how mounts travel, and whether it concerns everything below.
pub(in crate::oci) fn propagation_of(word: &str) -> Option<(u64, bool)> {
    Some(match word {
        "private" => (libc::MS_PRIVATE, false),
        "rprivate" => (libc::MS_PRIVATE, true),
        "slave" => (libc::MS_SLAVE, false),
        "rslave" => (libc::MS_SLAVE, true),
        "shared" => (libc::MS_SHARED, false),
        "rshared" => (libc::MS_SHARED, true),
        "unbindable" => (libc::MS_UNBINDABLE, false),
        "runbindable" => (libc::MS_UNBINDABLE, true),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Request, Error> {
        request(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn options_are_attributes_data_or_propagation() {
        let tmpfs = read(
            r#"{"destination":"/t","type":"tmpfs","source":"tmpfs","options":["nosuid","noexec","ro","size=64k","strictatime"]}"#,
        )
        .unwrap();
        let expected = libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NOEXEC
            | libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_STRICTATIME;
        assert_eq!(tmpfs.set, expected);
        let options = b"size\x0064k\0source\0tmpfs\0".to_vec();
        assert_eq!(tmpfs.kind, Kindred::FileSystem { kind: "tmpfs".into(), options });

        let bind = read(
            r#"{"destination":"/b","source":"/x","options":["rbind","ro","exec","rw","rro","rslave","sync"]}"#,
        )
        .unwrap();
        assert_eq!(bind.kind, Kindred::Bind { source: "/x".into(), recursive: true });
        assert_eq!((bind.set, bind.clear), (0, libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_RDONLY));
        assert_eq!(bind.set_all, libc::MOUNT_ATTR_RDONLY);
        assert_eq!((bind.propagation, bind.propagate_all), (libc::MS_SLAVE, true));
        // "relatime" is an option of its own, not a recursive "elatime".
        assert_eq!(
            read(r#"{"destination":"/b","type":"tmpfs","options":["relatime"]}"#).unwrap().clear,
            ATIME
        );
    }

    #[test]
    fn what_cannot_be_mounted_is_refused_by_its_destination() {
        for (json, expected) in [
            (r#"{"destination":"b","type":"tmpfs"}"#, "not an absolute path"),
            (r#"{"destination":"/b"}"#, "neither a type"),
            (r#"{"destination":"/b","options":["bind"]}"#, "needs a source"),
            (r#"{"destination":"/b","type":"tmpfs","options":["tmpcopyup"]}"#, "tmpcopyup is not built"),
            (r#"{"destination":"/b","type":"tmpfs","options":[""]}"#, "is none"),
        ] {
            let error = read(json).unwrap_err().chain();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
