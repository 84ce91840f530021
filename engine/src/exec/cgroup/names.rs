//! What cgroups are called, under either driver. Pure.

use crate::error::Error;

/// Who makes the node's cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Berth, in the cgroup file systems.
    #[default]
    Cgroupfs,
    /// systemd, at Berth's word: slices and scopes.
    Systemd,
}

/// Longest name of a unit (`UNIT_NAME_MAX`).
const LONGEST: usize = 255;

impl CgroupDriver {
    /// The cgroup that a parent names, spelt in full: under systemd a slice stands for all slices above it (systemd.slice(5)), and may
    /// also be spelt with them.
    ///
    /// Fails, naming `field`, on a slice under cgroupfs and on anything else under systemd.
    pub fn parent(self, field: &str, parent: &str) -> Result<String, Error> {
        let last = parent.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let slice = last.ends_with(".slice");
        match self {
            Self::Cgroupfs if slice => Err(Error::invalid(
                field,
                format!("\"{parent}\" is a slice of systemd, and cgroup_driver is \"cgroupfs\""),
            )),
            Self::Cgroupfs => Ok(parent.to_owned()),
            Self::Systemd if !slice => Err(Error::invalid(
                field,
                format!("\"{parent}\" is not a slice (NAME.slice), and cgroup_driver is \"systemd\""),
            )),
            Self::Systemd => {
                let path = expand(last)
                    .ok_or_else(|| Error::invalid(field, format!("\"{last}\" is not the name of a slice")))?;
                let given = parent.trim_matches('/');
                if given != last && given != path.trim_matches('/') {
                    let why = format!("\"{parent}\" is not where systemd has {last}, which is {path}");
                    return Err(Error::invalid(field, why));
                }
                Ok(path)
            }
        }
    }

    /// Refuses, naming `field`, what cannot hold processes under this driver: under systemd anything but a scope in its slices.
    pub fn scope(self, field: &str, cgroup: &str) -> Result<(), Error> {
        let place = cgroup.rsplit_once('/').filter(|(_, name)| name.ends_with(".scope") && is_unit(name));
        match (self, place) {
            (Self::Cgroupfs, _) => Ok(()),
            (Self::Systemd, Some((slice, _))) if self.parent(field, slice)? == slice => Ok(()),
            (Self::Systemd, _) => Err(Error::invalid(
                field,
                format!(
                    "\"{cgroup}\" is not the path of a scope (/NAME.slice/NAME.scope), and cgroup_driver is \"systemd\""
                ),
            )),
        }
    }

    /// The cgroup of a pod that names no parent, in ours (as [`Self::parent`] has it).
    pub fn pod(self, parent: &str, id: &str) -> String {
        match self {
            Self::Cgroupfs => format!("{parent}/{id}"),
            Self::Systemd => {
                let name = parent.rsplit('/').next().and_then(|last| last.strip_suffix(".slice"));
                format!("{parent}/{}-{id}.slice", name.unwrap_or_default())
            }
        }
    }
}

/// The cgroup of a container in its pod's: a scope where that is a slice.
pub fn container(pod: &str, id: &str) -> String {
    if pod.ends_with(".slice") { format!("{pod}/cri-berth-{id}.scope") } else { format!("{pod}/{id}") }
}

/// The path of a slice: `a-b.slice` is below `a.slice`. `None`: no slice is called so.
pub(super) fn expand(slice: &str) -> Option<String> {
    let name = slice.strip_suffix(".slice")?;
    if !is_unit(slice) || name.split('-').any(str::is_empty) {
        return None;
    }
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    Some(ends.map(|end| format!("/{}.slice", &name[..end])).collect())
}

/// Whether a unit may be called so (systemd.unit(5)).
pub(crate) fn is_unit(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    name.len() <= LONGEST && name.bytes().all(allowed) && !name.starts_with('.')
}

/// The unit that a cgroup is, and whether it is a scope; `None`: a cgroup like any other.
pub(super) fn unit(cgroup: &str) -> Option<(&str, bool)> {
    let (_, name) = cgroup.trim_end_matches('/').rsplit_once('/')?;
    match (name.strip_suffix(".scope"), name.strip_suffix(".slice")) {
        (Some(_), _) => Some((name, true)),
        (_, Some(_)) => Some((name, false)),
        _ => None,
    }
}

/// The slice that a unit is in; the root slice has no name in paths.
pub(super) fn slice(cgroup: &str) -> &str {
    let parent = cgroup.trim_end_matches('/').rsplit_once('/').map_or("", |(parent, _)| parent);
    match parent.rsplit('/').next() {
        Some(name) if !name.is_empty() => name,
        _ => "-.slice",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_stands_for_all_slices_above_it() {
        let full = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        for given in ["/kubepods-burstable-pod1_2.slice", "kubepods-burstable-pod1_2.slice", full] {
            assert_eq!(CgroupDriver::Systemd.parent("cgroup_parent", given).unwrap(), full);
        }
        assert_eq!(CgroupDriver::Systemd.parent("", "system.slice").unwrap(), "/system.slice");
    }

    #[test]
    fn names_of_the_other_driver_are_refused_by_field() {
        let refused = |driver: CgroupDriver, parent: &str| {
            let error = driver.parent("cgroup_parent", parent).unwrap_err();
            assert!(error.to_string().starts_with("cgroup_parent: "), "{error}");
            error.to_string()
        };
        assert!(refused(CgroupDriver::Cgroupfs, "/kubepods.slice/a.slice").contains("slice of systemd"));
        for parent in ["/kubepods/burstable", "/a.slice/b", "/a.scope", "/"] {
            assert!(refused(CgroupDriver::Systemd, parent).contains("not a slice"), "{parent}");
        }
        for parent in
            ["/.slice", "/-.slice", "/a--b.slice", "/-a.slice", "/a-.slice", "/a b.slice", "/\u{e9}.slice"]
        {
            assert!(refused(CgroupDriver::Systemd, parent).contains("not the name"), "{parent}");
        }
        assert!(refused(CgroupDriver::Systemd, "/x.slice/a-b.slice").contains("/a.slice/a-b.slice"));
        assert!(
            refused(CgroupDriver::Systemd, &format!("/{}.slice", "x".repeat(250))).contains("not the name")
        );
    }

    #[test]
    fn processes_are_in_scopes_under_systemd() {
        for good in ["/system.slice/berth-podd.scope", "/a.slice/a-b.slice/x.scope"] {
            CgroupDriver::Systemd.scope("supervisor_cgroup", good).unwrap();
        }
        for bad in [
            "/berth/podd",
            "/berth/podd.scope",
            "/a-b.slice/x.scope",
            "x.scope",
            "/x.scope",
            "/a.slice/\n.scope",
        ] {
            let error = CgroupDriver::Systemd.scope("supervisor_cgroup", bad).unwrap_err().to_string();
            assert!(error.starts_with("supervisor_cgroup: "), "{error}");
        }
        CgroupDriver::Cgroupfs.scope("", "/berth/podd").unwrap();
    }

    #[test]
    fn pods_are_slices_and_containers_scopes_under_systemd_alone() {
        assert_eq!(CgroupDriver::Cgroupfs.pod("/berth", "ab"), "/berth/ab");
        assert_eq!(CgroupDriver::Systemd.pod("/berth.slice", "ab"), "/berth.slice/berth-ab.slice");
        assert_eq!(container("/berth/ab", "cd"), "/berth/ab/cd");
        let scope = container("/a.slice/a-b.slice", "cd");
        assert_eq!(scope, "/a.slice/a-b.slice/cri-berth-cd.scope");
        assert_eq!((unit(&scope), slice(&scope)), (Some(("cri-berth-cd.scope", true)), "a-b.slice"));
        assert_eq!((unit("/a.slice"), slice("/a.slice")), (Some(("a.slice", false)), "-.slice"));
        assert_eq!(unit("/berth/ab"), None);
    }
}
