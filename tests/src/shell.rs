//! Running other people's programs: always with a deadline, never with a surprise.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// A program in the background; dropping it ends it.
#[derive(Debug)]
pub struct Background(pub Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program to its end and returns what it wrote; `seconds` is when it is killed.
///
/// # Errors
/// The program cannot be started. An exit code other than 0 is no error here.
pub fn output(seconds: u64, program: &str, args: &[&str]) -> Result<Output> {
    Command::new("timeout")
        .args(["-k", "5", &seconds.to_string(), program])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {program}"))
}

/// Runs a program that has to succeed and returns its standard output.
///
/// # Errors
/// It cannot be started, or ends with a code other than 0: the message holds what it wrote.
pub fn run(seconds: u64, program: &str, args: &[&str]) -> Result<String> {
    let output = output(seconds, program, args)?;
    ensure!(
        output.status.success(),
        "{program} {}: {}\n{}{}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// True when a program of this name is on PATH.
#[must_use]
pub fn installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// Asks again until `probe` has an answer, for things that other processes bring about in their own time.
///
/// # Errors
/// `probe` failed, or had no answer in `seconds`.
pub fn eventually<T>(what: &str, seconds: u64, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(answer) = probe().with_context(|| what.to_owned())? {
            return Ok(answer);
        }
        if Instant::now() > end {
            bail!("{what}: not within {seconds} s");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
