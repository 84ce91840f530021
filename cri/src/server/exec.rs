//! Exec: checks the container and hands out a URL.

use engine::Error;

use super::Service;
use super::sessions::running;
use crate::proto::{ExecRequest, ExecResponse};
use crate::streaming;

pub(super) fn handle(service: &Service, request: ExecRequest) -> Result<ExecResponse, Error> {
    let container = running(&service.engine, &request.container_id)?;
    let url = service.streaming.exec_url(streaming::ExecRequest {
        container: container.id.clone(),
        command: request.cmd,
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    })?;
    Ok(ExecResponse { url })
}
