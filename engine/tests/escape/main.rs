//! Known escapes from containers, each as a test against the kernel. Every test names the advisory and the rule that stops it; the list
//! is in `README.md` next to this file. [`paths`] (links, mounts, masks), [`entering`] (descriptors, programs, memory of processes on
//! their way in), [`identity`] (users, groups, capabilities), [`pods`] (what one container or client can do to another).
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

#[path = "../house/mod.rs"]
mod house;
#[path = "../support/mod.rs"]
mod support;

mod entering;
mod identity;
mod paths;
mod pods;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use engine::exec::{Exit, PreparedMount};
use engine::spec::{ContainerSpec, MountSpec};
use support::{Pod, clone_tree, shell};

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
        directory: path.is_dir(),
        spec: MountSpec::default(),
    }
}

/// A search path so long that a process is on its way to its program for tens of milliseconds.
fn long_way() -> String {
    format!("{}/bin", "/nowhere:".repeat(12_000))
}

/// Runs `true` in a container, by the long way.
async fn slow_exec(pod: &Pod, id: &str, spec: &ContainerSpec) -> Exit {
    let mut process = shell("");
    process.args = vec!["true".into()];
    process.env = vec![format!("PATH={}", long_way()).into_bytes()];
    let exec = pod.try_exec(id, spec, &process, [false, true, true], true).await;
    exec.unwrap_or_else(|e| panic!("{}", e.chain())).exit.await.unwrap()
}
