//! Exec: checks the container and hands out a URL.

use engine::Error;

use super::Service;
use super::sessions::running;
use crate::proto::{ExecRequest, ExecResponse};
use crate::streaming;

pub(super) fn handle(service: &Service, request: ExecRequest) -> Result<ExecResponse, Error> {
    let container = running(&service.engine, &request.container_id)?.id.clone();
    let request = streaming::ExecRequest { container, ..asked(request) };
    Ok(ExecResponse { url: service.streaming.exec_url(request)? })
}

/// Decodes the request; the streaming server checks it.
pub(crate) fn asked(request: ExecRequest) -> streaming::ExecRequest {
    streaming::ExecRequest {
        container: request.container_id,
        command: request.cmd,
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    }
}
