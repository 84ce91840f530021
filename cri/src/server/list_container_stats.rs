//! ListContainerStats and StreamContainerStats.

use engine::Error;

use super::Service;
use super::batch::{Batches, batches};
use super::filter;
use crate::convert::stats;
use crate::proto::{
    ContainerStats, ContainerStatsFilter, ListContainerStatsRequest, ListContainerStatsResponse,
    StreamContainerStatsRequest, StreamContainerStatsResponse,
};

pub(super) async fn handle(
    service: &Service,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, Error> {
    Ok(ListContainerStatsResponse { stats: list(service, request.filter).await })
}

pub(super) async fn stream(
    service: &Service,
    request: StreamContainerStatsRequest,
) -> Result<Batches<StreamContainerStatsResponse>, Error> {
    let stats = list(service, request.filter).await;
    Ok(batches(stats, |container_stats| StreamContainerStatsResponse { container_stats }))
}

async fn list(service: &Service, filter: Option<ContainerStatsFilter>) -> Vec<ContainerStats> {
    let filter = filter::Containers::of_stats(filter);
    let stats = service.engine.all_container_stats().await;
    let mountpoint = service.engine.store().root();
    stats.iter().filter(|s| filter.shows(&s.container)).map(|s| stats::container(s, mountpoint)).collect()
}
