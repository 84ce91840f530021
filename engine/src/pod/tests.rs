//! Policy, files and views of pods, without a pod.

use super::files;
use super::policy::{check, effective, endpoint};
use super::{PodRecord, PodStatus, State};
use crate::Config;
use crate::exec::Features;
use crate::spec::{Dns, IdMapping, NamespaceMode, PodSpec, PortMapping, Resources, UserNamespace};
use crate::testing::{Node, pod};

#[test]
fn requests_that_cannot_be_honoured_are_refused_by_field() {
    type Change = fn(&mut PodSpec);
    let table: [(&str, Change); 16] = [
        ("metadata.name", |s| s.name.clear()),
        ("log_directory", |s| s.log_directory = "logs".into()),
        ("cgroup_parent", |s| s.cgroup_parent = "kubepods.slice".into()),
        ("cgroup_parent", |s| s.cgroup_parent = "/a/../b".into()),
        ("hostname", |s| s.hostname = "x".repeat(65)),
        ("hostname", |s| s.hostname = "a\nnameserver 6.6.6.6".into()),
        ("network", |s| s.security.namespaces.network = NamespaceMode::Container),
        ("pid", |s| s.security.namespaces.pid = NamespaceMode::Target),
        ("run_as_group", |s| s.security.user.gid = Some(1)),
        ("userns_options", |s| s.security.namespaces.user = user(NamespaceMode::Pod, 2, 0)),
        ("userns_options", |s| s.security.namespaces.user = user(NamespaceMode::Pod, 1, 5)),
        ("userns_options", |s| s.security.namespaces.user = user(NamespaceMode::Node, 1, 0)),
        ("userns_options", |s| s.security.namespaces.user = user(NamespaceMode::Container, 0, 0)),
        ("sysctls", |s| _ = s.sysctls.insert("kernel.panic".into(), "1".into())),
        ("sysctls", |s| _ = s.sysctls.insert("net.ipv4/../../kernel.panic".into(), "1".into())),
        ("port_mappings.host_ip", |s| s.port_mappings[0].host_ip = "localhost".into()),
    ];
    let mapping = PortMapping { container_port: 80, host_port: 8080, ..PortMapping::default() };
    let good = PodSpec { port_mappings: vec![mapping], ..pod("web") };
    let features = Features { recursive_readonly_mounts: true, user_namespaces: true, ..Features::default() };
    check(&good, features).unwrap();
    for (field, change) in table {
        let mut spec = good.clone();
        change(&mut spec);
        let error = check(&spec, features).unwrap_err();
        assert!(error.chain().starts_with(field), "{field}: {}", error.chain());
    }
}

fn user(mode: NamespaceMode, lines: usize, container_id: u32) -> Option<UserNamespace> {
    let map = vec![IdMapping { container_id, host_id: 65536, length: 65536 }; lines];
    Some(UserNamespace { mode, uids: map.clone(), gids: map })
}

#[test]
fn sysctls_are_the_pods_only_where_the_namespace_is() {
    let mut spec = pod("web");
    for name in ["net.core.somaxconn", "kernel.shm_rmid_forced", "fs.mqueue.msg_max", "net/ipv4/ip_forward"] {
        spec.sysctls.insert(name.into(), "1".into());
    }
    check(&spec, Features::default()).unwrap();
    spec.security.namespaces.ipc = NamespaceMode::Node;
    assert!(check(&spec, Features::default()).unwrap_err().chain().contains("would change the node"));
}

#[test]
fn the_effective_request_has_the_nodes_defaults() {
    let spec = effective(&PodSpec { hostname: String::new(), ..pod("web") }, "node", true);
    assert_eq!((spec.hostname.as_str(), spec.sysctls.len()), ("node", 2));
    let mut own = pod("web");
    own.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "80".into());
    assert_eq!(effective(&own, "node", true).sysctls["net.ipv4.ip_unprivileged_port_start"], "80");
    own.security.namespaces.network = NamespaceMode::Node;
    own.sysctls.clear();
    assert!(effective(&own, "node", true).sysctls.is_empty());
}

fn record(spec: PodSpec) -> PodRecord {
    PodRecord {
        id: "0123".into(),
        created_at: 1,
        boot_id: String::new(),
        handler: String::new(),
        cgroup: "/c".into(),
        spec: spec.into(),
        selinux: None,
    }
}

#[test]
fn only_mappings_with_a_host_port_are_published() {
    let mapping = |host_port| PortMapping { container_port: 80, host_port, ..PortMapping::default() };
    let spec = PodSpec { port_mappings: vec![mapping(0), mapping(8080)], ..pod("web") };
    let ports = endpoint(&record(spec.clone())).unwrap().host_ports;
    assert_eq!(ports.iter().map(|p| p.host_port).collect::<Vec<_>>(), [8080]);
    let mut host = spec;
    host.security.namespaces.network = NamespaceMode::Node;
    assert!(endpoint(&record(host)).unwrap().host_ports.is_empty());
}

#[test]
fn files_hold_what_was_asked_or_what_the_node_has() {
    let node = Node::new();
    let dir = node.config.state.join("files");
    std::fs::create_dir_all(&dir).unwrap();
    let config =
        Config { resolv_conf: dir.join("node-resolv"), hosts_file: dir.join("absent"), ..Config::default() };
    std::fs::write(dir.join("node-resolv"), "nameserver 9.9.9.9\n").unwrap();
    let dns = Dns {
        servers: vec!["10.0.0.10".into()],
        searches: vec!["a".into(), "b".into()],
        options: vec!["ndots:5".into()],
    };
    let mut spec = PodSpec { dns: Some(dns), ..pod("web") };
    files::write(&dir, &config, &spec, &["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()]).unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(read("resolv.conf"), "nameserver 10.0.0.10\nsearch a b\noptions ndots:5\n");
    assert!(read("hosts").ends_with("10.1.2.3\tweb\nfd00::3\tweb\n"));
    spec.dns = None;
    spec.security.namespaces.network = NamespaceMode::Node;
    files::write(&dir, &config, &spec, &[]).unwrap();
    assert_eq!((read("resolv.conf").as_str(), read("hosts").as_str()), ("nameserver 9.9.9.9\n", ""));
    assert_eq!(read("hostname").trim(), files::node_name());
}

#[test]
fn updated_resources_are_shown_in_the_request() {
    let resources = Resources { cpu_shares: 5, ..Resources::default() };
    let status = PodStatus { resources: Some(resources.clone()), ..PodStatus::default() };
    let state = State { record: record(pod("web")).into(), status, containers: Default::default() };
    assert_eq!(state.view(0).spec.resources, Some(resources));
}
