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
    // `sandbox_config` repeats what RunPodSandbox was told, which is what holds.
    let spec = convert::container::container("config", request.config)?;
    let job = CreateContainer { pod: request.pod_sandbox_id, spec };
    let container_id = service.engine.run(job, deadline).await?;
    Ok(CreateContainerResponse { container_id })
}
