//! Seccomp filters against the kernel: what they do not stop, and the agents that decide in the kernel's place.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use engine::exec::ResolvedUser;
use engine::spec::Profile;
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};
use support::bundle::Bundle;
use support::*;

/// A Localhost profile in a pod's directory.
fn profile(pod: &Pod, profile: &Value) -> Option<Profile> {
    let path = pod.dir.join("profile.json");
    fs::write(&path, profile.to_string()).unwrap();
    Some(Profile::Localhost(path.to_str().unwrap().into()))
}

/// Everything is allowed but these calls.
fn denying(calls: &[&str]) -> Value {
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": calls, "action": "SCMP_ACT_ERRNO" }] })
}

/// What the runtime itself does on its way to the program, as root and as the user.
const RUNTIMES_OWN: [&str; 8] =
    ["chdir", "fchdir", "getcwd", "setgroups", "setresuid", "setresgid", "close_range", "capget"];

/// An agent: it takes `count` connections, keeps of each what was said, and answers the first notification of each listener by
/// letting go of it, which is ENOSYS to the caller (seccomp_unotify(2)).
struct Agent {
    path: PathBuf,
    thread: JoinHandle<Vec<Value>>,
}

impl Agent {
    fn new(dir: &Path, count: usize) -> Self {
        let path = dir.join("agent.sock");
        let socket = UnixListener::bind(&path).unwrap();
        let serve = move || (0..count).map(|_| Self::one(&socket)).collect();
        Self { path, thread: thread::spawn(serve) }
    }

    fn one(socket: &UnixListener) -> Value {
        let (stream, _) = socket.accept().unwrap();
        let (mut text, mut fds) = (Vec::new(), Vec::<OwnedFd>::new());
        loop {
            let mut part = [0; 4096];
            match engine::sys::socket::receive(&stream, &mut part, &mut fds).unwrap() {
                0 => break,
                length => text.extend_from_slice(&part[..length]),
            }
        }
        let [listener] = <[OwnedFd; 1]>::try_from(fds).unwrap();
        let mut state: Value = serde_json::from_slice(&text).unwrap();
        // One notification comes, or the process ends without one.
        let mut events = [PollFd::new(&listener, PollFlags::IN)];
        poll(&mut events, None).unwrap();
        state["asked"] = events[0].revents().contains(PollFlags::IN).into();
        state
    }

    fn profile(&self) -> Value {
        json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": self.path, "listenerMetadata": "for \"you\"",
            "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
        })
    }

    fn states(self) -> Vec<Value> {
        self.thread.join().unwrap()
    }
}

/// The answer of an agent that has let go.
const ANSWERED: &str = "mkdir: can't create directory '/tmp/x': Function not implemented\n";

fn in_user(pod: &Pod, script: &str, no_new_privs: bool) -> Container {
    let mut container = pod.container(script);
    container.process.user = ResolvedUser { uid: 1000, gid: 1000, groups: vec![1000] };
    container.spec.security.no_new_privs = no_new_privs;
    container
}

#[tokio::test]
async fn a_profile_cannot_stop_what_the_runtime_does_before_the_program() {
    let mut pod = Pod::new().await;
    fs::write(pod.dir.join("root/data/inside"), "").unwrap();
    fs::set_permissions(pod.dir.join("root/data"), fs::Permissions::from_mode(0o777)).unwrap();
    for no_new_privs in [false, true] {
        let script = "echo $(ls) $(id -u); mkdir said; exec sleep 1000";
        let mut container = in_user(&pod, script, no_new_privs);
        container.process.cwd = "/data".into();
        container.spec.security.seccomp = profile(&pod, &denying(&RUNTIMES_OWN));
        let (id, spec) = (container.id.clone(), container.spec.clone());
        pod.start(container).await;
        let script =
            "until rmdir /data/said 2>/dev/null; do sleep 0.02; done; cd / 2>/dev/null || echo denied";
        assert_eq!(pod.exec(&id, &spec, script).await.1, "denied\n");
        pod.connection.supervisor.kill(&id).await.unwrap();
        pod.exit(&id).await;
        assert_eq!(text(&pod.log(&id)), "inside 1000\n", "no_new_privs {no_new_privs}");
    }
    pod.end().await;
}

/// Root of a user namespace has no power over files of an owner that the namespace does not know.
#[test]
fn a_directory_that_only_the_user_may_enter_is_entered_before_the_filter() {
    for no_new_privs in [false, true] {
        let bundle = Bundle::new(&format!("squash-{no_new_privs}"));
        let own = bundle.dir.join("rootfs/own");
        fs::create_dir(&own).unwrap();
        chown(&own, Some(5), Some(100_007)).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o070)).unwrap();
        fs::set_permissions(&bundle.dir, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(own.join("inside"), "").unwrap();
        bundle.script("ls; cd / 2>/dev/null || echo denied");
        bundle.change(|config| {
            let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
            config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
            (config["linux"]["uidMappings"], config["linux"]["gidMappings"]) = (map.clone(), map);
            config["linux"]["seccomp"] = denying(&RUNTIMES_OWN);
            config["process"]["user"] = json!({ "uid": 7, "gid": 7 });
            config["process"]["cwd"] = json!("/own");
            config["process"]["noNewPrivileges"] = json!(no_new_privs);
        });
        assert_eq!(bundle.ok(&["run", "a"]), "inside\ndenied\n", "no_new_privs {no_new_privs}");
        bundle.change(|config| config["process"]["user"]["gid"] = json!(8));
        assert!(bundle.fails(&["run", "b"]).contains("\"/own\""));
    }
}

#[tokio::test]
async fn an_agent_gets_the_listener_and_the_state_of_every_process() {
    for no_new_privs in [false, true] {
        let mut pod = Pod::new().await;
        let agent = Agent::new(&pod.dir, 2);
        let script = "mkdir /tmp/x; until [ -e /tmp/go ]; do sleep 0.02; done";
        let mut container = in_user(&pod, script, no_new_privs);
        container.spec.security.seccomp = profile(&pod, &agent.profile());
        container.spec.annotations = [("who".to_owned(), "me".to_owned())].into();
        container.spec.labels = [("app".to_owned(), "web".to_owned())].into();
        let (id, spec) = (container.id.clone(), container.spec.clone());
        let started = pod.start(container).await;
        let (_, said) = pod.exec(&id, &spec, "mkdir /tmp/x; : > /tmp/go").await;
        assert_eq!(said, ANSWERED);
        pod.exit(&id).await;
        assert_eq!(pod.log(&id), format!("stderr F {ANSWERED}"));
        let states = agent.states();
        let [first, exec] = <[Value; 2]>::try_from(states).unwrap();
        let expected = json!({
            "ociVersion": "1.2.1", "fds": ["seccompFd"], "pid": started.pid, "metadata": "for \"you\"", "asked": true,
            "state": {
                "ociVersion": "1.2.1", "id": id, "status": "creating", "pid": started.pid,
                "bundle": pod.dir.join("state"), "annotations": { "who": "me", "app": "web" },
            },
        });
        assert_eq!(first, expected);
        assert_eq!((&exec["state"]["status"], &exec["state"]["id"]), (&json!("running"), &json!(id)));
        assert_ne!(exec["pid"], json!(started.pid));
        assert_eq!(exec["pid"], exec["state"]["pid"]);
        pod.end().await;
    }
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_named_and_nothing_starts() {
    let mut pod = Pod::new().await;
    let agent = Agent::new(&pod.dir, 0);
    let asked = agent.profile();
    assert_eq!(agent.states(), Vec::<Value>::new());
    let mut container = pod.container("true");
    container.spec.security.seccomp = profile(&pod, &asked);
    let id = container.id.clone();
    let error = pod.try_start(container).await.unwrap_err().chain();
    assert!(error.contains("seccomp agent") && error.contains("agent.sock"), "{error}");
    assert!(!cgroup_exists(&pod.cgroup(&id)), "its cgroup is left");
    // Somebody that does not listen as an agent does.
    fs::remove_file(pod.dir.join("agent.sock")).unwrap();
    let _other = std::os::unix::net::UnixDatagram::bind(pod.dir.join("agent.sock")).unwrap();
    let mut container = pod.container("true");
    container.spec.security.seccomp = profile(&pod, &asked);
    assert!(pod.try_start(container).await.is_err());
    assert_eq!(pod.output("echo well").await, "well\n");
    pod.end().await;
}

/// The runtime that reads a profile must be able to reach its agent, whatever the pod's own processes may reach.
#[tokio::test]
async fn the_agent_of_a_pod_with_a_user_namespace_is_told_the_nodes_process_id() {
    if let Some(why) = no_user_namespaces().await {
        return skip(why);
    }
    let mut asked = pod_spec();
    let map = vec![engine::spec::IdMapping { container_id: 0, host_id: 655_360, length: 65_536 }];
    asked.security.namespaces.user = Some(engine::spec::UserNamespace {
        mode: engine::spec::NamespaceMode::Pod,
        uids: map.clone(),
        gids: map,
    });
    let mut pod = Pod::with(asked).await;
    let agent = Agent::new(&pod.dir, 1);
    let mut container = pod.container("mkdir /tmp/x");
    container.spec.security.seccomp = profile(&pod, &agent.profile());
    let root = clone_tree(&pod.dir.join("root"));
    let user = pod.connection.supervisor.user_namespace().unwrap();
    engine::sys::mount::map_ids(root.as_fd(), user.as_fd()).unwrap();
    let id = container.id.clone();
    let started = pod.try_start_on(container, root).await.unwrap_or_else(|e| panic!("{}", e.chain()));
    assert_ne!(pod.exit(&id).await.code, 0);
    assert_eq!(agent.states()[0]["pid"], json!(started.pid));
    pod.end().await;
}

#[test]
fn the_command_line_hands_over_listeners_too() {
    for no_new_privs in [false, true] {
        let bundle = Bundle::new(&format!("notify-{no_new_privs}"));
        let agent = Agent::new(&bundle.dir, 2);
        bundle.script("mkdir /tmp/x; exec sleep 1000");
        bundle.change(|config| {
            config["linux"]["seccomp"] = agent.profile();
            config["process"]["noNewPrivileges"] = json!(no_new_privs);
            config["annotations"] = json!({ "who": "me" });
        });
        bundle.create("a");
        bundle.ok(&["start", "a"]);
        let said = bundle.oci(&["exec", "a", "/bin/mkdir", "/tmp/x"]);
        assert_eq!(String::from_utf8(said.stderr).unwrap(), ANSWERED);
        let pid = serde_json::from_str::<Value>(&bundle.ok(&["state", "a"])).unwrap()["pid"].clone();
        let states = agent.states();
        let expected = json!({
            "ociVersion": "1.2.1", "fds": ["seccompFd"], "pid": pid, "metadata": "for \"you\"", "asked": true,
            "state": {
                "ociVersion": "1.2.1", "id": "a", "status": "creating", "pid": pid,
                "bundle": bundle.dir, "annotations": { "who": "me" },
            },
        });
        assert_eq!(states[0], expected);
        assert_eq!(states[1]["state"]["status"], json!("running"));
        bundle.ok(&["delete", "--force", "a"]);
        bundle.change(|config| config["linux"]["seccomp"]["listenerPath"] = json!("/tmp/nobody.sock"));
        assert!(bundle.fails(&["run", "b"]).contains("/tmp/nobody.sock"));
        assert!(bundle.fails(&["state", "b"]).contains("does not exist"));
    }
}

/// Whoever never notifies needs no agent (config-linux.md: listenerPath is ignored then).
#[tokio::test]
async fn a_listener_that_no_rule_needs_is_ignored() {
    let mut pod = Pod::new().await;
    let mut container = pod.container("echo ran");
    let mut asked = denying(&["chdir"]);
    asked["listenerPath"] = json!("/tmp/nobody.sock");
    asked["flags"] = json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]);
    container.spec.security.seccomp = profile(&pod, &asked);
    let (exit, log) = pod.run(container).await;
    assert_eq!((exit.code, text(&log).as_str()), (0, "ran\n"));
    pod.end().await;
}

#[tokio::test]
async fn a_profile_that_would_stop_the_hand_over_is_refused_by_name() {
    let pod = Pod::new().await;
    let mut container = pod.container("true");
    let asked = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["write"], "action": "SCMP_ACT_NOTIFY" }],
        "listenerPath": "/tmp/nobody.sock" });
    container.spec.security.seccomp = profile(&pod, &asked);
    let error = pod.try_start(container).await.unwrap_err().chain();
    assert!(error.contains("SCMP_ACT_NOTIFY on write"), "{error}");
    pod.end().await;
}
