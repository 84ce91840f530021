//! StartContainer.

use engine::Error;
use engine::jobs::StartContainer;

use super::Service;
use super::edge::Deadline;
use crate::proto::{StartContainerRequest, StartContainerResponse};

pub(super) async fn handle(
    service: &Service,
    request: StartContainerRequest,
    deadline: Deadline,
) -> Result<StartContainerResponse, Error> {
    service.engine.run(job(request), deadline).await?;
    Ok(StartContainerResponse {})
}

/// Decodes the request.
pub(crate) fn job(request: StartContainerRequest) -> StartContainer {
    StartContainer { container: request.container_id }
}
