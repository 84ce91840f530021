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
    fs::remove_file(journal.pod_dir("one").join("status.json")).unwrap();
    journal.save(Some(&one), &one).unwrap();
    assert!(!journal.pod_dir("one").join("status.json").exists());
}

#[test]
fn damage_of_any_byte_is_noticed_and_named() {
    let node = Node::new();
    let path = node.config.root.join("x.json");
    file::make_dir(&node.config.root).unwrap();
    file::write(&path, "test", &vec!["value", "other"]).unwrap();
    assert_eq!(file::read::<Vec<String>>(&path, "test").unwrap(), ["value", "other"]);
    let good = fs::read(&path).unwrap();
    for byte in 0..good.len() {
        let mut bad = good.clone();
        bad[byte] ^= 1;
        fs::write(&path, &bad).unwrap();
        let read = file::read::<Vec<String>>(&path, "test");
        assert!(read.is_err(), "byte {byte} of {}", String::from_utf8_lossy(&good));
    }
    for length in 0..good.len() {
        fs::write(&path, &good[..length]).unwrap();
        assert!(file::read::<Vec<String>>(&path, "test").is_err());
    }
    fs::write(&path, &good).unwrap();
    assert!(file::read::<Vec<String>>(&path, "other").unwrap_err().to_string().contains("x.json"));
}

#[test]
fn a_newer_version_is_refused_with_both_numbers() {
    let node = Node::new();
    let path = node.config.root.join("x.json");
    file::make_dir(&node.config.root).unwrap();
    file::write(&path, "test", &1).unwrap();
    let text = fs::read_to_string(&path).unwrap().replace("\"version\":1", "\"version\":9");
    fs::write(&path, text).unwrap();
    let error = file::read::<u8>(&path, "test").unwrap_err().to_string();
    assert!(error.contains("version 9") && error.contains("up to 1"), "{error}");
}

#[test]
fn an_unreadable_pod_is_swept_and_reported_and_the_others_stay() {
    let node = Node::new();
    let journal = Journal::open(&node.config.root).unwrap();
    journal.save(None, &state("good")).unwrap();
    journal.save(None, &state("bad")).unwrap();
    fs::write(journal.pod_dir("bad").join("record.json"), "").unwrap();
    fs::create_dir(journal.pod_dir(".gone-half")).unwrap();
    let (pods, report) = journal.load().unwrap();
    assert_eq!(pods.len(), 1);
    assert!(report.len() == 1 && report[0].contains("bad"), "{report:?}");
    assert_eq!(file::names(&node.config.root.join("pods")).unwrap(), ["good"]);
}

#[test]
fn directories_and_files_are_for_root_alone() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::new();
    let journal = Journal::open(&node.config.root).unwrap();
    journal.save(None, &state("one")).unwrap();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&journal.pod_dir("one")), 0o700);
    assert_eq!(mode(&journal.pod_dir("one").join("record.json")), 0o600);
}
