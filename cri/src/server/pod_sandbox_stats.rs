//! PodSandboxStats.

use engine::Error;

use super::Service;
use crate::convert::stats;
use crate::proto::{PodSandboxStatsRequest, PodSandboxStatsResponse};

pub(super) async fn handle(
    service: &Service,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, Error> {
    let stats = service.engine.pod_stats(&request.pod_sandbox_id).await?;
    let mountpoint = service.engine.store().root();
    Ok(PodSandboxStatsResponse { stats: Some(stats::pod(&stats, mountpoint)) })
}
