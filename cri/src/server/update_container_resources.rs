//! UpdateContainerResources: works on created and running containers; ContainerStatus shows the result.

use engine::Error;
use engine::jobs::UpdateContainerResources;

use super::Service;
use super::edge::Deadline;
use crate::convert::{self, resources::resources};
use crate::proto::{UpdateContainerResourcesRequest, UpdateContainerResourcesResponse};

pub(super) async fn handle(
    service: &Service,
    request: UpdateContainerResourcesRequest,
    deadline: Deadline,
) -> Result<UpdateContainerResourcesResponse, Error> {
    service.engine.run(job(request)?, deadline).await?;
    Ok(UpdateContainerResourcesResponse {})
}

/// Decodes the request.
pub(crate) fn job(request: UpdateContainerResourcesRequest) -> Result<UpdateContainerResources, Error> {
    convert::no_windows("windows", request.windows.as_ref())?;
    Ok(UpdateContainerResources {
        container: request.container_id,
        resources: resources("linux", request.linux)?,
        annotations: request.annotations,
    })
}
