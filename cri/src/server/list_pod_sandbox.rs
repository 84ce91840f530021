//! ListPodSandbox and StreamPodSandboxes.

use engine::Error;

use super::Service;
use super::batch::{Batches, batches};
use super::filter;
use crate::convert::view;
use crate::proto::{
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxFilter, StreamPodSandboxesRequest,
    StreamPodSandboxesResponse,
};

pub(super) fn handle(
    service: &Service,
    request: ListPodSandboxRequest,
) -> Result<ListPodSandboxResponse, Error> {
    Ok(ListPodSandboxResponse { items: list(service, request.filter)? })
}

pub(super) fn stream(
    service: &Service,
    request: StreamPodSandboxesRequest,
) -> Result<Batches<StreamPodSandboxesResponse>, Error> {
    let pods = list(service, request.filter)?;
    Ok(batches(pods, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
}

fn list(service: &Service, filter: Option<PodSandboxFilter>) -> Result<Vec<PodSandbox>, Error> {
    let filter = filter::Pods::of_list(filter)?;
    let pods = service.engine.pods();
    Ok(pods.iter().filter(|pod| filter.shows(pod)).map(|pod| view::pod(pod)).collect())
}
