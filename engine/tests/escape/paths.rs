//! Paths of an image or a volume that lead somewhere else.

use std::fs;
use std::os::unix::fs::symlink;

use super::support::*;
use super::{assert_untouched, bait, relink, volume};

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

/// CVE-2025-31133, CVE-2025-62161, CVE-2019-18837: what masks are made of does not come from the image.
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
    // Nor from a volume that covers it.
    let fake = pod.dir.join("fake");
    fs::write(&fake, "not empty").unwrap();
    let mut container = pod.container("wc -c < /proc/keys; cat /dev/null");
    container.spec.security.masked_paths = vec!["/proc/keys".into()];
    container.mounts = vec![volume(&fake, "/dev/null")];
    assert_eq!(text(&pod.run(container).await.1), "0\nnot empty\n");
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

/// CVE-2021-30465, CVE-2024-45310, CVE-2025-24965, CVE-2024-5154: whatever the runtime makes or mounts at a link of the image is made
/// inside the image, where the container sees it too.
#[tokio::test]
async fn links_of_the_image_lead_nowhere_but_into_the_image() {
    let mut pod = Pod::new().await;
    let bait = bait(&pod);
    let root = pod.dir.join("root");
    symlink("/", root.join("top")).unwrap();
    symlink("../../../../../../..", root.join("up")).unwrap();
    symlink(&bait, root.join("absolute")).unwrap();
    for file in ["hosts", "hostname", "resolv.conf", "mtab"] {
        symlink(bait.join(file), root.join("etc").join(file)).unwrap();
    }
    let hosts = pod.dir.join("hosts");
    fs::write(&hosts, "of the pod").unwrap();
    let read = "cat /from-top/file /from-up/file /absolute/below/file /etc/hosts";
    let mut container = pod.container(read);
    container.mounts = vec![
        volume(&bait, "/top/from-top"),
        volume(&bait, "/up/from-up"),
        volume(&bait, "/absolute/below"),
        volume(&hosts, "/etc/hosts"),
    ];
    container.process.cwd = "/top/made/on/the/way".into();
    let (exit, log) = pod.run(container).await;
    assert_eq!((exit.code, text(&log).as_str()), (0, "untoucheduntoucheduntouchedof the pod\n"), "{log}");
    assert!(root.join("made/on/the/way").is_dir() && !bait.join("below").exists());
    assert_untouched(&bait);
    // There is nothing else for them to lead to.
    let template = format!("/proc/{}/root", pod.connection.supervisor.pid());
    let mut seen: Vec<_> = fs::read_dir(&template).unwrap().map(|e| e.unwrap().file_name()).collect();
    seen.sort();
    // Where there are hierarchies of v1: an empty directory for each.
    seen.retain(|name| name != "cgroup");
    for hierarchy in fs::read_dir(template + "/cgroup").into_iter().flatten() {
        assert_eq!(fs::read_dir(hierarchy.unwrap().path()).unwrap().count(), 0);
    }
    let template = ["full", "mask", "null", "proc", "random", "shm", "sys", "tty", "urandom", "zero"];
    assert_eq!(seen, template, "the supervisor sees more than its template");
    pod.end().await;
}

/// CVE-2025-52565: a terminal comes from the container's own devpts, by descriptor; nothing of a volume is opened in its place.
#[tokio::test]
async fn a_terminal_is_never_a_file_of_a_volume() {
    use rustix::fs::inotify;
    let pod = Pod::new().await;
    let fake = pod.dir.join("fake");
    fs::create_dir(&fake).unwrap();
    for name in ["ptmx", "0", "1"] {
        fs::write(fake.join(name), "untouched").unwrap();
    }
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
    for name in ["ptmx", "0", "1"] {
        let changes = inotify::WatchFlags::OPEN | inotify::WatchFlags::ATTRIB | inotify::WatchFlags::MODIFY;
        inotify::add_watch(&watch, fake.join(name), changes).unwrap();
    }
    let mut container = pod.container("true");
    container.process.tty = true;
    container.mounts = vec![volume(&fake, "/dev/pts")];
    let error = pod.try_start(container).await.unwrap_err();
    assert!(error.chain().contains("terminal"), "{}", error.chain());
    let seen = rustix::io::read(&watch, &mut [0; 1024]);
    assert_eq!(seen, Err(rustix::io::Errno::AGAIN), "a file of the volume was opened or changed");
    pod.end().await;
}
