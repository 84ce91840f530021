//! `runtime.v1.RuntimeService`: which file answers which RPC.

use tonic::{Request, Response, Status};

use super::Service;
use super::batch::Batches;
use super::{
    attach, checkpoint, container_stats, container_status, create_container, exec, exec_sync,
    get_container_events, list_container_stats, list_containers, list_metric_descriptors, list_pod_sandbox,
    list_pod_sandbox_metrics, list_pod_sandbox_stats, pod_sandbox_stats, pod_sandbox_status, port_forward,
    remove_container, remove_pod_sandbox, reopen_container_log, run_pod_sandbox, runtime_config,
    start_container, status, stop_container, stop_pod_sandbox, update_container_resources,
    update_pod_sandbox_resources, update_runtime_config, version,
};
use crate::proto::runtime_service_server::RuntimeService;
use crate::proto::*;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, r: Request<VersionRequest>) -> Answer<VersionResponse> {
        let call = self.call("Version", &r);
        call.answer(Ok(version::handle(&r.into_inner())))
    }

    async fn status(&self, r: Request<StatusRequest>) -> Answer<StatusResponse> {
        let call = self.call("Status", &r);
        call.answer(Ok(status::handle(self, &r.into_inner()).await))
    }

    async fn update_runtime_config(
        &self,
        r: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let call = self.call("UpdateRuntimeConfig", &r);
        call.answer(update_runtime_config::handle(self, r.into_inner(), call.deadline).await)
    }

    async fn runtime_config(&self, r: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        let call = self.call("RuntimeConfig", &r);
        call.answer(Ok(runtime_config::handle(self, &r.into_inner())))
    }

    async fn run_pod_sandbox(&self, r: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let call = self.call("RunPodSandbox", &r);
        call.answer(run_pod_sandbox::handle(self, r.into_inner(), call.deadline).await)
    }

    async fn stop_pod_sandbox(&self, r: Request<StopPodSandboxRequest>) -> Answer<StopPodSandboxResponse> {
        let call = self.call("StopPodSandbox", &r);
        call.answer(stop_pod_sandbox::handle(self, r.into_inner(), call.deadline).await)
    }

    async fn remove_pod_sandbox(
        &self,
        r: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let call = self.call("RemovePodSandbox", &r);
        call.answer(remove_pod_sandbox::handle(self, r.into_inner(), call.deadline).await)
    }

    async fn pod_sandbox_status(
        &self,
        r: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let call = self.call("PodSandboxStatus", &r);
        call.answer(pod_sandbox_status::handle(self, &r.into_inner()))
    }

    async fn list_pod_sandbox(&self, r: Request<ListPodSandboxRequest>) -> Answer<ListPodSandboxResponse> {
        let call = self.call("ListPodSandbox", &r);
        call.answer(list_pod_sandbox::handle(self, r.into_inner()))
    }

    type StreamPodSandboxesStream = Batches<StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        r: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let call = self.call("StreamPodSandboxes", &r);
        call.answer(list_pod_sandbox::stream(self, r.into_inner()))
    }

    async fn update_pod_sandbox_resources(
        &self,
        r: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        let call = self.call("UpdatePodSandboxResources", &r);
        call.answer(update_pod_sandbox_resources::handle(self, r.into_inner(), call.deadline).await)
    }

    async fn create_container(&self, r: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        let call = self.call("CreateContainer", &r);
        call.answer(create_container::handle(self, r.into_inner(), call.deadline).await)
    }

    async fn start_container(&self, r: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        let call = self.call("StartContainer", &r);
        call.answer(start_container::handle(self, r.into_inner(), call.deadline).await)
    }

    async fn stop_container(&self, r: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let call = self.call("StopContainer", &r);
        call.answer(stop_container::handle(self, r.into_inner(), call.deadline).await)
    }

    async fn remove_container(&self, r: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        let call = self.call("RemoveContainer", &r);
        call.answer(remove_container::handle(self, r.into_inner(), call.deadline).await)
    }

    async fn list_containers(&self, r: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
        let call = self.call("ListContainers", &r);
        call.answer(list_containers::handle(self, r.into_inner()))
    }

    type StreamContainersStream = Batches<StreamContainersResponse>;

    async fn stream_containers(
        &self,
        r: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let call = self.call("StreamContainers", &r);
        call.answer(list_containers::stream(self, r.into_inner()))
    }

    async fn container_status(&self, r: Request<ContainerStatusRequest>) -> Answer<ContainerStatusResponse> {
        let call = self.call("ContainerStatus", &r);
        call.answer(container_status::handle(self, &r.into_inner()))
    }

    async fn update_container_resources(
        &self,
        r: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let call = self.call("UpdateContainerResources", &r);
        call.answer(update_container_resources::handle(self, r.into_inner(), call.deadline).await)
    }

    async fn reopen_container_log(
        &self,
        r: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        let call = self.call("ReopenContainerLog", &r);
        call.answer(reopen_container_log::handle(self, r.into_inner(), call.deadline).await)
    }

    async fn exec_sync(&self, r: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let call = self.call("ExecSync", &r);
        call.answer(exec_sync::handle(self, r.into_inner(), call.deadline).await)
    }

    async fn exec(&self, r: Request<ExecRequest>) -> Answer<ExecResponse> {
        let call = self.call("Exec", &r);
        call.answer(exec::handle(self, r.into_inner()))
    }

    async fn attach(&self, r: Request<AttachRequest>) -> Answer<AttachResponse> {
        let call = self.call("Attach", &r);
        call.answer(attach::handle(self, r.into_inner()))
    }

    async fn port_forward(&self, r: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        let call = self.call("PortForward", &r);
        call.answer(port_forward::handle(self, r.into_inner()))
    }

    async fn container_stats(&self, r: Request<ContainerStatsRequest>) -> Answer<ContainerStatsResponse> {
        let call = self.call("ContainerStats", &r);
        call.answer(container_stats::handle(self, r.into_inner()).await)
    }

    async fn list_container_stats(
        &self,
        r: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let call = self.call("ListContainerStats", &r);
        call.answer(list_container_stats::handle(self, r.into_inner()).await)
    }

    type StreamContainerStatsStream = Batches<StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        r: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let call = self.call("StreamContainerStats", &r);
        call.answer(list_container_stats::stream(self, r.into_inner()).await)
    }

    async fn pod_sandbox_stats(&self, r: Request<PodSandboxStatsRequest>) -> Answer<PodSandboxStatsResponse> {
        let call = self.call("PodSandboxStats", &r);
        call.answer(pod_sandbox_stats::handle(self, r.into_inner()).await)
    }

    async fn list_pod_sandbox_stats(
        &self,
        r: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let call = self.call("ListPodSandboxStats", &r);
        call.answer(list_pod_sandbox_stats::handle(self, r.into_inner()).await)
    }

    type StreamPodSandboxStatsStream = Batches<StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        r: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let call = self.call("StreamPodSandboxStats", &r);
        call.answer(list_pod_sandbox_stats::stream(self, r.into_inner()).await)
    }

    async fn list_metric_descriptors(
        &self,
        r: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        let call = self.call("ListMetricDescriptors", &r);
        call.answer(Ok(list_metric_descriptors::handle(&r.into_inner())))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        r: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        let call = self.call("ListPodSandboxMetrics", &r);
        call.answer(list_pod_sandbox_metrics::handle(self, r.into_inner()).await)
    }

    type StreamPodSandboxMetricsStream = Batches<StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        r: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let call = self.call("StreamPodSandboxMetrics", &r);
        call.answer(list_pod_sandbox_metrics::stream(self, r.into_inner()).await)
    }

    type GetContainerEventsStream = Batches<ContainerEventResponse>;

    async fn get_container_events(
        &self,
        r: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let call = self.call("GetContainerEvents", &r);
        call.answer(Ok(get_container_events::handle(self, &r.into_inner())))
    }

    async fn checkpoint_container(
        &self,
        r: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        let call = self.call("CheckpointContainer", &r);
        call.answer(checkpoint::refuse(call.name))
    }

    async fn checkpoint_pod(&self, r: Request<CheckpointPodRequest>) -> Answer<CheckpointPodResponse> {
        let call = self.call("CheckpointPod", &r);
        call.answer(checkpoint::refuse(call.name))
    }

    async fn restore_pod(&self, r: Request<RestorePodRequest>) -> Answer<RestorePodResponse> {
        let call = self.call("RestorePod", &r);
        call.answer(checkpoint::refuse(call.name))
    }
}
