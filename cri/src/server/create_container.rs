//! CreateContainer.

use engine::Error;
use engine::jobs::CreateContainer;

use super::Service;
use super::edge::Deadline;
use crate::convert;
use crate::proto::{CreateContainerRequest, CreateContainerResponse};

pub(super) async fn handle(
    service: &Service,
    request: CreateContainerRequest,
    deadline: Deadline,
) -> Result<CreateContainerResponse, Error> {
    let container_id = service.engine.run(job(request)?, deadline).await?;
    Ok(CreateContainerResponse { container_id })
}

/// Decodes the request. `sandbox_config` repeats what RunPodSandbox was told, which is what holds.
pub(crate) fn job(request: CreateContainerRequest) -> Result<CreateContainer, Error> {
    let spec = convert::container::container("config", request.config)?;
    Ok(CreateContainer { pod: request.pod_sandbox_id, spec })
}
