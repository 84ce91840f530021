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
    let job = UpdatePodResources {
        pod: request.pod_sandbox_id,
        overhead: request.overhead.map(|r| resources("overhead", Some(r))).transpose()?,
        resources: request.resources.map(|r| resources("resources", Some(r))).transpose()?,
    };
    service.engine.run(job, deadline).await?;
    Ok(UpdatePodSandboxResourcesResponse {})
}
