//! The native driver: one supervisor per pod, one plan per process, no other program involved.

pub mod seccomp;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Kind};
use crate::exec::Driver;

/// Settings of the native driver.
#[derive(Clone, Debug)]
pub struct Config {
    /// Handler name under which it is offered.
    pub name: String,
    /// Program that becomes the supervisor; `None`: the running executable. It is copied once into a sealed memfd.
    pub program: Option<PathBuf>,
    /// Arguments that make that program a supervisor; the pod id follows them.
    pub arguments: Vec<OsString>,
    /// Cgroup the supervisors share, in cgroupfs spelling, outside of all pod limits.
    pub supervisor_cgroup: String,
    /// Capabilities of a container that asks for nothing, without `CAP_`; empty: the usual fourteen.
    pub default_capabilities: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "native".into(),
            program: None,
            arguments: vec!["podd".into()],
            supervisor_cgroup: "/berth/podd".into(),
            default_capabilities: Vec::new(),
        }
    }
}

/// The native driver.
#[derive(Debug)]
pub struct Native {
    config: Config,
}

impl Native {
    /// Probes the kernel, seals the supervisor's program and makes its cgroup. Fails when the kernel is too old or we are not root.
    pub fn new(config: Config) -> Result<Arc<dyn Driver>, Error> {
        Err(Error::new(Kind::Unimplemented, format!("driver {} is not built yet", config.name)))
    }
}
