//! ListPodSandboxMetrics and StreamPodSandboxMetrics.

use engine::api::Detail;
use engine::{Error, Kind};

use super::Service;
use super::batch::{Batches, batches};
use crate::metrics;
use crate::proto::{
    ListPodSandboxMetricsRequest, ListPodSandboxMetricsResponse, PodSandboxMetrics,
    StreamPodSandboxMetricsRequest, StreamPodSandboxMetricsResponse,
};

pub(super) async fn handle(
    service: &Service,
    _: ListPodSandboxMetricsRequest,
) -> Result<ListPodSandboxMetricsResponse, Error> {
    Ok(ListPodSandboxMetricsResponse { pod_metrics: list(service).await? })
}

pub(super) async fn stream(
    service: &Service,
    _: StreamPodSandboxMetricsRequest,
) -> Result<Batches<StreamPodSandboxMetricsResponse>, Error> {
    let metrics = list(service).await?;
    Ok(batches(metrics, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
}

async fn list(service: &Service) -> Result<Vec<PodSandboxMetrics>, Error> {
    let stats = service.engine.all_pod_stats(Detail::Metrics).await;
    let layers = service.engine.store().root().to_owned();
    let collect = move || stats.iter().map(|pod| metrics::collect(pod, &layers)).collect();
    let task = tokio::task::spawn_blocking(collect).await;
    task.map_err(|e| Error::with(Kind::Internal, "collecting metrics", e))
}
