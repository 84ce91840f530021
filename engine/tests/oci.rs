//! `berth oci` as its callers use it: one process per verb, against the kernel. Escapes name the advisory and the rule.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;
use support::bundle::Bundle;

#[test]
fn a_container_goes_through_its_states_and_leaves_nothing() {
    let bundle = Bundle::new("states");
    bundle.script("exec sleep 1000");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    bundle.create("a");
    assert_eq!(bundle.status("a"), "created");
    assert!(bundle.fails(&["delete", "a"]).contains("not stopped"));
    bundle.ok(&["start", "a"]);
    assert_eq!(bundle.status("a"), "running");
    assert!(bundle.fails(&["start", "a"]).contains("started before"));
    bundle.ok(&["pause", "a"]);
    assert_eq!(bundle.status("a"), "paused");
    bundle.ok(&["resume", "a"]);
    assert_eq!(bundle.ok(&["exec", "a", "/bin/sh", "-c", "echo $((6*7))"]), "42\n");
    assert_eq!(bundle.oci(&["exec", "a", "/bin/sh", "-c", "exit 5"]).status.code(), Some(5));
    assert_eq!(bundle.ok(&["exec", "--env", "PATH=/other", "a", "/bin/sh", "-c", "echo $PATH"]), "/other\n");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count(), mounts);
    bundle.ok(&["delete", "--force", "a"]);
    assert!(bundle.fails(&["state", "a"]).contains("does not exist"));
}

#[test]
fn a_container_that_asks_for_anothers_cgroup_is_refused_and_the_other_goes_on() {
    let bundle = Bundle::new("shared");
    bundle.script("exec sleep 1000");
    bundle.create("a");
    bundle.ok(&["start", "a"]);
    for verb in ["create", "run"] {
        assert!(bundle.fails(&[verb, "b"]).contains("is not empty"));
        assert!(bundle.fails(&["state", "b"]).contains("does not exist"));
        assert_eq!(bundle.status("a"), "running", "after {verb}");
    }
    assert_eq!(bundle.ok(&["exec", "a", "/bin/sh", "-c", "echo here"]), "here\n");
}

#[test]
fn a_program_that_is_not_there_is_named_by_start() {
    let bundle = Bundle::new("absent");
    bundle.change(|config| config["process"]["args"] = json!(["no-such-program"]));
    bundle.create("a");
    assert!(bundle.fails(&["start", "a"]).contains("\"no-such-program\" not found"));
}

#[test]
fn what_hooks_say_decides() {
    let bundle = Bundle::new("hooks");
    bundle.script("true");
    let log = bundle.dir.join("log");
    let hook = |name: &str| json!([{ "path": "/bin/sh", "args": ["sh", "-c", format!("echo {name} >> {}", log.display())] }]);
    bundle.change(|config| {
        config["hooks"] = json!({
            "createRuntime": hook("createRuntime"), "createContainer": hook("createContainer"),
            "poststart": hook("poststart"), "poststop": hook("poststop"),
        });
    });
    bundle.ok(&["run", "a"]);
    let said = fs::read_to_string(&log).unwrap();
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        ["createRuntime", "createContainer", "poststart", "poststop"]
    );
    bundle.change(|config| config["hooks"]["createContainer"] = json!([{ "path": "/bin/false" }]));
    assert!(bundle.fails(&["run", "b"]).contains("/bin/false"));
    assert!(bundle.fails(&["state", "b"]).contains("does not exist"));
}

/// CVE-2024-21626: no descriptor of the runtime reaches the program, nor serves as its directory.
#[test]
fn no_descriptor_of_the_runtime_is_left() {
    let bundle = Bundle::new("fds");
    bundle.script("ls /proc/self/fd | tr '\\n' ' '");
    assert_eq!(bundle.ok(&["run", "a"]).trim(), "0 1 2 3", "3 is of ls itself");
    for fd in 3..16 {
        bundle.change(|config| config["process"]["cwd"] = json!(format!("/proc/self/fd/{fd}")));
        bundle.fails(&["run", "b"]);
    }
    // Nor is one that whoever calls the runtime has left open: it is not even there to be refused.
    bundle.change(|config| config["process"]["cwd"] = json!("/proc/self/fd/9"));
    let call =
        format!("exec 9< /; exec {} --root {}/state run b", bundle.program.display(), bundle.dir.display());
    let output =
        std::process::Command::new("sh").args(["-c", &call]).current_dir(&bundle.dir).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("No such file or directory"), "{said}");
}

/// CVE-2019-5736: a container that may trace gets hold of the runtime's program while a process enters, waits until nobody executes it
/// any more, and writes to it.
#[test]
fn the_runtimes_program_cannot_be_written_from_inside() {
    let mut bundle = Bundle::new("exe");
    let program = bundle.dir.join("runtime");
    fs::copy(env!("CARGO_BIN_EXE_oci"), &program).unwrap();
    let before = fs::read(&program).unwrap();
    bundle.program = program.clone();
    let hold = "exec 9< $1/exe; [ ! /proc/self/fd/9 -ef /bin/busybox ] || exit 1; : > /tmp/held; until [ -e /tmp/go ]; do sleep 0.02; done; \
                { echo x > /proc/self/fd/9; } 2>/dev/null && echo written > /tmp/result || echo refused > /tmp/result";
    fs::write(bundle.dir.join("rootfs/hold"), hold).unwrap();
    bundle.script(
        "while :; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] || [ $p/exe -ef /bin/busybox ] || \
           { sh /hold $p 2>/dev/null; [ -e /tmp/result ] && exec sleep 1000; }; done; done",
    );
    bundle.change(|config| {
        for set in ["bounding", "permitted", "effective"] {
            config["process"]["capabilities"][set] =
                json!(["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]);
        }
    });
    bundle.create("a");
    bundle.ok(&["start", "a"]);
    let tmp = bundle.dir.join("rootfs/tmp");
    let path = format!("PATH={}/bin", "/nowhere:".repeat(12_000));
    let held = |_| {
        bundle.ok(&["exec", "--env", &path, "a", "true"]);
        tmp.join("held").exists()
    };
    assert!((0..200).any(held), "the container has never seen the runtime's program");
    fs::write(tmp.join("go"), "").unwrap();
    while fs::read_to_string(tmp.join("result")).unwrap_or_default().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(fs::read_to_string(tmp.join("result")).unwrap(), "refused\n");
    assert!(fs::read(&program).unwrap() == before, "the program was changed");
    bundle.ok(&["delete", "--force", "a"]);
}

/// CVE-2026-41579, CVE-2026-47766, CVE-2025-54867: links of the image where the runtime mounts.
#[test]
fn an_image_with_links_for_proc_sys_or_dev_does_not_run() {
    for name in ["proc", "sys", "dev"] {
        let bundle = Bundle::new(&format!("link-{name}"));
        bundle.script("true");
        let bait = bundle.dir.join("bait");
        fs::create_dir(&bait).unwrap();
        let path = bundle.dir.join("rootfs").join(name);
        fs::remove_dir_all(&path).unwrap();
        symlink(&bait, path).unwrap();
        assert!(bundle.fails(&["run", "a"]).contains("symbolic link"), "{name}");
        assert_eq!(fs::read_dir(&bait).unwrap().count(), 0, "{name}: something was made on the node");
    }
}

/// CVE-2026-30892, CVE-2022-29162, CVE-2025-27612: `exec --user` and `--cap`.
#[test]
fn a_user_is_the_number_that_was_said_and_added_capabilities_are_not_inherited() {
    let bundle = Bundle::new("user");
    bundle.script("exec sleep 1000");
    bundle.create("a");
    bundle.ok(&["start", "a"]);
    for (user, expected) in
        [("1", "1 0\n"), ("1:2", "1 2\n"), ("01", "1 0\n"), ("2147483648", "2147483648 0\n")]
    {
        assert_eq!(
            bundle.ok(&["exec", "--user", user, "a", "/bin/sh", "-c", "echo $(id -u) $(id -g)"]),
            expected
        );
    }
    for bad in ["", "1:", ":5", "-1", "4294967295", "4294967296", "root", "+1"] {
        bundle.fails(&["exec", &format!("--user={bad}"), "a", "/bin/true"]);
    }
    let sets = bundle.ok(&[
        "exec",
        "--cap",
        "CAP_NET_RAW",
        "a",
        "/bin/sh",
        "-c",
        "grep -E 'CapInh|CapAmb' /proc/self/status",
    ]);
    assert_eq!(sets, "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n");
    bundle.ok(&["delete", "--force", "a"]);
}

/// CVE-2025-23266: a hook gets neither the image's environment nor ours, and no descriptor.
#[test]
fn a_hook_gets_nothing_that_is_not_its_own() {
    let bundle = Bundle::new("hookenv");
    bundle.script("true");
    let out = bundle.dir.join("out");
    bundle.change(|config| {
        config["process"]["env"] = json!(["LD_PRELOAD=/evil.so", "PATH=/bin"]);
        // As it was at the start: some shells export variables of their own.
        let script =
            format!("tr '\\0' '\\n' < /proc/self/environ > {0}; ls /proc/self/fd >> {0}", out.display());
        let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=1"] }]);
        config["hooks"] = json!({ "createContainer": hook });
    });
    bundle.ok(&["run", "a"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "A=1\n0\n1\n2\n3\n");
    bundle.change(|config| {
        let hook = config["hooks"]["createContainer"].clone();
        config["hooks"] = json!({ "createRuntime": hook });
    });
    bundle.ok(&["run", "b"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "A=1\n0\n1\n2\n3\n", "a hook on the node");
}
