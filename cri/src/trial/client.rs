//! What any client of the CRI does: a connection to the socket and one method per call, each with a deadline.

use std::path::Path;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::proto::admin::{Job, ListJobsRequest, admin_client::AdminClient};
use crate::proto::image_service_client::ImageServiceClient;
use crate::proto::runtime_service_client::RuntimeServiceClient;
use crate::proto::{self as cri};

/// The kubelet's default deadline for a call.
const CALL: Duration = Duration::from_secs(120);
/// A pull may take longer: the network decides.
const PULL: Duration = Duration::from_secs(1800);

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The socket.
    #[error("connect to the daemon's socket")]
    Connect(#[source] tonic::transport::Error),
    /// The daemon's answer.
    #[error("{rpc} answered {:?}: {}", .status.code(), .status.message())]
    Status {
        /// Name of the call.
        rpc: &'static str,
        /// What it answered.
        status: Box<Status>,
    },
    /// No answer in time.
    #[error("{rpc} did not answer within {within:?}")]
    Deadline {
        /// Name of the call.
        rpc: &'static str,
        /// Given time.
        within: Duration,
    },
    /// The answer lacks what the schema promises.
    #[error("{rpc} answered without {field}")]
    Incomplete {
        /// Name of the call.
        rpc: &'static str,
        /// What is missing.
        field: &'static str,
    },
}

impl CallError {
    /// The gRPC code, if the daemon answered.
    pub fn code(&self) -> Option<tonic::Code> {
        match self {
            Self::Status { status, .. } => Some(status.code()),
            _ => None,
        }
    }
}

/// A connection; clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    admin: AdminClient<Channel>,
}

/// Waits for an answer, but not for ever. On the heap, because tonic's futures are large.
fn call<'a, T: Send + 'a>(
    rpc: &'static str,
    within: Duration,
    answer: impl Future<Output = Result<Response<T>, Status>> + Send + 'a,
) -> BoxFuture<'a, Result<T, CallError>> {
    Box::pin(async move {
        match tokio::time::timeout(within, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(CallError::Status { rpc, status: Box::new(status) }),
            Err(_) => Err(CallError::Deadline { rpc, within }),
        }
    })
}

/// A request that tells the server its deadline.
fn request<T>(message: T, within: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(within);
    request
}

impl Client {
    /// Connects to a unix socket.
    pub async fn connect(socket: &Path) -> Result<Self, CallError> {
        let endpoint =
            Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(CallError::Connect)?;
        let channel = endpoint.connect().await.map_err(CallError::Connect)?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(16 << 20),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(16 << 20),
            admin: AdminClient::new(channel),
        })
    }

    /// Runtime name and version.
    pub async fn version(&mut self) -> Result<cri::VersionResponse, CallError> {
        call("Version", CALL, self.runtime.version(request(cri::VersionRequest::default(), CALL))).await
    }

    /// Names and reasons of the conditions that do not hold.
    pub async fn not_ready(&mut self) -> Result<Vec<String>, CallError> {
        let answer = self.runtime.status(request(cri::StatusRequest::default(), CALL));
        let status = call("Status", CALL, answer).await?.status;
        let status = status.ok_or(CallError::Incomplete { rpc: "Status", field: "status" })?;
        let broken = status.conditions.into_iter().filter(|condition| !condition.status);
        Ok(broken.map(|condition| format!("{}: {}", condition.r#type, condition.message)).collect())
    }

    // === images ===

    /// Pulls; returns the image's id.
    pub async fn pull(&mut self, image: &str) -> Result<String, CallError> {
        let message = cri::PullImageRequest { image: Some(image_spec(image)), ..Default::default() };
        Ok(call("PullImage", PULL, self.images.pull_image(request(message, PULL))).await?.image_ref)
    }

    /// An image, if it is there.
    pub async fn image(&mut self, image: &str) -> Result<Option<cri::Image>, CallError> {
        let message = cri::ImageStatusRequest { image: Some(image_spec(image)), ..Default::default() };
        Ok(call("ImageStatus", CALL, self.images.image_status(request(message, CALL))).await?.image)
    }

    /// All images.
    pub async fn list_images(&mut self) -> Result<Vec<cri::Image>, CallError> {
        let answer = self.images.list_images(request(cri::ListImagesRequest::default(), CALL));
        Ok(call("ListImages", CALL, answer).await?.images)
    }

    /// Removes an image by any of its names.
    pub async fn remove_image(&mut self, image: &str) -> Result<(), CallError> {
        let message = cri::RemoveImageRequest { image: Some(image_spec(image)) };
        call("RemoveImage", CALL, self.images.remove_image(request(message, CALL))).await.map(|_| ())
    }

    /// Bytes the image store uses.
    pub async fn image_bytes(&mut self) -> Result<u64, CallError> {
        let answer = self.images.image_fs_info(request(cri::ImageFsInfoRequest::default(), CALL));
        let info = call("ImageFsInfo", CALL, answer).await?;
        let used = info.image_filesystems.first().and_then(|usage| usage.used_bytes);
        Ok(used.ok_or(CallError::Incomplete { rpc: "ImageFsInfo", field: "used_bytes" })?.value)
    }

    // === pods ===

    /// Runs a pod sandbox; returns its id.
    pub async fn run_pod(&mut self, config: &cri::PodSandboxConfig) -> Result<String, CallError> {
        let message = cri::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let answer = self.runtime.run_pod_sandbox(request(message, CALL));
        Ok(call("RunPodSandbox", CALL, answer).await?.pod_sandbox_id)
    }

    /// Addresses of a pod, primary first.
    pub async fn pod_ips(&mut self, pod: &str) -> Result<Vec<String>, CallError> {
        let message = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), ..Default::default() };
        let answer = self.runtime.pod_sandbox_status(request(message, CALL));
        let network = call("PodSandboxStatus", CALL, answer).await?.status.and_then(|status| status.network);
        let network = network.ok_or(CallError::Incomplete { rpc: "PodSandboxStatus", field: "network" })?;
        let others = network.additional_ips.into_iter().map(|ip| ip.ip);
        Ok(std::iter::once(network.ip).chain(others).filter(|ip| !ip.is_empty()).collect())
    }

    /// Ids of all pods.
    pub async fn list_pods(&mut self) -> Result<Vec<String>, CallError> {
        let answer = self.runtime.list_pod_sandbox(request(cri::ListPodSandboxRequest::default(), CALL));
        Ok(call("ListPodSandbox", CALL, answer).await?.items.into_iter().map(|pod| pod.id).collect())
    }

    /// Stops a pod; absent is fine.
    pub async fn stop_pod(&mut self, pod: &str) -> Result<(), CallError> {
        let message = cri::StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        call("StopPodSandbox", CALL, self.runtime.stop_pod_sandbox(request(message, CALL))).await.map(|_| ())
    }

    /// Removes a pod; absent is fine.
    pub async fn remove_pod(&mut self, pod: &str) -> Result<(), CallError> {
        let message = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        call("RemovePodSandbox", CALL, self.runtime.remove_pod_sandbox(request(message, CALL)))
            .await
            .map(|_| ())
    }

    /// Statistics of a pod.
    pub async fn pod_stats(&mut self, pod: &str) -> Result<cri::PodSandboxStats, CallError> {
        let message = cri::PodSandboxStatsRequest { pod_sandbox_id: pod.to_owned() };
        let stats = call("PodSandboxStats", CALL, self.runtime.pod_sandbox_stats(request(message, CALL)))
            .await?
            .stats;
        stats.ok_or(CallError::Incomplete { rpc: "PodSandboxStats", field: "stats" })
    }

    // === containers ===

    /// Creates a container in a pod; returns its id.
    pub async fn create(
        &mut self,
        pod: &str,
        config: cri::ContainerConfig,
        pod_config: &cri::PodSandboxConfig,
    ) -> Result<String, CallError> {
        let message = cri::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod_config.clone()),
        };
        let answer = self.runtime.create_container(request(message, CALL));
        Ok(call("CreateContainer", CALL, answer).await?.container_id)
    }

    /// Starts a container.
    pub async fn start(&mut self, container: &str) -> Result<(), CallError> {
        let message = cri::StartContainerRequest { container_id: container.to_owned() };
        call("StartContainer", CALL, self.runtime.start_container(request(message, CALL))).await.map(|_| ())
    }

    /// Status of a container.
    pub async fn container(&mut self, container: &str) -> Result<cri::ContainerStatus, CallError> {
        let message =
            cri::ContainerStatusRequest { container_id: container.to_owned(), ..Default::default() };
        let status = call("ContainerStatus", CALL, self.runtime.container_status(request(message, CALL)))
            .await?
            .status;
        status.ok_or(CallError::Incomplete { rpc: "ContainerStatus", field: "status" })
    }

    /// Ids of all containers.
    pub async fn list_containers(&mut self) -> Result<Vec<String>, CallError> {
        let answer = self.runtime.list_containers(request(cri::ListContainersRequest::default(), CALL));
        Ok(call("ListContainers", CALL, answer).await?.containers.into_iter().map(|one| one.id).collect())
    }

    /// Runs a command in a container to its end.
    pub async fn exec(
        &mut self,
        container: &str,
        command: &[&str],
    ) -> Result<cri::ExecSyncResponse, CallError> {
        let message = cri::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 10,
        };
        call("ExecSync", CALL, self.runtime.exec_sync(request(message, CALL))).await
    }

    /// Statistics of a container.
    pub async fn container_stats(&mut self, container: &str) -> Result<cri::ContainerStats, CallError> {
        let message = cri::ContainerStatsRequest { container_id: container.to_owned() };
        let stats =
            call("ContainerStats", CALL, self.runtime.container_stats(request(message, CALL))).await?.stats;
        stats.ok_or(CallError::Incomplete { rpc: "ContainerStats", field: "stats" })
    }

    /// Stops a container, with a grace period in seconds.
    pub async fn stop(&mut self, container: &str, grace: i64) -> Result<(), CallError> {
        let message = cri::StopContainerRequest { container_id: container.to_owned(), timeout: grace };
        call("StopContainer", CALL, self.runtime.stop_container(request(message, CALL))).await.map(|_| ())
    }

    /// Removes a container; absent is fine.
    pub async fn remove(&mut self, container: &str) -> Result<(), CallError> {
        let message = cri::RemoveContainerRequest { container_id: container.to_owned() };
        call("RemoveContainer", CALL, self.runtime.remove_container(request(message, CALL))).await.map(|_| ())
    }

    // === administration ===

    /// Running and recent jobs.
    pub async fn jobs(&mut self) -> Result<Vec<Job>, CallError> {
        let answer = self.admin.list_jobs(request(ListJobsRequest::default(), CALL));
        Ok(call("ListJobs", CALL, answer).await?.jobs)
    }
}

/// An image by its name.
pub fn image_spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.to_owned(), ..Default::default() }
}
