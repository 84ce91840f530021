//! RunPodSandbox.

use engine::Error;
use engine::jobs::RunPod;

use super::Service;
use super::edge::Deadline;
use crate::convert;
use crate::proto::{RunPodSandboxRequest, RunPodSandboxResponse};

pub(super) async fn handle(
    service: &Service,
    request: RunPodSandboxRequest,
    deadline: Deadline,
) -> Result<RunPodSandboxResponse, Error> {
    let pod_sandbox_id = service.engine.run(job(request)?, deadline).await?;
    Ok(RunPodSandboxResponse { pod_sandbox_id })
}

/// Decodes the request.
pub(crate) fn job(request: RunPodSandboxRequest) -> Result<RunPod, Error> {
    Ok(RunPod { spec: convert::pod::pod("config", request.config, request.runtime_handler)? })
}
