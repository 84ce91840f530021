//! A program on a terminal of its own, the way a person has it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::shell;

/// A program, and the terminal it believes to be at. Dropping it hangs up.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    child: Child,
    /// Everything it has shown and that nobody has waited for yet.
    screen: String,
}

// === impl Terminal ===

impl Terminal {
    /// Starts `args` on a new terminal of this many columns and rows.
    ///
    /// # Errors
    /// There is no terminal to be had, or the program cannot be started.
    pub fn start(args: &[&str], size: (u16, u16)) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let slave = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        set_size(&master, size)?;
        // A session of its own, led by the program, whose terminal this is: only then do changes of size reach it.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .args(args)
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave)
            .spawn()
            .context("start setsid")?;
        Ok(Self { master: master.into(), child, screen: String::new() })
    }

    /// Changes the size to columns and rows; the program gets SIGWINCH.
    ///
    /// # Errors
    /// The terminal's.
    pub fn resize(&self, size: (u16, u16)) -> Result<()> {
        set_size(&self.master, size)
    }

    /// Types text.
    ///
    /// # Errors
    /// The terminal's.
    pub fn keys(&mut self, text: &str) -> Result<()> {
        Ok(self.master.write_all(text.as_bytes())?)
    }

    /// Reads until the screen shows `text`, and forgets everything up to it.
    ///
    /// # Errors
    /// It does not within `seconds`; the message holds what was shown instead.
    pub fn shows(&mut self, text: &str, seconds: u64) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(at) = self.screen.find(text) {
                self.screen.drain(..at + text.len());
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.read(left)? {
                bail!("the terminal never showed {text:?}, but {:?}", self.screen);
            }
        }
    }

    /// Waits for the end of the program.
    ///
    /// # Errors
    /// It does not end within `seconds`.
    pub fn end(mut self, seconds: u64) -> Result<ExitStatus> {
        shell::eventually("the program on the terminal ends", seconds, || {
            self.read(Duration::from_millis(10))?;
            Ok(self.child.try_wait()?)
        })
    }

    /// Reads what there is within `patience`; false at the end.
    fn read(&mut self, patience: Duration) -> Result<bool> {
        let limit =
            Timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: patience.subsec_nanos().into() };
        let mut ready = [PollFd::new(&self.master, PollFlags::IN)];
        if poll(&mut ready, Some(&limit))? == 0 {
            return Ok(true);
        }
        let mut buffer = [0; 4096];
        match self.master.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(read) => {
                self.screen.push_str(&String::from_utf8_lossy(&buffer[..read]));
                Ok(true)
            }
            // Nobody has the terminal open any more (pty(7)).
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(terminal: impl AsFd, (columns, rows): (u16, u16)) -> Result<()> {
    Ok(tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_sees_the_size_and_its_changes() {
        let script = "trap 'stty size' WINCH; stty size; read line; read line; exit 3";
        let mut terminal = Terminal::start(&["bash", "-c", script], (90, 20)).unwrap();
        terminal.shows("20 90", 10).unwrap();
        terminal.resize((100, 30)).unwrap();
        terminal.keys("a\nb\n").unwrap();
        terminal.shows("30 100", 10).unwrap();
        assert_eq!(terminal.end(10).unwrap().code(), Some(3));
    }
}
