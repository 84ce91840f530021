//! StopPodSandbox: an absent or stopped pod is a success.

use engine::Error;
use engine::jobs::StopPod;

use super::Service;
use super::edge::Deadline;
use crate::proto::{StopPodSandboxRequest, StopPodSandboxResponse};

pub(super) async fn handle(
    service: &Service,
    request: StopPodSandboxRequest,
    deadline: Deadline,
) -> Result<StopPodSandboxResponse, Error> {
    service.engine.run(job(request), deadline).await?;
    Ok(StopPodSandboxResponse {})
}

/// Decodes the request.
pub(crate) fn job(request: StopPodSandboxRequest) -> StopPod {
    StopPod { pod: request.pod_sandbox_id }
}
