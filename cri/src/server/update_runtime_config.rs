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
    let network = request.runtime_config.and_then(|c| c.network_config).unwrap_or_default();
    // One subnet per address family, separated by commas; the kubelet sends none before it knows them.
    let cidrs: Vec<String> =
        network.pod_cidr.split(',').map(str::trim).filter(|c| !c.is_empty()).map(str::to_owned).collect();
    if !cidrs.is_empty() {
        service.engine.run(SetPodCidrs { cidrs }, deadline).await?;
    }
    Ok(UpdateRuntimeConfigResponse {})
}
