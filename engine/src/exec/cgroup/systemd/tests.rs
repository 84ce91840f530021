//! The client and the driver against a double of systemd that checks what comes over the wire.

use std::time::{Duration, Instant};

use super::super::devices::Rules;
use super::super::limits::set;
use super::super::{Holder, Manager, Wanted, node, read};
use super::double::{self, Act};
use super::*;
use crate::spec::Resources;

const LONG: Duration = Duration::from_secs(20);

fn client(double: &double::Systemd, patience: Duration) -> Systemd {
    let path = double.path.clone();
    let shared = double.is_a_bus();
    Systemd::at(if shared { Address::Bus(path) } else { Address::Private(path) }, patience)
}

/// A scope of this test alone, and the slice it is in.
fn scope(name: &str) -> String {
    let slice = format!("berthunit{}.slice", std::process::id());
    format!("/{slice}/{}-{name}.slice/cri-berth-{name}.scope", slice.trim_end_matches(".slice"))
}

/// A process that waits for its line's end.
#[expect(clippy::zombie_processes, reason = "the holder reaps it")]
fn hold() -> Result<Holder, Error> {
    let (end, line) = rustix::pipe::pipe().unwrap();
    rustix::io::fcntl_setfd(&line, rustix::io::FdFlags::CLOEXEC).unwrap();
    let child =
        std::process::Command::new("cat").stdin(end).stdout(std::process::Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let pidfd = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::PidfdFlags::empty(),
    );
    Ok(Holder::new(pid, pidfd.unwrap(), line))
}

fn left(cgroup: &str) -> Vec<std::path::PathBuf> {
    double::hierarchies()
        .into_iter()
        .map(|root| root.join(cgroup.trim_start_matches('/')))
        .filter(|path| path.exists())
        .collect()
}

/// What the CPU controller says.
fn quota(cgroup: &str) -> String {
    let node = node().unwrap();
    let (hierarchy, file) = match node.v1("cpu") {
        Some(v1) => (v1, "cpu.cfs_quota_us"),
        None => (node.v2.as_ref().unwrap(), "cpu.max"),
    };
    let text = read(hierarchy.open(cgroup).unwrap(), file).unwrap();
    text.split_whitespace().next().unwrap().to_owned()
}

fn tidy_up(slices: &[&str]) {
    for root in double::hierarchies() {
        slices.iter().for_each(|slice| _ = std::fs::remove_dir(root.join(slice.trim_start_matches('/'))));
    }
}

#[test]
fn a_container_is_a_delegated_scope_with_its_limits_until_it_is_removed() {
    for double in [double::Systemd::private(), double::Systemd::on_a_bus()] {
        let manager = Manager::Systemd(client(&double, LONG));
        let cgroup = scope(if double.is_a_bus() { "bus" } else { "life" });
        let (slice, unit) = cgroup.rsplit_once('/').unwrap();
        manager.prepare(slice, &Resources::default()).unwrap();
        manager.prepare(slice, &Resources::default()).unwrap();
        let resources = Resources {
            memory_limit: 64 << 20,
            cpu_shares: 512,
            cpu_quota: 12_345,
            cpu_period: 100_000,
            ..Resources::default()
        };
        let rules = Rules::Only(Rules::usual());
        let made = manager.create(&Wanted::new(&cgroup, &resources, &rules), hold).unwrap();
        assert!(made.entrance.v2.is_some() || !made.entrance.tasks.is_empty());
        let told = |name: &str| double.property(unit, name);
        let slice_name = slice.rsplit('/').next().unwrap();
        assert_eq!(told("Slice").unwrap(), format!("s {slice_name}"));
        assert_eq!(
            (told("Delegate").as_deref(), told("DefaultDependencies").as_deref()),
            (Some("b true"), Some("b false"))
        );
        assert_eq!(told("TasksMax").as_deref(), Some("t infinity"), "no share of the node's by default");
        assert_eq!(told("CPUQuotaPerSecUSec").as_deref(), Some("t 130000"), "whole percents, rounded up");
        let memory = told("MemoryMax").or_else(|| told("MemoryLimit"));
        assert_eq!(memory, Some(format!("t {}", 64 << 20)));
        assert!(
            ["DevicePolicy", "DeviceAllow"].iter().all(|name| told(name).is_none()),
            "devices are ours alone"
        );
        assert_eq!(quota(&cgroup), "12345", "the file is exact");
        drop(made);

        let more = Resources { cpu_quota: 23_456, cpu_period: 100_000, ..Resources::default() };
        manager.update(&cgroup, &more, &[set("pids", "pids.max", 9)], &[set("pids", "pids.max", 9)]).unwrap();
        assert_eq!(
            (told("CPUQuotaPerSecUSec").as_deref(), told("TasksMax").as_deref()),
            (Some("t 240000"), Some("t 9"))
        );
        assert_eq!(quota(&cgroup), "23456", "also after systemd has written its own idea");
        manager.remove(&cgroup).unwrap();
        manager.remove(&cgroup).unwrap();
        manager.remove(slice).unwrap();
        assert_eq!((double.units(), left(&cgroup)), (vec![], vec![]));
        tidy_up(&[slice, slice.rsplit_once('/').unwrap().0]);
    }
}

#[test]
fn a_scope_that_does_not_come_about_leaves_nothing_and_says_why() {
    let cases = [
        ("start-error", Act::Fail("TransactionOrderIsCyclic"), Kind::Internal, "TransactionOrderIsCyclic"),
        ("start-job", Act::Job("failed"), Kind::Internal, "ended with \"failed\""),
        ("start-close", Act::Close, Kind::Unavailable, "StartTransientUnit"),
        ("start-elsewhere", Act::Elsewhere, Kind::FailedPrecondition, "another root"),
    ];
    for (name, act, kind, words) in cases {
        let double = double::Systemd::private();
        let manager = Manager::Systemd(client(&double, LONG));
        let cgroup = scope(name);
        double.on("StartTransientUnit", [act]);
        let error =
            manager.create(&Wanted::new(&cgroup, &Resources::default(), &Rules::All), hold).unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {}", error.chain());
        assert!(error.chain().contains(words), "{name}: {}", error.chain());
        if act != Act::Elsewhere {
            assert!(error.chain().contains(&format!("cri-berth-{name}.scope")), "{}", error.chain());
        }
        assert_eq!((double.units(), left(&cgroup)), (vec![], vec![]), "{name}");
    }
    // A limit that the kernel refuses, after the unit is there.
    let double = double::Systemd::private();
    let manager = Manager::Systemd(client(&double, LONG));
    let cgroup = scope("limit");
    let resources = Resources { cpuset_cpus: "4000".into(), ..Resources::default() };
    let error = manager.create(&Wanted::new(&cgroup, &resources, &Rules::All), hold).unwrap_err();
    assert!(error.chain().contains("4000"), "{}", error.chain());
    assert_eq!((double.units(), left(&cgroup)), (vec![], vec![]));
    let (slice, _) = cgroup.rsplit_once('/').unwrap();
    let (top, _) = slice.rsplit_once('/').unwrap();
    tidy_up(&[slice, top, "elsewhere"]);
}

#[test]
fn a_systemd_that_does_not_answer_costs_its_patience_and_no_more() {
    for member in ["StartTransientUnit", "Get"] {
        let double = double::Systemd::private();
        double.on(member, [Act::Hang]);
        let systemd = client(&double, Duration::from_millis(300));
        let begin = Instant::now();
        let error = systemd.start_scope(&scope("hang"), &[], 1, false).unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded, "{}", error.chain());
        assert!(error.chain().contains(member), "{}", error.chain());
        assert!((300..5000).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
    }
}

#[test]
fn a_listener_that_never_accepts_costs_no_more_either() {
    let path = format!("/tmp/berth-deaf-{}", std::process::id());
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let systemd = Systemd::at(Address::Private(path.clone().into()), Duration::from_millis(200));
    let begin = Instant::now();
    let error = systemd.start_slice("x.slice").unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded, "{}", error.chain());
    assert!(begin.elapsed() < Duration::from_secs(5));
    drop(listener);
    std::fs::remove_file(path).unwrap();
    let absent = systemd.start_slice("x.slice").unwrap_err();
    assert_eq!(absent.kind(), Kind::Unavailable, "{}", absent.chain());
}

#[test]
fn a_job_ends_when_systemd_says_so_and_not_when_somebody_else_does() {
    let double = double::Systemd::on_a_bus();
    double.on("StartTransientUnit", [Act::Forged]);
    let slice = format!("berthforged{}.slice", std::process::id());
    let systemd = client(&double, LONG);
    systemd.start_slice(&slice).unwrap();
    systemd.stop(&slice).unwrap();
    systemd.stop(&slice).unwrap();
}

#[test]
fn a_unit_that_failed_is_forgotten_and_made_anew_but_a_live_one_is_left_alone() {
    let double = double::Systemd::private();
    let manager = Manager::Systemd(client(&double, LONG));
    let cgroup = scope("again");
    double.on("StartTransientUnit", [Act::Fail("UnitExists")]);
    let made = manager.create(&Wanted::new(&cgroup, &Resources::default(), &Rules::All), hold).unwrap();
    let unit = "cri-berth-again.scope";
    let call = |member: &str| format!("{member} {unit}");
    let start = call("StartTransientUnit");
    assert_eq!(double.take_calls(), [start.clone(), call("ResetFailedUnit"), start]);
    let other = manager.create(&Wanted::new(&cgroup, &Resources::default(), &Rules::All), hold).unwrap_err();
    assert_eq!(other.kind(), Kind::AlreadyExists, "{}", other.chain());
    assert_eq!(double.units(), [unit], "and still there");
    drop(made);
    manager.remove(&cgroup).unwrap();
    assert_eq!(left(&cgroup), Vec::<std::path::PathBuf>::new());
    let (slice, _) = cgroup.rsplit_once('/').unwrap();
    tidy_up(&[slice, slice.rsplit_once('/').unwrap().0]);
}

#[test]
fn a_shared_scope_is_made_once_and_joined_by_whoever_comes_later() {
    let double = double::Systemd::private();
    let manager = Manager::Systemd(client(&double, LONG));
    let cgroup = scope("podd");
    let first = manager.share(&cgroup, hold).unwrap();
    let second = manager.share(&cgroup, hold).unwrap();
    assert!(double.take_calls().contains(&"AttachProcessesToUnit cri-berth-podd.scope".to_owned()));
    drop(first);
    let members = super::super::members(&cgroup).unwrap();
    assert_eq!(members.len(), 1, "the second stays: {members:?}");
    drop(second);
    manager.remove(&cgroup).unwrap();
    let (slice, _) = cgroup.rsplit_once('/').unwrap();
    tidy_up(&[slice, slice.rsplit_once('/').unwrap().0]);
}

#[test]
fn limits_that_systemd_refuses_are_taken_back() {
    let double = double::Systemd::private();
    let manager = Manager::Systemd(client(&double, LONG));
    let cgroup = scope("undo");
    let first = Resources { cpu_quota: 20_000, cpu_period: 100_000, ..Resources::default() };
    let made = manager.create(&Wanted::new(&cgroup, &first, &Rules::All), hold).unwrap();
    double.on("SetUnitProperties", [Act::Fail("Nonsense")]);
    let change = Resources { cpu_quota: 50_000, ..Resources::default() };
    let error = manager.update(&cgroup, &change, &[], &[]).unwrap_err();
    assert!(error.chain().contains("cri-berth-undo.scope"), "{}", error.chain());
    assert_eq!(quota(&cgroup), "20000");
    // And what the kernel refuses systemd is not even told.
    double.take_calls();
    let error = manager.update(&cgroup, &Resources { cpu_quota: 17, ..change }, &[], &[]).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument, "{}", error.chain());
    assert_eq!((double.take_calls(), quota(&cgroup).as_str()), (vec![], "20000"));
    drop(made);
    manager.remove(&cgroup).unwrap();
    let (slice, _) = cgroup.rsplit_once('/').unwrap();
    tidy_up(&[slice, slice.rsplit_once('/').unwrap().0]);
}

#[test]
fn systemd_in_trouble_keeps_no_pod_from_going() {
    let double = double::Systemd::private();
    let manager = Manager::Systemd(client(&double, LONG));
    let cgroup = scope("trouble");
    let made = manager.create(&Wanted::new(&cgroup, &Resources::default(), &Rules::All), hold).unwrap();
    drop(made);
    double.on("StopUnit", [Act::Close]);
    manager.remove(&cgroup).unwrap();
    assert_eq!(left(&cgroup), Vec::<std::path::PathBuf>::new());
    let (slice, _) = cgroup.rsplit_once('/').unwrap();
    tidy_up(&[slice, slice.rsplit_once('/').unwrap().0]);
}

#[test]
fn cgroups_that_are_no_units_need_no_systemd() {
    let systemd = Systemd::at(Address::Private("/nonexistent/private".into()), LONG);
    let manager = Manager::Systemd(systemd);
    let cgroup = format!("/berth-unit-{}-plain", std::process::id());
    let made = manager.create(&Wanted::new(&cgroup, &Resources::default(), &Rules::All), hold).unwrap();
    assert!(made.holder.is_none());
    manager.update(&cgroup, &Resources { cpu_shares: 99, ..Resources::default() }, &[], &[]).unwrap();
    manager.remove(&cgroup).unwrap();
    assert_eq!(left(&cgroup), Vec::<std::path::PathBuf>::new());
}
