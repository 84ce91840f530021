//! ListContainers and StreamContainers.

use std::sync::Arc;

use engine::Error;
use engine::api::ContainerView;

use super::Service;
use super::batch::{Batches, batches};
use super::filter;
use crate::convert::view;
use crate::proto::{
    ContainerFilter, ListContainersRequest, ListContainersResponse, StreamContainersRequest,
    StreamContainersResponse,
};

pub(super) fn handle(
    service: &Service,
    request: ListContainersRequest,
) -> Result<ListContainersResponse, Error> {
    let encoded = list(service, request.filter)?.iter().map(|c| view::listed_container(c)).collect();
    Ok(ListContainersResponse { encoded, ..Default::default() })
}

pub(super) fn stream(
    service: &Service,
    request: StreamContainersRequest,
) -> Result<Batches<StreamContainersResponse>, Error> {
    let containers = list(service, request.filter)?.iter().map(|c| view::container(c)).collect();
    Ok(batches(containers, |containers| StreamContainersResponse { containers }))
}

fn list(service: &Service, filter: Option<ContainerFilter>) -> Result<Vec<Arc<ContainerView>>, Error> {
    let filter = filter::Containers::of_list(filter)?;
    let mut containers = service.engine.containers();
    containers.retain(|c| filter.shows(c));
    Ok(containers)
}
