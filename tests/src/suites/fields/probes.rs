//! Where each field must show.

use cri::proto::*;

use crate::images::LAYERED;

/// Where a script runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// In the container.
    Inside,
    /// On the node; `$PID` is the container's first process.
    Outside,
}

/// How a field is set.
type Set = fn(&mut PodSandboxConfig, &mut ContainerConfig);

/// A field, or several that only work together, and what must be seen.
pub(super) struct Probe {
    pub(super) rows: &'static [(&'static str, &'static str)],
    pub(super) set: Set,
    pub(super) look: Look,
    pub(super) script: &'static str,
    pub(super) want: &'static str,
}

/// Fields that another suite or test looks for, by its name.
pub(super) const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("PodSandboxConfig", "metadata", "crictl: pods lists it"),
    ("PodSandboxConfig", "labels", "crictl: pods lists it"),
    ("PodSandboxConfig", "annotations", "cri: a pod and its container go their whole way"),
    ("PodSandboxConfig", "linux", "its fields"),
    ("PortMapping", "protocol", "netplugins: host ports of every protocol"),
    ("PortMapping", "host_ip", "netplugins: host ports on one address"),
    ("LinuxPodSandboxConfig", "security_context", "its fields"),
    ("LinuxPodSandboxConfig", "overhead", "cri: each field alone does what its row says; shown only"),
    ("LinuxPodSandboxConfig", "resources", "cri: each field alone does what its row says; shown only"),
    ("NamespaceOption", "target_id", "engine: a container in the PID namespace of another"),
    ("NamespaceOption", "userns_options", "critest: user namespaces"),
    ("LinuxContainerResources", "cpuset_mems", "cri: each field alone; most machines have one memory node"),
    (
        "LinuxContainerResources",
        "unified",
        "engine: limits are written as the kernel has them; needs pure cgroup v2",
    ),
    ("LinuxContainerResources", "hugepage_limits", "engine: limits are written as the kernel has them"),
    ("HugepageLimit", "page_size", "engine: limits are written as the kernel has them"),
    ("HugepageLimit", "limit", "engine: limits are written as the kernel has them"),
    ("ContainerConfig", "metadata", "crictl: ps lists it"),
    ("ContainerConfig", "image", "crictl: layers of an image"),
    ("ContainerConfig", "labels", "crictl: ps lists it"),
    ("ContainerConfig", "annotations", "critest: preserving container attributes"),
    ("ContainerConfig", "stdin_once", "engine: attach"),
    ("ContainerConfig", "linux", "its fields"),
    ("ContainerConfig", "stop_signal", "engine: the stop signal of the request comes before the image's"),
    ("Mount", "selinux_relabel", "engine: SELinux in the emulated machine"),
    ("Mount", "uidMappings", "critest: user namespaces"),
    ("Mount", "gidMappings", "critest: user namespaces"),
    ("LinuxContainerConfig", "resources", "its fields"),
    ("LinuxContainerConfig", "security_context", "its fields"),
    ("LinuxContainerSecurityContext", "namespace_options", "its fields"),
    ("LinuxContainerSecurityContext", "capabilities", "its fields"),
    ("LinuxContainerSecurityContext", "selinux_options", "engine: SELinux in the emulated machine"),
    ("LinuxContainerSecurityContext", "apparmor", "critest: AppArmor"),
    ("LinuxContainerSecurityContext", "apparmor_profile", "critest: AppArmor"),
];

fn linux(c: &mut ContainerConfig) -> &mut LinuxContainerConfig {
    c.linux.get_or_insert_default()
}

fn security(c: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    linux(c).security_context.get_or_insert_default()
}

fn limits(c: &mut ContainerConfig) -> &mut LinuxContainerResources {
    linux(c).resources.get_or_insert_default()
}

fn dns(p: &mut PodSandboxConfig) -> &mut DnsConfig {
    p.dns_config.get_or_insert_default()
}

fn sandbox(p: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    p.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// Namespace options of the pod and of the container: they must agree.
fn namespaces(p: &mut PodSandboxConfig, c: &mut ContainerConfig, set: fn(&mut NamespaceOption)) {
    set(sandbox(p).namespace_options.get_or_insert_default());
    set(security(c).namespace_options.get_or_insert_default());
}

fn mount(c: &mut ContainerConfig) -> &mut Mount {
    c.mounts = vec![Mount {
        container_path: "/m".into(),
        host_path: "/run/suite-fields".into(),
        ..Default::default()
    }];
    &mut c.mounts[0]
}

fn capability(c: &mut ContainerConfig) -> &mut Capability {
    security(c).capabilities.get_or_insert_default()
}

fn profile(kind: i32, path: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind, localhost_ref: path.into() })
}

/// Whether the container shares a namespace with the node.
macro_rules! shares {
    ($kind:literal) => {
        concat!(
            "[ $(readlink /proc/$PID/ns/",
            $kind,
            ") = $(readlink /proc/self/ns/",
            $kind,
            ") ] && echo shared"
        )
    };
}

macro_rules! probes {
    ($($look:ident [$($row:literal),+] $set:expr, $script:expr, $want:expr;)+) => {
        &[$(Probe { rows: &[$(row($row)),+], set: $set, look: Look::$look, script: $script, want: $want }),+]
    };
}

/// `Message.field`, taken apart.
const fn row(name: &'static str) -> (&'static str, &'static str) {
    let bytes = name.as_bytes();
    let mut at = 0;
    while bytes[at] != b'.' {
        at += 1;
    }
    let (message, rest) = name.split_at(at);
    (message, rest.split_at(1).1)
}

#[rustfmt::skip]
#[expect(deprecated, reason = "deprecated fields are still sent by old kubelets")]
pub(super) const PROBES: &[Probe] = probes! {
    Inside ["PodSandboxConfig.hostname"] |p, _| p.hostname = "field-host".into(), "hostname", "field-host";
    Outside ["PodSandboxConfig.log_directory", "ContainerConfig.log_path"]
        |p, c| (p.log_directory, c.log_path) = ("/run/suite-fields/logs".into(), "a/b.log".into()),
        "cut -d' ' -f4- /run/suite-fields/logs/a/b.log", "of the container";
    Inside ["PodSandboxConfig.dns_config", "DNSConfig.servers"]
        |p, _| dns(p).servers = vec!["10.9.8.7".into()], "grep -x 'nameserver 10.9.8.7' /etc/resolv.conf", "nameserver 10.9.8.7";
    Inside ["DNSConfig.searches"]
        |p, _| dns(p).searches = vec!["suite.test".into()], "grep -x 'search suite.test' /etc/resolv.conf", "search suite.test";
    Inside ["DNSConfig.options"]
        |p, _| dns(p).options = vec!["ndots:3".into()], "grep -x 'options ndots:3' /etc/resolv.conf", "options ndots:3";
    Outside ["PodSandboxConfig.port_mappings", "PortMapping.container_port", "PortMapping.host_port"]
        |p, _| p.port_mappings = vec![PortMapping { container_port: 8080, host_port: 18080, ..Default::default() }],
        "for n in $(seq 50); do curl -sf --max-time 2 http://127.0.0.1:18080/index.html && break; [ -n \"$(ss -Htln sport = 18080)$(nft list ruleset | grep 18080)\" ] || break; sleep 0.1; done",
        "a page of the test server";
    Outside ["LinuxPodSandboxConfig.cgroup_parent"]
        |p, _| p.linux.get_or_insert_default().cgroup_parent = "/berth/fields".into(),
        "grep -c ':/berth/fields/' /proc/$PID/cgroup | sed 's/^[1-9].*/found/'", "found";
    Inside ["LinuxPodSandboxConfig.sysctls"]
        |p, _| p.linux.get_or_insert_default().sysctls = [("kernel.shm_rmid_forced".into(), "1".into())].into(),
        "cat /proc/sys/kernel/shm_rmid_forced", "1";
    Outside ["NamespaceOption.network"]
        |p, c| namespaces(p, c, |o| o.network = NamespaceMode::Node.into()), shares!("net"), "shared";
    Outside ["NamespaceOption.ipc"]
        |p, c| namespaces(p, c, |o| o.ipc = NamespaceMode::Node.into()), shares!("ipc"), "shared";
    Outside ["NamespaceOption.pid"]
        |p, c| namespaces(p, c, |o| o.pid = NamespaceMode::Node.into()), shares!("pid"), "shared";
    Inside ["ContainerConfig.CDI_devices", "CDIDevice.name"]
        |_, c| c.cdi_devices = vec![CdiDevice { name: "suite.example/device=one".into() }],
        "echo $SUITE_DEVICE $(cat /heard 2>/dev/null) $(ls /sys/class/net | grep given)", "one hooked given";
    Outside ["ContainerConfig.command"]
        |_, c| c.command = vec!["sleep".into(), "4711".into()], "tr '\\0' ' ' < /proc/$PID/cmdline", "sleep 4711";
    Outside ["ContainerConfig.args"]
        |_, c| (c.command, c.args) = (Vec::new(), vec!["sleep".into(), "4712".into()]), "tr '\\0' ' ' < /proc/$PID/cmdline ", "sleep 4712";
    Inside ["ContainerConfig.working_dir"] |_, c| c.working_dir = "/tmp".into(), "pwd", "/tmp";
    Inside ["ContainerConfig.envs", "KeyValue.key", "KeyValue.value"]
        |_, c| c.envs = vec![KeyValue { key: "FIELD".into(), value: b"set".to_vec() }], "echo $FIELD", "set";
    Inside ["ContainerConfig.stdin"] |_, c| c.stdin = true, "readlink /proc/1/fd/0 | cut -d: -f1", "pipe";
    Inside ["ContainerConfig.tty"] |_, c| (c.tty, c.stdin) = (true, true), "[ -t 0 ] < /proc/1/fd/0 && echo terminal", "terminal";
    Inside ["ContainerConfig.mounts", "Mount.container_path", "Mount.host_path"]
        |_, c| mount(c).readonly = false, "cat /m/name", "of the node";
    Inside ["Mount.readonly"] |_, c| mount(c).readonly = true, "touch /m/x 2>&1 | grep -o 'Read-only'", "Read-only";
    Inside ["Mount.recursive_read_only"]
        |_, c| { let m = mount(c); (m.readonly, m.recursive_read_only) = (true, true); },
        "grep ' /m ' /proc/self/mountinfo | grep -o ' ro,' | tr -d ' '", "ro,";
    Inside ["Mount.propagation"]
        |_, c| mount(c).propagation = MountPropagation::PropagationHostToContainer.into(),
        "grep ' /m ' /proc/self/mountinfo | grep -o 'master:' ", "master:";
    Inside ["Mount.mount_options"]
        |_, c| mount(c).mount_options = vec!["noexec".into()], "grep ' /m ' /proc/self/mountinfo | grep -o noexec", "noexec";
    Inside ["Mount.image"]
        |_, c| {
            let m = mount(c);
            (m.host_path, m.readonly) = (String::new(), true);
            m.image = Some(ImageSpec { image: LAYERED.into(), ..Default::default() });
        },
        "cat /m/data/kept", "base";
    Inside ["Mount.image_sub_path"]
        |_, c| {
            let m = mount(c);
            (m.host_path, m.readonly, m.image_sub_path) = (String::new(), true, "data".into());
            m.image = Some(ImageSpec { image: LAYERED.into(), ..Default::default() });
        },
        "cat /m/kept", "base";
    Inside ["ContainerConfig.devices", "Device.container_path", "Device.host_path"]
        |_, c| c.devices = vec![Device { container_path: "/dev/field".into(), host_path: "/dev/null".into(), permissions: "rw".into() }],
        "echo x > /dev/field; [ -c /dev/field ] && echo a device", "a device";
    Inside ["Device.permissions"]
        |_, c| c.devices = vec![Device { container_path: "/dev/field".into(), host_path: "/dev/kmsg".into(), permissions: "w".into() }],
        "[ -c /dev/field ] && head -c 1 /dev/field 2>&1 | grep -o 'not permitted'", "not permitted";
    Inside ["LinuxContainerResources.cpu_shares"] |_, c| limits(c).cpu_shares = 512,
        "cat /sys/fs/cgroup/cpu/cpu.shares 2> /dev/null || sed 's/^59$/512/' /sys/fs/cgroup/cpu.weight", "512";
    Inside ["LinuxContainerResources.cpu_quota"] |_, c| limits(c).cpu_quota = 20_000,
        "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2> /dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max", "20000";
    Inside ["LinuxContainerResources.cpu_period"] |_, c| limits(c).cpu_period = 50_000,
        "cat /sys/fs/cgroup/cpu/cpu.cfs_period_us 2> /dev/null || cut -d' ' -f2 /sys/fs/cgroup/cpu.max", "50000";
    Inside ["LinuxContainerResources.memory_limit_in_bytes"] |_, c| limits(c).memory_limit_in_bytes = 64 << 20,
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2> /dev/null || cat /sys/fs/cgroup/memory.max", "67108864";
    Inside ["LinuxContainerResources.memory_swap_limit_in_bytes"]
        |_, c| { let l = limits(c); (l.memory_limit_in_bytes, l.memory_swap_limit_in_bytes) = (64 << 20, 96 << 20); },
        "{ cat /sys/fs/cgroup/memory/memory.memsw.limit_in_bytes || sed s/33554432/100663296/ /sys/fs/cgroup/memory.swap.max; } 2> /dev/null", "100663296";
    Inside ["LinuxContainerResources.oom_score_adj"] |_, c| limits(c).oom_score_adj = 321, "cat /proc/1/oom_score_adj", "321";
    Inside ["LinuxContainerResources.cpuset_cpus"] |_, c| limits(c).cpuset_cpus = "0".into(),
        "sed -n 's/^Cpus_allowed_list:.//p' /proc/1/status", "0";
    Inside ["LinuxContainerSecurityContext.run_as_user", "Int64Value.value"]
        |_, c| security(c).run_as_user = Some(Int64Value { value: 1234 }), "id -u", "1234";
    Inside ["LinuxContainerSecurityContext.run_as_username"] |_, c| security(c).run_as_username = "www-data".into(), "id -u ", "33";
    Inside ["LinuxContainerSecurityContext.run_as_group"]
        |_, c| { let s = security(c); (s.run_as_user, s.run_as_group) = (Some(Int64Value { value: 1 }), Some(Int64Value { value: 4321 })); },
        "id -g", "4321";
    Inside ["LinuxContainerSecurityContext.supplemental_groups"] |_, c| security(c).supplemental_groups = vec![777], "id -G", "0 777";
    Inside ["LinuxContainerSecurityContext.supplemental_groups_policy"]
        |_, c| {
            let s = security(c);
            s.run_as_user = Some(Int64Value { value: 1000 });
            s.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
        },
        "id -u; id -G", "1000\n1000";
    Inside ["LinuxContainerSecurityContext.readonly_rootfs"]
        |_, c| security(c).readonly_rootfs = true, "touch /x 2>&1 | grep -o 'Read-only'", "Read-only";
    Inside ["LinuxContainerSecurityContext.no_new_privs"]
        |_, c| security(c).no_new_privs = true, "sed -n 's/^NoNewPrivs:.//p' /proc/1/status", "1";
    Inside ["Capability.add_capabilities"]
        |_, c| capability(c).add_capabilities = vec!["SYS_ADMIN".into()], "mount -t tmpfs t /tmp && echo mounted", "mounted";
    Inside ["Capability.drop_capabilities"]
        |_, c| capability(c).drop_capabilities = vec!["CHOWN".into()], "chown 1 /tmp 2>&1 | grep -o 'not permitted'", "not permitted";
    Inside ["Capability.add_ambient_capabilities"]
        |_, c| capability(c).add_ambient_capabilities = vec!["SYS_TIME".into()], "sed -n 's/^CapAmb:.//p' /proc/1/status", "0000000002000000";
    Inside ["LinuxContainerSecurityContext.privileged"]
        |p, c| { sandbox(p).privileged = true; security(c).privileged = true; }, "mount -t tmpfs t /tmp && echo mounted ", "mounted";
    Inside ["LinuxContainerSecurityContext.masked_paths"]
        |_, c| security(c).masked_paths = vec!["/www".into()], "ls /www/index.html 2>&1 | grep -o 'No such'", "No such";
    Inside ["LinuxContainerSecurityContext.readonly_paths"]
        |_, c| security(c).readonly_paths = vec!["/tmp".into()], "touch /tmp/x 2>&1 | grep -o 'Read-only'", "Read-only";
    Inside ["LinuxContainerSecurityContext.seccomp", "SecurityProfile.profile_type"]
        |_, c| security(c).seccomp = profile(0, ""), "sed -n 's/^Seccomp:.//p' /proc/1/status", "2";
    Inside ["SecurityProfile.localhost_ref"]
        |_, c| security(c).seccomp = profile(2, "/run/suite-fields/profile.json"), "sed -n 's/^Seccomp:.//p' /proc/1/status ", "2";
    Inside ["LinuxContainerSecurityContext.seccomp_profile_path"]
        |_, c| security(c).seccomp_profile_path = "runtime/default".into(), "sed -n 's/^Seccomp:.//p'  /proc/1/status", "2";
};
