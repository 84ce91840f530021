//! The native driver against the kernel: real supervisors, real containers, real cgroups. Needs root and busybox-static.

mod support;

use std::fs;

use support::*;

#[tokio::test]
async fn a_container_runs_logs_and_leaves_nothing() {
    let mut pod = Pod::new().await;
    let container = pod.container("echo out; echo err >&2; hostname; exit 3");
    let cgroup = pod.cgroup(&container.id);
    let (exit, log) = pod.run(container).await;
    assert_eq!(exit.code, 3);
    assert!(!exit.oom);
    let mut lines: Vec<_> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["stderr F err", "stdout F out", "stdout F test-pod"]);
    assert_eq!(pod.added_mounts(), 0, "container mounts never enter the node's mount table");
    assert!(cgroup_exists(&cgroup));
    pod.driver.remove_cgroup(&cgroup).await.unwrap();
    assert!(!cgroup_exists(&cgroup));
    pod.end().await;
}

#[tokio::test]
async fn the_entrypoint_sees_three_descriptors_and_its_own_world() {
    let mut pod = Pod::new().await;
    assert_eq!(
        pod.output("for f in /proc/self/fd/*; do echo ${f##*/}; done | sort -n | head -3 | xargs").await,
        "0 1 2\n"
    );
    assert_eq!(
        pod.output("echo $$; grep -c . /proc/1/cgroup; cut -d: -f3 /proc/self/cgroup | sort -u")
            .await
            .lines()
            .next(),
        Some("1")
    );
    assert_eq!(pod.output("cut -d: -f3 /proc/self/cgroup | sort -u").await, "/\n");
    assert_eq!(
        pod.output("stat -c %t:%T /dev/null; ls -d /dev/shm /dev/mqueue /dev/pts; readlink /dev/fd").await,
        "1:3\n/dev/mqueue\n/dev/pts\n/dev/shm\n/proc/self/fd\n"
    );
    assert_eq!(pod.output("umask; pwd").await, "0022\n/\n");
    let mut direct = pod.container("");
    direct.process.args = ["grep", "-E", "SigIgn|SigBlk", "/proc/self/status"].map(Into::into).into();
    let (_, log) = pod.run(direct).await;
    assert_eq!(text(&log), "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    assert_eq!(pod.output("touch /sys/x /sys/fs/cgroup/x 2>&1 | grep -c Read-only").await, "2\n");
    pod.end().await;
}

#[tokio::test]
async fn a_missing_command_is_named() {
    let pod = Pod::new().await;
    for (args, expected) in [
        (vec!["nosuch"], "command \"nosuch\" not found in the image (PATH=/bin)"),
        (vec!["/bin/nosuch"], "command \"/bin/nosuch\" does not exist in the image"),
        (
            vec!["/etc/passwd"],
            "command \"/etc/passwd\" is not executable by the container's user (or is a directory)",
        ),
    ] {
        let mut container = pod.container("");
        container.process.args = args.into_iter().map(Into::into).collect();
        let cgroup = pod.cgroup(&container.id);
        let error = pod.try_start(container).await.unwrap_err();
        assert_eq!(error.chain(), expected);
        assert!(!cgroup_exists(&cgroup), "a failed start leaves no cgroup");
    }
    pod.end().await;
}

#[tokio::test]
async fn an_exec_runs_inside_the_container() {
    let mut pod = Pod::new().await;
    let container =
        pod.container("echo marker > /tmp/marker; trap 'exit 7' TERM; while :; do sleep 0.05; done");
    let (id, spec) = (container.id.clone(), container.spec.clone());
    let started = pod.start(container).await;
    assert!(fs::metadata(format!("/proc/{}", started.pid)).is_ok());
    let (exit, out) = pod
        .exec(
            &id,
            &spec,
            "cat /tmp/marker; cut -d: -f3 /proc/self/cgroup | sort -u; ls /proc/1/exe >/dev/null; exit 5",
        )
        .await;
    assert_eq!((exit.code, out.as_str()), (5, "marker\n/\n"));
    pod.connection.supervisor.signal(&id, 15).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 7);
    pod.end().await;
}

#[tokio::test]
async fn kill_ends_every_process() {
    let mut pod = Pod::new().await;
    let container = pod.container("sleep 1000 & sleep 1000");
    let id = container.id.clone();
    pod.start(container).await;
    pod.connection.supervisor.kill(&id).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 137);
    pod.connection.supervisor.signal(&id, 9).await.unwrap();
    pod.end().await;
}
