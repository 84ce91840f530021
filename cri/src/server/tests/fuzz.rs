//! Requests that decode but make no sense, against drivers that fail now and then.

use std::time::Duration;

use engine::testing::Act;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value,
};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use super::harness::*;
use crate::proto::*;

/// Calls of one run; the seed of a failing run is in its message.
const CALLS: usize = 1500;
/// Calls of the drivers that may fail.
const FRAGILE: [&str; 8] =
    ["create_namespace", "reserve", "attach", "detach", "launch", "start", "prepare", "mount"];

/// xorshift64*: small, seeded, the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % sides
    }

    fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.roll(among.len())]
    }
}

/// What strings may be: ids that exist, names, paths, limits of length, and nonsense.
fn text(dice: &mut Dice, ids: &[String]) -> String {
    let fixed =
        ["", "a", "/", "/etc", "../..", "relative/path", "\0", "é", IMAGE, "fake", "SYS_ADMIN", "ALL", "2MB"];
    match dice.roll(8) {
        0 | 1 if !ids.is_empty() => dice.pick(ids).clone(),
        2 if !ids.is_empty() => dice.pick(ids).chars().take(3).collect(),
        3 => "x".repeat(dice.roll(100_000)),
        _ => (*dice.pick(&fixed)).to_owned(),
    }
}

fn number(dice: &mut Dice) -> i64 {
    *dice.pick(&[0, 1, -1, 2, 80, 1000, 65_536, i64::from(i32::MAX), i64::MAX, i64::MIN])
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "any number will do")]
fn scalar(dice: &mut Dice, kind: &Kind, ids: &[String], depth: usize) -> Value {
    match kind {
        Kind::String => Value::String(text(dice, ids)),
        Kind::Bytes => Value::Bytes(text(dice, ids).into_bytes().into()),
        Kind::Bool => Value::Bool(dice.roll(2) == 1),
        Kind::Int32 => Value::I32(number(dice) as i32),
        Kind::Int64 => Value::I64(number(dice)),
        Kind::Uint32 => Value::U32(number(dice) as u32),
        Kind::Uint64 => Value::U64(number(dice) as u64),
        Kind::Enum(_) => Value::EnumNumber(i32::try_from(dice.roll(8)).unwrap() - 1),
        Kind::Message(inner) => Value::Message(message(dice, inner, ids, depth + 1)),
        other => panic!("no value of {other:?}"),
    }
}

fn value(dice: &mut Dice, field: &FieldDescriptor, ids: &[String], depth: usize) -> Value {
    if field.is_map() {
        let entry = |dice: &mut Dice| (MapKey::String(text(dice, ids)), Value::String(text(dice, ids)));
        let count = dice.roll(3);
        return Value::Map((0..count).map(|_| entry(dice)).collect());
    }
    if field.is_list() {
        let count = dice.roll(4);
        return Value::List((0..count).map(|_| scalar(dice, &field.kind(), ids, depth)).collect());
    }
    scalar(dice, &field.kind(), ids, depth)
}

/// A random message; the fields that a request cannot do without are usually set.
fn message(dice: &mut Dice, descriptor: &MessageDescriptor, ids: &[String], depth: usize) -> DynamicMessage {
    let mut built = DynamicMessage::new(descriptor.clone());
    let needed =
        ["config", "metadata", "name", "uid", "namespace", "image", "cmd", "pod_sandbox_id", "container_id"];
    for field in descriptor.fields() {
        let name = field.name().to_owned();
        let likely = if needed.contains(&name.as_str()) { 19 } else { 6 - depth.min(4) };
        if name != "windows" && dice.roll(20) < likely {
            built.set_field(&field, value(dice, &field, ids, depth));
        }
    }
    built
}

#[tokio::test]
async fn random_requests_are_answered_and_leave_nothing() {
    let seed = std::env::var("BERTH_FUZZ_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x5eed);
    let mut dice = Dice(seed);
    let mut daemon = Daemon::start().await;
    let pool = DescriptorPool::decode(SCHEMA).unwrap();
    let services = pool.services().filter(|s| s.package_name() == "runtime.v1");
    let methods: Vec<_> = services.flat_map(|s| s.methods().collect::<Vec<_>>()).collect();
    for n in 0..CALLS {
        if dice.roll(4) == 0 {
            let act = *dice.pick(&[Act::Fail, Act::FailAfter]);
            let call: &str = dice.pick::<&str>(&FRAGILE);
            daemon.node.script.on(call, [act]);
        }
        let ids: Vec<String> = {
            let engine = &daemon.service.engine;
            let pods = engine.pods().into_iter().map(|p| p.id.clone());
            pods.chain(engine.containers().into_iter().map(|c| c.id.clone())).collect()
        };
        let method = dice.pick(&methods).clone();
        let request = message(&mut dice, &method.input(), &ids, 0);
        let code = call(&daemon, &method, &request).await;
        let allowed = !matches!(code, Code::Unknown | Code::DataLoss | Code::Aborted);
        assert!(allowed, "seed {seed}, call {n}: {} answered {code:?} to {request:?}", method.name());
    }
    // Nothing fails any more: what failed calls left behind can be taken away.
    daemon.node.script.release();
    assert_eq!(daemon.clean().await, Vec::<String>::new(), "seed {seed}");
}

/// Sends it as raw bytes; streams are dropped after their first message.
async fn call(daemon: &Daemon, method: &prost_reflect::MethodDescriptor, request: &DynamicMessage) -> Code {
    let mut client = tonic::client::Grpc::new(daemon.channel.clone());
    client.ready().await.unwrap();
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name()).parse().unwrap();
    let bytes = Raw(request.encode_to_vec());
    let mut request = Request::new(bytes);
    request.set_timeout(Duration::from_secs(20));
    let codec: ProstCodec<Raw, ()> = ProstCodec::default();
    let answer = if method.is_server_streaming() {
        client.server_streaming(request, path, codec).await.map(drop)
    } else {
        client.unary(request, path, codec).await.map(drop)
    };
    answer.err().map_or(Code::Ok, |status| status.code())
}

/// Bytes that are already encoded.
#[derive(Clone, Debug, Default, PartialEq)]
struct Raw(Vec<u8>);

impl Message for Raw {
    fn encode_raw(&self, buf: &mut impl prost::bytes::BufMut) {
        buf.put_slice(&self.0);
    }
    fn merge_field(
        &mut self,
        _: u32,
        _: prost::encoding::WireType,
        _: &mut impl prost::bytes::Buf,
        _: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        Ok(())
    }
    fn encoded_len(&self) -> usize {
        self.0.len()
    }
    fn clear(&mut self) {
        self.0.clear();
    }
}
