//! The arguments of this process as ps(1) shows them.

use std::ffi::c_char;
use std::io;

/// One argument of this process, which can be replaced by another one that is not longer (proc_pid_cmdline(5)).
#[derive(Debug)]
pub struct Title {
    start: *mut c_char,
    length: usize,
    /// Bytes of it and of all that follows it.
    rest: usize,
}

impl Title {
    /// Finds the first argument that is this word.
    pub fn find(word: &str) -> io::Result<Self> {
        let unknown = || io::Error::new(io::ErrorKind::InvalidData, "cannot find the arguments in memory");
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        // The fields after the name, which is in parentheses and may have any character; the first one is number 3.
        let fields = stat.rsplit_once(')').ok_or_else(unknown)?.1;
        let mut bounds = fields.split_whitespace().skip(48 - 3).map(str::parse::<usize>);
        let (Some(Ok(start)), Some(Ok(end))) = (bounds.next(), bounds.next()) else { return Err(unknown()) };
        let arguments = std::fs::read("/proc/self/cmdline")?;
        let mut at = 0;
        for argument in arguments.split(|byte| *byte == 0) {
            if argument == word.as_bytes() && start + at + argument.len() <= end {
                let place = std::ptr::with_exposed_provenance_mut(start + at);
                return Ok(Self { start: place, length: argument.len(), rest: end - start - at });
            }
            at += argument.len() + 1;
        }
        Err(unknown())
    }

    /// Puts another word in its place, cut where it is longer, and takes away the arguments that follow.
    pub fn set(&self, word: &str) {
        let word = &word.as_bytes()[..word.len().min(self.length)];
        // SAFETY: the kernel has laid the arguments of this process here, in its stack, writable and for good; `rest` bytes follow, of
        // which `word` fills no more than `length`. Nothing of ours refers to them: the standard library hands out copies.
        unsafe { self.start.write_bytes(0, self.rest) };
        // SAFETY: as above.
        unsafe { self.start.copy_from_nonoverlapping(word.as_ptr().cast(), word.len()) };
    }
}
