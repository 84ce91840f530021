//! Every message of `k8s-cri`, by its name in the schema and its type in both generated codes.

use anyhow::Result;
use prost::Message;

/// One message through generated code.
#[derive(Clone, Copy)]
pub(super) struct Round {
    /// Decoded and encoded again by Berth's code.
    pub(super) ours: fn(&[u8]) -> Result<Vec<u8>>,
    /// Decoded and encoded by Berth's code, then by theirs.
    pub(super) both: fn(&[u8]) -> Result<Vec<u8>>,
}

fn again<M: Message + Default>(bytes: &[u8]) -> Result<Vec<u8>> {
    Ok(M::decode(bytes)?.encode_to_vec())
}

macro_rules! messages {
    ($($name:ident),* $(,)?) => {
        /// The round of the message `name`; `None`: not listed here.
        pub(super) fn round(name: &str) -> Option<Round> {
            // prost spells these five in camel case.
            let name = match name {
                "CDIDevice" => "CdiDevice",
                "DNSConfig" => "DnsConfig",
                "PodIP" => "PodIp",
                "IDMapping" => "IdMapping",
                "SELinuxOption" => "SeLinuxOption",
                other => other,
            };
            match name {
                $(stringify!($name) => Some(Round {
                    ours: again::<cri::proto::$name>,
                    both: |bytes| again::<k8s_cri::v1::$name>(&again::<cri::proto::$name>(bytes)?),
                }),)*
                _ => None,
            }
        }
    };
}

messages! {
    AttachRequest, AttachResponse, AuthConfig, CdiDevice, Capability, CheckpointContainerRequest,
    CheckpointContainerResponse, Container, ContainerAttributes, ContainerConfig, ContainerEventResponse,
    ContainerFilter, ContainerMetadata, ContainerMetrics, ContainerResources, ContainerStateValue,
    ContainerStats, ContainerStatsFilter, ContainerStatsRequest, ContainerStatsResponse, ContainerStatus,
    ContainerStatusRequest, ContainerStatusResponse, ContainerUser, CpuUsage, CreateContainerRequest,
    CreateContainerResponse, DnsConfig, Device, ExecRequest, ExecResponse, ExecSyncRequest,
    ExecSyncResponse, FilesystemIdentifier, FilesystemUsage, GetEventsRequest, HugepageLimit, IdMapping,
    Image, ImageFilter, ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec, ImageStatusRequest,
    ImageStatusResponse, Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, LinuxContainerUser, LinuxPodSandboxConfig, LinuxPodSandboxStats,
    LinuxPodSandboxStatus, LinuxRuntimeConfiguration, LinuxSandboxSecurityContext,
    ListContainerStatsRequest, ListContainerStatsResponse, ListContainersRequest, ListContainersResponse,
    ListImagesRequest, ListImagesResponse, ListMetricDescriptorsRequest, ListMetricDescriptorsResponse,
    ListPodSandboxMetricsRequest, ListPodSandboxMetricsResponse, ListPodSandboxRequest,
    ListPodSandboxResponse, ListPodSandboxStatsRequest, ListPodSandboxStatsResponse, MemoryUsage, Metric,
    MetricDescriptor, Mount, Namespace, NamespaceOption, NetworkConfig, NetworkInterfaceUsage, NetworkUsage,
    PodIp, PodSandbox, PodSandboxAttributes, PodSandboxConfig, PodSandboxFilter, PodSandboxMetadata,
    PodSandboxMetrics, PodSandboxNetworkStatus, PodSandboxStateValue, PodSandboxStats,
    PodSandboxStatsFilter, PodSandboxStatsRequest, PodSandboxStatsResponse, PodSandboxStatus,
    PodSandboxStatusRequest, PodSandboxStatusResponse, PortForwardRequest, PortForwardResponse, PortMapping,
    ProcessUsage, PullImageRequest, PullImageResponse, RemoveContainerRequest, RemoveContainerResponse,
    RemoveImageRequest, RemoveImageResponse, RemovePodSandboxRequest, RemovePodSandboxResponse,
    ReopenContainerLogRequest, ReopenContainerLogResponse, RunPodSandboxRequest, RunPodSandboxResponse,
    RuntimeCondition, RuntimeConfig, RuntimeConfigRequest, RuntimeConfigResponse, RuntimeFeatures,
    RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, SeLinuxOption, SecurityProfile,
    StartContainerRequest, StartContainerResponse, StatusRequest, StatusResponse, StopContainerRequest,
    StopContainerResponse, StopPodSandboxRequest, StopPodSandboxResponse, SwapUsage, UInt64Value,
    UpdateContainerResourcesRequest, UpdateContainerResourcesResponse, UpdateRuntimeConfigRequest,
    UpdateRuntimeConfigResponse, UserNamespace, VersionRequest, VersionResponse, WindowsContainerConfig,
    WindowsContainerResources, WindowsContainerSecurityContext, WindowsContainerStats,
    WindowsCpuGroupAffinity, WindowsCpuUsage, WindowsFilesystemUsage, WindowsMemoryUsage,
    WindowsNamespaceOption, WindowsNetworkInterfaceUsage, WindowsNetworkUsage, WindowsPodSandboxConfig,
    WindowsPodSandboxStats, WindowsProcessUsage, WindowsSandboxSecurityContext,
}
