//! A double of systemd's manager for tests: it takes D-Bus messages apart by their signatures, byte for byte, and makes cgroups as
//! systemd does. Written from the specification alone: it shares no code with the client it checks.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod dbus;

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use self::dbus::{Any, Call, field_text, field_u32, greet, properties, put, removed, send, text_body};

/// What happens at a call instead of success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// An error with this name (behind `org.freedesktop.systemd1.`).
    Fail(&'static str),
    /// No answer, ever.
    Hang,
    /// The job ends like this.
    Job(&'static str),
    /// The connection ends.
    Close,
    /// The job's end is first told by somebody else, and told wrong.
    Forged,
    /// All is done, but in another place.
    Elsewhere,
}

#[derive(Default)]
struct State {
    acts: BTreeMap<&'static str, VecDeque<Act>>,
    calls: Vec<String>,
    /// Cgroup and properties, by name.
    units: BTreeMap<String, (String, BTreeMap<String, String>)>,
    jobs: u32,
}

/// The double.
pub struct Systemd {
    pub path: PathBuf,
    server: Server,
}

/// What serves its connections.
#[derive(Clone)]
struct Server {
    shared: bool,
    state: Arc<Mutex<State>>,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Systemd {
    /// One behind its own socket.
    pub fn private() -> Self {
        Self::new(false)
    }

    /// One on a message bus.
    pub fn on_a_bus() -> Self {
        Self::new(true)
    }

    fn new(shared: bool) -> Self {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/tmp/berth-bus-{}-{count}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let server = Server { shared, state: Arc::default() };
        let this = Self { path, server: server.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let server = server.clone();
                std::thread::spawn(move || server.serve(&mut stream.unwrap()));
            }
        });
        this
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.server.state()
    }

    /// Whether it is on a bus.
    pub fn is_a_bus(&self) -> bool {
        self.server.shared
    }

    /// The address as the environment has it.
    pub fn address(&self) -> String {
        format!("unix:path={}", self.path.display())
    }

    /// What is to happen at the next calls of a method.
    pub fn on(&self, member: &'static str, acts: impl IntoIterator<Item = Act>) {
        self.state().acts.entry(member).or_default().extend(acts);
    }

    /// The calls so far: method, and unit if it has one. They are forgotten.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    /// Names of all units.
    pub fn units(&self) -> Vec<String> {
        self.state().units.keys().cloned().collect()
    }

    /// Removes the cgroups of what is left, in which nobody may be.
    pub fn close(&self) {
        for (cgroup, _) in self.state().units.values() {
            remove_from(&hierarchies(), cgroup);
        }
        assert!(
            self.state()
                .units
                .values()
                .all(|(cgroup, _)| hierarchies().iter().all(|h| !h.join(&cgroup[1..]).exists()))
        );
    }

    /// A property as it is told: its type and value.
    pub fn property(&self, unit: &str, name: &str) -> Option<String> {
        self.state().units.get(unit).and_then(|(_, all)| all.get(name).cloned())
    }
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn serve(&self, stream: &mut UnixStream) {
        if !greet(stream) {
            return;
        }
        let mut said_hello = !self.shared;
        while let Some(call) = Call::read(stream) {
            if call.destination == "org.freedesktop.DBus" {
                assert!(self.shared, "there is no bus here");
                said_hello |= call.member == "Hello";
                if call.member == "AddMatch" {
                    let rule = call.body[0].text();
                    assert!(rule.contains("member='JobRemoved'") && rule.contains("type='signal'"), "{rule}");
                }
                let body = if call.member == "Hello" { text_body(":1.9") } else { ("", Vec::new()) };
                send(
                    stream,
                    2,
                    &[(5, field_u32(call.serial)), (7, field_text(b's', "org.freedesktop.DBus"))],
                    &body,
                );
                continue;
            }
            assert!(said_hello, "a bus serves nobody who has not said hello");
            assert_eq!(
                (call.destination.as_str(), call.path.as_str()),
                ("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
            );
            if !self.answer(stream, &call) {
                return;
            }
        }
    }

    /// Answers one call; `false`: the connection is over.
    fn answer(&self, stream: &mut UnixStream, call: &Call) -> bool {
        let unit = call.body.first().filter(|first| matches!(first, Any::Text(_))).map(Any::text);
        let act = {
            let mut state = self.state();
            if call.member != "Get" && call.member != "Subscribe" {
                state.calls.push([&call.member, unit.unwrap_or_default()].join(" ").trim_end().to_owned());
            }
            state.acts.get_mut(call.member.as_str()).and_then(VecDeque::pop_front)
        };
        match act {
            Some(Act::Hang) => std::thread::park(),
            Some(Act::Close) => return false,
            Some(Act::Fail(name)) => self.fail(stream, call, name),
            act => match self.act(call, unit.unwrap_or_default(), act) {
                Err(name) => self.fail(stream, call, name),
                Ok(None) if call.member == "Get" => {
                    // A variant: signature, then the text at the next multiple of four.
                    let mut body = vec![1, b's', 0, 0];
                    body.extend_from_slice(&10u32.to_le_bytes());
                    body.extend_from_slice(b"252.39-1~x\0");
                    self.reply(stream, call, &("v", body));
                }
                Ok(None) => self.reply(stream, call, &("", Vec::new())),
                Ok(Some(job)) => {
                    self.reply(stream, call, &("o", put(job.as_str())));
                    if act == Some(Act::Forged) {
                        removed(stream, ":1.666", &job, unit.unwrap_or_default(), "failed");
                    }
                    removed(
                        stream,
                        self.name(),
                        "/org/freedesktop/systemd1/job/0",
                        "other.service",
                        "failed",
                    );
                    let result = if let Some(Act::Job(result)) = act { result } else { "done" };
                    removed(stream, self.name(), &job, unit.unwrap_or_default(), result);
                }
            },
        }
        true
    }

    /// Does what a call asks for; a path: the job that does it.
    fn act(&self, call: &Call, unit: &str, act: Option<Act>) -> Result<Option<String>, &'static str> {
        let mut state = self.state();
        state.jobs += 1;
        let job = format!("/org/freedesktop/systemd1/job/{}", state.jobs);
        let known = state.units.get(unit).map(|(cgroup, _)| cgroup.clone());
        match (call.member.as_str(), call.signature.as_str()) {
            ("StartTransientUnit", "ssa(sv)a(sa(sv))") => {
                assert_eq!((call.body[1].text(), call.body[3].list()), ("replace", &[][..]));
                if known.is_some() {
                    return Err("UnitExists");
                }
                let properties = properties(&call.body[2]);
                if matches!(act, Some(Act::Job(_))) {
                    return Ok(Some(job));
                }
                let cgroup = match properties.get("Slice") {
                    Some(slice) => format!("{}/{unit}", expand(slice.strip_prefix("s ").unwrap())),
                    None => expand(unit),
                };
                let cgroup = if act == Some(Act::Elsewhere) { format!("/elsewhere{cgroup}") } else { cgroup };
                let pids = properties.get("PIDs").map(|pids| pids.strip_prefix("au ").unwrap().to_owned());
                assert_eq!(
                    pids.is_some(),
                    unit.ends_with(".scope"),
                    "a scope has processes, a slice has none"
                );
                make(&cgroup);
                pids.iter().flat_map(|p| p.split(',')).for_each(|pid| join(&cgroup, pid));
                state.units.insert(unit.to_owned(), (cgroup, properties));
                Ok(Some(job))
            }
            ("StopUnit", "ss") => {
                let cgroup = known.ok_or("NoSuchUnit")?;
                state.units.remove(unit);
                remove(&cgroup);
                Ok(Some(job))
            }
            ("ResetFailedUnit", "s") => known.map(|_| None).ok_or("NoSuchUnit"),
            ("AttachProcessesToUnit", "ssau") => {
                let cgroup = known.ok_or("NoSuchUnit")?;
                assert_eq!(call.body[1].text(), "");
                call.body[2].list().iter().for_each(|pid| join(&cgroup, &pid.shown()));
                Ok(None)
            }
            ("SetUnitProperties", "sba(sv)") => {
                let (cgroup, told) = state.units.get_mut(unit).ok_or("NoSuchUnit")?;
                assert_eq!(call.body[1], Any::Flag(true), "for this run of the system only");
                let new = properties(&call.body[2]);
                if let Some(quota) = new.get("CPUQuotaPerSecUSec") {
                    write_quota(cgroup, quota.strip_prefix("t ").unwrap());
                }
                told.extend(new);
                Ok(None)
            }
            ("Get", "ss") => {
                let asked = [call.body[0].text(), call.body[1].text()];
                assert_eq!(asked, ["org.freedesktop.systemd1.Manager", "Version"]);
                Ok(None)
            }
            ("Subscribe", "") => Ok(None),
            other => panic!("{other:?} is no method that should be called"),
        }
    }

    fn name(&self) -> &'static str {
        if self.shared { ":1.1" } else { "org.freedesktop.systemd1" }
    }

    fn reply(&self, stream: &mut UnixStream, call: &Call, body: &(&str, Vec<u8>)) {
        send(stream, 2, &[(5, field_u32(call.serial)), (7, field_text(b's', self.name()))], body);
    }

    fn fail(&self, stream: &mut UnixStream, call: &Call, name: &str) {
        let name = format!("org.freedesktop.systemd1.{name}");
        let fields =
            [(4, field_text(b's', &name)), (5, field_u32(call.serial)), (7, field_text(b's', self.name()))];
        send(stream, 3, &fields, &text_body("it will not be"));
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The path of a slice.
fn expand(slice: &str) -> String {
    let name = slice.strip_suffix(".slice").unwrap();
    let parts: Vec<&str> = name.split('-').collect();
    (1..=parts.len()).map(|n| format!("/{}.slice", parts[..n].join("-"))).collect()
}

/// The hierarchies in which systemd keeps its units: v2, and its own on v1.
pub fn kept() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = table.lines().filter(|l| l.contains(" - cgroup2 ") || l.contains("name=systemd"));
    ours.map(|line| PathBuf::from(line.split(' ').nth(4).unwrap())).collect()
}

/// All hierarchies.
pub fn hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .lines()
        .filter(|l| l.contains(" - cgroup"))
        .map(|l| PathBuf::from(l.split(' ').nth(4).unwrap()))
        .collect()
}

fn make(cgroup: &str) {
    for root in kept() {
        fs::create_dir_all(root.join(cgroup.trim_start_matches('/'))).unwrap();
    }
}

fn join(cgroup: &str, pid: &str) {
    for root in kept() {
        fs::write(root.join(cgroup.trim_start_matches('/')).join("cgroup.procs"), pid).unwrap();
    }
}

/// Removes a unit's cgroup, and slices above it that nobody needs, as systemd does.
fn remove(cgroup: &str) {
    remove_from(&kept(), cgroup);
}

fn remove_from(hierarchies: &[PathBuf], cgroup: &str) {
    for root in hierarchies {
        let mut path = root.join(cgroup.trim_start_matches('/'));
        while path != *root && fs::remove_dir(&path).is_ok() {
            path.pop();
        }
    }
}

/// What systemd writes: whole percents, in the usual period.
fn write_quota(cgroup: &str, per_second: &str) {
    let per_second: u64 = per_second.parse().unwrap();
    assert_eq!(per_second % 10_000, 0, "systemd would cut off what is no whole percent");
    for root in hierarchies() {
        let dir = root.join(cgroup.trim_start_matches('/'));
        for (file, value) in [
            ("cpu.cfs_quota_us", (per_second / 10).to_string()),
            ("cpu.max", format!("{} 100000", per_second / 10)),
        ] {
            if dir.join(file).exists() {
                fs::write(dir.join(file), value).unwrap();
            }
        }
    }
}
