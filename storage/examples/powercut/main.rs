//! Power cuts: records what a store at work writes to its disk, and looks at what is left if the power fails at any point of it.
//!
//! `tests/vm/powercut` runs this in an emulated machine, where the disk is a `dm-log-writes` device (kernel doc log-writes.rst): that logs
//! writes in the order in which they became durable, and marks. So every prefix of the log is a disk after a power cut.
//!
//! - `powercut record STORE DEVICE`: pulls, creates, removes; says in marks of the device what was promised to the caller.
//! - `powercut cut LOG BASE FILESYSTEM POINTS DIRECTORY`: for that many prefixes of the log, written over a copy of `BASE`: mounts the
//!   result, opens the store, and checks the promises. Prints what is broken; the last line counts.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic, reason = "a program for a test script")]

#[path = "../../tests/support/faulty.rs"]
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    dead_code,
    reason = "shared with the tests"
)]
mod faulty;
mod log;
#[path = "../../tests/support/tar.rs"]
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    dead_code,
    reason = "shared with the tests"
)]
#[allow(clippy::needless_pass_by_value, reason = "shared with the tests")]
mod tar;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use storage::{Config, Kernel, PullProgress, Store};

/// Images of the workload.
const IMAGES: usize = 4;
/// Rounds of the workload.
const ROUNDS: usize = 3;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["record", store, device] => record(Path::new(store), device),
        ["cut", log, base, kind, points, directory] => {
            cut(log, base, kind, points.parse().unwrap(), Path::new(directory));
        }
        _ => panic!("usage: see the source"),
    }
}

/// A store that does with what the emulated machine's kernel has.
fn open(root: &Path) -> Result<Arc<Store>, storage::OpenError> {
    // Nobody writes to these mounts.
    let kernel = Kernel { seal: |_| Ok(()), ..Kernel::default() };
    let (driver, registry_config) = (Some("vfs".into()), Vec::new());
    let (root, pull_memory, keep_blobs) = (root.to_owned(), 64 << 20, false);
    let (policy, verifiers) = (Vec::new(), None);
    Store::open(Config {
        root,
        driver,
        registry_config,
        policy,
        verifiers,
        pull_memory,
        keep_blobs,
        kernel,
        label: None,
    })
}

/// Contents of one file of an image: any other byte in its place shows.
fn contents(image: usize, file: usize) -> Vec<u8> {
    let mut state = u32::try_from(image * 1000 + file + 1).unwrap();
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..if file == 0 { 700_000 } else { 3_000 + file * 100 }).map(|_| byte()).collect()
}

fn files() -> impl Iterator<Item = (usize, String)> {
    (0..12).map(|file| (file, format!("d/file{file}")))
}

// === the workload ===

/// Says something in the log, after all that is durable by now.
fn mark(device: &str, text: &str) {
    // One word is all a mark may be.
    let text = text.replace(' ', ",");
    let done = Command::new("dmsetup").args(["message", device, "0", "mark", &text]).status().unwrap();
    assert!(done.success(), "dmsetup message: {done}");
}

fn record(root: &Path, device: &str) {
    let server = faulty::Faulty::start();
    let mut names = Vec::new();
    for image in 0..IMAGES {
        let mut tar = tar::Tar::new().dir("d/", 0o755);
        for (file, path) in files() {
            tar = tar.file(&path, &contents(image, file));
        }
        server.image(&format!("image{image}"), &tar.finish());
        names.push(format!("{}/image{image}:t", server.address));
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = open(root).unwrap();
    mark(device, &format!("server {}", server.address));
    for round in 0..ROUNDS {
        for name in &names {
            mark(device, &format!("busy {name}"));
            let progress = tokio::sync::watch::channel(PullProgress::default()).0;
            let image = runtime.block_on(store.pull(name, None, progress)).unwrap();
            mark(device, &format!("present {name} {}", image.id));
        }
        let image = store.find(&names[round]).unwrap();
        store.prepare(&image.id, "container").unwrap();
        store.release("container").unwrap();
        for name in &names[..IMAGES / 2] {
            mark(device, &format!("busy {name}"));
            store.remove(name).unwrap();
            mark(device, &format!("absent {name}"));
        }
    }
}

// === the cuts ===

/// What the caller was told of an image last.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Present(String),
    Absent,
    /// A call had not returned.
    Busy,
}

fn cut(log: &str, base: &str, kind: &str, points: usize, directory: &Path) {
    let mut log = log::Log::open(Path::new(log)).unwrap();
    let (disk, trial, mounted) = (directory.join("disk"), directory.join("trial"), directory.join("mnt"));
    fs::create_dir_all(&mounted).unwrap();
    log::copy_sparse(Path::new(base), &disk).unwrap();
    let disk_file = fs::File::options().write(true).open(&disk).unwrap();
    let total = log.entries();
    let mut told: BTreeMap<String, Told> = BTreeMap::new();
    let (mut done, mut broken, mut seen) = (0, 0, 0);
    for point in 1..=points {
        let to = total * point / points;
        while done < to {
            if let Some(text) = log.apply_next(&disk_file).unwrap() {
                tell(&mut told, &text);
            }
            done += 1;
        }
        log::copy_sparse(&disk, &trial).unwrap();
        let problems = trial_of(&trial, kind, &mounted, &told, &mut seen);
        broken += usize::from(!problems.is_empty());
        for problem in problems {
            println!("  after {done} of {total} writes: {problem}");
        }
    }
    println!("{points} power cuts on {kind}, {seen} images found in all: {broken} broke a promise");
}

fn tell(told: &mut BTreeMap<String, Told>, text: &str) {
    let words: Vec<&str> = text.split(',').collect();
    match words.as_slice() {
        ["present", name, id] => drop(told.insert((*name).into(), Told::Present((*id).into()))),
        ["absent", name] => drop(told.insert((*name).into(), Told::Absent)),
        ["busy", name] => drop(told.insert((*name).into(), Told::Busy)),
        _ => {}
    }
}

/// Mounts one disk and looks at the store on it.
fn trial_of(
    disk: &Path,
    kind: &str,
    at: &Path,
    told: &BTreeMap<String, Told>,
    seen: &mut usize,
) -> Vec<String> {
    let mounted = Command::new("mount").args(["-t", kind, "-o", "loop"]).arg(disk).arg(at).status().unwrap();
    if !mounted.success() {
        return vec!["the file system does not mount".into()];
    }
    let problems = match open(&at.join("store")) {
        Err(error) => vec![format!("the store does not open: {error}")],
        Ok(store) => examine(&store, told, seen),
    };
    // The store's thread that empties the trash ends in its own time.
    let end = Instant::now() + Duration::from_secs(60);
    while !Command::new("umount").arg(at).stderr(Stdio::null()).status().unwrap().success() {
        assert!(Instant::now() < end, "{} is still in use", at.display());
        std::thread::sleep(Duration::from_millis(50));
    }
    problems
}

fn examine(store: &Arc<Store>, told: &BTreeMap<String, Told>, seen: &mut usize) -> Vec<String> {
    let mut problems: Vec<String> =
        store.scrub().iter().map(|damage| format!("layer {} is damaged", damage.layer)).collect();
    for (name, told) in told {
        let found = store.find(name).map(|image| image.id.clone());
        match (told, found) {
            (Told::Present(id), found) if found.as_ref() != Some(id) => {
                problems.push(format!("{name} was pulled and is lost: {found:?}"));
            }
            (Told::Absent, Some(_)) => problems.push(format!("{name} was removed and is back")),
            _ => {}
        }
    }
    for image in store.images() {
        *seen += 1;
        let hex = image.id.trim_start_matches("sha256:");
        let tree = store.root().join("images").join(hex).join("vfs/root");
        // A whole image without its tag is one whose pull did not return.
        let names: Vec<usize> = (0..IMAGES)
            .filter(|n| image.repo_tags.iter().any(|tag| tag.contains(&format!("image{n}:"))))
            .collect();
        for (number, (file, path)) in names.iter().flat_map(|n| files().map(move |f| (*n, f))) {
            if fs::read(tree.join(&path)).ok() != Some(contents(number, file)) {
                problems.push(format!("{path} of image{number} is not what was pulled"));
            }
        }
    }
    // And it is of use: nothing left over stands in the way.
    store.retain(&|_| false);
    for image in store.images() {
        if let Err(error) = store.prepare(&image.id, "after").and_then(|()| store.release("after")) {
            problems.push(format!("{} cannot be used: {error}", image.id));
        }
    }
    problems
}
