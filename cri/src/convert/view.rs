//! Pods, containers and images as answers show them.

use std::sync::Arc;

use engine::api::{ContainerState, ContainerView, PodState, PodView};
use prost::Message;

use super::{image, mount, namespace, resources, signal};
use crate::proto;

/// Who a pod is.
pub fn pod_metadata(pod: &PodView) -> proto::PodSandboxMetadata {
    proto::PodSandboxMetadata {
        name: pod.spec.name.clone(),
        uid: pod.spec.uid.clone(),
        namespace: pod.spec.namespace.clone(),
        attempt: pod.spec.attempt,
    }
}

/// State of a pod on the wire.
pub fn pod_state(state: PodState) -> proto::PodSandboxState {
    match state {
        PodState::Ready => proto::PodSandboxState::SandboxReady,
        PodState::NotReady => proto::PodSandboxState::SandboxNotready,
    }
}

/// A pod as ListPodSandbox shows it.
pub fn pod(pod: &PodView) -> proto::PodSandbox {
    proto::PodSandbox {
        id: pod.id.clone(),
        metadata: Some(pod_metadata(pod)),
        state: pod_state(pod.state).into(),
        created_at: pod.created_at,
        labels: pod.spec.labels.clone(),
        annotations: pod.spec.annotations.clone(),
        runtime_handler: pod.spec.handler.clone(),
    }
}

/// The same on the wire.
pub fn listed_pod(pod: &PodView) -> Arc<[u8]> {
    pod.rendering.made(|| self::pod(pod).encode_to_vec()).clone()
}

/// A pod as PodSandboxStatus shows it. Without addresses `network` is there and empty, as with the node's network.
pub fn pod_status(pod: &PodView) -> proto::PodSandboxStatus {
    let mut ips = pod.ips.iter().map(ToString::to_string);
    let network = proto::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| proto::PodIp { ip }).collect(),
    };
    let options = Some(namespace::encode(&pod.spec.security.namespaces));
    proto::PodSandboxStatus {
        id: pod.id.clone(),
        metadata: Some(pod_metadata(pod)),
        state: pod_state(pod.state).into(),
        created_at: pod.created_at,
        network: Some(network),
        linux: Some(proto::LinuxPodSandboxStatus { namespaces: Some(proto::Namespace { options }) }),
        labels: pod.spec.labels.clone(),
        annotations: pod.spec.annotations.clone(),
        runtime_handler: pod.spec.handler.clone(),
    }
}

/// Who a container is.
pub fn container_metadata(container: &ContainerView) -> proto::ContainerMetadata {
    proto::ContainerMetadata { name: container.spec.name.clone(), attempt: container.spec.attempt }
}

/// State of a container on the wire.
pub fn container_state(state: ContainerState) -> proto::ContainerState {
    match state {
        ContainerState::Created => proto::ContainerState::ContainerCreated,
        ContainerState::Running => proto::ContainerState::ContainerRunning,
        ContainerState::Exited => proto::ContainerState::ContainerExited,
        ContainerState::Unknown => proto::ContainerState::ContainerUnknown,
    }
}

/// A container as ListContainers shows it. `image_ref` and `image_id` are the image's one identifier.
pub fn container(container: &ContainerView) -> proto::Container {
    proto::Container {
        id: container.id.clone(),
        pod_sandbox_id: container.pod.clone(),
        metadata: Some(container_metadata(container)),
        image: Some(image::encode(&container.spec.image)),
        image_ref: container.image_ref.clone(),
        state: container_state(container.state).into(),
        created_at: container.created_at,
        labels: container.spec.labels.clone(),
        annotations: container.spec.annotations.clone(),
        image_id: container.image_id.clone(),
    }
}

/// The same on the wire.
pub fn listed_container(container: &ContainerView) -> Arc<[u8]> {
    container.rendering.made(|| self::container(container).encode_to_vec()).clone()
}

/// A container as ContainerStatus shows it.
pub fn container_status(c: &ContainerView) -> proto::ContainerStatus {
    let exit = c.exit.clone().unwrap_or_default();
    let user = proto::LinuxContainerUser {
        uid: c.user.uid.into(),
        gid: c.user.gid.into(),
        supplemental_groups: c.user.groups.iter().map(|g| i64::from(*g)).collect(),
    };
    proto::ContainerStatus {
        id: c.id.clone(),
        metadata: Some(container_metadata(c)),
        state: container_state(c.state).into(),
        created_at: c.created_at,
        started_at: c.started_at,
        finished_at: exit.at,
        exit_code: exit.code,
        image: Some(image::encode(&c.spec.image)),
        image_ref: c.image_ref.clone(),
        reason: c.reason.to_owned(),
        message: c.message.clone(),
        labels: c.spec.labels.clone(),
        annotations: c.spec.annotations.clone(),
        mounts: c.spec.mounts.iter().map(mount::encode).collect(),
        log_path: c.log_path.to_string_lossy().into_owned(),
        resources: Some(proto::ContainerResources {
            linux: Some(resources::encode(&c.resources)),
            windows: None,
        }),
        image_id: c.image_id.clone(),
        user: Some(proto::ContainerUser { linux: Some(user) }),
        stop_signal: signal::encode(c.stop_signal),
    }
}

/// An image as ListImages and ImageStatus show it: a numeric user in `uid`, any other in `username`.
pub fn image(image: &storage::Image) -> proto::Image {
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = user.parse::<i64>().ok().map(|value| proto::Int64Value { value });
    proto::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        uid,
        spec: Some(proto::ImageSpec { annotations: image.annotations.clone(), ..Default::default() }),
        pinned: image.pinned,
    }
}
