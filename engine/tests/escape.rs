//! Known escapes from containers, each as a test against the kernel. Every test names the advisory and the rule that stops it; the list
//! is in `tests/escape/README.md` next to this file.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use engine::exec::user::resolve;
use engine::exec::{PreparedMount, ResolvedUser};
use engine::spec::{MountSpec, UserSpec};
use support::*;

/// A directory of the node that must not change.
fn bait(pod: &Pod) -> std::path::PathBuf {
    let bait = pod.dir.join("bait");
    fs::create_dir(&bait).unwrap();
    fs::write(bait.join("file"), "untouched").unwrap();
    bait
}

fn assert_untouched(bait: &Path) {
    let names: Vec<_> = fs::read_dir(bait).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["file"], "something was made on the node");
    assert_eq!(fs::read_to_string(bait.join("file")).unwrap(), "untouched");
}

/// Replaces a directory of the image by a link.
fn relink(pod: &Pod, name: &str, target: &Path) {
    let path = pod.dir.join("root").join(name);
    fs::remove_dir_all(&path).unwrap();
    symlink(target, path).unwrap();
}

fn volume(path: &Path, destination: &str) -> PreparedMount {
    PreparedMount {
        fd: clone_tree(path),
        destination: destination.into(),
        directory: true,
        spec: MountSpec::default(),
    }
}

/// CVE-2019-19921, CVE-2025-54867, CVE-2026-41579, CVE-2026-47766: the image has links where the runtime mounts.
#[tokio::test]
async fn an_image_with_links_for_proc_sys_or_dev_does_not_start() {
    for name in ["proc", "sys", "dev"] {
        let pod = Pod::new().await;
        let bait = bait(&pod);
        relink(&pod, name, &bait);
        let error = pod.try_start(pod.container("true")).await.unwrap_err();
        assert!(error.chain().contains("symbolic link"), "{name}: {}", error.chain());
        assert_untouched(&bait);
        pod.end().await;
    }
}

/// CVE-2024-21626: a working directory through a leaked descriptor.
#[tokio::test]
async fn a_working_directory_cannot_be_a_descriptor_of_the_runtime() {
    let mut pod = Pod::new().await;
    let holder = pod.container("exec sleep 1000");
    let (id, spec) = (holder.id.clone(), holder.spec.clone());
    pod.start(holder).await;
    for fd in 3..24 {
        let mut container = pod.container("pwd; ls -a ../../../.. >/dev/null");
        container.process.cwd = format!("/proc/self/fd/{fd}");
        let started = pod.try_start(container).await;
        assert!(started.is_err(), "run in descriptor {fd}");
        let mut process = shell("pwd");
        process.cwd = format!("/proc/self/fd/{fd}");
        let cgroup = pod.cgroup(&id);
        let launch = engine::exec::ExecLaunch {
            spec: &spec,
            pod: &pod.spec,
            cgroup: &cgroup,
            stdin: false,
            stdout: false,
            stderr: false,
        };
        assert!(
            pod.connection.supervisor.exec(&id, &process, launch).await.is_err(),
            "exec in descriptor {fd}"
        );
    }
    pod.connection.supervisor.kill(&id).await.unwrap();
    pod.exit(&id).await;
    pod.end().await;
}

/// CVE-2016-9962: descriptors of the runtime seen from inside while an exec enters.
#[tokio::test]
async fn an_exec_shows_the_container_no_descriptor_of_the_runtime() {
    let mut pod = Pod::new().await;
    let spy = pod.container(
        "while [ ! -e /tmp/stop ]; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] || ls -l $p/fd 2>/dev/null; done; done | grep -E 'cgroup|tasks|\\.log|memfd|/exec-' | head -5; exit 0",
    );
    let (id, spec) = (spy.id.clone(), spy.spec.clone());
    pod.start(spy).await;
    for _ in 0..40 {
        assert_eq!(pod.exec(&id, &spec, "true").await.0.code, 0);
    }
    pod.exec(&id, &spec, "touch /tmp/stop").await;
    pod.exit(&id).await;
    assert_eq!(pod.log(&id), "", "the container saw the runtime's descriptors");
    pod.end().await;
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

/// CVE-2025-31133, CVE-2025-52565, CVE-2019-18837: what masks are made of does not come from the image.
#[tokio::test]
async fn masks_hold_whatever_the_image_has_for_dev_null() {
    let mut pod = Pod::new().await;
    symlink("/proc/sys/kernel/core_pattern", pod.dir.join("root/dev/null")).unwrap();
    symlink("/proc/keys", pod.dir.join("root/etc/alias")).unwrap();
    let mut container = pod
        .container("wc -c < /proc/keys; stat -c %t:%T /dev/null; cat /proc/1/mountinfo | grep -c ' /null '");
    container.spec.security.masked_paths = vec!["/etc/alias".into()];
    let log = text(&pod.run(container).await.1);
    assert!(log.starts_with("0\n1:3\n"), "{log}");
    pod.end().await;
}

/// CVE-2021-30465, CVE-2024-45310, CVE-2025-52881: a mount point is exchanged for a link while the runtime uses it.
#[tokio::test]
async fn a_mount_point_that_turns_into_a_link_never_leads_out() {
    let mut pod = Pod::new().await;
    let bait = bait(&pod);
    let shared = pod.dir.join("shared");
    fs::create_dir_all(shared.join("real")).unwrap();
    symlink(&bait, shared.join("link")).unwrap();
    let mut racer = pod.container(
        "cd /shared; while [ ! -e /tmp/stop ]; do mv real x 2>/dev/null; ln -s ../../../../../../../../tmp at 2>/dev/null; rm -f at; \
         mkdir at 2>/dev/null; rmdir at 2>/dev/null; cp -a link at 2>/dev/null; rm -rf at 2>/dev/null; done",
    );
    racer.mounts = vec![volume(&shared, "/shared")];
    let (id, spec) = (racer.id.clone(), racer.spec.clone());
    pod.start(racer).await;
    for _ in 0..150 {
        let mut victim = pod.container("true");
        victim.mounts = vec![volume(&shared, "/shared"), volume(&bait.clone(), "/shared/at/deep/er")];
        let victim_id = victim.id.clone();
        if pod.try_start(victim).await.is_ok() {
            pod.exit(&victim_id).await;
        }
        assert_untouched(&bait);
    }
    pod.exec(&id, &spec, "touch /tmp/stop").await;
    pod.exit(&id).await;
    assert_untouched(&bait);
    pod.end().await;
}

/// CVE-2023-28642, CVE-2019-16884: a volume at /proc, by name or by link.
#[tokio::test]
async fn a_volume_cannot_cover_proc() {
    let pod = Pod::new().await;
    symlink("/proc/sys", pod.dir.join("root/alias")).unwrap();
    let bait = bait(&pod);
    for destination in ["/proc", "/proc/sys/kernel", "/alias/kernel"] {
        let mut container = pod.container("true");
        container.mounts = vec![volume(&bait, destination)];
        let error = pod.try_start(container).await.unwrap_err();
        assert!(error.chain().contains("leads into /proc"), "{destination}: {}", error.chain());
    }
    pod.end().await;
}

/// CVE-2022-24769, CVE-2022-29162, CVE-2022-27650, CVE-2025-27612: capabilities that survive as inheritable ones.
#[tokio::test]
async fn nothing_is_inheritable_in_an_exec_either() {
    let mut pod = Pod::new().await;
    let mut container = pod.container("exec sleep 1000");
    container.spec.security.add_capabilities = vec!["NET_ADMIN".into()];
    let (id, spec) = (container.id.clone(), container.spec.clone());
    pod.start(container).await;
    let (_, out) = pod.exec(&id, &spec, "grep -E 'CapInh|CapAmb' /proc/self/status").await;
    assert_eq!(out, "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n");
    pod.connection.supervisor.kill(&id).await.unwrap();
    pod.exit(&id).await;
    pod.end().await;
}

/// CVE-2023-25809, CVE-2022-0492: cgroups are read-only and their namespace hides the node's.
#[tokio::test]
async fn cgroups_cannot_be_changed_from_inside() {
    let mut pod = Pod::new().await;
    let script = "find /sys/fs/cgroup -name release_agent | wc -l; for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $d/x 2>/dev/null && echo made $d; done; \
                  mount -t cgroup -o memory none /tmp 2>/dev/null && echo mounted; echo done";
    assert_eq!(pod.output(script).await, "0\ndone\n");
    pod.end().await;
}

/// CVE-2020-15257: no socket that a pod on the node's network could reach.
#[tokio::test]
async fn no_abstract_socket_is_ours() {
    let pod = Pod::new().await;
    let pid = pod.connection.supervisor.pid();
    let sockets = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap();
    assert!(!sockets.lines().any(|l| l.contains(" @") && l.contains("berth")), "{sockets}");
    pod.end().await;
}

/// CVE-2016-3697, CVE-2024-40635, CVE-2026-46680, CVE-2026-30892: numbers are numbers, whatever the image's files say.
#[test]
fn a_number_is_never_looked_up_as_a_name() {
    let dir = Path::new("/tmp").join(format!("exec-user-{}", std::process::id()));
    fs::create_dir_all(dir.join("etc")).unwrap();
    fs::write(
        dir.join("etc/passwd"),
        "1000:x:0:0::/:/bin/sh\n4294967296:x:0:0::/:\nroot:x:0:0::/root:\napp:x:7:8::/:\n",
    )
    .unwrap();
    fs::write(dir.join("etc/group"), "5:x:0:\nextra:x:99:app\n").unwrap();
    let root = fs::File::open(&dir).unwrap();
    let user = |text: &str| resolve(root.as_fd(), &UserSpec::default(), text);
    for (text, uid, gid) in [
        ("1000", 1000, 0),
        ("1", 1, 0),
        ("1:", 1, 0),
        ("1:0", 1, 0),
        (":5", 0, 5),
        ("01", 1, 0),
        ("app", 7, 8),
        ("2147483648", 2_147_483_648, 0),
    ] {
        let found = user(text).unwrap();
        assert_eq!((found.uid, found.gid), (uid, gid), "{text}");
    }
    assert_eq!(user("app").unwrap().groups, [8, 99]);
    for bad in ["-1", "4294967295", "4294967296", "+1", "nobody", "app:nogroup", "a\nb", "1:2:3"] {
        assert!(user(bad).is_err(), "{bad:?}: {:?}", user(bad));
    }
    // A strict request names its groups itself (KEP-3619); a group of the request wins (CVE-2023-25173, CVE-2022-2995).
    let strict = UserSpec {
        uid: Some(7),
        gid: Some(3),
        supplemental_groups: vec![4],
        strict_groups: true,
        ..Default::default()
    };
    assert_eq!(
        resolve(root.as_fd(), &strict, "").unwrap(),
        ResolvedUser { uid: 7, gid: 3, groups: vec![3, 4] }
    );
    fs::remove_dir_all(dir).unwrap();
}

/// CVE-2026-47262, CVE-2025-4437: user files of the image are bounded, and files.
#[test]
fn hostile_user_files_cost_nothing() {
    let dir = Path::new("/tmp").join(format!("exec-hostile-{}", std::process::id()));
    fs::create_dir_all(dir.join("etc")).unwrap();
    let root = fs::File::open(&dir).unwrap();
    let passwd = dir.join("etc/passwd");
    let refused = || resolve(root.as_fd(), &UserSpec::default(), "app").unwrap_err().chain();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &passwd,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o644),
        0,
    )
    .unwrap();
    assert!(refused().contains("not a regular file"), "{}", refused());
    fs::remove_file(&passwd).unwrap();
    symlink("/dev/zero", &passwd).unwrap();
    assert!(refused().contains("no user"), "a link leads nowhere out of the image: {}", refused());
    fs::remove_file(&passwd).unwrap();
    symlink("/proc/self/environ", &passwd).unwrap();
    assert!(refused().contains("no user"));
    fs::remove_file(&passwd).unwrap();
    fs::File::create(&passwd).unwrap().set_len(1 << 30).unwrap();
    assert!(refused().contains("larger than"), "{}", refused());
    fs::remove_dir_all(dir).unwrap();
}
