//! One of the two runtimes: sends raw requests, and flattens its answers into facts that can be compared.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use prost::bytes::{Buf, BufMut};
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, MessageDescriptor, ReflectMessage, Value,
};
use tokio::net::UnixStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};

/// What an answer says, by path of the field; `code` is the gRPC code.
pub(super) type Facts = BTreeMap<String, String>;

/// The RPCs of the other service.
const IMAGES: [&str; 5] = ["ImageStatus", "ListImages", "PullImage", "RemoveImage", "ImageFsInfo"];
/// Fields whose value tells one run from the next, or one program from the other: only whether they are set counts.
const PRESENCE: [&str; 28] = [
    "created_at",
    "started_at",
    "finished_at",
    "timestamp",
    "url",
    "runtime_name",
    "runtime_version",
    "ip",
    "size",
    "value",
    "mountpoint",
    "message",
    "log_path",
    "id",
    "image_ref",
    "image_id",
    "pod_sandbox_id",
    "container_id",
    "repo_digests",
    "Avg10",
    "Avg60",
    "Avg300",
    "Total",
    "avg10",
    "avg60",
    "avg300",
    "total",
    "info",
];

/// Fields that are there or not as time would have it: they need two readings some time apart.
const MATTER_OF_TIME: [&str; 1] = ["usage_nano_cores"];

/// A connection, and the schema.
#[derive(Debug)]
pub(super) struct Runtime {
    channel: Channel,
    pool: DescriptorPool,
}

impl Runtime {
    pub(super) async fn connect(socket: &Path) -> Result<Self> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
        Ok(Self { channel, pool: DescriptorPool::decode(cri::proto::SCHEMA)? })
    }

    /// Sends an encoded request and decodes the answer.
    pub(super) async fn call(&self, rpc: &str, request: Vec<u8>) -> Result<Result<DynamicMessage, Status>> {
        let service = if IMAGES.contains(&rpc) { "ImageService" } else { "RuntimeService" };
        let descriptor =
            self.pool.get_service_by_name(&format!("runtime.v1.{service}")).context("service")?;
        let method = descriptor.methods().find(|method| method.name() == rpc).context("method")?;
        let mut client = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(16 << 20);
        client.ready().await?;
        let mut request = Request::new(request);
        request.set_timeout(Duration::from_secs(60));
        let path = format!("/runtime.v1.{service}/{rpc}").parse()?;
        Ok(match client.unary(request, path, Raw).await {
            Ok(answer) => Ok(DynamicMessage::decode(method.output(), answer.into_inner().as_slice())?),
            Err(status) => Err(status),
        })
    }
}

/// What an answer says. Lists are sorted: their order means nothing in the CRI.
pub(super) fn facts(answer: &Result<DynamicMessage, Status>) -> Facts {
    let mut facts = Facts::new();
    match answer {
        Ok(message) => {
            facts.insert("code".to_owned(), format!("{:?}", Code::Ok));
            flatten("", message, &mut facts);
        }
        Err(status) => drop(facts.insert("code".to_owned(), format!("{:?}", status.code()))),
    }
    facts
}

fn flatten(at: &str, message: &DynamicMessage, facts: &mut Facts) {
    let there = |field: &FieldDescriptor| message.has_field(field) && !MATTER_OF_TIME.contains(&field.name());
    for field in message.descriptor().fields().filter(there) {
        let dot = if at.is_empty() { "" } else { "." };
        let path = format!("{at}{dot}{}", field.name());
        let value = message.get_field(&field);
        match &*value {
            _ if PRESENCE.contains(&field.name()) => drop(facts.insert(path, "set".to_owned())),
            Value::Message(inner) => {
                facts.insert(path.clone(), "set".to_owned());
                flatten(&path, inner, facts);
            }
            Value::List(items) => list(&path, items, facts),
            Value::Map(entries) => {
                for (key, value) in entries {
                    facts.insert(format!("{path}[{key:?}]"), format!("{value:?}"));
                }
            }
            Value::EnumNumber(number) => {
                let name = field.kind().as_enum().and_then(|kind| kind.get_value(*number));
                facts.insert(path, name.map_or_else(|| number.to_string(), |value| value.name().to_owned()));
            }
            other => drop(facts.insert(path, format!("{other:?}"))),
        }
    }
}

/// How many there are, and what they all say together.
fn list(path: &str, items: &[Value], facts: &mut Facts) {
    facts.insert(format!("{path}.#"), items.len().to_string());
    let mut plain = Vec::new();
    let mut items: Vec<_> = items.iter().collect();
    items.sort_by_cached_key(|item| object_name(item));
    for item in items {
        match item {
            Value::Message(inner) => flatten(&format!("{path}[]"), inner, facts),
            other => plain.push(format!("{other:?}")),
        }
    }
    if !plain.is_empty() {
        plain.sort();
        facts.insert(path.to_owned(), plain.join(", "));
    }
}

/// The name in the metadata of a listed pod or container, or of whose statistics are listed; nothing for what has none.
fn object_name(item: &Value) -> Option<String> {
    let item = item.as_message()?;
    let attributes = item.get_field_by_name("attributes");
    let about = attributes.as_deref().and_then(Value::as_message).unwrap_or(item);
    let metadata = about.get_field_by_name("metadata")?;
    Some(metadata.as_message()?.get_field_by_name("name")?.as_str()?.to_owned())
}

/// A string field of an answer.
pub(super) fn text(answer: &Result<DynamicMessage, Status>, field: &str) -> Option<String> {
    let message = answer.as_ref().ok()?;
    Some(message.get_field_by_name(field)?.as_str()?.to_owned())
}

/// Name of the enum value in a nested field, as `status.state`.
pub(super) fn state(answer: &Result<DynamicMessage, Status>) -> Option<String> {
    facts(answer).remove("status.state").or_else(|| Some(default_state(&answer.as_ref().ok()?.descriptor())))
}

/// The states whose number is 0 are not on the wire.
fn default_state(answer: &MessageDescriptor) -> String {
    let pod = answer.name() == "PodSandboxStatusResponse";
    (if pod { "SANDBOX_READY" } else { "CONTAINER_CREATED" }).to_owned()
}

/// Bytes as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length).to_vec()))
    }
}
