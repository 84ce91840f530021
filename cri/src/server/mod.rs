//! The CRI server: one file per RPC, each of them decode → engine job or snapshot → encode.
//!
//! [`runtime`] and [`images`] register the RPCs of the two services and do nothing but name the file; [`edge`] is what
//! every call passes on its way in and out (deadline, error code, log line, histogram); [`filter`] picks what lists show;
//! [`batch`] cuts lists into messages; [`admin`] is Berth's own service beside them.
//!
//! Reads are answered from the engine's snapshots and never wait for a job. Tasks spawned: none; files owned: none.

use std::path::PathBuf;
use std::sync::Arc;

use engine::Engine;
use tonic::service::Routes;

use crate::convert::stats;
use crate::proto::admin::admin_server::AdminServer;
use crate::proto::image_service_server::ImageServiceServer;
use crate::proto::runtime_service_server::RuntimeServiceServer;
use crate::streaming;
use crate::telemetry::Telemetry;

pub mod admin;
pub mod batch;
pub mod edge;
pub mod filter;
pub mod images;
pub mod runtime;
pub mod sessions;

pub(crate) mod attach;
pub(crate) mod checkpoint;
mod container_stats;
mod container_status;
pub(crate) mod create_container;
pub(crate) mod exec;
pub(crate) mod exec_sync;
mod get_container_events;
mod image_fs_info;
mod image_status;
mod list_container_stats;
mod list_containers;
pub(crate) mod list_images;
mod list_metric_descriptors;
mod list_pod_sandbox;
mod list_pod_sandbox_metrics;
mod list_pod_sandbox_stats;
mod pod_sandbox_stats;
mod pod_sandbox_status;
pub(crate) mod port_forward;
pub(crate) mod pull_image;
pub(crate) mod remove_container;
pub(crate) mod remove_image;
pub(crate) mod remove_pod_sandbox;
pub(crate) mod reopen_container_log;
pub(crate) mod run_pod_sandbox;
mod runtime_config;
pub(crate) mod start_container;
mod status;
pub(crate) mod stop_container;
pub(crate) mod stop_pod_sandbox;
pub(crate) mod update_container_resources;
pub(crate) mod update_pod_sandbox_resources;
pub(crate) mod update_runtime_config;
pub(crate) mod version;

#[cfg(test)]
pub(crate) mod tests;

/// Largest message in either direction, as kubelet and crictl have it.
pub const LARGEST_MESSAGE: usize = 16 << 20;

/// What the RPCs work on.
#[derive(Clone, Debug)]
pub struct Service {
    /// Pods, containers, images.
    pub engine: Arc<Engine>,
    /// Hands out the URLs of Exec, Attach and PortForward.
    pub streaming: Arc<streaming::Server>,
    /// `/run/berth`, shown in Status.
    pub state: PathBuf,
    /// `/var/lib/berth`, shown in Status.
    pub root: PathBuf,
    /// Counts the calls.
    pub telemetry: Arc<Telemetry>,
}

/// All services, ready to be served.
pub fn routes(service: &Service) -> Routes {
    let runtime = RuntimeServiceServer::new(service.clone())
        .max_decoding_message_size(LARGEST_MESSAGE)
        .max_encoding_message_size(LARGEST_MESSAGE);
    let images = ImageServiceServer::new(service.clone())
        .max_decoding_message_size(LARGEST_MESSAGE)
        .max_encoding_message_size(LARGEST_MESSAGE);
    let engine = &service.engine;
    let mountpoint = engine.store().root().to_owned();
    engine.render_readings(move |reading| stats::encode(reading, &mountpoint));
    Routes::new(runtime).add_service(images).add_service(AdminServer::new(service.clone()))
}
