//! SELinux over a directory that looks like a node's: who has it, what its pods are labelled with, and which levels are free.

use std::path::PathBuf;

use super::*;
use crate::testing::{container, pod};

/// A node whose kernel takes every label.
struct Fake(PathBuf);

impl Fake {
    fn new(name: &str, own: &str) -> Self {
        let fake = Self(std::env::temp_dir().join(format!("berth-selinux-{name}-{}", std::process::id())));
        fake.put("proc/self/attr/current", own);
        fake.put("sys/fs/selinux/enforce", "1");
        fake.put("sys/fs/selinux/mls", "1");
        fake.put("sys/fs/selinux/context", "");
        fake
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn probe(&self) -> Option<Selinux> {
        Selinux::probe(&Place(self.0.clone())).unwrap()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const DAEMON: &str = "system_u:system_r:container_runtime_t:s0\0";

#[test]
fn it_is_on_where_selinuxfs_is_and_processes_have_labels() {
    assert!(Fake::new("on", DAEMON).probe().is_some());
    assert!(Fake::new("without-policy", "kernel\0").probe().is_none());
    assert!(Fake::new("apparmor", "berth-default (enforce)\n").probe().is_none());
    let off = Fake::new("off", DAEMON);
    std::fs::remove_dir_all(off.0.join("sys")).unwrap();
    assert!(off.probe().is_none());
}

#[test]
fn pods_have_levels_of_their_own_which_their_containers_share_and_which_are_given_back() {
    let node = Fake::new("levels", DAEMON);
    let selinux = node.probe().unwrap();
    let (one, two) = (selinux.pod(&pod("one")).unwrap(), selinux.pod(&pod("two")).unwrap());
    assert_ne!(one.process.level, two.process.level);
    assert_eq!(one.process.level, one.file.level);
    let of = |spec: &ContainerSpec| selinux.container(&one, &pod("one"), spec).unwrap();
    assert_eq!(of(&container("a")), of(&container("b")));
    assert_eq!(of(&container("a")).process, Some(one.process.clone()));

    // A daemon that comes back takes the levels of the pods it finds.
    let again = node.probe().unwrap();
    again.hold(&one);
    let all = (0..3000).map(|n| again.pod(&pod(&n.to_string())).unwrap().process.level).collect::<Vec<_>>();
    assert!(!all.contains(&one.process.level));
    again.release(&one);
    assert!(again.levels.take().is_ok());
}

#[test]
fn a_bundle_may_name_what_the_policy_knows() {
    let asked = |node: &Fake, text: &str| {
        named(&Place(node.0.clone()), "field", text)
            .map(|label| label.map(String::from))
            .map_err(|e| e.chain())
    };
    let node = Fake::new("bundle", DAEMON);
    assert_eq!(asked(&node, "u:r:t:s0:c1,c2").unwrap().unwrap(), "u:r:t:s0:c1,c2");
    assert_eq!(asked(&node, "u:r").unwrap_err(), "field: \"u:r\" is not user:role:type[:level]");
    assert_eq!(asked(&Fake::new("bundle-off", "kernel\0"), "u:r:t").unwrap(), None);
}

#[test]
fn a_policy_without_levels_has_pods_without() {
    let node = Fake::new("flat", DAEMON);
    node.put("sys/fs/selinux/mls", "0");
    let labels = node.probe().unwrap().pod(&pod("web")).unwrap();
    assert_eq!(labels.process.to_string(), "system_u:system_r:container_t");
    assert_eq!(labels.file.to_string(), "system_u:object_r:container_file_t");
}

#[test]
fn a_level_that_is_asked_for_is_nobody_elses_and_a_refused_pod_takes_none() {
    let node = Fake::new("asked", DAEMON);
    let selinux = node.probe().unwrap();
    let mut spec = pod("web");
    spec.security.selinux = Some(SelinuxLabel { level: "s0:c7,c8".into(), ..SelinuxLabel::default() });
    let labels = selinux.pod(&spec).unwrap();
    assert_eq!(labels.file.to_string(), "system_u:object_r:container_file_t:s0:c7,c8");
    selinux.pod(&spec).unwrap();
    selinux.release(&labels);
    assert!(format!("{:?}", selinux.levels).contains("\"s0:c7,c8\": 1"), "the second pod has it");

    spec.security.selinux = Some(SelinuxLabel { kind: "a b".into(), ..SelinuxLabel::default() });
    let refused = selinux.pod(&spec).unwrap_err();
    assert!(refused.chain().starts_with("selinux_options.type"), "{}", refused.chain());
    std::fs::remove_file(node.0.join("sys/fs/selinux/context")).unwrap();
    assert!(selinux.pod(&pod("other")).unwrap_err().chain().contains("container_t"));
    let levels = format!("{:?}", selinux.levels);
    assert_eq!(levels.matches("s0:").count(), 1, "{levels}");
}
