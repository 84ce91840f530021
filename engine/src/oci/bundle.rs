//! Reading `config.json` and `process.json`: bounded, checked, and refused by name where something is not built.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind};
use crate::native::lsm::{self, Label};
use crate::selinux::{self, Place};

/// Largest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// Reads a bundle's configuration.
pub(super) fn read(bundle: &Path) -> Result<Spec, Error> {
    let path = bundle.join("config.json");
    let spec = parse(&bytes(&path)?).map_err(|e| e.context(path.display()))?;
    check(&spec).map_err(|e| e.context(path.display()))?;
    Ok(spec)
}

/// Reads a process for `exec`.
pub(super) fn read_process(path: &Path) -> Result<Process, Error> {
    let process: Process = json(&bytes(path)?).map_err(|e| e.context(path.display()))?;
    check_process(&process).map_err(|e| e.context(path.display()))?;
    Ok(process)
}

/// A configuration out of its bytes.
pub(super) fn parse(bytes: &[u8]) -> Result<Spec, Error> {
    json(bytes)
}

/// A document of the specification; the error says where it goes wrong.
pub(super) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|e| Error::new(Kind::InvalidArgument, e.to_string()))
}

/// The content of a regular file of bounded size.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |e| Error::with(Kind::InvalidArgument, format!("read {}", path.display()), e);
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::invalid(&path.display().to_string(), "is not a regular file"));
    }
    bounded(file, &path.display().to_string())
}

/// Everything a stream has, up to the limit.
pub(super) fn bounded(stream: impl Read, name: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    stream
        .take(MAX_CONFIG + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::with(Kind::InvalidArgument, format!("read {name}"), e))?;
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(Error::invalid(name, "is larger than 16 MiB"));
    }
    Ok(bytes)
}

/// What has to hold of a configuration before anything is made. Fields that would be ignored are refused instead.
pub(super) fn check(spec: &Spec) -> Result<(), Error> {
    version(spec.version())?;
    let root = spec.root().as_ref().ok_or_else(|| Error::invalid("root", "is missing"))?;
    if root.path().as_os_str().is_empty() {
        return Err(Error::invalid("root.path", "is empty"));
    }
    if let Some(process) = spec.process() {
        check_process(process).map_err(|e| e.context("process"))?;
    }
    let unbuilt = |field: &str| Error::new(Kind::Unimplemented, format!("{field} is not built"));
    let linux = spec.linux().as_ref().ok_or_else(|| Error::invalid("linux", "is missing"))?;
    for (field, set) in [
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|d| !d.is_empty())),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("vm", spec.vm().is_some()),
        ("windows", spec.windows().is_some()),
        ("solaris", spec.solaris().is_some()),
        ("zos", spec.zos().is_some()),
    ] {
        if set {
            return Err(unbuilt(field));
        }
    }
    mount_label(spec)?;
    let has_user = has_namespace(spec, LinuxNamespaceType::User);
    let mapped = linux.uid_mappings().as_ref().is_some_and(|m| !m.is_empty());
    if mapped && !has_user {
        return Err(Error::invalid("linux.uidMappings", "needs a user namespace in linux.namespaces"));
    }
    if spec.hostname().is_some() && !has_namespace(spec, LinuxNamespaceType::Uts) {
        return Err(Error::invalid("hostname", "needs a uts namespace in linux.namespaces"));
    }
    if spec.domainname().is_some() && !has_namespace(spec, LinuxNamespaceType::Uts) {
        return Err(Error::invalid("domainname", "needs a uts namespace in linux.namespaces"));
    }
    let mut seen = Vec::new();
    for namespace in linux.namespaces().iter().flatten() {
        if seen.contains(&namespace.typ()) {
            return Err(Error::invalid("linux.namespaces", format!("{} is named twice", namespace.typ())));
        }
        seen.push(namespace.typ());
    }
    Ok(())
}

/// Whether a namespace is listed, new or by path.
pub(super) fn has_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    namespace(spec, kind).is_some()
}

/// A namespace of the list: `Some(None)` is a new one, `Some(Some(path))` one to be joined.
pub(super) fn namespace(spec: &Spec, kind: LinuxNamespaceType) -> Option<Option<&Path>> {
    let list = spec.linux().as_ref()?.namespaces().as_ref()?;
    let found = list.iter().find(|n| n.typ() == kind)?;
    Some(found.path().as_deref().filter(|path| !path.as_os_str().is_empty()))
}

/// `1.x`, whatever x: fields of a later minor version are unknown here, and unknown fields are ignored (spec.md, "Extensibility").
fn version(text: &str) -> Result<(), Error> {
    let bad =
        || Error::invalid("ociVersion", format!("{text:?} is not a version this runtime understands (1.x)"));
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let parts: Result<Vec<u32>, _> = core.split('.').map(str::parse).collect();
    match parts.as_deref() {
        Ok([1, _, _]) => Ok(()),
        _ => Err(bad()),
    }
}

/// The labels that a process is to have, if any.
pub(super) fn labels(process: &Process) -> Result<Vec<Label>, Error> {
    let mut labels = match process.apparmor_profile().as_deref() {
        None | Some("" | "unconfined") => Vec::new(),
        Some(profile) => vec![lsm::of_profile(profile)?],
    };
    if let Some(text) = process.selinux_label().as_deref().filter(|text| !text.is_empty()) {
        let label = selinux::named(&Place::default(), "selinuxLabel", text)?.ok_or_else(|| {
            let why = format!("selinuxLabel: \"{text}\" is a label of SELinux, which is not on on this node");
            Error::new(Kind::FailedPrecondition, why)
        })?;
        labels.extend(lsm::of_context(&label));
    }
    Ok(labels)
}

/// The SELinux label that file systems mounted for a container are to have; empty: the kernel's choice.
pub(super) fn mount_label(spec: &Spec) -> Result<Vec<u8>, Error> {
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().as_deref()).unwrap_or_default();
    if label.is_empty() {
        return Ok(Vec::new());
    }
    // Where SELinux is off no file has a label, and nobody looks for one.
    let label = selinux::named(&Place::default(), "linux.mountLabel", label)?;
    Ok(label.map(String::from).unwrap_or_default().into_bytes())
}

/// What has to hold of a process.
fn check_process(process: &Process) -> Result<(), Error> {
    let unbuilt = |field: &str| Error::new(Kind::Unimplemented, format!("{field} is not built"));
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::invalid("args", "is empty"));
    }
    if !process.cwd().is_absolute() {
        return Err(Error::invalid("cwd", format!("{:?} is not absolute", process.cwd())));
    }
    if process.user().uid() == u32::MAX || process.user().gid() == u32::MAX {
        return Err(Error::invalid("user", "4294967295 is nobody's id"));
    }
    if process.exec_cpu_affinity().is_some() {
        return Err(unbuilt("execCPUAffinity"));
    }
    labels(process).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(extra: &str) -> Result<(), Error> {
        let text = format!(
            r#"{{"ociVersion":"1.2.0","root":{{"path":"rootfs"}},"linux":{{"namespaces":[{{"type":"mount"}}]}}{extra}}}"#
        );
        check(&parse(text.as_bytes())?)
    }

    #[test]
    fn versions_of_the_first_major_are_understood() {
        for good in ["1.0.0", "1.0.2-dev", "1.3.0+x", "1.9.0"] {
            version(good).unwrap();
        }
        for bad in ["", "invalid", "1", "1.0", "2.0.0", "0.9.0", "1.x.0", "1.0.0.0"] {
            version(bad).unwrap_err();
        }
    }

    #[test]
    fn what_is_not_built_is_refused_by_its_name() {
        spec("").unwrap();
        spec(r#","unknown":{"a":1},"annotations":{"x":""}"#).unwrap();
        let refused = |extra: &str| spec(extra).unwrap_err().chain();
        assert_eq!(refused(r#","vm":{"kernel":{"path":"/k"}}"#), "vm is not built");
        assert!(refused(r#","hostname":"x""#).contains("uts namespace"));
        let process = |more: &str| format!(r#","process":{{"user":{{"uid":0,"gid":0}},{more}}}"#);
        assert!(refused(&process(r#""cwd":"/","args":[]"#)).contains("process: args"));
        assert!(refused(&process(r#""cwd":"a","args":["x"]"#)).contains("not absolute"));
        let label = process(r#""cwd":"/","args":["x"],"selinuxLabel":"x""#);
        assert_eq!(refused(&label), "process: selinuxLabel: \"x\" is not user:role:type[:level]");
        if !Path::new("/sys/fs/selinux/enforce").exists() {
            let label = process(r#""cwd":"/","args":["x"],"selinuxLabel":"u:r:t""#);
            let off = "process: selinuxLabel: \"u:r:t\" is a label of SELinux, which is not on on this node";
            assert_eq!(refused(&label), off);
        }
        spec(&process(r#""cwd":"/","args":["x"]"#)).unwrap();
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes).and_then(|spec| check(&spec));
        }
    }
}
