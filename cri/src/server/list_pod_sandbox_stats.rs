//! ListPodSandboxStats and StreamPodSandboxStats.

use std::sync::Arc;

use engine::Error;
use engine::api::{Detail, PodStats};

use super::Service;
use super::batch::{Batches, batches};
use super::filter;
use crate::convert::stats;
use crate::proto::{
    ListPodSandboxStatsRequest, ListPodSandboxStatsResponse, PodSandboxStatsFilter,
    StreamPodSandboxStatsRequest, StreamPodSandboxStatsResponse,
};

pub(super) async fn handle(
    service: &Service,
    request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, Error> {
    let mountpoint = service.engine.store().root();
    let chosen = list(service, request.filter).await;
    let encoded = chosen.iter().map(|s| stats::listed_pod(s, mountpoint)).collect();
    Ok(ListPodSandboxStatsResponse { encoded, ..Default::default() })
}

pub(super) async fn stream(
    service: &Service,
    request: StreamPodSandboxStatsRequest,
) -> Result<Batches<StreamPodSandboxStatsResponse>, Error> {
    let mountpoint = service.engine.store().root();
    let chosen = list(service, request.filter).await;
    let items = chosen.iter().map(|s| stats::pod(s, mountpoint)).collect();
    Ok(batches(items, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
}

async fn list(service: &Service, filter: Option<PodSandboxStatsFilter>) -> Vec<Arc<PodStats>> {
    let filter = filter::Pods::of_stats(filter);
    let mut all = service.engine.all_pod_stats(Detail::Statistics).await;
    all.retain(|s| filter.shows(&s.pod));
    all
}
