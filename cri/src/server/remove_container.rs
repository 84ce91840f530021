//! RemoveContainer: an absent container is a success, a running one is killed.

use engine::Error;
use engine::jobs::RemoveContainer;

use super::Service;
use super::edge::Deadline;
use crate::proto::{RemoveContainerRequest, RemoveContainerResponse};

pub(super) async fn handle(
    service: &Service,
    request: RemoveContainerRequest,
    deadline: Deadline,
) -> Result<RemoveContainerResponse, Error> {
    service.engine.run(job(request), deadline).await?;
    Ok(RemoveContainerResponse {})
}

/// Decodes the request.
pub(crate) fn job(request: RemoveContainerRequest) -> RemoveContainer {
    RemoveContainer { container: request.container_id }
}
