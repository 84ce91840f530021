//! AppArmor against the kernel: it confines what it should. A machine whose kernel has it not skips; `tests/exec` runs this where it is.
//! Needs root, busybox-static and apparmor_parser. SELinux has a program of its own, `selinux`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use engine::spec::Profile;
use support::*;

/// What a process of a container says of its own label.
const LABEL: &str = "cat /proc/self/attr/apparmor/current";

/// Why AppArmor cannot be tested here.
fn no_apparmor() -> Option<&'static str> {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    match (enabled.starts_with('Y'), Path::new("/sbin/apparmor_parser").exists()) {
        (false, _) => Some("AppArmor is not on in this kernel"),
        (true, false) => Some("apparmor_parser is not installed"),
        (true, true) => None,
    }
}

/// A profile of a test's own, unloaded at the end.
struct Loaded(String);

impl Loaded {
    fn new(name: &str, flags: &str, rules: &str) -> Self {
        let text = format!(
            "profile {name} flags=(attach_disconnected,mediate_deleted{flags}) {{\n network,\n capability,\n file,\n umount,\n \
             signal,\n ptrace,\n mount,\n {rules}\n}}\n"
        );
        parser("--replace", &text);
        Self(text)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        parser("--remove", &self.0);
    }
}

/// Has a profile compiled and loaded, or removed.
fn parser(action: &str, text: &str) {
    let mut command = Command::new("/sbin/apparmor_parser");
    let mut child = command.args(["--skip-cache", action]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "apparmor_parser {action}");
}

/// A container with every capability, so that only the profile can stand in its way.
fn mighty(pod: &Pod, script: &str, profile: Option<Profile>) -> Container {
    let mut container = pod.container(script);
    container.spec.security.add_capabilities = vec!["ALL".into()];
    container.spec.security.apparmor = profile;
    container
}

#[tokio::test]
async fn a_container_that_asks_for_nothing_runs_under_the_default_profile_and_so_do_its_execs() {
    if let Some(why) = no_apparmor() {
        return skip(why);
    }
    let mut pod = Pod::new().await;
    for profile in [None, Some(Profile::RuntimeDefault)] {
        let script =
            format!("{LABEL}; ({LABEL}); trap 'exit 6' TERM; : > /dev/shm/up; while :; do sleep 0.02; done");
        let mut container = pod.container(&script);
        container.spec.security.apparmor = profile;
        let (id, spec) = (container.id.clone(), container.spec.clone());
        let started = pod.start(container).await;
        let late = format!("until [ -e /dev/shm/up ]; do sleep 0.01; done; rm /dev/shm/up; {LABEL}");
        assert_eq!(pod.exec(&id, &spec, &late).await.1, "berth-default (enforce)\n");
        let seen = fs::read_to_string(format!("/proc/{}/attr/apparmor/current", started.pid)).unwrap();
        assert_eq!(seen, "berth-default (enforce)\n", "from the node");
        // Who runs the pod may signal what is confined.
        pod.connection.supervisor.signal(&id, 15).await.unwrap();
        assert_eq!(pod.exit(&id).await.code, 6);
        assert_eq!(text(&pod.log(&id)), "berth-default (enforce)\nberth-default (enforce)\n");
    }
    let listed = fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap();
    assert!(listed.lines().any(|line| line == "berth-default (enforce)"), "{listed}");
    pod.end().await;
}

#[tokio::test]
async fn the_default_profile_stops_root_with_every_capability_and_unconfined_does_not() {
    if let Some(why) = no_apparmor() {
        return skip(why);
    }
    let mut pod = Pod::new().await;
    // Each prints what it is about when it was possible.
    let script = format!(
        "{LABEL}; mount -t tmpfs none /tmp 2>/dev/null && echo mount; head -c 1 /proc/kcore > /dev/null 2>&1 && echo kcore; \
         (: > /proc/sysrq-trigger) 2>/dev/null && echo sysrq; \
         (cat /proc/sys/kernel/core_pattern > /proc/sys/kernel/core_pattern) 2>/dev/null && echo core_pattern; \
         echo x > /data/file && echo file; hostname other && echo hostname; true"
    );
    for (profile, expected) in [
        (None, "berth-default (enforce)\nfile\nhostname\n"),
        (Some(Profile::Unconfined), "unconfined\nmount\nkcore\nsysrq\ncore_pattern\nfile\nhostname\n"),
    ] {
        let container = mighty(&pod, &script, profile.clone());
        let (exit, log) = pod.run(container).await;
        assert_eq!((exit.code, text(&log).as_str()), (0, expected), "{profile:?}: {log}");
    }
    pod.end().await;
}

#[tokio::test]
async fn a_profile_by_name_is_taken_as_it_is_loaded_and_refused_when_it_is_not() {
    if let Some(why) = no_apparmor() {
        return skip(why);
    }
    let mut pod = Pod::new().await;
    let enforced = format!("berth-test-{}-enforced", std::process::id());
    let complaining = format!("berth-test-{}-complaining", std::process::id());
    let rules = "deny /data/** w,";
    let profiles = [Loaded::new(&enforced, "", rules), Loaded::new(&complaining, ",complain", rules)];
    let script = format!("{LABEL}; (echo x > /data/file) 2>/dev/null || echo denied");
    let container = mighty(&pod, &script, Some(Profile::Localhost(enforced.clone())));
    assert_eq!(text(&pod.run(container).await.1), format!("{enforced} (enforce)\ndenied\n"));
    let container = mighty(&pod, LABEL, Some(Profile::Localhost(complaining.clone())));
    assert_eq!(text(&pod.run(container).await.1), format!("{complaining} (complain)\n"));

    drop(profiles);
    for name in [enforced.as_str(), "no such profile"] {
        let container = mighty(&pod, "true", Some(Profile::Localhost(name.into())));
        let (cgroup, spec) = (pod.cgroup(&container.id), container.spec.clone());
        // When the container is made, and when it would start.
        let refused = pod.driver.check(&pod.spec, &spec).unwrap_err().chain();
        assert!(refused.contains(name) && refused.contains("not loaded"), "{refused}");
        assert_eq!(pod.try_start(container).await.unwrap_err().chain(), refused);
        assert!(!cgroup_exists(&cgroup), "a refused start leaves no cgroup");
    }
    pod.end().await;
}

#[tokio::test]
async fn without_apparmor_a_profile_by_name_is_refused_and_the_default_changes_nothing() {
    if fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|on| on.starts_with('Y')) {
        return skip("AppArmor is on in this kernel");
    }
    let mut pod = Pod::new().await;
    let container = mighty(&pod, "true", Some(Profile::Localhost("my-app".into())));
    let refused = pod.driver.check(&pod.spec, &container.spec).unwrap_err().chain();
    assert!(refused.contains("my-app") && refused.contains("not enabled"), "{refused}");
    let container = mighty(&pod, "echo runs", Some(Profile::RuntimeDefault));
    assert_eq!(text(&pod.run(container).await.1), "runs\n");
    pod.end().await;
}
