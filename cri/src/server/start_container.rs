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
    service.engine.run(StartContainer { container: request.container_id }, deadline).await?;
    Ok(StartContainerResponse {})
}
