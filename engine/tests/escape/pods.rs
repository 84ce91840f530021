//! What one container, image or client could do to another, or to the node's limits.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use engine::api::ContainerState;
use engine::jobs::ExecSync;
use engine::spec::{IdMapping, NamespaceMode, UserNamespace};

use super::house::*;
use super::support::{no_user_namespaces, skip};

fn exec(container: &str, script: &str) -> ExecSync {
    let command = ["/bin/sh", "-c", script].map(Into::into).into();
    ExecSync { container: container.into(), command, timeout: None }
}

/// CVE-2021-21334: what is put into the environment of one container is not in that of another with the same image.
#[tokio::test(flavor = "multi_thread")]
async fn an_environment_is_of_one_container() {
    let house = House::new();
    let engine = house.engine().await;
    let pod = run_pod(&engine, house.pod("env")).await;
    let mut first = house.shell("first", "exec sleep 1000");
    first.envs = vec![("SECRET".into(), b"first".to_vec())];
    let first = start(&engine, &pod, first).await;
    let second = start(&engine, &pod, house.shell("second", "exec sleep 1000")).await;
    for (id, expected) in [(&first, "first\n"), (&second, "none\n")] {
        let output = ok(engine.run(exec(id, "echo ${SECRET-none}"), None).await);
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }
    house.close(engine).await;
}

/// CVE-2021-41103, CVE-2024-25621: nobody but root walks into what the runtime keeps.
#[tokio::test(flavor = "multi_thread")]
async fn every_directory_of_ours_is_closed_to_others() {
    fn walk(dir: &Path, depth: u32, open: &mut Vec<String>) {
        let mode = fs::symlink_metadata(dir).unwrap().permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            open.push(format!("{} {mode:o}", dir.display()));
        }
        for entry in fs::read_dir(dir).unwrap().flatten() {
            if depth > 0 && entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), depth - 1, open);
            }
        }
    }
    let house = House::new();
    let engine = house.engine().await;
    let pod = run_pod(&engine, house.pod("closed")).await;
    let id = start(&engine, &pod, house.shell("app", "exec sleep 1000")).await;
    assert_eq!(engine.container(&id).unwrap().state, ContainerState::Running);
    let mut open = Vec::new();
    for top in ["lib", "run"] {
        walk(&house.dir.join(top), 3, &mut open);
    }
    assert!(open.is_empty(), "{open:?}");
    house.close(engine).await;
}

/// CVE-2025-47291: a pod with a user namespace is below the cgroup that the client has named, as any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_namespace_does_not_move_a_pod_out_of_its_cgroup() {
    if let Some(why) = no_user_namespaces().await {
        return skip(why);
    }
    let house = House::new();
    let engine = house.engine().await;
    let parent = format!("/core-{}/burstable/pod7", house.name);
    let mut asked = house.pod("cgroup");
    asked.cgroup_parent = parent.clone();
    let map = vec![IdMapping { container_id: 0, host_id: 655_360, length: 65_536 }];
    asked.security.namespaces.user =
        Some(UserNamespace { mode: NamespaceMode::Pod, uids: map.clone(), gids: map });
    let mut spec = house.shell("app", "exec sleep 1000");
    spec.security.namespaces.user = asked.security.namespaces.user.clone();
    let pod = run_pod(&engine, asked).await;
    let id = start(&engine, &pod, spec).await;
    let pid = engine.container(&id).unwrap().pid;
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let below = table.lines().filter(|line| line.contains(&format!(":{parent}/"))).count();
    assert!(below > 0 && below == table.lines().count(), "{table}");
    house.close(engine).await;
}
