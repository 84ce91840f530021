//! Readings of a cgroup.

use crate::api::CgroupStats;
use crate::error::{Error, Kind};

/// Reads statistics of one cgroup through descriptors that stay open between readings.
#[derive(Debug)]
pub struct Reader {}

impl Reader {
    /// Opens the statistics files of a cgroup, given in cgroupfs spelling relative to each hierarchy's root.
    pub fn open(cgroup: &str) -> Result<Self, Error> {
        Err(Error::not_found("cgroup", cgroup))
    }

    /// One reading. Blocking, a handful of preads. Fails with [`Kind::NotFound`] once the cgroup is gone.
    pub fn read(&mut self) -> Result<CgroupStats, Error> {
        Err(Error::new(Kind::NotFound, "cgroup is gone"))
    }
}
