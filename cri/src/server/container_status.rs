//! ContainerStatus: NotFound tells the kubelet that the container is gone; nothing else may.

use std::collections::BTreeMap;

use engine::Error;
use engine::api::ContainerView;
use serde_json::json;

use super::Service;
use crate::convert::view;
use crate::proto::{ContainerStatusRequest, ContainerStatusResponse};

pub(super) fn handle(
    service: &Service,
    request: &ContainerStatusRequest,
) -> Result<ContainerStatusResponse, Error> {
    let container = service.engine.container(&request.container_id)?;
    let mut status = view::container_status(&container);
    for volume in status.mounts.iter_mut().filter_map(|mount| mount.image.as_mut()) {
        // What PullImage answered for it (ImageSpec.image_ref).
        if let (true, Some(found)) = (volume.image_ref.is_empty(), service.engine.store().find(&volume.image))
        {
            volume.image_ref.clone_from(&found.id);
        }
    }
    Ok(ContainerStatusResponse {
        status: Some(status),
        info: if request.verbose { info(service, &container) } else { BTreeMap::new() },
    })
}

/// One JSON document under `info`, as crictl prints it.
fn info(service: &Service, container: &ContainerView) -> BTreeMap<String, String> {
    let info = json!({
        "sandboxID": container.pod,
        "pid": container.pid,
        "snapshotKey": container.id,
        "snapshotter": service.engine.store().driver_name(),
        "runtimeType": "berth",
        "config": &*container.spec,
    });
    BTreeMap::from([("info".to_owned(), info.to_string())])
}
