//! ListContainerStats and StreamContainerStats.

use std::sync::Arc;

use engine::Error;
use engine::api::ContainerStats;

use super::Service;
use super::batch::{Batches, batches};
use super::filter;
use crate::convert::stats;
use crate::proto::{
    ContainerStatsFilter, ListContainerStatsRequest, ListContainerStatsResponse, StreamContainerStatsRequest,
    StreamContainerStatsResponse,
};

pub(super) async fn handle(
    service: &Service,
    request: ListContainerStatsRequest,
) -> Result<ListContainerStatsResponse, Error> {
    let mountpoint = service.engine.store().root();
    let chosen = list(service, request.filter).await;
    let encoded = chosen.iter().map(|s| stats::listed_container(s, mountpoint)).collect();
    Ok(ListContainerStatsResponse { encoded, ..Default::default() })
}

pub(super) async fn stream(
    service: &Service,
    request: StreamContainerStatsRequest,
) -> Result<Batches<StreamContainerStatsResponse>, Error> {
    let mountpoint = service.engine.store().root();
    let chosen = list(service, request.filter).await;
    let items = chosen.iter().map(|s| stats::container(s, mountpoint)).collect();
    Ok(batches(items, |container_stats| StreamContainerStatsResponse { container_stats }))
}

async fn list(service: &Service, filter: Option<ContainerStatsFilter>) -> Vec<Arc<ContainerStats>> {
    let filter = filter::Containers::of_stats(filter);
    let mut all = service.engine.all_container_stats().await;
    all.retain(|s| filter.shows(&s.container));
    all
}
