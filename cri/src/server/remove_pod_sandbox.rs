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
    service.engine.run(RemovePod { pod: request.pod_sandbox_id }, deadline).await?;
    Ok(RemovePodSandboxResponse {})
}
