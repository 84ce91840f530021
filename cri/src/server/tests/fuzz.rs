//! Requests that decode but make no sense, against drivers that fail now and then.

use std::time::Duration;

use engine::api::PodView;
use engine::testing::Act;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, MethodDescriptor, Value,
};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use super::harness::*;
use super::refusals::Raw;
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

/// A daemon, the dice, and what has been promised so far.
struct Run {
    daemon: Daemon,
    dice: Dice,
    methods: Vec<MethodDescriptor>,
    seed: u64,
}

impl Run {
    async fn begin(seed: u64) -> Self {
        let pool = DescriptorPool::decode(SCHEMA).unwrap();
        let services = pool.services().filter(|s| s.package_name() == "runtime.v1");
        let methods = services.flat_map(|s| s.methods().collect::<Vec<_>>()).collect();
        Self { daemon: Daemon::start().await, dice: Dice(seed | 1), methods, seed }
    }

    /// One random call, after which the invariants must hold.
    async fn call(&mut self, number: usize) {
        if self.dice.roll(4) == 0 {
            let act = *self.dice.pick(&[Act::Fail, Act::FailAfter]);
            let call: &str = self.dice.pick::<&str>(&FRAGILE);
            self.daemon.node.script.on(call, [act]);
        }
        let ids: Vec<String> = {
            let engine = &self.daemon.service.engine;
            let pods = engine.pods().into_iter().map(|p| p.id.clone());
            pods.chain(engine.containers().into_iter().map(|c| c.id.clone())).collect()
        };
        let method = self.dice.pick(&self.methods).clone();
        let request = message(&mut self.dice, &method.input(), &ids, 0);
        let code = call(&self.daemon, &method, &request).await;
        let allowed = !matches!(code, Code::Unknown | Code::DataLoss | Code::Aborted);
        let at =
            format!("seed {}, call {number}: {} answered {code:?} to {request:?}", self.seed, method.name());
        assert!(allowed, "{at}");
        self.invariants(&at);
    }

    /// What holds between any two calls.
    fn invariants(&self, at: &str) {
        let engine = &self.daemon.service.engine;
        let pods = engine.pods();
        for (n, pod) in pods.iter().enumerate() {
            let identity = |p: &PodView| {
                (p.spec.namespace.clone(), p.spec.name.clone(), p.spec.uid.clone(), p.spec.attempt)
            };
            let twins = pods[..n].iter().filter(|other| identity(other) == identity(pod));
            assert_eq!(twins.count(), 0, "two pods are one: {at}");
            assert!(pod.created_at > 0, "{at}");
        }
        for container in engine.containers() {
            assert!(engine.pod(&container.pod).is_ok(), "a container without a pod: {at}");
            assert!(engine.store().find(&container.image_id).is_some(), "its image is gone: {at}");
        }
    }

    /// Nothing fails any more: what failed calls left behind can be taken away.
    async fn end(mut self) {
        self.daemon.node.script.release();
        self.daemon.settled().await;
        assert_eq!(self.daemon.clean().await, Vec::<String>::new(), "seed {}", self.seed);
    }
}

/// `BERTH_FUZZ_SEED` and `BERTH_FUZZ_CALLS` make it repeat a run, or a long one.
#[tokio::test]
async fn random_requests_are_answered_and_leave_nothing() {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse().ok());
    let mut run = Run::begin(number("BERTH_FUZZ_SEED").unwrap_or(0x5eed)).await;
    for n in 0..number("BERTH_FUZZ_CALLS").map_or(CALLS, |n| usize::try_from(n).unwrap()) {
        run.call(n).await;
    }
    run.end().await;
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 8, ..Default::default() })]

    #[test]
    fn short_random_runs_from_any_seed_keep_the_invariants(seed in 0_u64.., calls in 1_usize..120) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut run = Run::begin(seed).await;
            for n in 0..calls {
                run.call(n).await;
            }
            run.end().await;
        });
    }
}

/// Sends it as raw bytes; streams are dropped after their first message.
async fn call(daemon: &Daemon, method: &MethodDescriptor, request: &DynamicMessage) -> Code {
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
