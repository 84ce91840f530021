//! PullImage: the answer is the image's one identifier, the same that List and Status show.

use engine::jobs::PullImage;
use engine::{Error, Kind};

use super::Service;
use super::edge::Deadline;
use crate::convert::image;
use crate::proto::{PullImageRequest, PullImageResponse};

/// The word by which the kubelet tells a registry's trouble from ours (cri-api `errors.go`).
const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";

pub(super) async fn handle(
    service: &Service,
    request: PullImageRequest,
    deadline: Deadline,
) -> Result<PullImageResponse, Error> {
    let spec = image::image("image", request.image)?;
    if service.engine.features(&spec.runtime_handler).is_none() {
        return Err(Error::invalid("image.runtime_handler", "names no handler of this node"));
    }
    let job = PullImage { image: spec.image, credentials: image::credentials(request.auth) };
    let image = service.engine.run(job, deadline).await.map_err(|error| match error.kind() {
        Kind::Unavailable => Error::with(Kind::Unavailable, REGISTRY_UNAVAILABLE, error),
        _ => error,
    })?;
    Ok(PullImageResponse { image_ref: image.id.clone() })
}
