//! Attach: checks the container and hands out a URL.

use engine::Error;

use super::Service;
use super::sessions::running;
use crate::proto::{AttachRequest, AttachResponse};
use crate::streaming;

pub(super) fn handle(service: &Service, request: &AttachRequest) -> Result<AttachResponse, Error> {
    let container = running(&service.engine, &request.container_id)?;
    let url = service.streaming.attach_url(streaming::AttachRequest {
        container: container.id.clone(),
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    })?;
    Ok(AttachResponse { url })
}
