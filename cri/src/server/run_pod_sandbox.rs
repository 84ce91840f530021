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
    let spec = convert::pod::pod("config", request.config, request.runtime_handler)?;
    let pod_sandbox_id = service.engine.run(RunPod { spec }, deadline).await?;
    Ok(RunPodSandboxResponse { pod_sandbox_id })
}
