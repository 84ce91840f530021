//! ListContainers and StreamContainers.

use engine::Error;

use super::Service;
use super::batch::{Batches, batches};
use super::filter;
use crate::convert::view;
use crate::proto::{
    Container, ContainerFilter, ListContainersRequest, ListContainersResponse, StreamContainersRequest,
    StreamContainersResponse,
};

pub(super) fn handle(
    service: &Service,
    request: ListContainersRequest,
) -> Result<ListContainersResponse, Error> {
    Ok(ListContainersResponse { containers: list(service, request.filter)? })
}

pub(super) fn stream(
    service: &Service,
    request: StreamContainersRequest,
) -> Result<Batches<StreamContainersResponse>, Error> {
    let containers = list(service, request.filter)?;
    Ok(batches(containers, |containers| StreamContainersResponse { containers }))
}

fn list(service: &Service, filter: Option<ContainerFilter>) -> Result<Vec<Container>, Error> {
    let filter = filter::Containers::of_list(filter)?;
    let containers = service.engine.containers();
    Ok(containers.iter().filter(|c| filter.shows(c)).map(|c| view::container(c)).collect())
}
