//! CDI, the Container Device Interface: device names resolved to edits of a container.
//!
//! Specs are the JSON and YAML files of `/etc/cdi` and `/var/run/cdi`, read at each CreateContainer, so that there is nothing to
//! watch; a later directory overrides an earlier one, two files of one directory that define the same device conflict.
//! A container asks for devices by its `CDI_devices`, and by annotations, as device plugins did before the CRI had a field.
//! Hooks and `intelRdt` take an OCI runtime: the handler's, or our own command line. Network devices are moved into the pod's
//! namespace at each start, and stay there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxIntelRdt;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::spec::{ContainerSpec, DeviceNode, DeviceSpec, MountSpec, Propagation};
use crate::{Error, Kind, oci};

/// Directories of specs, the last one wins.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// What names of annotations begin with whose values are devices, separated by commas (kubelet's device plugin API).
const ANNOTATION: &str = "cdi.k8s.io/";
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
    /// Network devices.
    pub net_devices: Vec<NetDevice>,
    /// What an OCI runtime is told.
    pub runtime: RuntimeEdits,
}

/// A network device of the node that the pod gets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetDevice {
    /// Its name on the node.
    pub host_interface_name: String,
    /// Its name in the pod; `%d` stands for a number that is free there. Empty: as on the node.
    #[serde(default)]
    pub name: String,
}

impl NetDevice {
    /// Its name in the pod.
    pub fn name(&self) -> &str {
        if self.name.is_empty() { &self.host_interface_name } else { &self.name }
    }
}

/// Edits that an OCI runtime carries out, in the spelling of its specification.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuntimeEdits {
    /// By the moment they run at (config.md, "POSIX-platform Hooks").
    pub hooks: BTreeMap<String, Vec<Value>>,
    /// `linux.intelRdt`.
    pub intel_rdt: Option<LinuxIntelRdt>,
}

impl RuntimeEdits {
    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.hooks.is_empty() && self.intel_rdt.is_none()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "cdiVersion")]
    version: String,
    kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: IgnoredAny,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default, rename = "containerEdits")]
    edits: Raw,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    name: String,
    #[serde(default, rename = "annotations")]
    _annotations: IgnoredAny,
    #[serde(default, rename = "containerEdits")]
    edits: Raw,
}

impl File {
    /// Refuses what the specification does not allow, or a later one may mean otherwise.
    fn check(self) -> Result<Self, String> {
        if !["0.", "1."].iter().any(|major| self.version.starts_with(major)) {
            return Err(format!("cdiVersion \"{}\" is not known here", self.version));
        }
        let mut names = BTreeSet::new();
        match self.devices.iter().find(|device| !names.insert(&device.name)) {
            Some(twice) => Err(format!("device \"{}\" is there twice", twice.name)),
            None => Ok(self),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Raw {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Bind>,
    #[serde(alias = "additionalGIDs")]
    additional_gids: Vec<u32>,
    hooks: Vec<Hook>,
    intel_rdt: Option<LinuxIntelRdt>,
    net_devices: Vec<NetDevice>,
}

/// Written as a runtime reads it, which has it below its moment.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Hook {
    #[serde(rename(deserialize = "hookName"), skip_serializing)]
    moment: String,
    path: PathBuf,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<u32>,
}

impl Hook {
    /// The hook as a runtime reads it, or what of it is wrong.
    fn document(self) -> Result<(String, Value), String> {
        if !oci::HOOKS.contains(&self.moment.as_str()) {
            return Err(format!("a hook at \"{}\"", self.moment));
        }
        if !self.path.is_absolute() {
            return Err(format!("a hook whose path \"{}\" is not absolute", self.path.display()));
        }
        let hook = serde_json::to_value(&self).map_err(|e| format!("a hook: {e}"))?;
        Ok((self.moment, hook))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
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
        let node =
            DeviceNode { block, number, mode: self.file_mode, uid: self.uid, gid: self.gid, of_user: true };
        let host_path = self.host_path.unwrap_or_else(|| PathBuf::from(&self.path));
        let permissions = match self.permissions.as_deref() {
            None | Some("") => "rwm".to_owned(),
            Some(text) if text.chars().all(|c| "rwm".contains(c)) => text.to_owned(),
            Some(other) => return Err(format!("device permissions \"{other}\"")),
        };
        Ok(DeviceSpec { container_path: self.path, host_path, permissions, node })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Bind {
    host_path: PathBuf,
    container_path: String,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    options: Vec<String>,
}

impl Bind {
    /// The mount, or which of its options cannot be honoured (mount(8)).
    fn mount(self) -> Result<MountSpec, String> {
        if !matches!(self.kind.as_str(), "" | "bind" | "rbind" | "none") {
            return Err(format!("a mount of type \"{}\"", self.kind));
        }
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

/// A device that a container asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Where it does so.
    pub field: String,
    /// Fully qualified: `vendor.com/class=name`.
    pub name: String,
}

impl Wanted {
    /// All devices of a container, each once: those of the field first.
    pub fn of(spec: &ContainerSpec) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        let mut add = |field: &str, name: &str| {
            if all.iter().all(|one| one.name != name) {
                all.push(Self { field: field.to_owned(), name: name.to_owned() });
            }
        };
        spec.cdi_devices.iter().for_each(|name| add("CDI_devices", name));
        for (key, value) in spec.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)) {
            value.split(',').for_each(|name| add(&format!("annotations[\"{key}\"]"), name));
        }
        all
    }
}

/// The edits of devices, in order; those of a whole spec count once. `runtime`: there is one to carry out what takes one.
pub fn resolve(directories: &[PathBuf], devices: &[Wanted], runtime: bool) -> Result<Edits, Error> {
    let mut edits = Edits::default();
    let mut whole = BTreeSet::new();
    for wanted in devices {
        let (path, file, device) = find(directories, wanted)?;
        if whole.insert(path.clone()) {
            edits.add(wanted, &path, file.edits, runtime)?;
        }
        edits.add(wanted, &path, device, runtime)?;
    }
    Ok(edits)
}

fn find(directories: &[PathBuf], Wanted { field, name }: &Wanted) -> Result<(PathBuf, File, Raw), Error> {
    let refuse = |why: String| Error::invalid(field, why);
    let Some((kind, wanted)) = name.split_once('=') else {
        return Err(refuse(format!("\"{name}\" is not vendor/class=name")));
    };
    let mut skipped = Vec::new();
    for directory in directories.iter().rev() {
        let mut found = Vec::new();
        for entry in crate::journal::file::names(directory)? {
            let path = directory.join(&entry);
            let read = match path.extension().and_then(|e| e.to_str()) {
                Some("json") => read(&path, |text| Ok(serde_json::from_slice(text)?)),
                Some("yaml") => read(&path, |text| {
                    // As others read it: 0660 is octal.
                    let options = serde_saphyr::options! { legacy_octal_numbers: true };
                    let parsed = serde_saphyr::from_slice_with_options(text, options);
                    Ok(parsed.map_err(|e| e.without_snippet().to_string())?)
                }),
                _ => continue,
            };
            let mut file = match read {
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
        why.push_str(&format!(" (not read: {})", skipped.join(", ")));
    }
    Err(refuse(why))
}

type Parsed = Result<File, Box<dyn std::error::Error + Send + Sync>>;

fn read(path: &Path, parse: impl Fn(&[u8]) -> Parsed) -> Result<File, Error> {
    let failed = |e| Error::with(Kind::FailedPrecondition, path.display().to_string(), e);
    let mut text = Vec::new();
    let file = std::fs::File::open(path).and_then(|file| file.take(LIMIT + 1).read_to_end(&mut text));
    file.map_err(failed)?;
    let wrong = |e: Box<dyn std::error::Error + Send + Sync>| failed(std::io::Error::other(e));
    if text.len() as u64 > LIMIT {
        return Err(wrong(format!("larger than {LIMIT} bytes").into()));
    }
    parse(&text).and_then(|file| Ok(file.check()?)).map_err(wrong)
}

impl Edits {
    /// Adds those that a device asked for, out of a file. `runtime`: there is an OCI runtime to carry out what takes one.
    fn add(&mut self, wanted: &Wanted, path: &Path, raw: Raw, runtime: bool) -> Result<(), Error> {
        let said = format!("{}: {} asks for", wanted.field, path.display());
        let refuse = |what: &str| {
            Err(Error::new(Kind::FailedPrecondition, format!("{said} {what}, which cannot be honoured")))
        };
        for (asked, what) in [(!raw.hooks.is_empty(), "hooks"), (raw.intel_rdt.is_some(), "intelRdt")] {
            if asked && !runtime {
                let why = format!("{said} {what}, which the pod's handler cannot do: it has no OCI runtime");
                return Err(Error::new(Kind::Unimplemented, why));
            }
        }
        if let Some(variable) = raw.env.iter().find(|variable| variable.find('=').is_none_or(|at| at == 0)) {
            return refuse(&format!("the environment variable \"{variable}\""));
        }
        for hook in raw.hooks {
            match hook.document() {
                Ok((moment, hook)) => self.runtime.hooks.entry(moment).or_default().push(hook),
                Err(what) => return refuse(&what),
            }
        }
        self.runtime.intel_rdt = raw.intel_rdt.or(self.runtime.intel_rdt.take());
        for device in raw.net_devices {
            let host = &device.host_interface_name;
            if self
                .net_devices
                .iter()
                .any(|one| one.host_interface_name == *host || one.name() == device.name())
            {
                return refuse(&format!("network device \"{host}\" as \"{}\" beside another", device.name()));
            }
            self.net_devices.push(device);
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
        // Group 0 is never given by a device (CDI specification, "additionalGids").
        self.groups.extend(raw.additional_gids.into_iter().filter(|gid| *gid > 0));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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

    /// By the container's field.
    fn wanted(names: &[&str]) -> Vec<Wanted> {
        Wanted::of(&ContainerSpec {
            cdi_devices: names.iter().map(ToString::to_string).collect(),
            ..ContainerSpec::default()
        })
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
            "mounts":[{"hostPath":"/usr","containerPath":"/opt","options":["ro","nosuid","bind"],"type":"bind"}],"additionalGids":[44,0],
            "netDevices":[{"hostInterfaceName":"eth7"},{"hostInterfaceName":"eth8","name":"data%d"}]"#;
        let dirs = directories(&node, &[("etc/v.json", &spec("a", more)), ("etc/broken.json", "{")]);
        let edits = resolve(&dirs, &wanted(&["v.com/gpu=0", "v.com/gpu=1"]), false).unwrap();
        assert_eq!((edits.env, edits.groups), (vec!["ALL=1".into(), "ONE=a".into()], vec![44]));
        assert_eq!(edits.net_devices.iter().map(NetDevice::name).collect::<Vec<_>>(), ["eth7", "data%d"]);
        assert_eq!(
            (edits.devices[0].permissions.as_str(), edits.devices[0].container_path.as_str()),
            ("rw", "/dev/gpu0")
        );
        assert!(edits.mounts[0].readonly && edits.mounts[0].options == ["nosuid"]);
    }

    #[test]
    fn a_spec_may_be_yaml() {
        const YAML: &str = "cdiVersion: 0.6.0\nkind: y.com/gpu\ncontainerEdits:\n  env:\n  - ALL=1\ndevices:\n- name: all\n  containerEdits:\n    \
            deviceNodes:\n    - path: /dev/gpu0\n      hostPath: /dev/null\n      permissions: ''\n      fileMode: 0660\n";
        let node = Node::new();
        let dirs = directories(&node, &[("etc/y.yaml", YAML)]);
        let edits = resolve(&dirs, &wanted(&["y.com/gpu=all"]), false).unwrap();
        let device = &edits.devices[0];
        assert_eq!(
            (edits.env, device.node.mode, &*device.permissions),
            (vec!["ALL=1".into()], Some(0o660), "rwm")
        );
    }

    #[test]
    fn devices_of_annotations_come_behind_those_of_the_field_and_each_once() {
        let mut spec = ContainerSpec { cdi_devices: vec!["v.com/gpu=0".into()], ..ContainerSpec::default() };
        for (key, value) in [
            ("cdi.k8s.io/vendor_plugin", "v.com/gpu=1,v.com/gpu=0,v.com/nic=a"),
            ("other.io/cdi", "v.com/gpu=9"),
            ("cdi.k8s.io/wrong", "gpu"),
        ] {
            spec.annotations.insert(key.into(), value.into());
        }
        let all = Wanted::of(&spec);
        let names: Vec<_> = all.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["v.com/gpu=0", "v.com/gpu=1", "v.com/nic=a", "gpu"]);
        let error = resolve(&[], &all[3..], false).unwrap_err().chain();
        assert!(
            error.contains("annotations[\"cdi.k8s.io/wrong\"]") && error.contains("vendor/class=name"),
            "{error}"
        );
    }

    #[test]
    fn a_device_node_is_made_as_its_spec_states_it() {
        let node = Node::new();
        let more = r#","deviceNodes":[
            {"path":"/dev/a","type":"c","major":10,"minor":200,"fileMode":432,"uid":1,"gid":2},
            {"path":"/dev/b","hostPath":"/dev/null"}]"#;
        let dirs = directories(&node, &[("etc/v.json", &spec("a", more))]);
        let edits = resolve(&dirs, &wanted(&["v.com/gpu=0"]), false).unwrap();
        let stated = DeviceNode {
            block: Some(false),
            number: Some((10, 200)),
            mode: Some(0o660),
            uid: Some(1),
            gid: Some(2),
            of_user: true,
        };
        assert_eq!(edits.devices[0].node, stated);
        assert_eq!(edits.devices[1].node, DeviceNode { of_user: true, ..DeviceNode::default() });
        let owner = |device: &DeviceSpec| (device.node.uid, device.node.gid);
        let owners =
            |uid, gid| edits.devices.iter().map(|one| owner(&one.owned_by(uid, gid))).collect::<Vec<_>>();
        assert_eq!(owners(1000, 0), [(Some(1), Some(2)), (Some(1000), None)]);
        for (edit, named) in [
            (r#""deviceNodes":[{"path":"/p","type":"p"}]"#, "type \"p\""),
            (r#""deviceNodes":[{"path":"/p","major":1}]"#, "without a type"),
            (r#""deviceNodes":[{"path":"/p","minor":1}]"#, "without a major"),
            (r#""mounts":[{"hostPath":"/","containerPath":"/r","options":["idmap"]}]"#, "\"idmap\""),
            (r#""mounts":[{"hostPath":"/","containerPath":"/r","type":"tmpfs"}]"#, "type \"tmpfs\""),
            (
                r#""netDevices":[{"hostInterfaceName":"a","name":"x"},{"hostInterfaceName":"b","name":"x"}]"#,
                "\"b\"",
            ),
            (
                r#""netDevices":[{"hostInterfaceName":"a"},{"hostInterfaceName":"a","name":"x"}]"#,
                "\"a\" as \"x\"",
            ),
            (r#""rdmaDevices":[]"#, "v.json: unknown field `rdmaDevices`"),
            (r#""deviceNodes":[{"path":"/p","permissions":"none"}]"#, "permissions \"none\""),
            (r#""env":["ONE"]"#, "v.json: duplicate field"),
            (
                r#""additionalGIDs":[5]}},{"name":"0","containerEdits":{"hooks":[]"#,
                "device \"0\" is there twice",
            ),
        ] {
            directories(&node, &[("etc/v.json", &spec("a", &format!(",{edit}")))]);
            let error = resolve(&dirs, &wanted(&["v.com/gpu=0"]), false).unwrap_err();
            assert!(error.chain().contains(named), "{}", error.chain());
        }
    }

    #[test]
    fn the_later_directory_wins_and_two_files_of_one_conflict() {
        let node = Node::new();
        let dirs = directories(&node, &[("etc/v.json", &spec("a", "")), ("run/v.json", &spec("b", ""))]);
        assert_eq!(resolve(&dirs, &wanted(&["v.com/gpu=0"]), false).unwrap().env[1], "ONE=b");
        directories(&node, &[("run/w.json", &spec("c", ""))]);
        let error = resolve(&dirs, &wanted(&["v.com/gpu=0"]), false).unwrap_err();
        assert!(
            error.chain().contains("v.json and") && error.chain().contains("w.json"),
            "{}",
            error.chain()
        );
    }

    #[test]
    fn hooks_and_classes_of_rdt_are_what_a_runtime_reads() {
        let node = Node::new();
        let more = r#","hooks":[{"hookName":"createContainer","path":"/x","args":["x","y"],"timeout":5},{"hookName":"poststop","path":"/z"}],
            "intelRdt":{"closID":"gold"}"#;
        let dirs = directories(&node, &[("etc/v.json", &spec("a", more))]);
        let edits = resolve(&dirs, &wanted(&["v.com/gpu=0"]), true).unwrap().runtime;
        assert_eq!(edits.hooks["createContainer"], [json!({"path":"/x","args":["x","y"],"timeout":5})]);
        assert_eq!(edits.hooks["poststop"], [json!({"path":"/z"})]);
        assert_eq!(edits.intel_rdt.unwrap().clos_id().as_deref(), Some("gold"));
        for (hook, named) in [
            (r#""hookName":"now","path":"/x""#, "\"now\""),
            (r#""hookName":"poststop","path":"x""#, "not absolute"),
        ] {
            directories(&node, &[("etc/v.json", &spec("a", &format!(r#","hooks":[{{{hook}}}]"#)))]);
            let error = resolve(&dirs, &wanted(&["v.com/gpu=0"]), true).unwrap_err().chain();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn what_is_unknown_or_not_built_is_named() {
        let node = Node::new();
        let hooks = r#","hooks":[{"hookName":"createContainer","path":"/bin/x"}]"#;
        let dirs =
            directories(&node, &[("etc/v.json", &spec("a", hooks)), ("etc/n.yaml", "kind: [n.com/gpu")]);
        for (name, expected) in
            [("v.com/gpu=0", "hooks"), ("n.com/gpu=0", "n.yaml"), ("gpu", "vendor/class=name")]
        {
            let error = resolve(&dirs, &wanted(&[name]), false).unwrap_err();
            assert!(error.chain().contains(expected), "{}", error.chain());
        }
    }
}
