//! Exit records: one small file per ended container in the pod's directory on tmpfs, for a daemon that was not there.
//!
//! Content: `berth-exit 1 CODE OOM NANOSECONDS CHECKSUM\n`, written aside and renamed, so it is there completely or not at all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, openat, renameat};

use crate::exec::Exit;

/// Prefix of the file names; the container id follows.
pub(crate) const PREFIX: &str = "exit-";

/// Writes a record.
pub(crate) fn write(dir: BorrowedFd<'_>, container: &str, exit: &Exit) -> io::Result<()> {
    let (name, aside) = (format!("{PREFIX}{container}"), format!(".{PREFIX}{container}"));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(dir, &*aside, flags, Mode::from_raw_mode(0o600))?;
    rustix::io::write(file.as_fd(), format(exit).as_bytes())?;
    renameat(dir, &*aside, dir, &*name)?;
    Ok(())
}

fn format(exit: &Exit) -> String {
    let body = format!("berth-exit 1 {} {} {}", exit.code, u8::from(exit.oom), exit.at);
    let sum = checksum(body.as_bytes());
    format!("{body} {sum:08x}\n")
}

/// Reads a record; `None`: damaged, or of a version not known here.
pub(crate) fn parse(text: &str) -> Option<Exit> {
    let (body, sum) = text.strip_suffix('\n')?.rsplit_once(' ')?;
    (u32::from_str_radix(sum, 16).ok()? == checksum(body.as_bytes())).then_some(())?;
    let mut fields = body.strip_prefix("berth-exit 1 ")?.split(' ');
    let mut number = || fields.next()?.parse::<i64>().ok();
    Some(Exit { code: i32::try_from(number()?).ok()?, oom: number()? == 1, at: number()? })
}

/// FNV-1a: enough to notice damage.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, b| (sum ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_damage_is_noticed() {
        let exit = Exit { code: 137, oom: true, at: 1_700_000_000_123_456_789 };
        let text = format(&exit);
        assert_eq!(parse(&text), Some(exit));
        assert_eq!(parse(&text.replace("137", "0")), None);
        assert_eq!(parse(&text[..text.len() - 1]), None);
        assert_eq!(parse(""), None);
    }
}
