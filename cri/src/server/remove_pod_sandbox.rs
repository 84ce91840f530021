//! RemovePodSandbox: an absent pod is a success.

use engine::Error;
use engine::jobs::RemovePod;

use super::Service;
use super::edge::Deadline;
use crate::proto::{RemovePodSandboxRequest, RemovePodSandboxResponse};

pub(super) async fn handle(
    service: &Service,
    request: RemovePodSandboxRequest,
    deadline: Deadline,
) -> Result<RemovePodSandboxResponse, Error> {
    service.engine.run(job(request), deadline).await?;
    Ok(RemovePodSandboxResponse {})
}

/// Decodes the request.
pub(crate) fn job(request: RemovePodSandboxRequest) -> RemovePod {
    RemovePod { pod: request.pod_sandbox_id }
}
