//! UpdateRuntimeConfig: the node's pod subnets.

use engine::Error;
use engine::jobs::SetPodCidrs;

use super::Service;
use super::edge::Deadline;
use crate::proto::{UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse};

pub(super) async fn handle(
    service: &Service,
    request: UpdateRuntimeConfigRequest,
    deadline: Deadline,
) -> Result<UpdateRuntimeConfigResponse, Error> {
    let job = job(request);
    // The kubelet sends none before it knows them.
    if !job.cidrs.is_empty() {
        service.engine.run(job, deadline).await?;
    }
    Ok(UpdateRuntimeConfigResponse {})
}

/// Decodes the request: one subnet per address family, separated by commas.
pub(crate) fn job(request: UpdateRuntimeConfigRequest) -> SetPodCidrs {
    let network = request.runtime_config.and_then(|c| c.network_config).unwrap_or_default();
    let cidrs = network.pod_cidr.split(',').map(str::trim).filter(|c| !c.is_empty());
    SetPodCidrs { cidrs: cidrs.map(str::to_owned).collect() }
}
