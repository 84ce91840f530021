//! An OCI bundle for tests of `berth oci`: a busybox root, a configuration to be changed, one process per verb.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};

/// A bundle and the containers made of it; all of it goes when dropped.
pub struct Bundle {
    pub dir: PathBuf,
    /// The command, `oci` itself.
    pub program: PathBuf,
}

impl Bundle {
    pub fn new(name: &str) -> Self {
        let dir = PathBuf::from(format!("/tmp/oci-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        super::make_root(&dir.join("rootfs"));
        let bundle = Self { dir, program: env!("CARGO_BIN_EXE_oci").into() };
        assert!(bundle.oci(&["spec", "--bundle", bundle.dir.to_str().unwrap()]).status.success());
        bundle.change(|config| {
            config["process"]["terminal"] = json!(false);
            config["root"]["readonly"] = json!(false);
            config["linux"]["cgroupsPath"] = json!(format!("/berth-test-{name}-{}", std::process::id()));
        });
        bundle
    }

    pub fn change(&self, change: impl FnOnce(&mut Value)) {
        let path = self.dir.join("config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    pub fn script(&self, script: &str) {
        self.change(|config| config["process"]["args"] = json!(["/bin/sh", "-c", script]));
    }

    pub fn oci(&self, args: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.arg("20").arg(&self.program).arg("--root").arg(self.dir.join("state"));
        command.args(args).current_dir(&self.dir).stdin(std::process::Stdio::null()).output().unwrap()
    }

    /// Standard output of a verb that has to succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.oci(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a verb that has to fail says.
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.oci(args);
        assert!(!output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    /// `create` lets the process keep its streams, so it gets none of ours.
    pub fn create(&self, id: &str) {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.dir.join("state")).args(["create", id]).current_dir(&self.dir);
        let null = || std::process::Stdio::null();
        assert!(command.stdin(null()).stdout(null()).stderr(null()).status().unwrap().success());
    }

    pub fn status(&self, id: &str) -> String {
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
