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
    convert::no_windows("windows", request.windows.as_ref())?;
    let job = UpdateContainerResources {
        container: request.container_id,
        resources: resources("linux", request.linux)?,
        annotations: request.annotations,
    };
    service.engine.run(job, deadline).await?;
    Ok(UpdateContainerResourcesResponse {})
}
