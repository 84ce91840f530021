//! PodSandboxStatus: NotFound tells the kubelet that the pod is gone; nothing else may.

use std::collections::BTreeMap;

use engine::Error;
use engine::api::PodView;
use serde_json::json;

use super::Service;
use crate::convert::view;
use crate::proto::{PodSandboxStatusRequest, PodSandboxStatusResponse};

pub(super) fn handle(
    service: &Service,
    request: &PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, Error> {
    let timestamp = engine::exec::nanos(std::time::SystemTime::now());
    let pod = service.engine.pod(&request.pod_sandbox_id)?;
    let containers = service.engine.containers_of(&pod.id);
    Ok(PodSandboxStatusResponse {
        status: Some(view::pod_status(&pod)),
        info: if request.verbose { info(&pod) } else { BTreeMap::new() },
        containers_statuses: containers.iter().map(|c| view::container_status(c)).collect(),
        timestamp,
    })
}

/// One JSON document under `info`, as crictl prints it.
fn info(pod: &PodView) -> BTreeMap<String, String> {
    let info = json!({
        "pid": pod.pid,
        "netNamespace": pod.netns,
        "runtimeHandler": pod.spec.handler,
        "runtimeType": "berth",
        "config": &*pod.spec,
    });
    BTreeMap::from([("info".to_owned(), info.to_string())])
}
