//! UpdatePodSandboxResources: writes the pod's cgroup.

use engine::Error;
use engine::jobs::UpdatePodResources;

use super::Service;
use super::edge::Deadline;
use crate::convert::resources::resources;
use crate::proto::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};

pub(super) async fn handle(
    service: &Service,
    request: UpdatePodSandboxResourcesRequest,
    deadline: Deadline,
) -> Result<UpdatePodSandboxResourcesResponse, Error> {
    service.engine.run(job(request)?, deadline).await?;
    Ok(UpdatePodSandboxResourcesResponse {})
}

/// Decodes the request.
pub(crate) fn job(request: UpdatePodSandboxResourcesRequest) -> Result<UpdatePodResources, Error> {
    Ok(UpdatePodResources {
        pod: request.pod_sandbox_id,
        overhead: request.overhead.map(|r| resources("overhead", Some(r))).transpose()?,
        resources: request.resources.map(|r| resources("resources", Some(r))).transpose()?,
    })
}
