//! RemoveImage: all names of the image go; an absent image is a success.

use engine::Error;
use engine::jobs::RemoveImage;

use super::Service;
use super::edge::Deadline;
use crate::convert::image;
use crate::proto::{RemoveImageRequest, RemoveImageResponse};

pub(super) async fn handle(
    service: &Service,
    request: RemoveImageRequest,
    deadline: Deadline,
) -> Result<RemoveImageResponse, Error> {
    service.engine.run(job(request)?, deadline).await?;
    Ok(RemoveImageResponse {})
}

/// Decodes the request.
pub(crate) fn job(request: RemoveImageRequest) -> Result<RemoveImage, Error> {
    Ok(RemoveImage { image: image::image("image", request.image)?.image })
}
