//! Classes of resources by name: what a pod asks for in its annotations, and what the node's configuration means by it.
//!
//! The annotations are those that containerd and CRI-O read (github.com/intel/goresctrl): for one container by the CRI's own
//! annotation, else by the pod's for that container, else by the pod's for all of them.

use std::collections::BTreeMap;

use crate::error::{Error, Kind};
use crate::spec::{ContainerSpec, PodSpec};

/// The node's classes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    /// Shares of caches and memory bandwidth, by name: lines for the `schemata` file of a resctrl group. Without any, the group has to
    /// be there already.
    pub rdt: BTreeMap<String, Vec<String>>,
    /// Shares and limits of block devices, by name.
    pub blockio: BTreeMap<String, Vec<BlockioRule>>,
}

/// What a class of block I/O gives on some devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockioRule {
    /// Block devices by path; `*` and `?` in the last part stand for anything. None: all devices, for `weight` alone.
    pub devices: Vec<String>,
    /// Share, 10 to 1000.
    pub weight: Option<u16>,
    /// Bytes per second.
    pub read_bps: Option<u64>,
    /// Bytes per second.
    pub write_bps: Option<u64>,
    /// Operations per second.
    pub read_iops: Option<u64>,
    /// Operations per second.
    pub write_iops: Option<u64>,
}

/// A kind of class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    /// Resource director technology: caches and memory bandwidth.
    Rdt,
    /// Block devices.
    Blockio,
}

impl Sort {
    fn word(self) -> &'static str {
        match self {
            Self::Rdt => "rdt",
            Self::Blockio => "blockio",
        }
    }
}

/// The class that a container is to have, and the annotation that says so.
pub(crate) fn asked<'s>(
    sort: Sort,
    pod: &'s PodSpec,
    container: &'s ContainerSpec,
) -> Option<(String, &'s str)> {
    let word = sort.word();
    let own = format!("io.kubernetes.cri.{word}-class");
    let one = format!("{word}.resources.beta.kubernetes.io/container.{}", container.name);
    let all = format!("{word}.resources.beta.kubernetes.io/pod");
    let places = [(&container.annotations, own), (&pod.annotations, one), (&pod.annotations, all)];
    places.into_iter().find_map(|(annotations, key)| {
        let class = annotations.get(&key).filter(|class| !class.is_empty())?;
        Some((key, class.as_str()))
    })
}

impl Classes {
    /// The schemata of the class a container asks for, with its name. Refuses, naming annotation and class, one that is not configured.
    pub(crate) fn rdt<'s>(
        &'s self,
        pod: &'s PodSpec,
        container: &'s ContainerSpec,
    ) -> Result<Option<(&'s str, &'s [String])>, Error> {
        let Some((key, class)) = asked(Sort::Rdt, pod, container) else { return Ok(None) };
        let schemata = self.rdt.get(class).ok_or_else(|| unknown(Sort::Rdt, &key, class))?;
        Ok(Some((class, schemata)))
    }

    /// The same for block devices.
    pub(crate) fn blockio<'s>(
        &'s self,
        pod: &'s PodSpec,
        container: &'s ContainerSpec,
    ) -> Result<Option<(&'s str, &'s [BlockioRule])>, Error> {
        let Some((key, class)) = asked(Sort::Blockio, pod, container) else { return Ok(None) };
        let rules = self.blockio.get(class).ok_or_else(|| unknown(Sort::Blockio, &key, class))?;
        Ok(Some((class, rules)))
    }
}

fn unknown(sort: Sort, key: &str, class: &str) -> Error {
    let why =
        format!("annotation {key}: there is no class \"{class}\" in the configuration ([{}])", sort.word());
    Error::new(Kind::InvalidArgument, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_annotation_decides() {
        let mut pod = PodSpec::default();
        let mut container = ContainerSpec { name: "app".into(), ..ContainerSpec::default() };
        assert_eq!(asked(Sort::Rdt, &pod, &container), None);
        let mut expected = Vec::new();
        for (ours, key, class) in [
            (false, "rdt.resources.beta.kubernetes.io/pod", "low"),
            (false, "rdt.resources.beta.kubernetes.io/container.app", "middle"),
            (true, "io.kubernetes.cri.rdt-class", "high"),
        ] {
            let annotations = if ours { &mut container.annotations } else { &mut pod.annotations };
            annotations.insert(key.into(), class.into());
            expected.push((key.to_owned(), class));
            assert_eq!(asked(Sort::Rdt, &pod, &container), expected.last().cloned());
        }
        container.annotations.insert("io.kubernetes.cri.rdt-class".into(), String::new());
        assert_eq!(asked(Sort::Rdt, &pod, &container).unwrap().1, "middle", "an empty one says nothing");
        let other = ContainerSpec { name: "sidecar".into(), ..ContainerSpec::default() };
        assert_eq!(asked(Sort::Rdt, &pod, &other).unwrap().1, "low", "another container of the pod");
        assert_eq!(asked(Sort::Blockio, &pod, &container), None, "the other kind");
    }

    #[test]
    fn a_class_that_is_not_configured_is_refused_by_annotation_and_name() {
        let mut pod = PodSpec::default();
        pod.annotations.insert("blockio.resources.beta.kubernetes.io/pod".into(), "slow".into());
        let container = ContainerSpec::default();
        let mut classes = Classes::default();
        let error = classes.blockio(&pod, &container).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        for word in ["blockio.resources.beta.kubernetes.io/pod", "\"slow\"", "[blockio]"] {
            assert!(error.to_string().contains(word), "{error}");
        }
        assert_eq!(classes.rdt(&pod, &container).unwrap(), None);
        classes.blockio.insert("slow".into(), Vec::new());
        assert_eq!(classes.blockio(&pod, &container).unwrap(), Some(("slow", &[][..])));
    }
}
