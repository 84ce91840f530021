//! Files that were written are read back; files that were damaged are not believed.

use std::fs;
use std::sync::Arc;

use super::{Journal, file};
use crate::pod::{PodPhase, PodRecord, PodStatus, State};
use crate::testing::{Node, pod};

fn state(id: &str) -> State {
    let record = PodRecord {
        id: id.into(),
        created_at: 7,
        boot_id: "b".into(),
        handler: "h".into(),
        cgroup: "/c".into(),
        spec: Arc::new(pod("web")),
        selinux: None,
    };
    State { record: record.into(), status: PodStatus::default(), containers: Default::default() }
}

#[test]
fn what_was_saved_is_loaded_and_what_was_forgotten_is_gone() {
    let node = Node::new();
    let journal = Journal::open(&node.config.root).unwrap();
    let (one, two) = (state("one"), state("two"));
    journal.save(None, &one).unwrap();
    journal.save(None, &two).unwrap();
    let mut ready = one.clone();
    ready.status.phase = PodPhase::Ready;
    journal.save(Some(&one), &ready).unwrap();
    journal.forget("two").unwrap();
    journal.forget("two").unwrap();
    let (pods, report) = Journal::open(&node.config.root).unwrap().load().unwrap();
    assert_eq!((pods.len(), report), (1, Vec::new()));
    assert_eq!((&pods[0].record, &pods[0].status), (&*one.record, &ready.status));
}

#[test]
fn only_what_changed_is_written() {
    let node = Node::new();
    let journal = Journal::open(&node.config.root).unwrap();
    let one = state("one");
    journal.save(None, &one).unwrap();
    let before = fs::read(journal.path("one")).unwrap();
    journal.save(Some(&one), &one).unwrap();
    assert_eq!(fs::read(journal.path("one")).unwrap(), before);
    let mut ready = one.clone();
    ready.status.phase = PodPhase::Ready;
    journal.save(Some(&one), &ready).unwrap();
    let after = fs::read(journal.path("one")).unwrap();
    assert_eq!(after[..before.len()], before);
    assert_eq!(after[before.len()..].iter().filter(|byte| **byte == b'\n').count(), 1);
}

#[test]
fn a_journal_does_not_grow_without_end_and_keeps_the_last_state() {
    let node = Node::new();
    let journal = Journal::open(&node.config.root).unwrap();
    let mut now = state("one");
    journal.save(None, &now).unwrap();
    let whole = fs::metadata(journal.path("one")).unwrap().len();
    for number in 0..2000 {
        let mut next = now.clone();
        next.status.message = number.to_string();
        journal.save(Some(&now), &next).unwrap();
        now = next;
        assert!(fs::metadata(journal.path("one")).unwrap().len() < super::SLACK + 4 * whole);
    }
    let (pods, report) = Journal::open(&node.config.root).unwrap().load().unwrap();
    assert_eq!((pods[0].status.message.as_str(), report), ("1999", Vec::new()));
}

#[test]
fn after_a_failed_write_the_next_one_writes_everything() {
    let node = Node::new();
    let journal = Journal::open(&node.config.root).unwrap();
    let one = state("one");
    journal.save(None, &one).unwrap();
    let mut ready = one;
    ready.status.phase = PodPhase::Ready;
    journal.save(None, &ready).unwrap();
    let (pods, report) = journal.load().unwrap();
    assert_eq!((&pods[0].status, report), (&ready.status, Vec::new()));
}

#[test]
fn damage_of_any_byte_is_noticed_and_the_entry_before_holds() {
    let node = Node::new();
    let journal = Journal::open(&node.config.root).unwrap();
    let one = state("one");
    journal.save(None, &one).unwrap();
    let path = journal.path("one");
    let first = fs::read(&path).unwrap();
    let mut ready = one.clone();
    ready.status.phase = PodPhase::Ready;
    journal.save(Some(&one), &ready).unwrap();
    let good = fs::read(&path).unwrap();
    for byte in first.len() + 1..good.len() {
        let mut bad = good.clone();
        bad[byte] ^= 1;
        fs::write(&path, &bad).unwrap();
        let (pods, report) = journal.load().unwrap();
        assert_eq!(pods[0].status.phase, PodPhase::Making, "byte {byte}");
        assert!(report.iter().all(|line| line.contains("pod one: line")) && !report.is_empty(), "{report:?}");
    }
    // Torn by a power cut in the middle of the last write; what is appended later can be read all the same.
    for length in first.len() + 2..good.len() {
        fs::write(&path, &good[..length]).unwrap();
        let mut later = one.clone();
        later.status.message = "later".into();
        journal.save(Some(&one), &later).unwrap();
        let (pods, report) = journal.load().unwrap();
        assert_eq!((pods[0].status.message.as_str(), report.len()), ("later", 1));
    }
}

#[test]
fn a_newer_version_is_refused_with_both_numbers() {
    let node = Node::new();
    let journal = Journal::open(&node.config.root).unwrap();
    journal.save(None, &state("one")).unwrap();
    let text = fs::read_to_string(journal.path("one")).unwrap().replace("\"version\":1", "\"version\":9");
    fs::write(journal.path("one"), text).unwrap();
    let (_, report) = journal.load().unwrap();
    assert!(report[0].contains("version 9") && report[0].contains("up to 1"), "{report:?}");
}

#[test]
fn an_unreadable_pod_is_swept_and_reported_and_the_others_stay() {
    let node = Node::new();
    let journal = Journal::open(&node.config.root).unwrap();
    journal.save(None, &state("good")).unwrap();
    journal.save(None, &state("bad")).unwrap();
    fs::write(journal.path("bad"), "").unwrap();
    file::make_dir(&journal.container_dir("bad", "c").join("volumes")).unwrap();
    file::make_dir(&journal.container_dir("good", "gone").join("volumes")).unwrap();
    fs::write(journal.path("good").with_extension("tmp"), "half").unwrap();
    let (pods, report) = journal.load().unwrap();
    assert_eq!(pods.len(), 1);
    assert!(report.len() == 1 && report[0].contains("bad"), "{report:?}");
    assert_eq!(file::names(&node.config.root.join("pods")).unwrap(), ["good", "good.journal"]);
    assert!(file::names(&node.config.root.join("pods/good")).unwrap().is_empty());
}

#[test]
fn directories_and_files_are_for_root_alone() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::new();
    let journal = Journal::open(&node.config.root).unwrap();
    journal.save(None, &state("one")).unwrap();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&node.config.root.join("pods")), 0o700);
    assert_eq!(mode(&journal.path("one")), 0o600);
}

#[test]
fn what_a_container_nested_deeper_than_any_stack_goes_with_it() {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

    let node = Node::new();
    let journal = Journal::open(&node.config.root).unwrap();
    let volume = node.config.root.join("pods/gone/c/volumes/0");
    fs::create_dir_all(&volume).unwrap();
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = openat(CWD, &volume, open, Mode::empty()).unwrap();
    for _ in 0..20_000 {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = openat(&at, "d", open, Mode::empty()).unwrap();
    }
    // As a start does with what no pod names any more.
    journal.load().unwrap();
    assert!(!node.config.root.join("pods/gone").exists());
}
