//! A daemon on a node in memory, and a client at its socket.

use std::path::PathBuf;
use std::sync::Arc;

use engine::testing::Node;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::config;
use crate::proto::image_service_client::ImageServiceClient;
use crate::proto::runtime_service_client::RuntimeServiceClient;
use crate::proto::*;
use crate::serve::{listen, transport};
use crate::server::sessions::Sessions;
use crate::server::{Service, routes};
use crate::streaming;

/// Name of the image every node has.
pub(super) const IMAGE: &str = engine::testing::fakes::IMAGE;

/// The daemon's parts, its node and a client.
pub(super) struct Daemon {
    pub(super) node: Node,
    pub(super) runtime: RuntimeServiceClient<Channel>,
    pub(super) images: ImageServiceClient<Channel>,
    pub(super) channel: Channel,
    pub(super) service: Service,
    serving: tokio::task::JoinHandle<()>,
}

impl Daemon {
    pub(super) async fn start() -> Self {
        Self::with(|_| ()).await
    }

    /// One with other settings of the engine.
    pub(super) async fn with(change: impl FnOnce(&mut engine::Config)) -> Self {
        let mut node = Node::new();
        change(&mut node.config);
        let engine = node.engine().await.unwrap();
        let socket: PathBuf = node.config.state.join("berth.sock");
        let listeners = listen::bind(&[config::Endpoint::Unix(socket.clone())], None).unwrap();
        let sessions = Arc::new(Sessions(engine.clone()));
        let streaming = streaming::Server::start(streaming::Config::default(), sessions).await.unwrap();
        let (state, root) = (node.config.state.clone(), node.config.root.clone());
        let service = Service { engine, streaming, state, root, telemetry: Arc::default() };
        let stop = CancellationToken::new();
        let serving = tokio::spawn(transport::serve(listeners, routes(&service), stop));
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        let channel = endpoint.connect().await.unwrap();
        Self {
            node,
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel.clone()),
            channel,
            service,
            serving,
        }
    }

    /// Runs a pod and gives its id.
    pub(super) async fn pod(&mut self, name: &str) -> String {
        let request = RunPodSandboxRequest { config: Some(pod_config(name)), runtime_handler: String::new() };
        self.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id
    }

    /// Creates and starts a container and gives its id.
    pub(super) async fn container(&mut self, pod: &str, name: &str) -> String {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(container_config(name)),
            sandbox_config: None,
        };
        let container_id = self.runtime.create_container(request).await.unwrap().into_inner().container_id;
        let start = StartContainerRequest { container_id: container_id.clone() };
        self.runtime.start_container(start).await.unwrap();
        container_id
    }

    /// Asks over HTTP/2 without any gRPC client, and so without anybody but the server to watch the deadline: the
    /// `grpc-status` of the answer.
    pub(super) async fn ask(&self, path: &str, timeout: &str, message: &[u8]) -> String {
        let socket = UnixStream::connect(self.node.config.state.join("berth.sock")).await.unwrap();
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend(message);
        let request = hyper::Request::post(format!("http://localhost{path}"))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .header("grpc-timeout", timeout)
            .body(Full::new(hyper::body::Bytes::from(frame)))
            .unwrap();
        let answer = client.send_request(request).await.unwrap();
        connection.abort();
        answer.headers().get("grpc-status").map(|s| s.to_str().unwrap().to_owned()).unwrap_or_default()
    }

    /// Waits until no job runs: also those whose caller has gone are finished or undone by then.
    pub(super) async fn settled(&self) {
        let running = || self.service.engine.jobs().iter().any(|job| job.outcome == "running");
        let settled = async {
            while running() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), settled).await.unwrap();
    }

    /// Removes all pods and gives what is left on the node.
    pub(super) async fn clean(&mut self) -> Vec<String> {
        let pods =
            self.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().into_inner();
        for pod in pods.items {
            let stop = StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            self.runtime.stop_pod_sandbox(stop).await.unwrap();
            let remove = RemovePodSandboxRequest { pod_sandbox_id: pod.id };
            self.runtime.remove_pod_sandbox(remove).await.unwrap();
        }
        self.node.left()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

pub(super) fn pod_config(name: &str) -> PodSandboxConfig {
    let metadata = PodSandboxMetadata {
        name: name.into(),
        uid: format!("uid-{name}"),
        namespace: "default".into(),
        attempt: 0,
    };
    PodSandboxConfig {
        metadata: Some(metadata),
        labels: [("pod".to_owned(), name.to_owned())].into(),
        annotations: [("note".to_owned(), "kept".to_owned())].into(),
        ..Default::default()
    }
}

pub(super) fn container_config(name: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: IMAGE.into(), ..Default::default() }),
        labels: [("container".to_owned(), name.to_owned())].into(),
        envs: vec![KeyValue { key: "RAW".into(), value: vec![0xff, 0xfe] }],
        stop_signal: Signal::Sigusr1.into(),
        ..Default::default()
    }
}
