//! ImageStatus: an absent image is a success without `image`.

use std::collections::BTreeMap;

use engine::Error;
use serde_json::json;

use super::Service;
use crate::convert::{image, view};
use crate::proto::{ImageStatusRequest, ImageStatusResponse};

pub(super) fn handle(service: &Service, request: ImageStatusRequest) -> Result<ImageStatusResponse, Error> {
    let spec = image::image("image", request.image)?;
    let Some(found) = service.engine.store().find(&spec.image) else {
        return Ok(ImageStatusResponse::default());
    };
    let mut status = view::image(&found);
    if let (Some(answer), false) = (&mut status.spec, spec.annotations.is_empty()) {
        answer.annotations = spec.annotations;
    }
    let info = if request.verbose { info(&found) } else { BTreeMap::new() };
    Ok(ImageStatusResponse { image: Some(status), info })
}

/// One JSON document under `info`, as crictl prints it: the process half of the image's configuration.
fn info(image: &storage::Image) -> BTreeMap<String, String> {
    let c = &image.config;
    let info = json!({
        "chainID": image.id,
        "imageSpec": { "config": {
            "User": c.user,
            "Env": c.env,
            "Entrypoint": c.entrypoint,
            "Cmd": c.cmd,
            "WorkingDir": c.working_dir,
            "StopSignal": c.stop_signal,
            "Volumes": c.volumes,
            "Labels": c.labels,
            "ExposedPorts": c.exposed_ports,
        }},
    });
    BTreeMap::from([("info".to_owned(), info.to_string())])
}
