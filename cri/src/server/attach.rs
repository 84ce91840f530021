//! Attach: checks the container and hands out a URL.

use engine::Error;

use super::Service;
use super::sessions::running;
use crate::proto::{AttachRequest, AttachResponse};
use crate::streaming;

pub(super) fn handle(service: &Service, request: AttachRequest) -> Result<AttachResponse, Error> {
    let container = running(&service.engine, &request.container_id)?.id.clone();
    let request = streaming::AttachRequest { container, ..asked(request) };
    Ok(AttachResponse { url: service.streaming.attach_url(request)? })
}

/// Decodes the request; the streaming server checks it.
pub(crate) fn asked(request: AttachRequest) -> streaming::AttachRequest {
    streaming::AttachRequest {
        container: request.container_id,
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    }
}
