//! Who a process is, whatever the image's files say.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use engine::exec::ResolvedUser;
use engine::exec::user::{home, resolve};
use engine::spec::UserSpec;

use super::support::*;

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

/// CVE-2022-4318, CVE-2026-15809: what stands for HOME in the image's file is not to become a line of something else.
#[test]
fn a_home_is_a_plain_path() {
    let dir = Path::new("/tmp").join(format!("exec-home-{}", std::process::id()));
    fs::create_dir_all(dir.join("etc")).unwrap();
    let lines = "app:x:7:7::/srv/app:\nevil:x:8:8::/\rroot::0:0::/:\nodd:x:9:9::\u{85}/x:\nbare:x:10:10\n";
    fs::write(dir.join("etc/passwd"), lines).unwrap();
    let root = fs::File::open(&dir).unwrap();
    let home = |uid| home(root.as_fd(), uid).unwrap();
    assert_eq!([7, 8, 9, 10, 11].map(home), ["/srv/app", "/", "/", "/", "/"]);
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
    fs::File::create(&passwd).unwrap().set_len(64 << 20).unwrap();
    assert!(refused().contains("larger than"), "{}", refused());
    fs::remove_dir_all(dir).unwrap();
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
