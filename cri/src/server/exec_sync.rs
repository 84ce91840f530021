//! ExecSync: probes come this way, at a high rate.

use std::time::Duration;

use engine::Error;
use engine::jobs::ExecSync;

use super::Service;
use super::edge::Deadline;
use crate::proto::{ExecSyncRequest, ExecSyncResponse};

pub(super) async fn handle(
    service: &Service,
    request: ExecSyncRequest,
    deadline: Deadline,
) -> Result<ExecSyncResponse, Error> {
    let output = service.engine.run(job(request)?, deadline).await?;
    Ok(ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.code })
}

/// Decodes the request.
pub(crate) fn job(request: ExecSyncRequest) -> Result<ExecSync, Error> {
    if request.cmd.is_empty() {
        return Err(Error::invalid("cmd", "must not be empty"));
    }
    // 0 means no limit (ExecSyncRequest.timeout); so does less, which nobody can mean otherwise.
    let timeout = u64::try_from(request.timeout).ok().filter(|s| *s > 0).map(Duration::from_secs);
    Ok(ExecSync { container: request.container_id, command: request.cmd, timeout })
}
