//! Other people's programs that the daemon runs by itself: bounded in time and in what they can make us read.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::sys::process;

/// So much of what a program says goes into an error.
const MAX_SAID: u64 = 1 << 10;

/// Runs a program with a text as its standard input and nothing else of ours: how it ended (`None`: killed, its time was up), and the
/// beginning of what it said of errors. Both streams are files, so that neither side can wait for the other.
pub(crate) fn run(
    mut command: Command,
    text: &str,
    limit: Duration,
) -> std::io::Result<(Option<ExitStatus>, String)> {
    let file = |name: &str| Ok::<_, std::io::Error>(File::from(memfd_create(name, MemfdFlags::CLOEXEC)?));
    let (mut input, mut errors) = (file("berth-input")?, file("berth-errors")?);
    input.write_all(text.as_bytes())?;
    input.seek(SeekFrom::Start(0))?;
    command.env_clear().stdin(input).stdout(Stdio::null()).stderr(errors.try_clone()?);
    let mut child = command.spawn()?;
    let ended = process::ended_within(&child, limit);
    if !matches!(ended, Ok(true)) {
        child.kill()?;
    }
    let status = child.wait()?;
    let mut said = Vec::new();
    errors.seek(SeekFrom::Start(0))?;
    errors.take(MAX_SAID).read_to_end(&mut said)?;
    Ok((ended?.then_some(status), String::from_utf8_lossy(&said).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const TIME: Duration = Duration::from_secs(10);

    #[test]
    fn a_program_that_fails_is_quoted_and_one_that_hangs_is_killed() {
        let shell = |script: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]);
            command
        };
        let (ended, said) = run(shell("cat >&2; exit 3"), "line 1: wrong\n", TIME).unwrap();
        assert_eq!((ended.unwrap().code(), said.as_str()), (Some(3), "line 1: wrong"));
        let (ended, said) =
            run(shell("echo $$ >&2; exec sleep 1000"), "", Duration::from_millis(300)).unwrap();
        assert_eq!(ended, None);
        assert!(!Path::new("/proc").join(&said).exists(), "process {said} is left");
        assert!(run(shell("yes | head -c 100000 >&2"), "", TIME).unwrap().1.len() <= 1 << 10);
    }
}
