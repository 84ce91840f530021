//! ListImages and StreamImages.

use engine::Error;

use super::Service;
use super::batch::{Batches, batches};
use crate::convert::view;
use crate::proto::{
    Image, ImageFilter, ListImagesRequest, ListImagesResponse, StreamImagesRequest, StreamImagesResponse,
};

pub(super) fn handle(service: &Service, request: ListImagesRequest) -> ListImagesResponse {
    ListImagesResponse { images: list(service, request.filter) }
}

pub(super) fn stream(
    service: &Service,
    request: StreamImagesRequest,
) -> Result<Batches<StreamImagesResponse>, Error> {
    Ok(batches(list(service, request.filter), |images| StreamImagesResponse { images }))
}

/// All images, or the one that a filter names in any of the ways ImageStatus understands.
fn list(service: &Service, filter: Option<ImageFilter>) -> Vec<Image> {
    let store = service.engine.store();
    let images = match name(filter) {
        Some(name) => store.find(&name).into_iter().collect(),
        None => store.images(),
    };
    images.iter().map(|image| view::image(image)).collect()
}

/// The name a filter asks for.
pub(crate) fn name(filter: Option<ImageFilter>) -> Option<String> {
    filter.and_then(|f| f.image).map(|spec| spec.image).filter(|name| !name.is_empty())
}
