//! ListPodSandbox and StreamPodSandboxes.

use std::sync::Arc;

use engine::Error;
use engine::api::PodView;

use super::Service;
use super::batch::{Batches, batches};
use super::filter;
use crate::convert::view;
use crate::proto::{
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandboxFilter, StreamPodSandboxesRequest,
    StreamPodSandboxesResponse,
};

pub(super) fn handle(
    service: &Service,
    request: ListPodSandboxRequest,
) -> Result<ListPodSandboxResponse, Error> {
    let encoded = list(service, request.filter)?.iter().map(|pod| view::listed_pod(pod)).collect();
    Ok(ListPodSandboxResponse { encoded, ..Default::default() })
}

pub(super) fn stream(
    service: &Service,
    request: StreamPodSandboxesRequest,
) -> Result<Batches<StreamPodSandboxesResponse>, Error> {
    let pods = list(service, request.filter)?.iter().map(|pod| view::pod(pod)).collect();
    Ok(batches(pods, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
}

fn list(service: &Service, filter: Option<PodSandboxFilter>) -> Result<Vec<Arc<PodView>>, Error> {
    let filter = filter::Pods::of_list(filter)?;
    let mut pods = service.engine.pods();
    pods.retain(|pod| filter.shows(pod));
    Ok(pods)
}
