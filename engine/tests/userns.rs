//! Pods with a user namespace of their own: what is root there is nobody on the node, and everything works all the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use engine::spec::{IdMapping, NamespaceMode, PodSpec, UserNamespace};
use support::{Container, Pod, clone_tree, no_user_namespaces, pod_spec, shell, skip, text};

/// First id on the node.
const FIRST: u32 = 655_360;

fn spec() -> PodSpec {
    let mut spec = pod_spec();
    let map = vec![IdMapping { container_id: 0, host_id: FIRST, length: 65_536 }];
    spec.security.namespaces.user =
        Some(UserNamespace { mode: NamespaceMode::Pod, uids: map.clone(), gids: map });
    spec
}

/// Starts a container whose root has the ids of the pod's user namespace, without any file being chowned.
async fn start(pod: &Pod, container: Container) -> engine::exec::Started {
    let root = clone_tree(&pod.dir.join("root"));
    let user = pod.connection.supervisor.user_namespace().unwrap();
    engine::sys::mount::map_ids(root.as_fd(), user.as_fd()).unwrap();
    pod.try_start_on(container, root).await.unwrap_or_else(|e| panic!("{}", e.chain()))
}

async fn output(pod: &mut Pod, container: Container) -> String {
    let id = container.id.clone();
    start(pod, container).await;
    let exit = pod.exit(&id).await;
    let log = pod.log(&id);
    assert_eq!(exit.code, 0, "{log}");
    text(&log)
}

#[tokio::test]
async fn root_of_the_pod_is_nobody_on_the_node() {
    if let Some(why) = no_user_namespaces().await {
        return skip(why);
    }
    let mut pod = Pod::with(spec()).await;
    let container = pod.container(
        "id -u; id -g; tr -s ' ' < /proc/self/uid_map; touch /data/made; stat -c %u /bin /data/made /proc/self/status; \
         hostname; echo x > /dev/shm/x && echo gone > /dev/null && head -c 3 /dev/zero | wc -c; \
         ls /sys/class/net /dev/mqueue /dev/pts; echo a > /dev/stdout; ! grep -v :/$ /proc/self/cgroup",
    );
    let shown = output(&mut pod, container).await;
    let expected = format!("0\n0\n 0 {FIRST} 65536\n0\n0\n0\ntest-pod\n3\n");
    assert!(shown.starts_with(&expected), "{shown}");
    assert!(shown.contains("/sys/class/net:\nlo\n") && shown.ends_with("a\n"), "{shown}");
    assert_eq!(
        fs::metadata(pod.dir.join("root/data/made")).unwrap().uid(),
        0,
        "the image's ids are unchanged"
    );

    let holder = pod.container("exec sleep 1000");
    let id = holder.id.clone();
    let started = start(&pod, holder).await;
    assert_eq!(fs::metadata(format!("/proc/{}", started.pid)).unwrap().uid(), FIRST);
    let status = fs::read_to_string(format!("/proc/{}/status", started.pid)).unwrap();
    assert!(status.contains("NSpid:") && status.contains("CapEff:"), "{status}");
    pod.connection.supervisor.kill(&id).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 137);
    pod.end().await;
}

#[tokio::test]
async fn users_sysctls_and_failures_are_as_in_any_pod() {
    if let Some(why) = no_user_namespaces().await {
        return skip(why);
    }
    let mut asked = spec();
    asked.sysctls = [("kernel.shmmax", "65536"), ("net.ipv4.ip_forward", "1"), ("fs.mqueue.msg_max", "33")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
    let mut pod = Pod::with(asked).await;
    let mut container = pod.container(
        "id -u; id -g; cat /proc/sys/kernel/shmmax /proc/sys/net/ipv4/ip_forward /proc/sys/fs/mqueue/msg_max; echo b > /dev/stdout",
    );
    container.process.user = engine::exec::ResolvedUser { uid: 1000, gid: 1000, groups: vec![1000, 2000] };
    assert_eq!(output(&mut pod, container).await, "1000\n1000\n65536\n1\n33\nb\n");

    let mut unmapped = pod.container("true");
    unmapped.process.user.uid = 70_000;
    let error = pod.try_start(unmapped).await.unwrap_err().chain();
    assert!(error.contains("70000"), "{error}");

    let mut missing = pod.container("true");
    missing.process.args = vec!["/no/such".into()];
    let root = clone_tree(&pod.dir.join("root"));
    let error = pod.try_start_on(missing, root).await.unwrap_err().chain();
    assert!(error.contains("/no/such"), "{error}");
    pod.end().await;
}

#[tokio::test]
async fn execs_terminals_and_a_new_supervisor_find_their_way_in() {
    if let Some(why) = no_user_namespaces().await {
        return skip(why);
    }
    let mut pod = Pod::with(spec()).await;
    let container = pod.container("trap 'exit 5' TERM; while :; do sleep 0.02; done");
    let (id, container_spec) = (container.id.clone(), container.spec.clone());
    start(&pod, container).await;
    let shown = pod
        .exec(&id, &container_spec, "id -u; tr -s ' ' < /proc/self/uid_map; echo $((1+1)) > /dev/stdout")
        .await;
    assert_eq!(shown.1, format!("0\n 0 {FIRST} 65536\n2\n"));

    let mut process = shell("tty; id -u");
    process.tty = true;
    let exec = pod.try_exec(&id, &container_spec, &process, [true, true, false], false).await.unwrap();
    let shown = support::read_all(exec.stdio.stdout.unwrap()).await;
    assert_eq!(shown, "/dev/pts/0\r\n0\r\n");
    exec.exit.await.unwrap();

    let mut terminal = pod.container("tty; id -u");
    terminal.process.tty = true;
    assert_eq!(output(&mut pod, terminal).await, "/dev/pts/0\n0\n");

    let supervisor = rustix::process::Pid::from_raw(pod.connection.supervisor.pid()).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    assert!(matches!(pod.connection.events.recv().await, Some(engine::exec::Event::Gone)));
    pod.connection = pod.driver.connect(&pod.id, &pod.dir.join("state")).await.unwrap().unwrap();
    assert_eq!(pod.exec(&id, &container_spec, "id -u").await.1, "0\n");
    let next = pod.container("id -u; hostname");
    assert_eq!(output(&mut pod, next).await, "0\ntest-pod\n");
    pod.connection.supervisor.signal(&id, 15).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 5);
    pod.end().await;
}

#[tokio::test]
async fn processes_and_the_nodes_network_can_be_shared() {
    if let Some(why) = no_user_namespaces().await {
        return skip(why);
    }
    let mut asked = spec();
    asked.security.namespaces.pid = NamespaceMode::Pod;
    let mut pod = Pod::with(asked).await;
    let sleeper = pod.container("exec sleep 1000");
    let id = sleeper.id.clone();
    start(&pod, sleeper).await;
    let look = pod.container("ps -o args | grep -c '[s]leep 1000'");
    assert_eq!(output(&mut pod, look).await, "1\n");
    pod.connection.supervisor.kill(&id).await.unwrap();
    pod.exit(&id).await;
    pod.end().await;

    let mut asked = spec();
    asked.security.namespaces.network = NamespaceMode::Node;
    let mut pod = Pod::with(asked).await;
    let look = pod.container("id -u; readlink /proc/self/ns/net; ls -d /sys/kernel /sys/fs/cgroup; touch /sys/x 2>/dev/null || echo ro");
    let node = fs::read_link("/proc/self/ns/net").unwrap();
    let expected = format!("0\n{}\n/sys/fs/cgroup\n/sys/kernel\nro\n", node.display());
    assert_eq!(output(&mut pod, look).await, expected);
    pod.end().await;
}
