//! PortForward: checks the pod and hands out a URL.

use engine::api::PodState;
use engine::{Error, Kind};

use super::Service;
use crate::proto::{PortForwardRequest, PortForwardResponse};
use crate::streaming;

pub(super) fn handle(service: &Service, request: PortForwardRequest) -> Result<PortForwardResponse, Error> {
    if request.pod_sandbox_id.is_empty() {
        return Err(Error::invalid("pod_sandbox_id", "must not be empty"));
    }
    let pod = service.engine.pod(&request.pod_sandbox_id)?;
    if pod.state != PodState::Ready {
        return Err(Error::new(Kind::FailedPrecondition, format!("pod {} is not ready", pod.id)));
    }
    let request = streaming::PortForwardRequest { pod: pod.id.clone(), ..asked(request) };
    Ok(PortForwardResponse { url: service.streaming.port_forward_url(request)? })
}

/// Decodes the request; the streaming server checks it.
pub(crate) fn asked(request: PortForwardRequest) -> streaming::PortForwardRequest {
    streaming::PortForwardRequest { pod: request.pod_sandbox_id, ports: request.port }
}
