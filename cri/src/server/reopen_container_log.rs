//! ReopenContainerLog: both streams go to a fresh file at a line boundary.

use engine::Error;
use engine::jobs::ReopenLog;

use super::Service;
use super::edge::Deadline;
use crate::proto::{ReopenContainerLogRequest, ReopenContainerLogResponse};

pub(super) async fn handle(
    service: &Service,
    request: ReopenContainerLogRequest,
    deadline: Deadline,
) -> Result<ReopenContainerLogResponse, Error> {
    service.engine.run(job(request), deadline).await?;
    Ok(ReopenContainerLogResponse {})
}

/// Decodes the request.
pub(crate) fn job(request: ReopenContainerLogRequest) -> ReopenLog {
    ReopenLog { container: request.container_id }
}
