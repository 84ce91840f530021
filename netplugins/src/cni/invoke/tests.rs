//! Plugins that behave and plugins that do not, as real executables.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::testing::TempDir;

fn plugin(dir: &TempDir, name: &str, script: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn run_script(script: &str, limit: Duration) -> Result<String, Failure> {
    let dir = TempDir::new("invoke");
    let plugin = plugin(&dir, "p", script);
    let path = [dir.path().to_owned()];
    let call = Call {
        command: "ADD",
        container: "c1",
        netns: Some(Path::new("/run/netns/c1")),
        interface: "eth0",
        args: "A=1;B=2",
        path: &path,
        deadline: Instant::now() + limit,
    };
    run(&plugin, &call, br#"{"name":"n"}"#).map(|out| String::from_utf8(out).unwrap())
}

const LONG: Duration = Duration::from_secs(30);

#[test]
fn a_plugin_sees_its_configuration_and_environment() {
    let out =
        run_script("echo $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS; cat", LONG).unwrap();
    assert_eq!(out, "ADD c1 /run/netns/c1 eth0 A=1;B=2\n{\"name\":\"n\"}");
}

#[test]
fn a_failure_is_told_however_it_is_written() {
    for (script, text) in [
        (r#"echo '{"code":11,"msg":"later","details":"busy"}'; exit 1"#, "failed: later; busy"),
        (r#"echo '{"code":7,"msg":"bad"}' >&2; exit 1"#, "failed: bad"),
        ("echo oh no >&2; exit 3", "failed: exit status: 3: oh no"),
        ("exit 4", "failed: exit status: 4: it said nothing"),
    ] {
        let error = run_script(script, LONG).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
    let again = run_script(r#"echo '{"code":11,"msg":""}'; exit 1"#, LONG).unwrap_err();
    assert!(matches!(again, Failure::Failed { code: TRY_AGAIN, .. }));
}

#[test]
fn a_hanging_plugin_dies_with_its_children() {
    let dir = TempDir::new("hang");
    let pidfile = dir.path().join("child");
    let script = format!("sleep 1000 & echo $! > {}; wait", pidfile.display());
    let start = Instant::now();
    let error = run_script(&script, Duration::from_secs(1)).unwrap_err();
    assert!(matches!(error, Failure::Timeout { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(20));
    let child = fs::read_to_string(pidfile).unwrap().trim().parse().unwrap();
    // The signal is on its way; the kernel tells when it has arrived.
    if let Ok(child) = rustix::process::pidfd_open(Pid::from_raw(child).unwrap(), PidfdFlags::empty()) {
        let mut ended = [PollFd::new(&child, PollFlags::IN)];
        let timeout = rustix::event::Timespec::try_from(LONG).unwrap();
        assert_eq!(poll(&mut ended, Some(&timeout)).unwrap(), 1, "the child lives");
    }
}

#[test]
fn a_childs_open_pipe_does_not_delay_the_plugins_end() {
    let start = Instant::now();
    assert_eq!(run_script("sleep 20 & echo done", LONG).unwrap(), "done\n");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_flood_is_read_and_refused() {
    let error = run_script("head -c 100000000 /dev/zero", LONG).unwrap_err();
    assert!(matches!(error, Failure::TooLong { .. }), "{error}");
    assert_eq!(run_script("head -c 3000000 /dev/zero >&2; echo ok", LONG).unwrap(), "ok\n");
}

#[test]
fn a_plugin_that_is_being_replaced_is_tried_again() {
    let dir = TempDir::new("busy");
    let path = dir.path().join("p");
    fs::copy("/bin/true", &path).unwrap();
    let writer = fs::OpenOptions::new().append(true).open(&path).unwrap();
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(writer);
    });
    let paths = [dir.path().to_owned()];
    let call = Call {
        command: "DEL",
        container: "c1",
        netns: None,
        interface: "eth0",
        args: "",
        path: &paths,
        deadline: Instant::now() + LONG,
    };
    assert_eq!(run(&path, &call, b"{}").unwrap(), b"");
    release.join().unwrap();
    assert!(find("absent", &paths).unwrap_err().to_string().starts_with("no plugin \"absent\" in /tmp/"));
}
