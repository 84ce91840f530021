//! Berth's schema and the independent one of `k8s-cri` read each other's messages, and its client drives our daemon.
//!
//! Each message `k8s-cri` knows is filled, every field of it, from its descriptor, and makes the round through both
//! generated codes. A message or field that one side lacks or numbers otherwise does not come back.

mod messages;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1 as api;
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MapKey, MessageDescriptor, Value};

use super::{node, wait};
use crate::client;
use crate::images::BUSYBOX;
use crate::report::Report;
use crate::world::World;

/// Runs the suite.
///
/// # Errors
/// The schema of `k8s-cri` is not where cargo keeps it, or the daemon does not start.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    let theirs = their_schema(world)?;
    let ours = DescriptorPool::decode(cri::proto::SCHEMA)?;
    report.case("every message of k8s-cri makes the round in both directions", || every_message(&theirs));
    report.case("every RPC of k8s-cri has the same types, and the missing ones are ours alone", || {
        methods(&theirs, &ours)
    });
    let (mut node, before) = node(world, "compat")?;
    report.case("its client drives the daemon through the life of a pod", || wait(life(&node)));
    report.case("leaves nothing behind", || node.settle(&before));
    Ok(())
}

/// Compiles the proto file that the crate brings.
fn their_schema(world: &World) -> Result<DescriptorPool> {
    // Restricted to this platform: the crates of the others were never downloaded.
    let rustc = crate::shell::run(20, "rustc", &["-vV"])?;
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).context("the host of rustc")?;
    let manifest = world.tree.join("Cargo.toml").display().to_string();
    let mut args = vec!["metadata", "--format-version=1", "--locked", "--offline"];
    args.extend(["--filter-platform", host, "--manifest-path", &manifest]);
    let metadata: serde_json::Value = serde_json::from_str(&crate::shell::run(60, "cargo", &args)?)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let package = packages.iter().find(|package| package["name"] == "k8s-cri").context("k8s-cri")?;
    let path = package["manifest_path"].as_str().context("manifest_path")?;
    let dir = std::path::Path::new(path).parent().context("a manifest is in a directory")?.join("proto");
    Ok(DescriptorPool::from_file_descriptor_set(protox::compile(["v1.proto"], [dir])?)?)
}

fn every_message(theirs: &DescriptorPool) -> Result<()> {
    let mut count = 0;
    for message in theirs.all_messages().filter(|message| message.package_name() == "runtime.v1") {
        if message.is_map_entry() {
            continue;
        }
        let name = message.name();
        let round =
            messages::round(name).with_context(|| format!("{name} is not in the list of messages"))?;
        let bytes = fill(&message, 0);
        let sent = DynamicMessage::decode(message.clone(), bytes.as_slice())?;
        for (direction, returned) in
            [("theirs to ours", (round.ours)(&bytes)?), ("ours to theirs", (round.both)(&bytes)?)]
        {
            let received = DynamicMessage::decode(message.clone(), returned.as_slice())?;
            ensure!(sent == received, "{name}, {direction}: sent {sent:?}, received {received:?}");
        }
        count += 1;
    }
    ensure!(count > 100, "only {count} messages");
    Ok(())
}

/// A message with a telling value in every field; recursion ends where a message would contain itself again.
fn fill(message: &MessageDescriptor, depth: u8) -> Vec<u8> {
    let mut filled = DynamicMessage::new(message.clone());
    for field in message.fields() {
        let number = field.number();
        let single = |kind: Kind| match kind {
            Kind::Message(inner) if depth > 6 => Value::Message(DynamicMessage::new(inner)),
            Kind::Message(inner) => {
                let bytes = fill(&inner, depth + 1);
                Value::Message(
                    DynamicMessage::decode(inner.clone(), bytes.as_slice())
                        .unwrap_or_else(|_| DynamicMessage::new(inner)),
                )
            }
            Kind::Enum(inner) => Value::EnumNumber(inner.values().last().map_or(0, |value| value.number())),
            Kind::Bool => Value::Bool(true),
            Kind::String => Value::String(format!("value {number}")),
            Kind::Bytes => Value::Bytes(vec![104, 105].into()),
            Kind::Double => Value::F64(1.5),
            Kind::Float => Value::F32(2.5),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(-i32::try_from(number).unwrap_or(1)),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(-i64::from(number) - (1 << 40)),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(number),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(u64::from(number) + (1 << 40)),
        };
        let value = if field.is_map() {
            let Kind::Message(entry) = field.kind() else { continue };
            Value::Map(
                [(MapKey::String(format!("key {number}")), single(entry.map_entry_value_field().kind()))]
                    .into(),
            )
        } else if field.is_list() {
            Value::List(vec![single(field.kind()), single(field.kind())])
        } else {
            single(field.kind())
        };
        filled.set_field(&field, value);
    }
    prost::Message::encode_to_vec(&filled)
}

fn methods(theirs: &DescriptorPool, ours: &DescriptorPool) -> Result<()> {
    let mut known = 0;
    for service in theirs.services().filter(|service| service.package_name() == "runtime.v1") {
        let own =
            ours.get_service_by_name(service.full_name()).with_context(|| service.full_name().to_owned())?;
        for method in service.methods() {
            let same = own.methods().find(|candidate| candidate.name() == method.name());
            let same = same.with_context(|| method.full_name().to_owned())?;
            ensure!(
                same.input().full_name() == method.input().full_name(),
                "{} takes something else",
                method.name()
            );
            ensure!(
                same.output().full_name() == method.output().full_name(),
                "{} gives something else",
                method.name()
            );
            ensure!(
                same.is_server_streaming() == method.is_server_streaming(),
                "{} streams otherwise",
                method.name()
            );
            known += 1;
        }
    }
    let all: usize = ours
        .services()
        .filter(|service| service.package_name() == "runtime.v1")
        .map(|service| service.methods().len())
        .sum();
    ensure!(known == 34 && all == 43, "k8s-cri has {known} RPCs of 34, Berth {all} of 43");
    Ok(())
}

/// Version to RemoveImage with the foreign client.
async fn life(node: &crate::node::Node) -> Result<()> {
    let mut client = node.client().await?;
    let version = client.runtime.version(api::VersionRequest { version: "0.1.0".into() }).await?.into_inner();
    ensure!(version.version == "0.1.0" && version.runtime_api_version == "v1", "{version:?}");
    let image = client.pull(BUSYBOX).await?;
    let config = client::pod("compat", &node.dir.join("logs"));
    let pod = client.run_pod(&config).await?;
    let mut spec = client::container("main", BUSYBOX, &["sleep", "100"]);
    spec.envs = vec![api::KeyValue { key: "A".into(), value: "ä b".into() }];
    let container = client.create(&pod, &spec, &config).await?;
    client.start(&container).await?;
    let status = client.status(&container).await?;
    ensure!(
        status.image_id == image && status.state() == api::ContainerState::ContainerRunning,
        "{status:?}"
    );
    let output = client.exec(&container, &["sh", "-c", "echo \"$A\""]).await?;
    ensure!(output.stdout == "ä b\n".as_bytes() && output.exit_code == 0, "{output:?}");
    client.remove_pod(&pod).await?;
    let image = Some(api::ImageSpec { image: BUSYBOX.into(), ..Default::default() });
    client.image.remove_image(api::RemoveImageRequest { image }).await?;
    Ok(())
}
