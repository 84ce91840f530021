//! Groups of the resctrl file system: shares of caches and memory bandwidth (Documentation/filesystems/resctrl.rst of the kernel).
//!
//! A process joins a group as it joins a v1 cgroup, by writing "0" to the group's `tasks`; its children are born there. Files owned: the
//! groups of configured classes and of OCI containers, below the mount point.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind};

/// Where resctrl is mounted.
const MOUNTED: &str = "/sys/fs/resctrl";

/// Names in a group that are the kernel's own.
const RESERVED: [&str; 5] = [".", "..", "info", "mon_groups", "mon_data"];

/// A resctrl file system.
#[derive(Clone, Debug)]
pub(crate) struct Resctrl {
    root: PathBuf,
}

impl Default for Resctrl {
    fn default() -> Self {
        Self { root: MOUNTED.into() }
    }
}

impl Resctrl {
    /// One elsewhere.
    #[cfg(test)]
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// Fails unless there is one.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.root.join("schemata").exists() {
            return Ok(());
        }
        let root = self.root.display();
        let why = format!(
            "no resctrl file system is mounted at {root}: this processor or kernel has none, or it waits for `mount -t resctrl resctrl {root}`"
        );
        Err(Error::new(Kind::FailedPrecondition, why))
    }

    /// The `tasks` file of a group, open for a process to join. A group that is missing is made if it may be; with schemata it gets them.
    ///
    /// Errors name the group, and have the kernel's own words about schemata it does not take.
    pub(crate) fn group(&self, name: &str, schemata: &[String], may_make: bool) -> Result<OwnedFd, Error> {
        self.check()?;
        let dir = self.root.join(checked(name)?);
        if !may_make && !dir.is_dir() {
            let why = format!("group {} does not exist, and no schemata say what it would be", dir.display());
            return Err(Error::new(Kind::FailedPrecondition, why));
        }
        let made = make(&dir)?;
        let opened = self.write(&dir, schemata).and_then(|()| tasks(&dir));
        if made && opened.is_err() {
            let _ = fs::remove_dir(&dir);
        }
        opened
    }

    /// Writes new schemata to a group that is there.
    pub(crate) fn change(&self, name: &str, schemata: &[String]) -> Result<(), Error> {
        self.check()?;
        self.write(&self.root.join(checked(name)?), schemata)
    }

    /// The `tasks` file of a monitoring group below a group, made if it is missing.
    pub(crate) fn monitor(&self, group: &str, name: &str) -> Result<OwnedFd, Error> {
        let dir = self.root.join(checked(group)?).join("mon_groups").join(checked(name)?);
        make(&dir)?;
        tasks(&dir)
    }

    /// Removes a group, or a monitoring group; its processes fall back to the group above. Absent is fine.
    pub(crate) fn remove(&self, group: &str, monitor: Option<&str>) -> Result<(), Error> {
        let mut dir = self.root.join(checked(group)?);
        if let Some(name) = monitor {
            dir = dir.join("mon_groups").join(checked(name)?);
        }
        match fs::remove_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::with(Kind::Internal, format!("remove {}", dir.display()), e))
            }
            _ => Ok(()),
        }
    }

    fn write(&self, dir: &Path, schemata: &[String]) -> Result<(), Error> {
        if schemata.is_empty() {
            return Ok(());
        }
        let path = dir.join("schemata");
        if let Some(line) = schemata.iter().find(|line| line.contains('\n') || line.trim().is_empty()) {
            return Err(Error::invalid("schemata", format!("{line:?} is not one line")));
        }
        let text = schemata.iter().fold(String::new(), |text, line| text + line + "\n");
        let written =
            OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|e| {
            let said = fs::read_to_string(self.root.join("info/last_cmd_status")).unwrap_or_default();
            let said = said.trim();
            let said = if said.is_empty() || said == "ok" { String::new() } else { format!(" ({said})") };
            let kind =
                if e.raw_os_error() == Some(libc::EINVAL) { Kind::InvalidArgument } else { Kind::Internal };
            Error::with(kind, format!("write {text:?} to {}{said}", path.display()), e)
        })
    }
}

/// A name that stays where it is put.
fn checked(name: &str) -> Result<&str, Error> {
    if name.is_empty() || RESERVED.contains(&name) || name.contains(['/', '\n', '\0']) {
        return Err(Error::invalid("closID", format!("{name:?} is not the name of a resctrl group")));
    }
    Ok(name)
}

/// Makes a group; `false`: it was there.
fn make(dir: &Path) -> Result<bool, Error> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {
            let why = format!("make {}: the processor has no more classes", dir.display());
            Err(Error::with(Kind::ResourceExhausted, why, e))
        }
        Err(e) => Err(Error::with(Kind::Internal, format!("make {}", dir.display()), e)),
    }
}

fn tasks(dir: &Path) -> Result<OwnedFd, Error> {
    let path = dir.join("tasks");
    let opened = OpenOptions::new().write(true).open(&path).map(File::into);
    opened.map_err(|e| Error::with(Kind::Internal, format!("open {}", path.display()), e))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A directory that stands for resctrl: with the files that the kernel would have.
    pub(crate) struct Stand {
        pub(crate) root: PathBuf,
    }

    impl Stand {
        pub(crate) fn new(name: &str) -> Self {
            let root = PathBuf::from(format!("/tmp/berth-resctrl-{name}-{}", std::process::id()));
            fs::create_dir_all(root.join("info")).unwrap();
            fs::write(root.join("schemata"), "L3:0=f\n").unwrap();
            Self { root }
        }

        /// A group as the kernel makes it.
        pub(crate) fn group(&self, name: &str) -> PathBuf {
            let dir = self.root.join(name);
            fs::create_dir_all(dir.join("mon_groups")).unwrap();
            fs::write(dir.join("schemata"), "").unwrap();
            fs::write(dir.join("tasks"), "").unwrap();
            dir
        }
    }

    impl Drop for Stand {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn a_group_gets_its_schemata_and_is_joined() {
        let stand = Stand::new("group");
        let dir = stand.group("gold");
        let resctrl = Resctrl::at(&stand.root);
        let tasks = resctrl.group("gold", &lines(&["L3:0=ff", "MB:0=50"]), false).unwrap();
        assert_eq!(fs::read_to_string(dir.join("schemata")).unwrap(), "L3:0=ff\nMB:0=50\n");
        rustix::io::write(&tasks, b"0").unwrap();
        assert_eq!(fs::read_to_string(dir.join("tasks")).unwrap(), "0");
        resctrl.group("gold", &[], false).unwrap();
        assert_eq!(fs::read_to_string(dir.join("schemata")).unwrap(), "L3:0=ff\nMB:0=50\n", "left alone");
    }

    #[test]
    fn without_resctrl_the_refusal_says_what_is_missing() {
        let resctrl = Resctrl::at(Path::new("/nonexistent/resctrl"));
        let error = resctrl.group("gold", &lines(&["L3:0=f"]), true).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.to_string().contains("mount -t resctrl resctrl /nonexistent/resctrl"), "{error}");
    }

    #[test]
    fn a_group_without_schemata_has_to_be_there() {
        let stand = Stand::new("there");
        let error = Resctrl::at(&stand.root).group("silver", &[], false).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.to_string().contains("silver"), "{error}");
        assert!(!stand.root.join("silver").exists());
    }

    #[test]
    fn what_the_kernel_says_about_schemata_is_passed_on_and_the_group_taken_back() {
        let stand = Stand::new("refused");
        fs::write(stand.root.join("info/last_cmd_status"), "unknown resource name 'L9'\n").unwrap();
        // A fresh directory here has no schemata file to write to.
        let error = Resctrl::at(&stand.root).group("new", &lines(&["L9:0=f"]), true).unwrap_err();
        assert!(error.to_string().contains("unknown resource name 'L9'"), "{error}");
        assert!(!stand.root.join("new").exists(), "what was made is removed");
        let dir = stand.group("old");
        fs::remove_file(dir.join("schemata")).unwrap();
        Resctrl::at(&stand.root).group("old", &lines(&["L9:0=f"]), true).unwrap_err();
        assert!(dir.exists(), "what was there stays");
    }

    #[test]
    fn a_name_cannot_lead_elsewhere() {
        let stand = Stand::new("names");
        let resctrl = Resctrl::at(&stand.root);
        for name in ["", ".", "..", "a/b", "info", "mon_groups", "mon_data", "a\nb"] {
            for error in [
                resctrl.group(name, &lines(&["L3:0=f"]), true).unwrap_err(),
                resctrl.remove(name, None).unwrap_err(),
                resctrl.remove("x", Some(name)).unwrap_err(),
                resctrl.monitor("x", name).unwrap_err(),
            ] {
                assert!(error.to_string().starts_with("closID: "), "{name:?}: {error}");
            }
        }
        let error = resctrl.group("x", &lines(&["L3:0=f\nMB:0=1"]), true).unwrap_err();
        assert!(error.to_string().contains("not one line"), "{error}");
    }
}
