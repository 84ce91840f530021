//! `berth oci` as its callers use it: one process per verb, against the kernel. Escapes name the advisory and the rule.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

/// A bundle and the containers made of it; all of it goes when dropped.
struct Bundle {
    dir: PathBuf,
}

impl Bundle {
    fn new(name: &str) -> Self {
        let dir = PathBuf::from(format!("/tmp/oci-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        support::make_root(&dir.join("rootfs"));
        let bundle = Self { dir };
        assert!(bundle.oci(&["spec", "--bundle", bundle.dir.to_str().unwrap()]).status.success());
        bundle.change(|config| {
            config["process"]["terminal"] = json!(false);
            config["root"]["readonly"] = json!(false);
            config["linux"]["cgroupsPath"] = json!(format!("/berth-test-{name}-{}", std::process::id()));
        });
        bundle
    }

    fn change(&self, change: impl FnOnce(&mut Value)) {
        let path = self.dir.join("config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    fn script(&self, script: &str) {
        self.change(|config| config["process"]["args"] = json!(["/bin/sh", "-c", script]));
    }

    fn oci(&self, args: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["20", env!("CARGO_BIN_EXE_oci"), "--root"]).arg(self.dir.join("state"));
        command.args(args).current_dir(&self.dir).stdin(std::process::Stdio::null()).output().unwrap()
    }

    /// Standard output of a verb that has to succeed.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.oci(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a verb that has to fail says.
    fn fails(&self, args: &[&str]) -> String {
        let output = self.oci(args);
        assert!(!output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    /// `create` lets the process keep its streams, so it gets none of ours.
    fn create(&self, id: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oci"));
        command.arg("--root").arg(self.dir.join("state")).args(["create", id]).current_dir(&self.dir);
        let null = || std::process::Stdio::null();
        assert!(command.stdin(null()).stdout(null()).stderr(null()).status().unwrap().success());
    }

    fn status(&self, id: &str) -> String {
        let state: Value = serde_json::from_str(&self.ok(&["state", id])).unwrap();
        state["status"].as_str().unwrap().to_owned()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for id in fs::read_dir(self.dir.join("state")).into_iter().flatten().flatten() {
            self.oci(&["delete", "--force", id.file_name().to_str().unwrap()]);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

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
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count(), mounts);
    bundle.ok(&["delete", "--force", "a"]);
    assert!(bundle.fails(&["state", "a"]).contains("does not exist"));
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
}

/// CVE-2019-5736: the runtime's program is reached from inside only through a mount that cannot be written.
#[test]
fn the_runtimes_program_cannot_be_written_from_inside() {
    let bundle = Bundle::new("exe");
    let program = Path::new(env!("CARGO_BIN_EXE_oci"));
    let before = fs::metadata(program).unwrap().modified().unwrap();
    symlink("/proc/self/exe", bundle.dir.join("rootfs/bin/evil")).unwrap();
    bundle.script("for p in /proc/[0-9]*; do echo x >> $p/exe; done; echo done");
    bundle.change(|config| {
        let all = json!(["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]);
        for set in ["bounding", "permitted", "effective"] {
            config["process"]["capabilities"][set] = all.clone();
        }
    });
    bundle.ok(&["run", "a"]);
    bundle.change(|config| config["process"]["args"] = json!(["/bin/evil", "--version"]));
    // The runtime's own program, as an entry point: from its read-only mount.
    bundle.script("exec 9< /bin/evil; true");
    bundle.oci(&["run", "b"]);
    assert_eq!(fs::metadata(program).unwrap().modified().unwrap(), before);
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
        let script = format!("/usr/bin/env -u PWD -u SHLVL -u _ > {0}; ls /proc/self/fd >> {0}", out.display());
        config["hooks"] = json!({ "createContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=1"] }] });
    });
    bundle.ok(&["run", "a"]);
    assert_eq!(fs::read_to_string(out).unwrap(), "A=1\n0\n1\n2\n3\n");
}
