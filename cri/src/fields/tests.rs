//! Promises of the table: it is complete, and each row is true of a request that sets the field alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use engine::Error;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value,
};

use super::table::ROWS;
use super::*;
use crate::proto;
use crate::server::tests::reads;
use crate::server::*;

type Name = (String, String);

fn pool() -> DescriptorPool {
    DescriptorPool::decode(proto::SCHEMA).unwrap()
}

/// Requests of all RPCs.
fn requests(pool: &DescriptorPool) -> Vec<MessageDescriptor> {
    let services = pool.services().filter(|s| s.package_name() == "runtime.v1");
    services.flat_map(|s| s.methods().map(|m| m.input()).collect::<Vec<_>>()).collect()
}

/// Every field below `message`, each with the way to it.
fn paths(message: &MessageDescriptor) -> Vec<Vec<FieldDescriptor>> {
    let below = |field: FieldDescriptor| {
        let nested = match field.kind() {
            Kind::Message(inner) if !field.is_map() => paths(&inner),
            _ => Vec::new(),
        };
        let way = |rest: Vec<FieldDescriptor>| std::iter::once(field.clone()).chain(rest).collect();
        std::iter::once(vec![field.clone()]).chain(nested.into_iter().map(way)).collect::<Vec<_>>()
    };
    message.fields().flat_map(below).collect()
}

fn name(field: &FieldDescriptor) -> Name {
    (field.parent_message().name().to_owned(), field.name().to_owned())
}

#[test]
fn every_field_of_every_request_has_exactly_one_row() {
    let pool = pool();
    let schema: BTreeSet<Name> =
        requests(&pool).iter().flat_map(paths).filter_map(|path| path.last().map(name)).collect();
    let rows: Vec<Name> = ROWS.iter().map(|r| (r.message.to_owned(), r.field.to_owned())).collect();
    let table: BTreeSet<Name> = rows.iter().cloned().collect();
    assert_eq!(rows.len(), table.len(), "a field has two rows");
    assert_eq!(schema.difference(&table).collect::<Vec<_>>(), Vec::<&Name>::new(), "fields without a row");
    assert_eq!(table.difference(&schema).collect::<Vec<_>>(), Vec::<&Name>::new(), "rows without a field");
}

/// What a request comes to, as the engine is told it; `None`: only a running service can tell (`server/tests.rs`).
fn outcome(request: &DynamicMessage) -> Option<Result<String, Error>> {
    fn read<M: Message + Default>(request: &DynamicMessage) -> M {
        M::decode(request.encode_to_vec().as_slice()).unwrap()
    }
    fn shown<T: Debug>(value: Result<T, Error>) -> Option<Result<String, Error>> {
        Some(value.map(|v| format!("{v:?}")))
    }
    match request.descriptor().name() {
        "VersionRequest" => shown(Ok(version::handle(&read(request)))),
        "UpdateRuntimeConfigRequest" => shown(Ok(update_runtime_config::job(read(request)))),
        "RunPodSandboxRequest" => shown(run_pod_sandbox::job(read(request))),
        "StopPodSandboxRequest" => shown(Ok(stop_pod_sandbox::job(read(request)))),
        "RemovePodSandboxRequest" => shown(Ok(remove_pod_sandbox::job(read(request)))),
        "UpdatePodSandboxResourcesRequest" => shown(update_pod_sandbox_resources::job(read(request))),
        "CreateContainerRequest" => shown(create_container::job(read(request))),
        "StartContainerRequest" => shown(Ok(start_container::job(read(request)))),
        "StopContainerRequest" => shown(Ok(stop_container::job(read(request)))),
        "RemoveContainerRequest" => shown(Ok(remove_container::job(read(request)))),
        "UpdateContainerResourcesRequest" => shown(update_container_resources::job(read(request))),
        "ReopenContainerLogRequest" => shown(Ok(reopen_container_log::job(read(request)))),
        "ExecSyncRequest" => shown(exec_sync::job(read(request))),
        "ExecRequest" => shown(Ok(exec::asked(read(request)))),
        "AttachRequest" => shown(Ok(attach::asked(read(request)))),
        "PortForwardRequest" => shown(Ok(port_forward::asked(read(request)))),
        "PullImageRequest" => shown(pull_image::job(read(request)).map(|job| {
            let secret = |c: storage::Credentials| {
                [c.username, c.password, c.auth, c.identity_token, c.registry_token, c.server_address]
            };
            (job.image, job.credentials.map(secret))
        })),
        "RemoveImageRequest" => shown(remove_image::job(read(request))),
        "ListPodSandboxRequest" => {
            shown(filter::Pods::of_list(read::<proto::ListPodSandboxRequest>(request).filter))
        }
        "StreamPodSandboxesRequest" => {
            shown(filter::Pods::of_list(read::<proto::StreamPodSandboxesRequest>(request).filter))
        }
        "ListContainersRequest" => {
            shown(filter::Containers::of_list(read::<proto::ListContainersRequest>(request).filter))
        }
        "StreamContainersRequest" => {
            shown(filter::Containers::of_list(read::<proto::StreamContainersRequest>(request).filter))
        }
        "ListContainerStatsRequest" => {
            shown(Ok(filter::Containers::of_stats(read::<proto::ListContainerStatsRequest>(request).filter)))
        }
        "StreamContainerStatsRequest" => shown(Ok(filter::Containers::of_stats(
            read::<proto::StreamContainerStatsRequest>(request).filter,
        ))),
        "ListPodSandboxStatsRequest" => {
            shown(Ok(filter::Pods::of_stats(read::<proto::ListPodSandboxStatsRequest>(request).filter)))
        }
        "StreamPodSandboxStatsRequest" => {
            shown(Ok(filter::Pods::of_stats(read::<proto::StreamPodSandboxStatsRequest>(request).filter)))
        }
        "ListImagesRequest" => shown(Ok(list_images::name(read::<proto::ListImagesRequest>(request).filter))),
        "StreamImagesRequest" => {
            shown(Ok(list_images::name(read::<proto::StreamImagesRequest>(request).filter)))
        }
        name @ ("CheckpointContainerRequest" | "CheckpointPodRequest" | "RestorePodRequest") => {
            shown(checkpoint::refuse::<()>(name))
        }
        _ => None,
    }
}

// === building requests ===

fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

fn list(values: impl IntoIterator<Item = Value>) -> Value {
    Value::List(values.into_iter().collect())
}

/// The least a message needs to be accepted.
fn least(message: &MessageDescriptor) -> Vec<(&'static str, Value)> {
    let inner = |field: &str| {
        let field = message.get_field_by_name(field).unwrap();
        let Kind::Message(inner) = field.kind() else { panic!("{} is no message", field.full_name()) };
        Value::Message(minimal(&inner))
    };
    match message.name() {
        "RunPodSandboxRequest" => vec![("config", inner("config"))],
        "CreateContainerRequest" => vec![("pod_sandbox_id", text("p")), ("config", inner("config"))],
        "PodSandboxConfig" => vec![("metadata", inner("metadata"))],
        "PodSandboxMetadata" => vec![("name", text("n")), ("uid", text("u")), ("namespace", text("ns"))],
        "ContainerConfig" => vec![("metadata", inner("metadata")), ("image", inner("image"))],
        "ContainerMetadata" => vec![("name", text("c"))],
        "ImageSpec" => vec![("image", text("busybox"))],
        "PullImageRequest" | "RemoveImageRequest" => vec![("image", inner("image"))],
        "ExecSyncRequest" => vec![("cmd", list([text("true")]))],
        "Mount" => vec![("container_path", text("/c")), ("host_path", text("/h"))],
        "Device" => vec![("host_path", text("/dev/null"))],
        "CDIDevice" => vec![("name", text("vendor/class=a"))],
        "KeyValue" => vec![("key", text("K"))],
        "PortMapping" => vec![("container_port", Value::I32(80))],
        "HugepageLimit" => vec![("page_size", text("2MB"))],
        "IDMapping" => vec![("host_id", Value::U32(1000)), ("length", Value::U32(65536))],
        "UserNamespace" => vec![("uids", list([inner("uids")])), ("gids", list([inner("gids")]))],
        "AuthConfig" => vec![("username", text("someone"))],
        _ => Vec::new(),
    }
}

fn minimal(message: &MessageDescriptor) -> DynamicMessage {
    let mut built = DynamicMessage::new(message.clone());
    for (field, value) in least(message) {
        built.set_field_by_name(field, value);
    }
    built
}

/// Fields without which another one says nothing.
fn companions(field: &FieldDescriptor) -> Vec<(&'static str, Value)> {
    let message = field.parent_message();
    let number = |value| {
        let wrapper = field.parent_pool().get_message_by_name("runtime.v1.Int64Value").unwrap();
        let mut built = DynamicMessage::new(wrapper);
        built.set_field_by_name("value", Value::I64(value));
        Value::Message(built)
    };
    let image = || {
        let spec = field.parent_pool().get_message_by_name("runtime.v1.ImageSpec").unwrap();
        Value::Message(minimal(&spec))
    };
    match (message.name(), field.name()) {
        ("NamespaceOption", "target_id") => vec![("pid", Value::EnumNumber(3))],
        ("SecurityProfile", "localhost_ref") => vec![("profile_type", Value::EnumNumber(2))],
        (_, "run_as_group") => vec![("run_as_user", number(1))],
        ("Mount", "recursive_read_only") => vec![("readonly", Value::Bool(true))],
        ("Mount", "image") => vec![("readonly", Value::Bool(true)), ("host_path", text(""))],
        ("Mount", "image_sub_path") => {
            vec![("readonly", Value::Bool(true)), ("host_path", text("")), ("image", image())]
        }
        _ => Vec::new(),
    }
}

/// A value that differs from the default and from what [`least`] has.
fn sample(field: &FieldDescriptor) -> Value {
    let special = match (field.parent_message().name(), field.name()) {
        ("DNSConfig", "servers") => Some(list([text("10.0.0.10")])),
        ("PortMapping", "host_ip") => Some(text("10.0.0.1")),
        ("ContainerConfig", "log_path") => Some(text("app/0.log")),
        ("LinuxContainerResources", "cpu_period") => Some(Value::I64(50_000)),
        ("LinuxContainerResources", "cpu_quota") => Some(Value::I64(20_000)),
        ("LinuxContainerResources", "cpuset_cpus" | "cpuset_mems") => Some(text("0-1")),
        ("LinuxContainerResources", "unified") => {
            Some(Value::Map([(MapKey::String("memory.low".into()), text("1"))].into()))
        }
        ("HugepageLimit", "page_size") => Some(text("1GB")),
        ("Mount", "mount_options") => Some(list([text("noexec")])),
        ("Device", "permissions") => Some(text("r")),
        ("CDIDevice", "name") => Some(text("vendor/class=b")),
        ("Capability", _) => Some(list([text("NET_ADMIN")])),
        (_, "seccomp_profile_path" | "apparmor_profile") => Some(text("unconfined")),
        _ => None,
    };
    special.unwrap_or_else(|| plain(field))
}

fn plain(field: &FieldDescriptor) -> Value {
    if field.is_map() {
        return Value::Map([(MapKey::String("key".into()), text("value"))].into());
    }
    let one = match field.kind() {
        Kind::String => text("/sample"),
        Kind::Bytes => Value::Bytes(vec![0xff, 1].into()),
        Kind::Bool => Value::Bool(true),
        Kind::Int32 => Value::I32(8080),
        Kind::Int64 => Value::I64(5),
        Kind::Uint32 => Value::U32(7),
        Kind::Uint64 => Value::U64(9),
        Kind::Enum(_) => Value::EnumNumber(1),
        Kind::Message(inner) => Value::Message(minimal(&inner)),
        other => panic!("{}: no sample of {other:?}", field.full_name()),
    };
    if field.is_list() { list([one]) } else { one }
}

/// A request that is the least acceptable but for the field at the end of `path`, which is set or not.
fn build(message: &MessageDescriptor, path: &[FieldDescriptor], set: bool) -> DynamicMessage {
    let mut built = minimal(message);
    let (field, rest) = path.split_first().unwrap();
    if rest.is_empty() {
        for (name, value) in companions(field) {
            built.set_field_by_name(name, value);
        }
        built.clear_field(field);
        if set {
            built.set_field(field, sample(field));
        }
        return built;
    }
    let Kind::Message(inner) = field.kind() else { panic!("{} leads nowhere", field.full_name()) };
    let value = Value::Message(build(&inner, rest, set));
    built.set_field(field, if field.is_list() { list([value]) } else { value });
    built
}

/// What happened without and with a field, over every way to it.
#[derive(Debug, Default)]
struct Seen {
    pairs: Vec<(Result<String, String>, Result<String, String>)>,
    /// It, or for a message one of its fields, made a difference.
    effective: bool,
}

fn seen() -> BTreeMap<Name, Seen> {
    let pool = pool();
    let mut all: BTreeMap<Name, Seen> = BTreeMap::new();
    let informational = |field: &FieldDescriptor| {
        let row =
            ROWS.iter().find(|row| (row.message, row.field) == (field.parent_message().name(), field.name()));
        row.is_some_and(|row| matches!(row.fate, Fate::Informational(_)))
    };
    for request in requests(&pool) {
        // What lies in a message that changes nothing changes nothing.
        let counts = |path: &Vec<FieldDescriptor>| !path[..path.len() - 1].iter().any(informational);
        for path in paths(&request).into_iter().filter(counts) {
            let run = |set| outcome(&build(&request, &path, set)).map(|r| r.map_err(|e| e.chain()));
            let (Some(without), Some(with)) = (run(false), run(true)) else { continue };
            for field in &path {
                all.entry(name(field)).or_default().effective |= without != with;
            }
            all.entry(name(path.last().unwrap())).or_default().pairs.push((without, with));
        }
    }
    all
}

#[test]
fn each_field_alone_does_what_its_row_says() {
    let all = seen();
    for row in ROWS {
        let key = (row.message.to_owned(), row.field.to_owned());
        let Some(seen) = all.get(&key) else {
            // What only a running service can answer is sent there.
            assert!(reads::ROWS.contains(&(row.message, row.field)), "{key:?} is never sent");
            continue;
        };
        match row.fate {
            Fate::Honoured(_) => {
                assert!(seen.effective, "{key:?} is said to be honoured and has no effect: {seen:?}");
            }
            Fate::Refused(_) => {
                let accepted = seen.pairs.iter().find(|(_, with)| with.is_ok());
                assert_eq!(accepted, None, "{key:?} is said to be refused");
            }
            Fate::Informational(why) => {
                assert!(!why.is_empty());
                let changed = seen.pairs.iter().find(|(without, with)| without.is_err() || without != with);
                assert_eq!(changed, None, "{key:?} is said to change nothing");
            }
        }
    }
}

#[test]
fn a_wrong_value_is_refused_by_the_name_of_its_field() {
    let pool = pool();
    for (request, path, value, expected) in [
        ("RunPodSandboxRequest", "config.metadata", None, "config.metadata"),
        ("RunPodSandboxRequest", "config.metadata.uid", Some(text("")), "config.metadata.uid"),
        ("RunPodSandboxRequest", "config.hostname", Some(text(&"x".repeat(65))), "config.hostname"),
        ("RunPodSandboxRequest", "config.log_directory", Some(text("relative")), "config.log_directory"),
        ("RunPodSandboxRequest", "config.dns_config.servers", Some(list([text("x")])), "servers[0]"),
        (
            "RunPodSandboxRequest",
            "config.port_mappings.container_port",
            Some(Value::I32(0)),
            "container_port",
        ),
        ("RunPodSandboxRequest", "config.port_mappings.host_port", Some(Value::I32(65_536)), "host_port"),
        ("RunPodSandboxRequest", "config.port_mappings.protocol", Some(Value::EnumNumber(9)), "protocol"),
        ("RunPodSandboxRequest", "config.linux.cgroup_parent", Some(text("/a/../b")), "cgroup_parent"),
        (
            "RunPodSandboxRequest",
            "config.linux.security_context.run_as_user.value",
            Some(Value::I64(-1)),
            "run_as_user",
        ),
        ("CreateContainerRequest", "config.image", None, "config.image"),
        ("CreateContainerRequest", "config.image.image", Some(text("")), "config.image.image"),
        ("CreateContainerRequest", "config.command", Some(list([text("a\0b")])), "config.command[0]"),
        ("CreateContainerRequest", "config.envs.key", Some(text("A=B")), "config.envs[0].key"),
        ("CreateContainerRequest", "config.envs.value", Some(Value::Bytes(vec![0].into())), "envs[0].value"),
        ("CreateContainerRequest", "config.mounts.host_path", Some(text("h")), "config.mounts[0].host_path"),
        (
            "CreateContainerRequest",
            "config.mounts.mount_options",
            Some(list([text("suid")])),
            "mount_options",
        ),
        ("CreateContainerRequest", "config.log_path", Some(text("../up")), "config.log_path"),
        ("CreateContainerRequest", "config.CDI_devices.name", Some(text("gpu0")), "CDI_devices[0].name"),
        ("CreateContainerRequest", "config.stop_signal", Some(Value::EnumNumber(99)), "config.stop_signal"),
        (
            "CreateContainerRequest",
            "config.linux.resources.unified",
            Some(Value::Map([(MapKey::String("../cgroup.procs".into()), text("1"))].into())),
            "unified",
        ),
        ("UpdateContainerResourcesRequest", "linux.cpu_period", Some(Value::I64(10)), "linux.cpu_period"),
        (
            "UpdatePodSandboxResourcesRequest",
            "resources.oom_score_adj",
            Some(Value::I64(2000)),
            "resources.oom_score_adj",
        ),
        ("ListContainersRequest", "filter.state.state", Some(Value::EnumNumber(7)), "filter.state"),
        ("ExecSyncRequest", "cmd", None, "cmd"),
    ] {
        let descriptor = pool.get_message_by_name(&format!("runtime.v1.{request}")).unwrap();
        let built = with_value(&descriptor, &path.split('.').collect::<Vec<_>>(), value);
        let error = outcome(&built).unwrap().unwrap_err();
        assert_eq!(error.kind(), engine::Kind::InvalidArgument, "{path}");
        assert!(error.chain().contains(expected), "{path} gave {}", error.chain());
    }
}

/// The least acceptable request but for one field, cleared or set to `value`.
fn with_value(message: &MessageDescriptor, path: &[&str], value: Option<Value>) -> DynamicMessage {
    let mut built = minimal(message);
    let (first, rest) = path.split_first().unwrap();
    let field = message.get_field_by_name(first).unwrap();
    match (rest, value) {
        ([], None) => built.clear_field(&field),
        ([], Some(value)) => built.set_field(&field, value),
        (rest, value) => {
            let Kind::Message(inner) = field.kind() else { panic!("{first} leads nowhere") };
            let value = Value::Message(with_value(&inner, rest, value));
            built.set_field(&field, if field.is_list() { list([value]) } else { value });
        }
    }
    built
}

/// Every request, once for each of its texts, which is `value` then: RPC, way to the field, request.
pub(crate) fn with_each_text(value: &str) -> Vec<(prost_reflect::MethodDescriptor, String, DynamicMessage)> {
    let pool = pool();
    let services = pool.services().filter(|s| s.package_name() == "runtime.v1");
    let methods: Vec<_> = services.flat_map(|s| s.methods().collect::<Vec<_>>()).collect();
    let mut all = Vec::new();
    for method in methods {
        for path in paths(&method.input()) {
            let field = path.last().unwrap();
            let one = match field.kind() {
                _ if field.is_map() => Value::Map([(MapKey::String(value.to_owned()), text(value))].into()),
                Kind::String => text(value),
                Kind::Bytes => Value::Bytes(value.as_bytes().to_vec().into()),
                _ => continue,
            };
            let one = if field.is_list() { list([one]) } else { one };
            let way: Vec<_> = path.iter().map(|field| field.name().to_owned()).collect();
            let names: Vec<_> = way.iter().map(String::as_str).collect();
            all.push((method.clone(), way.join("."), with_value(&method.input(), &names, Some(one))));
        }
    }
    all
}

#[test]
fn contradictions_are_refused() {
    type Pod = proto::LinuxSandboxSecurityContext;
    let pod = |change: fn(&mut Pod)| {
        let mut context =
            Pod { namespace_options: Some(proto::NamespaceOption::default()), ..Pod::default() };
        change(&mut context);
        let metadata = proto::PodSandboxMetadata {
            name: "n".into(),
            uid: "u".into(),
            namespace: "s".into(),
            attempt: 0,
        };
        let linux = proto::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
        let config =
            proto::PodSandboxConfig { metadata: Some(metadata), linux: Some(linux), ..Default::default() };
        run_pod_sandbox::job(proto::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: String::new(),
        })
    };
    fn user(context: &mut Pod, mode: proto::NamespaceMode, lines: &[(u32, u32, u32)]) {
        let line = |&(container_id, host_id, length)| proto::IdMapping { host_id, container_id, length };
        let lines: Vec<_> = lines.iter().map(line).collect();
        let userns = proto::UserNamespace { mode: mode.into(), uids: lines.clone(), gids: lines };
        context.namespace_options.as_mut().unwrap().userns_options = Some(userns);
    }
    use proto::NamespaceMode as Mode;
    assert!(pod(|_| {}).is_ok());
    assert!(pod(|c| user(c, Mode::Pod, &[(0, 65536, 65536)])).is_ok());
    assert!(pod(|c| user(c, Mode::Node, &[])).is_ok());
    type Change = fn(&mut Pod);
    let refused: [(Change, &str); 9] = [
        (|c| user(c, Mode::Pod, &[(0, 1, 1), (1, 5, 1)]), "exactly one mapping"),
        (|c| user(c, Mode::Pod, &[(1, 1, 1)]), "must map id 0"),
        (|c| user(c, Mode::Pod, &[(0, u32::MAX, 2)]), "no range"),
        (|c| user(c, Mode::Node, &[(0, 1, 1)]), "must be empty"),
        (|c| user(c, Mode::Container, &[]), "POD or NODE"),
        (|c| user(c, Mode::Target, &[]), "POD or NODE"),
        (|c| c.run_as_group = Some(proto::Int64Value { value: 1 }), "needs run_as_user"),
        (|c| c.namespace_options.as_mut().unwrap().network = Mode::Container.into(), "network"),
        (|c| c.namespace_options.as_mut().unwrap().pid = Mode::Target.into(), "pid"),
    ];
    for (change, expected) in refused {
        let error = pod(change).unwrap_err();
        assert_eq!(error.kind(), engine::Kind::InvalidArgument);
        assert!(error.chain().contains(expected), "{} has no {expected:?}", error.chain());
    }
}

#[test]
fn the_reference_is_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/fields.md");
    let expected = format!(
        "# Every field a client may send\n\nMade from `cri/src/fields/table.rs`; `BERTH_WRITE_DOCS=1 cargo test -p cri the_reference` writes it anew.\n\n{}",
        render()
    );
    if std::env::var_os("BERTH_WRITE_DOCS").is_some() {
        std::fs::write(path, &expected).unwrap();
    }
    assert!(std::fs::read_to_string(path).unwrap() == expected, "docs/fields.md is not what the table says");
}
