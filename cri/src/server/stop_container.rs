//! StopContainer: an absent or ended container is a success.

use std::time::Duration;

use engine::Error;
use engine::jobs::StopContainer;

use super::Service;
use super::edge::Deadline;
use crate::proto::{StopContainerRequest, StopContainerResponse};

pub(super) async fn handle(
    service: &Service,
    request: StopContainerRequest,
    deadline: Deadline,
) -> Result<StopContainerResponse, Error> {
    service.engine.run(job(request), deadline).await?;
    Ok(StopContainerResponse {})
}

/// Decodes the request.
pub(crate) fn job(request: StopContainerRequest) -> StopContainer {
    // Negative means what 0 means: no grace.
    let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
    StopContainer { container: request.container_id, grace }
}
