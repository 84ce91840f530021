//! RuntimeConfig: the cgroup driver the kubelet has to use as well.

use engine::exec::cgroup;

use super::Service;
use crate::proto::{CgroupDriver, LinuxRuntimeConfiguration, RuntimeConfigRequest, RuntimeConfigResponse};

pub(super) fn handle(service: &Service, _: &RuntimeConfigRequest) -> RuntimeConfigResponse {
    let driver = match service.engine.cgroup_driver() {
        cgroup::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
        cgroup::CgroupDriver::Systemd => CgroupDriver::Systemd,
    };
    let linux = LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
    RuntimeConfigResponse { linux: Some(linux) }
}
