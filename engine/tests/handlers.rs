//! External OCI runtimes behind the engine: pods of several handlers on one node, refusals, and what a runtime that fails leaves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod house;
#[allow(unused_imports)]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::api::ContainerState;
use engine::exec::PodLaunch;
use engine::external;
use engine::jobs::{CreateContainer, ExecSync, RemoveContainer, RunPod, StartContainer, StopContainer};
use engine::native::Native;
use engine::spec::{IdMapping, NamespaceMode, PodSpec, UserNamespace};
use engine::{Engine, Kind};
use house::{House, ok, run_pod, start};
use support::handlers::Handler;

/// The handlers there are here, each with a root in the house.
fn runtimes(house: &House) -> Vec<external::Config> {
    let handlers = [Some(Handler::berth()), Handler::of("crun"), Handler::of("runc")];
    let handlers = handlers.iter().flatten().filter_map(|handler| handler.config(""));
    handlers
        .map(|config| external::Config { root: house.dir.join("roots").join(&config.name), ..config })
        .collect()
}

/// What runtimes have kept.
fn kept(house: &House) -> Vec<PathBuf> {
    let below = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    below(&house.dir.join("roots")).iter().flat_map(|root| below(root)).collect()
}

fn pod(house: &House, handler: &str) -> PodSpec {
    PodSpec { handler: handler.into(), ..house.pod(&format!("on-{handler}")) }
}

async fn exec(engine: &Arc<Engine>, container: &str, script: &str) -> (i32, String) {
    let command = ["/bin/sh", "-c", script].map(Into::into).into();
    let job = ExecSync { container: container.into(), command, timeout: Some(Duration::from_secs(20)) };
    let output = ok(engine.run(job, None).await);
    (output.code, String::from_utf8(output.stdout).unwrap())
}

/// Waits until a container has written a line.
async fn written(house: &House, pod: &str, line: &str) {
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    let wait = async {
        while !house.log(pod, "main").contains(line) {
            tick.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("the line is not written");
}

#[tokio::test]
async fn pods_of_every_handler_run_next_to_each_other() {
    let house = House::new();
    let runtimes = runtimes(&house);
    let mut names = vec!["native".to_owned()];
    names.extend(runtimes.iter().map(|runtime| runtime.name.clone()));
    let engine = house.engine_of(runtimes.clone()).await;
    assert_eq!(engine.handlers(), names);
    let mut containers = Vec::new();
    for name in &names {
        let spec = pod(&house, name);
        let pod = run_pod(&engine, spec).await;
        let script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.02; done";
        containers.push((name, start(&engine, &pod, house.shell("main", script)).await));
    }
    for (name, container) in &containers {
        written(&house, &format!("on-{name}"), "up").await;
        assert_eq!(exec(&engine, container, "hostname; exit 4").await, (4, format!("on-{name}\n")), "{name}");
    }
    // Whoever comes back finds them all, and goes on with each by its handler.
    drop(engine);
    let engine = house.engine_of(runtimes).await;
    for (name, container) in &containers {
        assert_eq!(exec(&engine, container, "exit 5").await.0, 5, "{name}");
        let job = StopContainer { container: container.clone(), grace: Duration::from_secs(20) };
        ok(engine.run(job, None).await);
        let view = engine.container(container).unwrap();
        let code = view.exit.as_ref().map(|exit| exit.code);
        assert_eq!((view.state, code), (ContainerState::Exited, Some(3)), "{name}");
        assert!(house.log(&format!("on-{name}"), "main").ends_with("stdout F bye\n"), "{name}");
        ok(engine.run(RemoveContainer { container: container.clone() }, None).await);
    }
    assert_eq!(kept(&house), Vec::<PathBuf>::new());
    house.close(engine).await;
}

#[tokio::test]
async fn an_unknown_handler_and_what_a_handler_does_not_offer_are_refused_by_name() {
    let house = House::new();
    let engine = house.engine_of(runtimes(&house)).await;
    let error = engine.run(RunPod { spec: pod(&house, "kata") }, None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(
        error.chain().contains("\"kata\" is not configured; known: native, berth-oci"),
        "{}",
        error.chain()
    );
    assert!(!engine.features("berth-oci").unwrap().user_namespaces);
    let mut spec = pod(&house, "berth-oci");
    let map = vec![IdMapping { container_id: 0, host_id: 65_536, length: 65_536 }];
    spec.security.namespaces.user =
        Some(UserNamespace { mode: NamespaceMode::Pod, uids: map.clone(), gids: map });
    let error = engine.run(RunPod { spec }, None).await.unwrap_err();
    assert!(error.chain().contains("handler does not offer user namespaces"), "{}", error.chain());
    house.close(engine).await;
}

#[tokio::test]
async fn a_runtime_that_cannot_run_a_container_is_quoted_and_leaves_nothing() {
    let house = House::new();
    let runtimes = runtimes(&house);
    let names: Vec<_> = runtimes.iter().map(|runtime| runtime.name.clone()).collect();
    let engine = house.engine_of(runtimes).await;
    for name in names {
        let pod = run_pod(&engine, pod(&house, &name)).await;
        let mut spec = house.shell("main", "");
        spec.command = vec!["/bin/nosuch".into()];
        let container = ok(engine.run(CreateContainer { pod: pod.clone(), spec }, None).await);
        let job = StartContainer { container: container.clone() };
        let error = engine.run(job, None).await.unwrap_err().chain();
        assert!(error.contains(&format!("handler \"{name}\"")) && error.contains("/bin/nosuch"), "{error}");
        assert_eq!(kept(&house), Vec::<PathBuf>::new(), "{name}");
        let bundle = house.dir.join("run/pods").join(&pod).join(&container[..12]);
        assert!(!bundle.exists(), "{} is left", bundle.display());
        assert_eq!(engine.container(&container).unwrap().state, ContainerState::Exited);
    }
    house.close(engine).await;
}

/// Waits until a process has ended.
async fn gone(pid: &str) {
    let status = Path::new("/proc").join(pid).join("status");
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    let wait = async {
        while fs::read_to_string(&status).is_ok_and(|text| !text.contains("State:\tZ")) {
            tick.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("{pid} goes on"));
}

/// A runtime that is a script.
fn scripted(house: &House, name: &str, script: &str) -> external::Config {
    let path = house.dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let timeout = Duration::from_secs(1);
    external::Config {
        name: name.into(),
        path,
        root: house.dir.join("roots").join(name),
        arguments: Vec::new(),
        timeout,
    }
}

#[tokio::test]
async fn a_runtime_that_hangs_is_killed_and_one_that_says_nothing_is_named_with_its_code() {
    let house = House::new();
    let note = house.dir.join("note");
    let hangs = format!(
        "case $1 in --version) ;; *) case \"$*\" in *create*) sleep 1000 & echo $$ $! > {}; wait ;; esac ;; esac",
        note.display()
    );
    let silent = "[ \"$1\" = --version ] || exit 9";
    let runtimes = vec![scripted(&house, "hangs", &hangs), scripted(&house, "silent", silent)];
    let engine = house.engine_of(runtimes).await;
    for (name, expected) in [("hangs", "did not end in time and was killed"), ("silent", "ended with code 9")]
    {
        let pod = run_pod(&engine, pod(&house, name)).await;
        let spec = house.shell("main", "");
        let container = ok(engine.run(CreateContainer { pod, spec }, None).await);
        let begun = Instant::now();
        let error = engine.run(StartContainer { container }, None).await.unwrap_err().chain();
        assert!(error.contains(name) && error.contains(expected), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{name} took {:?}", begun.elapsed());
    }
    for pid in fs::read_to_string(note).unwrap().split_whitespace() {
        gone(pid).await;
    }
    house.close(engine).await;
}

#[tokio::test]
async fn a_runtime_that_is_not_there_is_refused_with_its_path() {
    let house = House::new();
    let config = external::Config {
        name: "gone".into(),
        path: house.dir.join("no-such-runtime"),
        root: house.dir.join("roots/gone"),
        arguments: Vec::new(),
        timeout: external::Config::TIMEOUT,
    };
    let native = support::config(Path::new(env!("CARGO_BIN_EXE_podd")), &format!("/core-{}", house.name));
    let error = Native::with_runtimes(native, vec![config]).unwrap_err().chain();
    assert!(error.contains("handler \"gone\"") && error.contains("no-such-runtime"), "{error}");
    assert!(error.contains("No such file"), "{error}");
}

/// Killing a supervisor in the middle of a start takes the runtime along.
#[tokio::test]
async fn a_supervisor_that_is_killed_during_a_start_leaves_no_runtime_behind() {
    let name = std::process::id();
    let dir = PathBuf::from(format!("/tmp/exec-killed-{name}"));
    fs::create_dir_all(dir.join("state")).unwrap();
    support::make_root(&dir.join("root"));
    let note = dir.join("note");
    let script = dir.join("slow");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && exit\ncase \"$*\" in *create*) echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000 ;; esac\n",
        note.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let config = external::Config {
        name: "slow".into(),
        path: script,
        root: dir.join("runtime"),
        arguments: Vec::new(),
        timeout: external::Config::TIMEOUT,
    };
    let group = format!("/berth-test-killed-{name}");
    let native = support::config(Path::new(env!("CARGO_BIN_EXE_podd")), &group);
    let driver = Native::with_runtimes(native, vec![config]).unwrap().pop().unwrap();
    let (state, spec) = (dir.join("state"), support::pod_spec());
    let launch = PodLaunch { pod: "killed", dir: &state, spec: &spec, netns: None, owned: None, label: None };
    let connection = ok(driver.launch(launch).await);
    let (mut container, process) = (engine::spec::ContainerSpec::default(), support::shell("sleep 1000"));
    container.security.namespaces.pid = NamespaceMode::Container;
    let cgroup = format!("{group}/c");
    let mut start = connection.supervisor.start(engine::exec::ContainerLaunch {
        id: "container",
        pod: &spec,
        spec: &container,
        process: &process,
        rootfs: support::clone_tree(&dir.join("root")),
        mounts: Vec::new(),
        cgroup: &cgroup,
        log: None,
        selinux: None,
    });
    let pid = connection.supervisor.pid();
    let kill = async {
        let mut tick = tokio::time::interval(Duration::from_millis(2));
        while !note.exists() {
            tick.tick().await;
        }
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
    };
    tokio::select! {
        started = &mut start => panic!("{}", started.unwrap_err().chain()),
        () = kill => {}
    }
    assert_eq!(start.await.unwrap_err().kind(), Kind::Unavailable);
    gone(fs::read_to_string(&note).unwrap().trim()).await;
    assert!(!state.join("container").exists(), "the bundle is left");
    ok(driver.remove_cgroup(&group).await);
    fs::remove_dir_all(dir).unwrap();
}
