//! The kernel's side of SELinux: selinuxfs and the attributes of processes.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::context::Context;

/// Where the node has selinuxfs.
const SELINUXFS: &str = "sys/fs/selinux";

/// SELinux with a policy.
#[derive(Debug)]
pub(super) struct Kernel {
    selinuxfs: PathBuf,
}

impl Kernel {
    /// `None`: selinuxfs is not there, or no policy is: then every process is `kernel`, and labels mean nothing.
    pub(super) fn probe(root: &Path) -> Option<Self> {
        let selinuxfs = root.join(SELINUXFS);
        let own = fs::read_to_string(root.join("proc/self/attr/current")).ok()?;
        let labelled = own.trim_end_matches(['\0', '\n']).parse::<Context>().is_ok();
        (labelled && selinuxfs.join("enforce").exists()).then_some(Self { selinuxfs })
    }

    /// Whether labels have a level.
    pub(super) fn has_levels(&self) -> bool {
        fs::read_to_string(self.selinuxfs.join("mls")).is_ok_and(|text| text.trim() == "1")
    }

    /// Whether the policy knows a label.
    pub(super) fn knows(&self, label: &Context) -> io::Result<bool> {
        let mut file = fs::OpenOptions::new().write(true).open(self.selinuxfs.join("context"))?;
        // One write is one question.
        match file.write(label.to_string().as_bytes()) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(false),
            Err(e) => Err(e),
        }
    }
}
