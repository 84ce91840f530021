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
    let spec = image::image("image", request.image)?;
    service.engine.run(RemoveImage { image: spec.image }, deadline).await?;
    Ok(RemoveImageResponse {})
}
