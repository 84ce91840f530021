//! Status: asked every five seconds.

use std::collections::BTreeMap;

use engine::exec::cgroup::CgroupDriver;
use serde_json::json;

use super::Service;
use crate::proto::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusRequest,
    StatusResponse,
};

pub(super) async fn handle(service: &Service, request: &StatusRequest) -> StatusResponse {
    let ready = service.engine.readiness().await;
    // The reason the kubelet and its users know.
    let mut network = condition("NetworkReady", "NetworkPluginNotReady", &ready.network);
    if let Some(notice) = ready.notice {
        network.message = if network.status { notice } else { format!("{}; {notice}", network.message) };
    }
    let conditions = vec![condition("RuntimeReady", "RuntimeNotReady", &ready.runtime), network];
    let features = service.engine.features("").unwrap_or_default();
    StatusResponse {
        status: Some(RuntimeStatus { conditions }),
        info: if request.verbose { info(service) } else { BTreeMap::new() },
        runtime_handlers: handlers(service),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: features.supplemental_groups_policy,
            user_namespaces_host_network: features.user_namespaces_host_network,
            mount_options: features.mount_options,
        }),
    }
}

fn condition(kind: &str, reason: &str, state: &Result<(), String>) -> RuntimeCondition {
    let (reason, message) = match state {
        Ok(()) => (String::new(), String::new()),
        Err(why) => (reason.to_owned(), why.clone()),
    };
    RuntimeCondition { r#type: kind.to_owned(), status: state.is_ok(), reason, message }
}

/// The default handler under the name "", then every handler by its own.
fn handlers(service: &Service) -> Vec<RuntimeHandler> {
    let names = std::iter::once(String::new()).chain(service.engine.handlers());
    let handler = |name: String| {
        let features = service.engine.features(&name)?;
        let features = RuntimeHandlerFeatures {
            recursive_read_only_mounts: features.recursive_readonly_mounts,
            user_namespaces: features.user_namespaces,
        };
        Some(RuntimeHandler { name, features: Some(features) })
    };
    names.filter_map(handler).collect()
}

/// `config` is what critest reads (`stateDir`) and crictl prints.
fn info(service: &Service) -> BTreeMap<String, String> {
    let store = service.engine.store();
    let config = json!({
        "stateDir": service.state,
        "rootDir": service.root,
        "imageRoot": store.root(),
        "snapshotter": store.driver_name(),
        "handlers": service.engine.handlers(),
        "cgroupDriver": match service.engine.cgroup_driver() {
            CgroupDriver::Cgroupfs => "cgroupfs",
            CgroupDriver::Systemd => "systemd",
        },
    });
    BTreeMap::from([("config".to_owned(), config.to_string())])
}
