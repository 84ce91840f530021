//! What the engine is told once.

use std::path::PathBuf;
use std::time::Duration;

use crate::exec::cgroup::CgroupDriver;
use crate::selinux;

/// Configuration of the engine. `Default` is what a node uses without any configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Survives a reboot: `<root>/pods` holds the journal.
    pub root: PathBuf,
    /// On tmpfs: `<state>/pods/<id>` holds what the supervisor needs.
    pub state: PathBuf,
    /// Parent of the cgroups of pods that name no parent, in cgroupfs spelling; under systemd a slice (as
    /// [`CgroupDriver::parent`](crate::exec::cgroup::CgroupDriver::parent) has it).
    pub cgroup_parent: String,
    /// Who makes cgroups; the execution drivers are told the same.
    pub cgroup_driver: CgroupDriver,
    /// The node's hosts file, copied for pods with the node's network.
    pub hosts_file: PathBuf,
    /// The node's resolv.conf, copied for pods without a DNS configuration.
    pub resolv_conf: PathBuf,
    /// Pods with their own network may bind any port and use ICMP sockets without privileges
    /// (`net.ipv4.ip_unprivileged_port_start=0`, `net.ipv4.ping_group_range`), as users of the other runtimes expect.
    pub unprivileged_ports: bool,
    /// Make a missing `host_path` as a directory (0755), as manifests in the field rely on; otherwise it is an error.
    pub create_missing_host_paths: bool,
    /// Where SELinux is looked for; `None`: it is not used, even where it is on.
    pub selinux: Option<selinux::Place>,
    /// How long the end of a container may take after SIGKILL before the caller is told.
    pub kill_wait: Duration,
    /// How long ExecSync reads on after its process has ended, while other processes hold its streams.
    pub exec_drain: Duration,
    /// How long a pull goes on after its last caller went away.
    pub abandoned_pull: Duration,
    /// Ended jobs kept for `berth jobs`.
    pub recent_jobs: usize,
    /// Events kept for a slow subscriber.
    pub event_queue: usize,
}

impl Config {
    /// These settings with everything from `new` that may change while pods run.
    #[must_use]
    pub fn retuned(&self, new: &Self) -> Self {
        let new = new.clone();
        Self {
            hosts_file: new.hosts_file,
            resolv_conf: new.resolv_conf,
            unprivileged_ports: new.unprivileged_ports,
            kill_wait: new.kill_wait,
            exec_drain: new.exec_drain,
            abandoned_pull: new.abandoned_pull,
            ..self.clone()
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/berth".into(),
            state: "/run/berth".into(),
            cgroup_parent: "/berth".into(),
            cgroup_driver: CgroupDriver::default(),
            hosts_file: "/etc/hosts".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            unprivileged_ports: true,
            create_missing_host_paths: true,
            selinux: Some(selinux::Place::default()),
            kill_wait: Duration::from_secs(10),
            exec_drain: Duration::from_millis(500),
            abandoned_pull: Duration::from_secs(30),
            recent_jobs: 256,
            event_queue: 1024,
        }
    }
}
