//! Log paths of containers, in a directory of this process's own.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("berth-fuzz-{}/below", std::process::id()));
    std::fs::create_dir_all(&directory).expect("make a directory");
    // Ways out that are not to be taken.
    for (link, target) in [("up", ".."), ("root", "/"), ("tmp", "/tmp")] {
        std::os::unix::fs::symlink(target, directory.join(link)).expect("make a link");
    }
    directory
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| engine::fuzzing::log_path(&DIRECTORY, bytes));
