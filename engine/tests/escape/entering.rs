//! What a container can reach of the runtime while a process enters it, and of the node's own interfaces afterwards.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, symlink};

use engine::spec::{IdMapping, NamespaceMode, Profile, UserNamespace};

use super::slow_exec;
use super::support::*;

/// CVE-2024-21626: a working directory through a leaked descriptor, or through a process that is not the container's.
#[tokio::test]
async fn a_working_directory_cannot_lie_outside() {
    let mut asked = pod_spec();
    // The node's processes are in sight, and the runtime may follow what the container may not.
    asked.security.namespaces.pid = NamespaceMode::Node;
    let mut pod = Pod::with(asked).await;
    let holder = pod.container("exec sleep 1000");
    let (id, spec) = (holder.id.clone(), holder.spec.clone());
    pod.start(holder).await;
    let us = std::process::id();
    let others = ["root", "cwd", "root/tmp"].map(|place| format!("/proc/{us}/{place}"));
    for cwd in (3..24).map(|fd| format!("/proc/self/fd/{fd}")).chain(others) {
        let mut container = pod.container("pwd; ls -a ../../../.. >/dev/null");
        container.process.cwd = cwd.clone();
        assert!(pod.try_start(container).await.is_err(), "run in {cwd}");
        let mut process = shell("pwd");
        process.cwd = cwd.clone();
        assert!(pod.try_exec(&id, &spec, &process, [false; 3], false).await.is_err(), "exec in {cwd}");
        let unwatched = pod.try_exec(&id, &spec, &process, [false, true, true], true).await.unwrap();
        assert!(unwatched.exit.await.is_err(), "exec in {cwd}, of which only the end matters");
    }
    pod.connection.supervisor.kill(&id).await.unwrap();
    pod.exit(&id).await;
    pod.end().await;
}

/// Looks, until told to stop, at the descriptors of processes that have entered the container and are not what it runs itself.
const SPY: &str = "while [ ! -e /tmp/stop ]; do for p in /proc/[0-9]*; do \
                     [ $p/exe -ef /bin/busybox ] || { [ $p/ns/mnt -ef /proc/1/ns/mnt ] && ls -l $p/fd 2>/dev/null; }; \
                   done; done | sed -n 's/.* -> //p' | sort -u";

/// Starts a spy that may trace, lets processes enter slowly, and returns what it has seen.
async fn spied(mut pod: Pod) -> Vec<String> {
    let mut container = pod.container(SPY);
    container.spec.security.add_capabilities = vec!["SYS_PTRACE".into()];
    // Where AppArmor is on its default profile would keep it from looking, which is another rule.
    container.spec.security.apparmor = Some(Profile::Unconfined);
    let (id, spec) = (container.id.clone(), container.spec.clone());
    let root = clone_tree(&pod.dir.join("root"));
    if let Some(user) = pod.connection.supervisor.user_namespace() {
        engine::sys::mount::map_ids(root.as_fd(), user.as_fd()).unwrap();
    }
    pod.try_start_on(container, root).await.unwrap_or_else(|e| panic!("{}", e.chain()));
    for _ in 0..10 {
        assert_eq!(slow_exec(&pod, &id, &spec).await.code, 0);
    }
    pod.exec(&id, &spec, "touch /tmp/stop").await;
    pod.exit(&id).await;
    let seen = text(&pod.log(&id)).lines().map(str::to_owned).collect();
    pod.end().await;
    seen
}

/// CVE-2016-9962: what enters a container has let go of the node before, so that even who may trace finds no way out.
#[tokio::test]
async fn an_exec_brings_no_descriptor_of_the_node_along() {
    let seen = spied(Pod::new().await).await;
    assert!(seen.iter().any(|what| what.starts_with("socket:")), "the spy has seen nothing: {seen:?}");
    let harmless = ["socket:[", "anon_inode:[pidfd]", "pidfd:[", "pipe:[", "/dev/null", "/null"];
    let ways_out: Vec<_> = seen.iter().filter(|what| !harmless.iter().any(|h| what.starts_with(h))).collect();
    assert!(ways_out.is_empty(), "{ways_out:?}");
}

/// CVE-2016-9962: root of a user namespace, who may trace all of its own, sees nothing of a process on its way in.
#[tokio::test]
async fn a_process_on_its_way_in_cannot_be_traced() {
    if let Some(why) = no_user_namespaces().await {
        return skip(why);
    }
    let mut asked = pod_spec();
    let map = vec![IdMapping { container_id: 0, host_id: 655_360, length: 65_536 }];
    asked.security.namespaces.user =
        Some(UserNamespace { mode: NamespaceMode::Pod, uids: map.clone(), gids: map });
    // Its standard descriptors are seen once it runs what the container has; its channel to the supervisor never.
    let seen = spied(Pod::with(asked).await).await;
    let ours: Vec<_> =
        seen.iter().filter(|what| !["pipe:[", "/"].iter().any(|s| what.starts_with(s))).collect();
    assert!(ours.is_empty(), "the container saw a process of the runtime: {ours:?}");
}

/// CVE-2019-5736: writing to the runtime's program through /proc/self/exe.
#[tokio::test]
async fn the_supervisors_program_cannot_be_written() {
    let mut pod = Pod::new().await;
    let program = format!("/proc/{}/exe", pod.connection.supervisor.pid());
    let target = fs::read_link(&program).unwrap();
    assert!(target.to_string_lossy().starts_with("/memfd:berth-podd"), "{target:?}");
    let file = fs::File::open(&program).unwrap();
    let seals = rustix::fs::fcntl_get_seals(&file).unwrap();
    assert!(seals.contains(rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::SEAL), "{seals:?}");
    symlink("/proc/self/exe", pod.dir.join("root/bin/evil")).unwrap();
    let mut container = pod.container("");
    container.process.args = vec!["/bin/evil".into()];
    let id = container.id.clone();
    if pod.try_start(container).await.is_ok() {
        // It is the sealed copy that ran: not as a supervisor, for it has no descriptors to serve on.
        assert_ne!(pod.exit(&id).await.code, 0);
    }
    pod.end().await;
}

/// CVE-2023-25809, CVE-2022-0492: cgroups are read-only and their namespace hides the node's.
#[tokio::test]
async fn cgroups_cannot_be_changed_from_inside() {
    let mut pod = Pod::new().await;
    let script = "find /sys/fs/cgroup -name release_agent | wc -l; for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $d/x 2>/dev/null && echo made $d; done; \
                  mount -t cgroup -o memory none /tmp 2>/dev/null && echo mounted; grep -v ':/$' /proc/self/cgroup; echo done";
    assert_eq!(pod.output(script).await, "0\ndone\n");
    pod.end().await;
}

/// CVE-2020-15257: no socket that a pod on the node's network could reach.
#[tokio::test]
async fn no_abstract_socket_is_ours() {
    let pod = Pod::new().await;
    let pid = pod.connection.supervisor.pid();
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap();
    let names = sockets.lines().filter_map(|line| line.split_whitespace().nth(7));
    let abstract_ones: Vec<_> = names.filter(|name| name.starts_with("@berth")).collect();
    assert!(abstract_ones.is_empty(), "{abstract_ones:?}");
    let ours = pod.dir.join("state");
    let is_socket = |e: fs::DirEntry| e.file_type().unwrap().is_socket();
    assert!(fs::read_dir(&ours).unwrap().flatten().any(is_socket), "there is none in {}", ours.display());
    pod.end().await;
}
