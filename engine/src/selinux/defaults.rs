//! The labels a policy has for containers: its own file about them, or the customary ones.
//!
//! container-selinux installs `/usr/share/containers/selinux/contexts`; policies without it have `contexts/lxc_contexts`
//! (selinux_lxc_contexts_path(3)). Both are lines of `key = "label"`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::context::Context;
use crate::error::{Error, Kind};

/// The file of container-selinux.
const SHARED: &str = "usr/share/containers/selinux/contexts";
/// The policies, and the file that says which one is in use.
const POLICIES: &str = "etc/selinux";
/// No such file is longer.
const LIMIT: u64 = 64 << 10;
/// What processes have where no file says otherwise.
const PROCESS: (&str, &str, &str) = ("system_u", "system_r", "container_t");
/// What files have where no file says otherwise.
const FILE: (&str, &str, &str) = ("system_u", "object_r", "container_file_t");

/// What images have where no file says anything.
const IMAGE: (&str, &str, &str) = ("system_u", "object_r", "container_ro_file_t");

/// The labels of a container that asks for nothing, before its pod's categories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Defaults {
    /// Of its processes.
    pub(super) process: Context,
    /// Of its files.
    pub(super) file: Context,
    /// Of images, which all containers may read.
    pub(super) image: Context,
}

/// Reads what the policy in use says. `levels`: it has levels.
pub(super) fn read(root: &Path, levels: bool) -> Result<Defaults, Error> {
    let mut candidates = vec![root.join(SHARED)];
    candidates.extend(policy(root)?.map(|policy| policy.join("contexts/lxc_contexts")));
    for path in candidates {
        if let Some(text) = content(&path)? {
            return parse(&text, levels).map_err(|e| e.context(path.display()));
        }
    }
    parse("", levels)
}

/// The directory of the policy in use (selinux_config(5)).
fn policy(root: &Path) -> Result<Option<PathBuf>, Error> {
    let directory = root.join(POLICIES);
    let text = content(&directory.join("config"))?.unwrap_or_default();
    let name = pairs(&text).find(|(key, _)| *key == "SELINUXTYPE").map(|(_, value)| value);
    // One name and no path: it becomes a part of one.
    Ok(name
        .filter(|name| super::context::is_name(name) && !name.starts_with('.'))
        .map(|name| directory.join(name)))
}

/// A small file's text; `None`: there is no such file.
fn content(path: &Path) -> Result<Option<String>, Error> {
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(LIMIT).read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::with(Kind::FailedPrecondition, format!("read {}", path.display()), e)),
    }
}

/// `key = value` of each line, without quotes; comments begin with `#` or `;`.
fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    lines
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim(), value.trim().trim_matches('"')))
}

/// The labels in a policy's file about containers.
fn parse(text: &str, levels: bool) -> Result<Defaults, Error> {
    let label = |key: &str, (user, role, kind): (&str, &str, &str)| {
        let given = pairs(text).filter(|(name, _)| *name == key).last().map(|(_, value)| value);
        let usual =
            || Context { user: user.into(), role: role.into(), kind: kind.into(), level: Some("s0".into()) };
        let context = given.map_or_else(
            || Ok(usual()),
            |value| {
                value
                    .parse::<Context>()
                    .map_err(|e| Error::new(Kind::FailedPrecondition, format!("{key} = \"{value}\" {e}")))
            },
        )?;
        // Without levels a label must not have one, and with them it must.
        let level = context.level.filter(|_| levels).or_else(|| levels.then(|| "s0".into()));
        Ok::<_, Error>(Context { level, ..context })
    };
    // Policies older than the type for images have one type for all files.
    let image = if pairs(text).next().is_none() || pairs(text).any(|(key, _)| key == "ro_file") {
        label("ro_file", IMAGE)?
    } else {
        label("file", FILE)?
    };
    Ok(Defaults { process: label("process", PROCESS)?, file: label("file", FILE)?, image })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str, levels: bool) -> Result<[String; 2], String> {
        parse(text, levels).map(|d| [d.process.to_string(), d.file.to_string()]).map_err(|e| e.chain())
    }

    #[test]
    fn the_policys_file_wins_over_the_customary_labels_key_by_key() {
        let fedora = "process = \"system_u:system_r:container_t:s0\"\ncontent = \"system_u:object_r:virt_var_lib_t:s0\"\n\
                      file = \"system_u:object_r:container_file_t:s0\"\nro_file=\"system_u:object_r:container_ro_file_t:s0\"\n\
                      sandbox_kvm_process = \"system_u:system_r:svirt_qemu_net_t:s0\"\n";
        let usual =
            ["system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0"].map(str::to_owned);
        assert_eq!(labels(fedora, true), Ok(usual.clone()));
        assert_eq!(labels("", true), Ok(usual.clone()));
        assert_eq!(labels("# process = \"a:b:c:s0\"\n; file = \"a:b:c:s0\"\nnonsense\n", true), Ok(usual));
        let old = "  process=  \"u:r:svirt_lxc_net_t:s0\"  \n";
        let mixed = ["u:r:svirt_lxc_net_t:s0", "system_u:object_r:container_file_t:s0"].map(str::to_owned);
        assert_eq!(labels(old, true), Ok(mixed));
    }

    #[test]
    fn images_have_a_type_of_their_own_where_the_policy_has_one() {
        let image = |text: &str| parse(text, true).unwrap().image.to_string();
        assert_eq!(image(""), "system_u:object_r:container_ro_file_t:s0");
        assert_eq!(image("ro_file = \"u:o:ro:s0\"\nfile = \"u:o:f:s0\""), "u:o:ro:s0");
        assert_eq!(image("process = \"u:r:t:s0\"\nfile = \"u:o:f:s0\""), "u:o:f:s0");
    }

    #[test]
    fn labels_have_a_level_where_the_policy_has_and_none_where_it_has_not() {
        let flat = ["system_u:system_r:container_t", "system_u:object_r:container_file_t"].map(str::to_owned);
        assert_eq!(labels("process = \"system_u:system_r:container_t:s0\"", false), Ok(flat));
        assert_eq!(labels("process = \"u:r:t\"", true).unwrap()[0], "u:r:t:s0");
    }

    #[test]
    fn a_file_that_makes_no_sense_is_refused_by_key_and_value() {
        for text in ["process = \"container_t\"", "file = \"\"", "file = \"a:b:c:d\""] {
            let key = text.split(' ').next().unwrap();
            assert!(labels(text, true).unwrap_err().starts_with(key), "{text}");
        }
    }

    #[test]
    fn the_file_of_container_selinux_comes_first_then_that_of_the_policy_in_use() {
        let root = std::env::temp_dir().join(format!("berth-selinux-{}", std::process::id()));
        let put = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let process = || read(&root, true).map(|d| d.process.kind).map_err(|e| e.chain());
        assert_eq!(process(), Ok("container_t".into()), "nothing is there");
        put("etc/selinux/mine/contexts/lxc_contexts", "process = \"u:r:of_the_policy:s0\"");
        put("etc/selinux/config", "SELINUX=enforcing\n# SELINUXTYPE=other\nSELINUXTYPE=mine\n");
        assert_eq!(process(), Ok("of_the_policy".into()));
        put("etc/selinux/config", "SELINUXTYPE=../selinux/mine\n");
        assert_eq!(process(), Ok("container_t".into()), "a path is no name");
        put("usr/share/containers/selinux/contexts", "process = \"u:r:shared:s0\"");
        assert_eq!(process(), Ok("shared".into()));
        put("usr/share/containers/selinux/contexts", "process = \"shared\"");
        assert!(process().unwrap_err().contains("containers/selinux/contexts: process"));
        std::fs::remove_dir_all(root).unwrap();
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_the_reader_panic(text: String) {
            let _ = parse(&text, true);
        }
    }
}
