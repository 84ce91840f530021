//! Reading a container's program into memory while its start is still being prepared.
//!
//! A program that is not in memory is read by its own page faults, one window after the other, each waiting for the disk. Asked
//! for as soon as its root is mounted, it comes while container and processes are still being made.

use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Advice, fadvise, fstat};

use super::{Process, file};

/// So much of a file is read: more than starting touches, too little to push others out of memory.
const MOST: u64 = 8 << 20;

/// One call reads no more than the file system's window of read-ahead, however much is asked for; this is the kernel's default.
const WINDOW: u64 = 128 << 10;

/// The kernel's own limit on a script's first line (execve(2), since Linux 5.1).
const FIRST_LINE: usize = 256;

/// Asks the kernel to read the program from the disk, and its interpreter if it is a script. Blocks until that is under way, on
/// some file systems until it is done. What cannot be found or read is left to the start, which has words for it.
pub(crate) fn read(rootfs: BorrowedFd<'_>, process: &Process) {
    let Some(program) = places(process).find_map(|path| open(rootfs, &path)) else { return };
    advise(&program);
    if let Some(interpreter) = interpreter(&program).and_then(|path| open(rootfs, &path)) {
        advise(&interpreter);
    }
}

/// Where execvp(3) would look for the program, in its order.
fn places(process: &Process) -> impl Iterator<Item = String> {
    let program = process.args.first().map(String::as_str).unwrap_or_default();
    let path = process.env.iter().find_map(|variable| variable.strip_prefix(b"PATH="));
    let path = str::from_utf8(path.unwrap_or_default()).unwrap_or_default();
    let directories = if program.contains('/') { "" } else { path };
    directories.split(':').map(move |directory| match directory {
        _ if program.starts_with('/') => program.to_owned(),
        "" => format!("{}/{program}", process.cwd),
        directory => format!("{directory}/{program}"),
    })
}

/// A file of the container that can be read ahead.
fn open(rootfs: BorrowedFd<'_>, path: &str) -> Option<OwnedFd> {
    file::open(rootfs, path).ok().flatten()
}

fn advise(file: &OwnedFd) {
    let size = fstat(file).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
    let mut offset = 0;
    while offset < size.min(MOST) {
        let _ = fadvise(file, offset, NonZero::new(WINDOW), Advice::WillNeed);
        offset += WINDOW;
    }
}

/// The interpreter that a script names in its first line.
fn interpreter(program: &OwnedFd) -> Option<String> {
    let mut line = [0; FIRST_LINE];
    let length = rustix::io::pread(program.as_fd(), &mut line, 0).ok()?;
    let line = line[..length].strip_prefix(b"#!")?;
    let line = str::from_utf8(line.split(|byte| *byte == b'\n').next()?).ok()?;
    line.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    fn process(program: &str, path: &str) -> Process {
        let env = vec![b"HOME=/".to_vec(), format!("PATH={path}").into_bytes()];
        Process { args: vec![program.to_owned()], env, cwd: "/srv".to_owned(), ..Process::default() }
    }

    #[test]
    fn a_program_is_looked_for_where_its_start_will_look() {
        for (program, path, expected) in [
            ("sh", "/usr/bin:/bin", vec!["/usr/bin/sh", "/bin/sh"]),
            ("sh", ":/bin", vec!["/srv/sh", "/bin/sh"]),
            ("/bin/sh", "/usr/bin:/bin", vec!["/bin/sh"]),
            ("./run", "/usr/bin:/bin", vec!["/srv/./run"]),
            ("", "", vec!["/srv/"]),
        ] {
            assert_eq!(places(&process(program, path)).collect::<Vec<_>>(), expected, "{program} {path}");
        }
    }

    #[test]
    fn a_scripts_interpreter_is_read_too() {
        let dir = std::env::temp_dir().join(format!("berth-ahead-{}", std::process::id()));
        fs::create_dir_all(dir.join("bin")).unwrap();
        fs::write(dir.join("bin/run"), "#! /bin/sh -e\nexit\n").unwrap();
        fs::write(dir.join("bin/sh"), "program").unwrap();
        let root = File::open(&dir).unwrap();
        let run = open(root.as_fd(), "/bin/run").unwrap();
        assert_eq!(interpreter(&run).as_deref(), Some("/bin/sh"));
        assert_eq!(interpreter(&open(root.as_fd(), "/bin/sh").unwrap()), None);
        for not in ["/bin", "/bin/absent"] {
            assert!(open(root.as_fd(), not).is_none(), "{not}");
        }
        read(root.as_fd(), &process("run", "/bin"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
