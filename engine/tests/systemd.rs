//! The systemd cgroup driver end to end: the engine with its supervisors, and `berth oci`, against a double of systemd that checks the
//! wire and makes cgroups as systemd does. Needs root and busybox-static.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod house;
#[path = "support/systemd.rs"]
mod systemd;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use engine::Kind;
use engine::exec::cgroup::CgroupDriver;
use engine::jobs::{CreateContainer, ExecSync, RemoveContainer, RunPod, StartContainer, StopContainer};
use engine::jobs::{UpdateContainerResources, UpdatePodResources};
use engine::spec::{PodSpec, Resources};
use house::*;
use serde_json::{Value, json};

/// Pids of a cgroup in the hierarchies that systemd keeps.
fn members(cgroup: &str) -> Vec<String> {
    let root = &systemd::kept()[0];
    let text = fs::read_to_string(root.join(cgroup.trim_start_matches('/')).join("cgroup.procs")).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn left(cgroup: &str) -> Vec<PathBuf> {
    let below = |root: PathBuf| root.join(cgroup.trim_start_matches('/'));
    systemd::hierarchies().into_iter().map(below).filter(|path| path.exists()).collect()
}

/// The driver finds systemd by its environment, which is a process's: each test is a process of its own.
fn with_double(test: &str, double: &systemd::Systemd) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("DBUS_SYSTEM_BUS_ADDRESS", double.address())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn a_pod_lives_in_scopes_and_leaves_no_unit() {
    let double = systemd::Systemd::on_a_bus();
    with_double("pod_in_scopes", &double);
    // The kubelet's slice is the kubelet's to remove, and a scope ends with its last process.
    let left = double.units();
    assert!(
        matches!(&left[..], [slice, podd] if slice.ends_with("-burstable-pod1.slice") && podd.ends_with("podd.scope")),
        "{left:?}"
    );
    double.close();
    let calls = double.take_calls();
    let started = calls.iter().filter(|call| call.starts_with("StartTransientUnit cri-berth-")).count();
    assert_eq!(started, 2, "one for each container: {calls:?}");
    assert!(!calls.iter().any(|call| call.contains("Exec")), "an exec needs no systemd");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_pod_lives_in_scopes_and_leaves_no_unit"]
async fn pod_in_scopes() {
    let house = House::new();
    let top = format!("core{}", house.name);
    let engine = house
        .engine_with(|native, config| {
            (native.cgroup_driver, config.cgroup_driver) = (CgroupDriver::Systemd, CgroupDriver::Systemd);
            native.supervisor_cgroup = format!("/{top}.slice/{top}podd.scope");
            config.cgroup_parent = format!("/{top}.slice");
        })
        .await;
    // As the kubelet names it, and a pod with a slice of its own.
    let parent = format!("/{top}.slice/{top}-burstable.slice/{top}-burstable-pod1.slice");
    for (name, given) in [("named", parent.as_str()), ("own", "")] {
        let spec = PodSpec { cgroup_parent: given.into(), ..house.pod(name) };
        let pod = run_pod(&engine, spec).await;
        let slice = match given {
            "" => format!("/{top}.slice/{top}-{pod}.slice"),
            given => given.to_owned(),
        };
        let shell = house.shell("app", "while :; do sleep 1; done");
        let id = ok(engine.run(CreateContainer { pod: pod.clone(), spec: shell }, None).await);
        ok(engine.run(StartContainer { container: id.clone() }, None).await);
        let scope = format!("{slice}/cri-berth-{id}.scope");
        let inside = members(&scope);
        let commands: Vec<String> = inside
            .iter()
            .map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().replace('\0', " "))
            .collect();
        assert!(!commands.is_empty() && commands.iter().all(|c| !c.contains("hold")), "{commands:?}");
        let command = ["/bin/sh", "-c", "cat /proc/self/cgroup"].map(Into::into).into();
        let exec = ExecSync { container: id.clone(), command, timeout: Some(Duration::from_secs(20)) };
        let output = ok(engine.run(exec, None).await);
        assert_eq!(output.code, 0, "{}", String::from_utf8_lossy(&output.stderr));

        let resources = Resources { cpu_quota: 33_333, cpu_period: 100_000, ..Resources::default() };
        let annotations = BTreeMap::new();
        let update =
            UpdateContainerResources { container: id.clone(), resources: resources.clone(), annotations };
        ok(engine.run(update, None).await);
        let resize = UpdatePodResources { pod: pod.clone(), overhead: None, resources: Some(resources) };
        ok(engine.run(resize, None).await);
        ok(engine.run(StopContainer { container: id.clone(), grace: Duration::ZERO }, None).await);
        ok(engine.run(RemoveContainer { container: id }, None).await);
        assert_eq!(left(&scope), Vec::<PathBuf>::new());
    }
    for (parent, words) in [("/kubepods/pod1", "not a slice"), ("/x.slice/a-b.slice", "/a.slice/a-b.slice")] {
        let spec = PodSpec { cgroup_parent: parent.into(), ..house.pod("wrong") };
        let error = engine.run(RunPod { spec }, None).await.unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        let text = error.chain();
        assert!(text.contains("cgroup_parent") && text.contains(words), "{text}");
    }
    house.close(engine).await;
}

/// A bundle whose commands find the double.
struct Bundle {
    dir: PathBuf,
    address: String,
}

impl Bundle {
    fn new(double: &systemd::Systemd, name: &str, cgroup: &str, resources: &Value) -> Self {
        let dir = PathBuf::from(format!("/tmp/oci-systemd-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("rootfs")).unwrap();
        make_root(&dir.join("rootfs"));
        let bundle = Self { dir, address: double.address() };
        assert!(bundle.oci(&["spec", "--bundle", bundle.dir.to_str().unwrap()]).status.success());
        let path = bundle.dir.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/bin/sh", "-c", "exec sleep 1000"]);
        config["linux"]["cgroupsPath"] = json!(cgroup);
        for (key, value) in resources.as_object().unwrap() {
            config["linux"]["resources"][key] = value.clone();
        }
        fs::write(path, config.to_string()).unwrap();
        bundle
    }

    fn oci(&self, args: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command
            .args(["20", env!("CARGO_BIN_EXE_oci"), "--systemd-cgroup", "--root"])
            .arg(self.dir.join("state"));
        // The container keeps its streams: a pipe of ours would stay open.
        let error = fs::File::create(self.dir.join("error")).unwrap();
        let command = command.args(args).current_dir(&self.dir).env("DBUS_SYSTEM_BUS_ADDRESS", &self.address);
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(error).status().unwrap();
        Output { status, stdout: Vec::new(), stderr: fs::read(self.dir.join("error")).unwrap() }
    }

    fn ok(&self, args: &[&str]) {
        let output = self.oci(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.oci(&["delete", "--force", "a"]);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn an_oci_container_is_a_scope_with_its_limits() {
    let double = systemd::Systemd::on_a_bus();
    let slice = format!("ocitest{}.slice", std::process::id());
    let limits = json!({ "pids": { "limit": 33 }, "cpu": { "shares": 2048 } });
    let bundle = Bundle::new(&double, "life", &format!("{slice}:berth:a"), &limits);
    let (unit, cgroup) = ("berth-a.scope", format!("/{slice}/berth-a.scope"));
    bundle.ok(&["create", "a"]);
    assert_eq!(double.property(unit, "TasksMax").as_deref(), Some("t 33"));
    assert_eq!(double.property(unit, "Slice"), Some(format!("s {slice}")));
    assert_eq!(members(&cgroup).len(), 1, "the container, and nobody who held its place");
    bundle.ok(&["start", "a"]);
    bundle.ok(&["exec", "a", "true"]);
    bundle.ok(&["update", "--pids-limit", "44", "a"]);
    assert_eq!(double.property(unit, "TasksMax").as_deref(), Some("t 44"));
    bundle.ok(&["pause", "a"]);
    bundle.ok(&["resume", "a"]);
    bundle.ok(&["delete", "--force", "a"]);
    assert_eq!((double.units(), left(&cgroup)), (vec![], vec![]));

    // What cannot start leaves no unit either.
    double.on("StartTransientUnit", [systemd::Act::Job("failed")]);
    let error = String::from_utf8(bundle.oci(&["create", "a"]).stderr).unwrap();
    assert!(error.contains("berth-a.scope") && error.contains("failed"), "{error}");
    fs::remove_file(bundle.dir.join("rootfs/bin/busybox")).unwrap();
    bundle.ok(&["create", "a"]);
    assert!(!bundle.oci(&["start", "a"]).status.success());
    bundle.ok(&["delete", "--force", "a"]);
    assert_eq!((double.units(), left(&cgroup)), (vec![], vec![]));
    left(&slice).into_iter().for_each(|path| _ = fs::remove_dir(path));
}
