//! ListPodSandboxStats and StreamPodSandboxStats.

use engine::Error;

use super::Service;
use super::batch::{Batches, batches};
use super::filter;
use crate::convert::stats;
use crate::proto::{
    ListPodSandboxStatsRequest, ListPodSandboxStatsResponse, PodSandboxStats, PodSandboxStatsFilter,
    StreamPodSandboxStatsRequest, StreamPodSandboxStatsResponse,
};

pub(super) async fn handle(
    service: &Service,
    request: ListPodSandboxStatsRequest,
) -> Result<ListPodSandboxStatsResponse, Error> {
    Ok(ListPodSandboxStatsResponse { stats: list(service, request.filter).await })
}

pub(super) async fn stream(
    service: &Service,
    request: StreamPodSandboxStatsRequest,
) -> Result<Batches<StreamPodSandboxStatsResponse>, Error> {
    let stats = list(service, request.filter).await;
    Ok(batches(stats, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
}

async fn list(service: &Service, filter: Option<PodSandboxStatsFilter>) -> Vec<PodSandboxStats> {
    let filter = filter::Pods::of_stats(filter);
    let stats = service.engine.all_pod_stats().await;
    let mountpoint = service.engine.store().root();
    stats.iter().filter(|s| filter.shows(&s.pod)).map(|s| stats::pod(s, mountpoint)).collect()
}
