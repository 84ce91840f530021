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
    let handler = request.image.as_ref().map(|spec| spec.runtime_handler.clone()).unwrap_or_default();
    if service.engine.features(&handler).is_none() {
        return Err(Error::invalid("image.runtime_handler", "names no handler of this node"));
    }
    let job = job(request)?;
    let image = service.engine.run(job, deadline).await.map_err(|error| match error.kind() {
        Kind::Unavailable => Error::with(Kind::Unavailable, REGISTRY_UNAVAILABLE, error),
        _ => error,
    })?;
    Ok(PullImageResponse { image_ref: image.id.clone() })
}

/// Decodes the request. `sandbox_config` is for runtimes that pull into a pod.
pub(crate) fn job(request: PullImageRequest) -> Result<PullImage, Error> {
    let image = image::image("image", request.image)?.image;
    Ok(PullImage { image, credentials: image::credentials(request.auth) })
}
