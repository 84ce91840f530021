//! A CRI client made of `k8s-cri`, which shares neither schema nor code with the server under test.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{self as api};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// The largest message either side may send, as the kubelet has it.
const LIMIT: usize = 16 << 20;

/// Both services of one runtime.
#[derive(Clone, Debug)]
pub struct Client {
    /// Pods and containers.
    pub runtime: RuntimeServiceClient<Channel>,
    /// Images.
    pub image: ImageServiceClient<Channel>,
}

/// Connects to a Unix socket.
///
/// # Errors
/// Nobody listens there.
pub async fn connect(socket: &Path) -> Result<Client> {
    let path: PathBuf = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .with_context(|| format!("connect to {}", socket.display()))?;
    Ok(Client {
        runtime: RuntimeServiceClient::new(channel.clone())
            .max_decoding_message_size(LIMIT)
            .max_encoding_message_size(LIMIT),
        image: ImageServiceClient::new(channel)
            .max_decoding_message_size(LIMIT)
            .max_encoding_message_size(LIMIT),
    })
}

/// A pod as a kubelet would ask for it: own network, IPC; containers with PID namespaces of their own.
#[must_use]
pub fn pod(name: &str, logs: &Path) -> api::PodSandboxConfig {
    api::PodSandboxConfig {
        metadata: Some(api::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "suite".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: logs.display().to_string(),
        linux: Some(api::LinuxPodSandboxConfig {
            security_context: Some(api::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container that runs `command`, with its log at `NAME.log`.
#[must_use]
pub fn container(name: &str, image: &str, command: &[&str]) -> api::ContainerConfig {
    api::ContainerConfig {
        metadata: Some(api::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(api::ImageSpec { image: image.to_owned(), ..Default::default() }),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(api::LinuxContainerConfig {
            security_context: Some(api::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn namespaces() -> api::NamespaceOption {
    api::NamespaceOption { pid: api::NamespaceMode::Container.into(), ..Default::default() }
}

impl Client {
    /// Pulls an image; returns its reference.
    ///
    /// # Errors
    /// The server's.
    pub async fn pull(&mut self, image: &str) -> Result<String, tonic::Status> {
        let image = Some(api::ImageSpec { image: image.to_owned(), ..Default::default() });
        let request = api::PullImageRequest { image, ..Default::default() };
        Ok(Box::pin(self.image.pull_image(request)).await?.into_inner().image_ref)
    }

    /// Runs a pod sandbox; returns its id.
    ///
    /// # Errors
    /// The server's.
    pub async fn run_pod(&mut self, config: &api::PodSandboxConfig) -> Result<String, tonic::Status> {
        let request = api::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        Ok(Box::pin(self.runtime.run_pod_sandbox(request)).await?.into_inner().pod_sandbox_id)
    }

    /// Creates a container; returns its id.
    ///
    /// # Errors
    /// The server's.
    pub async fn create(
        &mut self,
        pod: &str,
        config: &api::ContainerConfig,
        sandbox: &api::PodSandboxConfig,
    ) -> Result<String, tonic::Status> {
        let request = api::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        Ok(Box::pin(self.runtime.create_container(request)).await?.into_inner().container_id)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// The server's.
    pub async fn start(&mut self, container: &str) -> Result<(), tonic::Status> {
        let request = api::StartContainerRequest { container_id: container.to_owned() };
        Box::pin(self.runtime.start_container(request)).await.map(drop)
    }

    /// The status of a container.
    ///
    /// # Errors
    /// The server's; an answer without a status.
    pub async fn status(&mut self, container: &str) -> Result<api::ContainerStatus, tonic::Status> {
        let request = api::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let answer = Box::pin(self.runtime.container_status(request)).await?.into_inner();
        answer.status.ok_or_else(|| tonic::Status::data_loss("no status in the answer"))
    }

    /// Runs a command in a container to its end.
    ///
    /// # Errors
    /// The server's.
    pub async fn exec(
        &mut self,
        container: &str,
        command: &[&str],
    ) -> Result<api::ExecSyncResponse, tonic::Status> {
        let request = api::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 20,
        };
        Ok(Box::pin(self.runtime.exec_sync(request)).await?.into_inner())
    }

    /// Kills a container and removes it.
    ///
    /// # Errors
    /// The server's.
    pub async fn discard(&mut self, container: &str) -> Result<(), tonic::Status> {
        let container_id = container.to_owned();
        let request = api::StopContainerRequest { container_id: container_id.clone(), timeout: 0 };
        Box::pin(self.runtime.stop_container(request)).await?;
        Box::pin(self.runtime.remove_container(api::RemoveContainerRequest { container_id })).await.map(drop)
    }

    /// Stops and removes a pod with all that is in it.
    ///
    /// # Errors
    /// The server's.
    pub async fn remove_pod(&mut self, pod: &str) -> Result<(), tonic::Status> {
        let pod_sandbox_id = pod.to_owned();
        self.runtime
            .stop_pod_sandbox(api::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() })
            .await?;
        Box::pin(self.runtime.remove_pod_sandbox(api::RemovePodSandboxRequest { pod_sandbox_id }))
            .await
            .map(drop)
    }
}
