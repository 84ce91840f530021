//! Version: who we are. The kubelet insists on `0.1.0` and `v1`.

use crate::proto::{VersionRequest, VersionResponse};

/// Version of the kubelet's runtime API, unchanged since its beginning.
const KUBE_RUNTIME_API: &str = "0.1.0";

pub(crate) fn handle(_: &VersionRequest) -> VersionResponse {
    VersionResponse {
        version: KUBE_RUNTIME_API.into(),
        runtime_name: "berth".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    }
}
