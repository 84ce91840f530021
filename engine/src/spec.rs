//! What a client asks for: the immutable half of pods and containers.
//!
//! Pure data, free of any wire format. The `cri` crate decodes requests into these types; the journal stores them as
//! JSON. Absent and empty mean the same unless a field says otherwise. Paths inside a container are strings because
//! they are never resolved by string on the host.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cdi::RuntimeEdits;

/// Key–value pairs that are handed back unaltered.
pub type Labels = BTreeMap<String, String>;

/// A pod sandbox as requested by RunPodSandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSpec {
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod UID.
    pub uid: String,
    /// How often the sandbox was created anew.
    pub attempt: u32,
    /// UTS host name; empty only with the node's network.
    pub hostname: String,
    /// Absolute directory of the container logs; empty: no logs.
    pub log_directory: PathBuf,
    /// Contents of resolv.conf; `None`: the node's file.
    pub dns: Option<Dns>,
    /// Ports published on the node.
    pub port_mappings: Vec<PortMapping>,
    /// Labels.
    pub labels: Labels,
    /// Annotations; they never change behaviour unless a field's documentation says so.
    pub annotations: Labels,
    /// Parent cgroup, always in cgroupfs spelling (`/kubepods/burstable/pod…`); empty: Berth's own.
    pub cgroup_parent: String,
    /// Sysctls of the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Namespaces and identity of the sandbox.
    pub security: PodSecurity,
    /// Overhead of the sandbox; informational.
    pub overhead: Option<Resources>,
    /// Sum of the containers' resources.
    pub resources: Option<Resources>,
    /// Runtime handler; empty: the default one.
    pub handler: String,
}

/// Security context of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSecurity {
    /// Namespaces shared by the pod's containers.
    pub namespaces: Namespaces,
    /// Whether privileged containers may be made in this pod.
    pub privileged: bool,
    /// Read-only root of the sandbox process.
    pub readonly_rootfs: bool,
    /// Identity of the sandbox process.
    pub user: UserSpec,
    /// Seccomp profile of the sandbox process.
    pub seccomp: Option<Profile>,
    /// AppArmor profile of the sandbox process.
    pub apparmor: Option<Profile>,
    /// SELinux label of the pod.
    pub selinux: Option<SelinuxLabel>,
}

/// Where a namespace comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// Shared by the containers of the pod.
    #[default]
    Pod,
    /// Private to the container.
    Container,
    /// The node's.
    Node,
    /// That of another container of the pod.
    Target,
}

/// The namespaces of a pod or container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespaces {
    /// Network: pod or node.
    pub network: NamespaceMode,
    /// PID: any mode.
    pub pid: NamespaceMode,
    /// IPC: pod or node.
    pub ipc: NamespaceMode,
    /// Container whose PID namespace is joined in mode target.
    pub target_id: String,
    /// User namespace; `None`: the node's.
    pub user: Option<UserNamespace>,
}

/// A user namespace request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserNamespace {
    /// Pod or node.
    pub mode: NamespaceMode,
    /// UID mappings; exactly one line in mode pod.
    pub uids: Vec<IdMapping>,
    /// GID mappings; exactly one line in mode pod.
    pub gids: Vec<IdMapping>,
}

/// One line of a uid_map or gid_map (user_namespaces(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id inside.
    pub container_id: u32,
    /// First id outside.
    pub host_id: u32,
    /// Number of ids.
    pub length: u32,
}

/// resolv.conf(5).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// Transport protocol of a port mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A published port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port inside the pod.
    pub container_port: u16,
    /// Port on the node; 0: not published.
    pub host_port: u16,
    /// Node address; empty: every address of the family.
    pub host_ip: String,
}

/// A container as requested by CreateContainer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// Container name, unique in the pod together with `attempt`.
    pub name: String,
    /// How often the container was created anew.
    pub attempt: u32,
    /// Image as the client wrote it, and what the user had written.
    pub image: ImageSpec,
    /// Replaces the image's Entrypoint (and Cmd when `args` is empty).
    pub command: Vec<String>,
    /// Replaces the image's Cmd.
    pub args: Vec<String>,
    /// Empty: the image's, else `/`.
    pub working_dir: String,
    /// Environment; overrides the image's by name; values are bytes.
    pub envs: Vec<(String, Vec<u8>)>,
    /// Mounts, in order.
    pub mounts: Vec<MountSpec>,
    /// Device nodes.
    pub devices: Vec<DeviceSpec>,
    /// Fully qualified CDI device names.
    pub cdi_devices: Vec<String>,
    /// What CDI devices ask of an OCI runtime; only where it is launched.
    pub runtime_edits: RuntimeEdits,
    /// Labels.
    pub labels: Labels,
    /// Annotations.
    pub annotations: Labels,
    /// Relative to the pod's log directory; empty: output is discarded.
    pub log_path: PathBuf,
    /// Keep stdin open.
    pub stdin: bool,
    /// Close stdin when the first attached client leaves.
    pub stdin_once: bool,
    /// Run on a terminal.
    pub tty: bool,
    /// Resource limits.
    pub resources: Resources,
    /// Security context.
    pub security: ContainerSecurity,
    /// Signal number that stops the container; `None`: the image's, else SIGTERM.
    pub stop_signal: Option<i32>,
}

/// An image reference as it travels through requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageSpec {
    /// Tag, digest reference, id or id prefix.
    pub image: String,
    /// Annotations; handed back.
    pub annotations: Labels,
    /// What the user had written in the pod.
    pub user_specified_image: String,
    /// Runtime handler the image is for.
    pub runtime_handler: String,
    /// Reference reported back for image volumes.
    pub image_ref: String,
}

/// How mounts travel between the node and a container (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// rprivate.
    #[default]
    Private,
    /// rslave.
    HostToContainer,
    /// rshared.
    Bidirectional,
}

/// A bind or image mount.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountSpec {
    /// Path in the container.
    pub container_path: String,
    /// Path on the node; empty for image mounts.
    pub host_path: PathBuf,
    /// Read-only.
    pub readonly: bool,
    /// Read-only with everything below (mount_setattr(2), AT_RECURSIVE).
    pub recursive_readonly: bool,
    /// Relabel the source for SELinux.
    pub selinux_relabel: bool,
    /// Propagation.
    pub propagation: Propagation,
    /// Idmapped mount: uids.
    pub uid_mappings: Vec<IdMapping>,
    /// Idmapped mount: gids.
    pub gid_mappings: Vec<IdMapping>,
    /// The image to mount.
    pub image: Option<ImageSpec>,
    /// Path inside that image.
    pub image_sub_path: String,
    /// Any of `noexec`, `nodev`, `nosuid`.
    pub options: Vec<String>,
}

/// A device node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceSpec {
    /// Path in the container.
    pub container_path: String,
    /// Path on the node; a directory stands for all devices below it.
    pub host_path: PathBuf,
    /// Any of `r`, `w`, `m`.
    pub permissions: String,
    /// What is to differ from the node's own device file.
    pub node: DeviceNode,
}

impl DeviceSpec {
    /// The device of a container that runs as this user.
    pub fn owned_by(&self, uid: u32, gid: u32) -> Self {
        let mut device = self.clone();
        if std::mem::take(&mut device.node.of_user) {
            let node = &mut device.node;
            node.uid = node.uid.or(Some(uid).filter(|uid| *uid > 0));
            node.gid = node.gid.or(Some(gid).filter(|gid| *gid > 0));
        }
        device
    }
}

/// A device file as a CDI spec may state it; what is absent is as on the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceNode {
    /// Whether it is a block device.
    pub block: Option<bool>,
    /// Major and minor number; the file need not exist on the node then.
    pub number: Option<(u32, u32)>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// The container's user and group own it, unless they are root or others are stated.
    pub of_user: bool,
}

/// Resource limits. 0 and empty mean unset.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// CFS period in microseconds.
    pub cpu_period: i64,
    /// CFS quota in microseconds; negative: none.
    pub cpu_quota: i64,
    /// CPU shares, cgroup v1 scale.
    pub cpu_shares: i64,
    /// Memory limit in bytes.
    pub memory_limit: i64,
    /// oom_score_adj of the container.
    pub oom_score_adj: i64,
    /// CPUs, cpuset(7) list format.
    pub cpuset_cpus: String,
    /// Memory nodes, cpuset(7) list format.
    pub cpuset_mems: String,
    /// Huge page limits: page size as `2MB`, limit in bytes.
    pub hugepage_limits: Vec<(String, u64)>,
    /// Raw cgroup v2 keys.
    pub unified: BTreeMap<String, String>,
    /// Memory plus swap in bytes, cgroup v1 meaning.
    pub memory_swap_limit: i64,
}

/// Security context of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSecurity {
    /// Capabilities to add to the default set; `ALL` and names with or without `CAP_`.
    pub add_capabilities: Vec<String>,
    /// Capabilities to drop from the default set.
    pub drop_capabilities: Vec<String>,
    /// Ambient capabilities.
    pub add_ambient_capabilities: Vec<String>,
    /// All capabilities, all devices, no masks, no profiles.
    pub privileged: bool,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// SELinux label.
    pub selinux: Option<SelinuxLabel>,
    /// Who the process runs as.
    pub user: UserSpec,
    /// Read-only root.
    pub readonly_rootfs: bool,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// Paths hidden from the container.
    pub masked_paths: Vec<String>,
    /// Paths made read-only.
    pub readonly_paths: Vec<String>,
    /// Seccomp profile; `None`: unconfined.
    pub seccomp: Option<Profile>,
    /// AppArmor profile; `None`: the default one where AppArmor is on.
    pub apparmor: Option<Profile>,
}

/// Identity of a process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserSpec {
    /// Numeric user.
    pub uid: Option<i64>,
    /// User name, looked up in the image.
    pub username: String,
    /// Numeric group; needs a user.
    pub gid: Option<i64>,
    /// Supplementary groups.
    pub supplemental_groups: Vec<i64>,
    /// Use only `supplemental_groups`, not the image's /etc/group.
    pub strict_groups: bool,
}

/// A security profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Profile {
    /// The runtime's own default.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A file (seccomp) or a loaded profile name (AppArmor).
    Localhost(String),
}

/// SELinux label parts; empty parts come from the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SelinuxLabel {
    /// User.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type.
    pub kind: String,
    /// Level.
    pub level: String,
}
