//! ContainerStats.

use engine::Error;

use super::Service;
use crate::convert::stats;
use crate::proto::{ContainerStatsRequest, ContainerStatsResponse};

pub(super) async fn handle(
    service: &Service,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, Error> {
    let stats = service.engine.container_stats(&request.container_id).await?;
    let mountpoint = service.engine.store().root();
    Ok(ContainerStatsResponse { stats: Some(stats::container(&stats, mountpoint)) })
}
