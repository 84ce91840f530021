//! `linux.intelRdt`: the resctrl group of a container (config-linux.md, "RDT").

use std::os::fd::OwnedFd;

use oci_spec::runtime::{LinuxIntelRdt, Spec};

use crate::error::{Error, Kind};
use crate::exec::rdt::Resctrl;

/// What a bundle asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rdt<'s> {
    id: &'s str,
    group: &'s str,
    schemata: Vec<String>,
    monitor: bool,
}

impl<'s> Rdt<'s> {
    /// Reads it; `None`: nothing is asked for.
    pub(super) fn of(id: &'s str, spec: &'s Spec) -> Option<Self> {
        Some(Self::new(id, spec.linux().as_ref()?.intel_rdt().as_ref()?))
    }

    /// What a container's `linux.intelRdt` means.
    pub(crate) fn new(id: &'s str, wanted: &'s LinuxIntelRdt) -> Self {
        let group = wanted.clos_id().as_deref().filter(|group| !group.is_empty()).unwrap_or(id);
        let all = wanted.schemata().clone().unwrap_or_default();
        let schemata = if all.is_empty() {
            let old = [wanted.l3_cache_schema(), wanted.mem_bw_schema()];
            old.into_iter().flatten().flat_map(|text| text.lines().map(str::to_owned)).collect()
        } else {
            all
        };
        #[allow(deprecated, reason = "old bundles have them")]
        let old = [wanted.enable_cmt(), wanted.enable_mbm()];
        let monitor = old.into_iter().chain([wanted.enable_monitoring()]).any(|on| *on == Some(true));
        Self { id, group, schemata, monitor }
    }

    /// The group is the container's own, and goes with it.
    fn own(&self) -> bool {
        self.group == self.id
    }

    /// Makes what is missing, and opens the files by which the container joins.
    pub(super) fn make(&self, resctrl: &Resctrl) -> Result<Vec<OwnedFd>, Error> {
        self.open(resctrl, &self.schemata, self.own() || !self.schemata.is_empty())
    }

    /// Opens the same files of a container that is there, for another process.
    pub(crate) fn enter(&self, resctrl: &Resctrl) -> Result<Vec<OwnedFd>, Error> {
        self.open(resctrl, &[], false)
    }

    fn open(&self, resctrl: &Resctrl, schemata: &[String], may_make: bool) -> Result<Vec<OwnedFd>, Error> {
        let named = |e: Error| e.context("linux.intelRdt");
        let mut tasks = vec![resctrl.group(self.group, schemata, may_make).map_err(named)?];
        if self.monitor {
            tasks.push(resctrl.monitor(self.group, self.id).map_err(named)?);
        }
        Ok(tasks)
    }

    /// Writes other schemata.
    pub(super) fn change(&self, resctrl: &Resctrl, schemata: &[String]) -> Result<(), Error> {
        resctrl.change(self.group, schemata)
    }

    /// Removes what is the container's own.
    pub(super) fn remove(&self, resctrl: &Resctrl) -> Result<(), Error> {
        if self.own() {
            resctrl.remove(self.group, None)
        } else if self.monitor {
            resctrl.remove(self.group, Some(self.id))
        } else {
            Ok(())
        }
    }
}

/// New schemata for a container without a group: there is nothing to write them to.
pub(super) fn none(option: &str) -> Error {
    Error::new(
        Kind::FailedPrecondition,
        format!("--{option}: the container was created without linux.intelRdt"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::rdt::tests::Stand;
    use crate::oci::bundle;

    fn spec(rdt: &str) -> Spec {
        let text = format!(r#"{{"ociVersion":"1.2.0","root":{{"path":"r"}},"linux":{{"intelRdt":{rdt}}}}}"#);
        let spec = bundle::parse(text.as_bytes()).unwrap();
        bundle::check(&spec).unwrap();
        spec
    }

    #[test]
    fn a_class_by_name_has_to_be_there_and_stays() {
        let stand = Stand::new("oci-named");
        let resctrl = Resctrl::at(&stand.root);
        let spec = spec(r#"{"closID":"gold"}"#);
        let rdt = Rdt::of("c1", &spec).unwrap();
        let error = rdt.make(&resctrl).unwrap_err().chain();
        assert!(error.starts_with("linux.intelRdt: ") && error.contains("gold"), "{error}");
        let dir = stand.group("gold");
        assert_eq!(rdt.make(&resctrl).unwrap().len(), 1);
        rdt.remove(&resctrl).unwrap();
        assert!(dir.exists());
    }

    #[test]
    fn a_group_of_the_containers_own_has_its_schemata_and_goes_with_it() {
        let stand = Stand::new("oci-own");
        let resctrl = Resctrl::at(&stand.root);
        let spec = spec(r#"{"l3CacheSchema":"L3:0=f\nL3:1=f","memBwSchema":"MB:0=20"}"#);
        let rdt = Rdt::of("c1", &spec).unwrap();
        let dir = stand.group("c1");
        assert_eq!((rdt.make(&resctrl).unwrap().len(), rdt.enter(&resctrl).unwrap().len()), (1, 1));
        let written = || std::fs::read_to_string(dir.join("schemata")).unwrap();
        assert_eq!(written(), "L3:0=f\nL3:1=f\nMB:0=20\n");
        rdt.change(&resctrl, &["MB:0=30".into()]).unwrap();
        assert!(written().starts_with("MB:0=30\n"));
        // A real group's files go with it.
        std::fs::remove_file(dir.join("schemata")).unwrap();
        std::fs::remove_file(dir.join("tasks")).unwrap();
        std::fs::remove_dir(dir.join("mon_groups")).unwrap();
        rdt.remove(&resctrl).unwrap();
        rdt.remove(&resctrl).unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn monitoring_is_a_group_of_the_container_below_its_class() {
        let stand = Stand::new("oci-monitor");
        let resctrl = Resctrl::at(&stand.root);
        let spec = spec(
            r#"{"closID":"gold","schemata":["MB:0=10"],"l3CacheSchema":"L3:0=1","enableMonitoring":true}"#,
        );
        let rdt = Rdt::of("c1", &spec).unwrap();
        assert_eq!(rdt.schemata, ["MB:0=10"], "all of it, or the old fields");
        let monitor = stand.group("gold").join("mon_groups/c1");
        std::fs::create_dir(&monitor).unwrap();
        std::fs::write(monitor.join("tasks"), "").unwrap();
        assert_eq!(rdt.make(&resctrl).unwrap().len(), 2);
        std::fs::remove_file(monitor.join("tasks")).unwrap();
        rdt.remove(&resctrl).unwrap();
        assert!(!monitor.exists() && stand.root.join("gold").exists());
        assert_eq!(Rdt::of("c1", &Spec::default()), None);
    }
}
