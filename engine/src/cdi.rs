//! CDI, the Container Device Interface: device names resolved to edits of a container.
//!
//! Specs are the JSON files of `/etc/cdi` and `/var/run/cdi`, read at each CreateContainer, so that there is nothing to
//! watch; a later directory overrides an earlier one, two files of one directory that define the same device conflict.
//! Edits that cannot be honoured (hooks, `intelRdt`, `netDevices`, YAML files) are refused by name when they are needed.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::spec::{DeviceNode, DeviceSpec, MountSpec, Propagation};
use crate::{Error, Kind};

/// Directories of specs, the last one wins.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// A larger file is no spec.
const LIMIT: u64 = 4 << 20;

/// What CDI devices change in a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Edits {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Device nodes.
    pub devices: Vec<DeviceSpec>,
    /// Binds.
    pub mounts: Vec<MountSpec>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

#[derive(Deserialize)]
struct File {
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default, rename = "containerEdits")]
    edits: Raw,
}

#[derive(Deserialize)]
struct Device {
    name: String,
    #[serde(default, rename = "containerEdits")]
    edits: Raw,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Bind>,
    additional_gids: Vec<u32>,
    hooks: Vec<Value>,
    intel_rdt: Option<Value>,
    net_devices: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: String,
    host_path: Option<PathBuf>,
    permissions: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<i64>,
    minor: Option<i64>,
    file_mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Node {
    /// The device, or what of it cannot be honoured.
    fn device(self) -> Result<DeviceSpec, String> {
        let block = match self.kind.as_deref() {
            None | Some("") => None,
            Some("b") => Some(true),
            Some("c" | "u") => Some(false),
            Some(other) => return Err(format!("a device node of type \"{other}\"")),
        };
        let number = |value: i64| u32::try_from(value).map_err(|_| format!("device number {value}"));
        let number = match (self.major, self.minor) {
            (None, None) => None,
            (None, Some(minor)) => return Err(format!("minor number {minor} without a major one")),
            (Some(major), minor) => Some((number(major)?, number(minor.unwrap_or(0))?)),
        };
        if number.is_some() && block.is_none() {
            return Err("a device number without a type".into());
        }
        let node = DeviceNode { block, number, mode: self.file_mode, uid: self.uid, gid: self.gid };
        let host_path = self.host_path.unwrap_or_else(|| PathBuf::from(&self.path));
        let permissions = self.permissions.unwrap_or_else(|| "rwm".into());
        Ok(DeviceSpec { container_path: self.path, host_path, permissions, node })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bind {
    host_path: PathBuf,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
}

impl Bind {
    /// The mount, or which of its options cannot be honoured (mount(8)).
    fn mount(self) -> Result<MountSpec, String> {
        let mut mount = MountSpec {
            container_path: self.container_path,
            host_path: self.host_path,
            ..MountSpec::default()
        };
        for option in self.options {
            match option.as_str() {
                "bind" | "rbind" | "rw" | "exec" | "dev" | "suid" | "private" | "rprivate" => {}
                "ro" => mount.readonly = true,
                "slave" | "rslave" => mount.propagation = Propagation::HostToContainer,
                "shared" | "rshared" => mount.propagation = Propagation::Bidirectional,
                "noexec" | "nodev" | "nosuid" => mount.options.push(option),
                other => return Err(format!("mount option \"{other}\"")),
            }
        }
        Ok(mount)
    }
}

/// The edits of fully qualified devices (`vendor.com/class=name`), in order; those of a whole spec count once.
pub fn resolve(directories: &[PathBuf], names: &[String]) -> Result<Edits, Error> {
    let mut edits = Edits::default();
    let mut whole = BTreeSet::new();
    for name in names {
        let (path, file, device) = find(directories, name)?;
        if whole.insert(path.clone()) {
            edits.add(&path, file.edits)?;
        }
        edits.add(&path, device)?;
    }
    Ok(edits)
}

fn find(directories: &[PathBuf], name: &str) -> Result<(PathBuf, File, Raw), Error> {
    let refuse = |why: String| Error::invalid("CDI_devices", why);
    let Some((kind, wanted)) = name.split_once('=') else {
        return Err(refuse(format!("\"{name}\" is not vendor/class=name")));
    };
    let mut skipped = Vec::new();
    for directory in directories.iter().rev() {
        let mut found = Vec::new();
        for entry in crate::journal::file::names(directory)? {
            let path = directory.join(&entry);
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => {}
                Some("yaml" | "yml") => {
                    skipped.push(path.display().to_string());
                    continue;
                }
                _ => continue,
            }
            let mut file = match read(&path) {
                Ok(file) => file,
                // A broken file of one vendor is no reason to refuse another's devices.
                Err(error) => {
                    skipped.push(error.chain());
                    continue;
                }
            };
            let position = file.devices.iter().position(|device| file.kind == kind && device.name == wanted);
            if let Some(position) = position {
                let device = file.devices.swap_remove(position).edits;
                found.push((path, file, device));
            }
        }
        match (found.pop(), found.pop()) {
            (Some(one), None) => return Ok(one),
            (Some(one), Some(other)) => {
                let files = format!("{} and {}", other.0.display(), one.0.display());
                return Err(refuse(format!("\"{name}\" is defined by both {files}")));
            }
            _ => {}
        }
    }
    let places: Vec<String> = directories.iter().map(|d| d.display().to_string()).collect();
    let mut why = format!("no device \"{name}\" in {}", places.join(", "));
    if !skipped.is_empty() {
        why.push_str(&format!(" (only JSON is read; not read: {})", skipped.join(", ")));
    }
    Err(refuse(why))
}

fn read(path: &Path) -> Result<File, Error> {
    let failed = |e| Error::with(Kind::FailedPrecondition, path.display().to_string(), e);
    let mut text = Vec::new();
    let file = std::fs::File::open(path).and_then(|file| file.take(LIMIT).read_to_end(&mut text));
    file.map_err(failed)?;
    serde_json::from_slice(&text).map_err(|e| failed(e.into()))
}

impl Edits {
    fn add(&mut self, path: &Path, raw: Raw) -> Result<(), Error> {
        let refuse = |what: &str| {
            let why = format!("CDI_devices: {} asks for {what}, which is not built yet", path.display());
            Err(Error::new(Kind::Unimplemented, why))
        };
        if !raw.hooks.is_empty() {
            return refuse("hooks");
        }
        if raw.intel_rdt.is_some() {
            return refuse("intelRdt");
        }
        if !raw.net_devices.is_empty() {
            return refuse("netDevices");
        }
        for node in raw.device_nodes {
            match node.device() {
                Ok(device) => self.devices.push(device),
                Err(what) => return refuse(&what),
            }
        }
        for bind in raw.mounts {
            match bind.mount() {
                Ok(mount) => self.mounts.push(mount),
                Err(what) => return refuse(&what),
            }
        }
        self.env.extend(raw.env);
        self.groups.extend(raw.additional_gids);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Node;

    fn directories(node: &Node, files: &[(&str, &str)]) -> Vec<PathBuf> {
        let dirs = vec![node.config.root.join("etc"), node.config.root.join("run")];
        dirs.iter().for_each(|dir| std::fs::create_dir_all(dir).unwrap());
        for (name, text) in files {
            std::fs::write(node.config.root.join(name), text).unwrap();
        }
        dirs
    }

    fn spec(value: &str, edits: &str) -> String {
        format!(
            r#"{{"cdiVersion":"0.6.0","kind":"v.com/gpu","containerEdits":{{"env":["ALL=1"]}},
            "devices":[{{"name":"0","containerEdits":{{"env":["ONE={value}"]{edits}}}}},{{"name":"1"}}]}}"#
        )
    }

    #[test]
    fn devices_become_edits_and_those_of_the_whole_spec_count_once() {
        let node = Node::new();
        let more = r#","deviceNodes":[{"path":"/dev/gpu0","hostPath":"/dev/null","permissions":"rw"}],
            "mounts":[{"hostPath":"/usr","containerPath":"/opt","options":["ro","nosuid","bind"]}],"additionalGids":[44]"#;
        let dirs = directories(&node, &[("etc/v.json", &spec("a", more)), ("etc/broken.json", "{")]);
        let edits = resolve(&dirs, &["v.com/gpu=0".into(), "v.com/gpu=1".into()]).unwrap();
        assert_eq!((edits.env, edits.groups), (vec!["ALL=1".into(), "ONE=a".into()], vec![44]));
        assert_eq!(
            (edits.devices[0].permissions.as_str(), edits.devices[0].container_path.as_str()),
            ("rw", "/dev/gpu0")
        );
        assert!(edits.mounts[0].readonly && edits.mounts[0].options == ["nosuid"]);
    }

    #[test]
    fn a_device_node_is_made_as_its_spec_states_it() {
        let node = Node::new();
        let more = r#","deviceNodes":[
            {"path":"/dev/a","type":"c","major":10,"minor":200,"fileMode":432,"uid":1,"gid":2},
            {"path":"/dev/b","hostPath":"/dev/null"}]"#;
        let dirs = directories(&node, &[("etc/v.json", &spec("a", more))]);
        let edits = resolve(&dirs, &["v.com/gpu=0".into()]).unwrap();
        let stated = DeviceNode {
            block: Some(false),
            number: Some((10, 200)),
            mode: Some(0o660),
            uid: Some(1),
            gid: Some(2),
        };
        assert_eq!(edits.devices[0].node, stated);
        assert_eq!(edits.devices[1].node, DeviceNode::default());
        for (edit, named) in [
            (r#""deviceNodes":[{"path":"/p","type":"p"}]"#, "type \"p\""),
            (r#""deviceNodes":[{"path":"/p","major":1}]"#, "without a type"),
            (r#""deviceNodes":[{"path":"/p","minor":1}]"#, "without a major"),
            (r#""mounts":[{"hostPath":"/","containerPath":"/r","options":["idmap"]}]"#, "\"idmap\""),
        ] {
            directories(&node, &[("etc/v.json", &spec("a", &format!(",{edit}")))]);
            let error = resolve(&dirs, &["v.com/gpu=0".into()]).unwrap_err();
            assert!(error.chain().contains(named), "{}", error.chain());
        }
    }

    #[test]
    fn the_later_directory_wins_and_two_files_of_one_conflict() {
        let node = Node::new();
        let dirs = directories(&node, &[("etc/v.json", &spec("a", "")), ("run/v.json", &spec("b", ""))]);
        assert_eq!(resolve(&dirs, &["v.com/gpu=0".into()]).unwrap().env[1], "ONE=b");
        directories(&node, &[("run/w.json", &spec("c", ""))]);
        let error = resolve(&dirs, &["v.com/gpu=0".into()]).unwrap_err();
        assert!(
            error.chain().contains("v.json and") && error.chain().contains("w.json"),
            "{}",
            error.chain()
        );
    }

    #[test]
    fn what_is_unknown_or_not_built_is_named() {
        let node = Node::new();
        let hooks = r#","hooks":[{"hookName":"createContainer","path":"/bin/x"}]"#;
        let dirs =
            directories(&node, &[("etc/v.json", &spec("a", hooks)), ("etc/n.yaml", "kind: n.com/gpu")]);
        for (name, expected) in
            [("v.com/gpu=0", "hooks"), ("n.com/gpu=0", "n.yaml"), ("gpu", "vendor/class=name")]
        {
            let error = resolve(&dirs, &[name.into()]).unwrap_err();
            assert!(error.chain().contains(expected), "{}", error.chain());
        }
    }
}
