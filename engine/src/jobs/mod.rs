//! One verb, one file, named after the RPC.

pub mod create_container;
pub mod exec_sync;
pub mod pull_image;
pub mod remove_container;
pub mod remove_image;
pub mod remove_pod;
pub mod reopen_log;
pub mod run_pod;
pub mod set_pod_cidrs;
pub mod start_container;
pub mod stop_container;
pub mod stop_pod;
pub(crate) mod teardown;
#[cfg(test)]
mod tests;
pub mod update_container_resources;
pub mod update_pod_resources;

pub use create_container::CreateContainer;
pub use exec_sync::ExecSync;
pub use pull_image::PullImage;
pub use remove_container::RemoveContainer;
pub use remove_image::RemoveImage;
pub use remove_pod::RemovePod;
pub use reopen_log::ReopenLog;
pub use run_pod::RunPod;
pub use set_pod_cidrs::SetPodCidrs;
pub use start_container::StartContainer;
pub use stop_container::StopContainer;
pub use stop_pod::StopPod;
pub use update_container_resources::UpdateContainerResources;
pub use update_pod_resources::UpdatePodResources;
