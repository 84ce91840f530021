//! Learning the exit code of a process that is not our child, on kernels before Linux 6.15: a tracer is told of its end as a parent is,
//! and before the parent (ptrace(2), "Death under ptrace").
//!
//! Nothing else is done to who is traced: what would stop it for us is let go on at once, with the signal it was about to get. When
//! the tracer dies the kernel lets go of it by itself.

use std::io;

use super::check;

/// `PTRACE_EVENT_STOP` of linux/ptrace.h: a stop that is not the delivery of a signal.
const STOP: i32 = 128;

/// Begins to trace a process, which is not disturbed by that.
pub fn seize(pid: i32) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, pid, 0)
}

/// Has a traced process stop.
pub fn interrupt(pid: i32) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, pid, 0)
}

/// Lets a traced process go on that has stopped ([`super::process::Told::Stopped`]): as if nobody traced it, and, if `release`, without being
/// traced any longer.
pub fn go_on(pid: i32, status: i32, release: bool) -> io::Result<()> {
    let (signal, event) = (status & 0xff, status >> 8);
    let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal);
    match (event, stops) {
        _ if release => request(libc::PTRACE_DETACH, pid, if event == 0 { signal } else { 0 }),
        (STOP, true) => request(libc::PTRACE_LISTEN, pid, 0),
        (STOP, false) => request(libc::PTRACE_CONT, pid, 0),
        _ => request(libc::PTRACE_CONT, pid, signal),
    }
}

/// ptrace(2) with a number or nothing as its data.
fn request(request: libc::c_uint, pid: i32, data: i32) -> io::Result<()> {
    let (none, data) = (0_usize, data as usize);
    // SAFETY: none of the requests of this module reads or writes memory of ours: both further arguments are numbers.
    check(unsafe { libc::ptrace(request, pid, none, data) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::fd::{AsFd, OwnedFd};
    use std::process::{Command, Stdio};
    use std::sync::mpsc;

    use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

    use super::super::process::{Told, told_of};
    use super::*;

    /// Lets a traced process go on until something is true or it has ended: code and signal. Only the thread that traces can.
    fn until(pidfd: &OwnedFd, mut done: impl FnMut() -> bool) -> Option<(i32, i32)> {
        while !done() {
            match told_of(pidfd.as_fd()).unwrap() {
                Some(Told::Stopped { pid, status }) => go_on(pid, status, false).unwrap(),
                Some(Told::Ended { code, signal, .. }) => return Some((code, signal)),
                None => std::thread::yield_now(),
            }
        }
        None
    }

    #[test]
    fn a_process_of_somebody_elses_tells_its_exit_code_and_is_not_disturbed() {
        let end = std::env::temp_dir().join(format!("berth-trace-{}", std::process::id()));
        let script = format!(
            "trap 'echo term' TERM; trap 'echo usr' USR1; echo $$; until [ -e {} ]; do sleep 0.01; done; exit 7",
            end.display()
        );
        // The shell between us ends at once, and the one that runs the script gets another parent.
        let mut between = Command::new("/bin/sh")
            .args(["-c", "/bin/sh -c \"$1\" & exit 0", "sh", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(between.stdout.take().unwrap()).lines();
        between.wait().unwrap();
        let (sender, said) = mpsc::channel();
        let reader = std::thread::spawn(move || lines.for_each(|line| sender.send(line.unwrap()).unwrap()));
        let pid: i32 = said.recv().unwrap().parse().unwrap();
        let id = Pid::from_raw(pid).unwrap();
        let pidfd = pidfd_open(id, PidfdFlags::empty()).unwrap();
        told_of(pidfd.as_fd()).expect_err("it is no child of ours");

        seize(pid).unwrap();
        for (signal, word) in [(Signal::TERM, "term"), (Signal::USR1, "usr")] {
            kill_process(id, signal).unwrap();
            until(&pidfd, || said.try_recv().is_ok_and(|line| line == word));
        }
        // Stopped it stays, until somebody else lets it go on.
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        kill_process(id, Signal::STOP).unwrap();
        until(&pidfd, || state().contains(") t "));
        kill_process(id, Signal::TERM).unwrap();
        let mut looks = 0;
        until(&pidfd, || {
            looks += 1;
            looks == 100
        });
        assert!(said.try_recv().is_err(), "it was stopped");
        kill_process(id, Signal::CONT).unwrap();
        until(&pidfd, || said.try_recv().is_ok_and(|line| line == "term"));

        std::fs::write(&end, "").unwrap();
        assert_eq!(until(&pidfd, || false), Some((7, 0)));
        reader.join().unwrap();
        std::fs::remove_file(end).unwrap();
    }

    #[test]
    fn who_is_not_ours_is_let_go_of() {
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let tracer = || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:\t"));
            tracer.unwrap().to_owned()
        };
        seize(pid).unwrap();
        assert_ne!(tracer(), "0");
        interrupt(pid).unwrap();
        let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        while tracer() != "0" {
            if let Some(Told::Stopped { pid, status }) = told_of(pidfd.as_fd()).unwrap() {
                go_on(pid, status, true).unwrap();
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
