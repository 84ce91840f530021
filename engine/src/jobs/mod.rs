//! One verb, one file, named after the RPC.

pub mod check_images;
pub mod collect_images;
pub mod create_container;
pub mod exec_sync;
pub mod load_images;
pub mod pull_image;
pub mod push_image;
pub mod remove_container;
pub mod remove_image;
pub mod remove_pod;
pub mod reopen_log;
pub mod run_pod;
pub mod save_images;
pub mod set_pod_cidrs;
pub mod start_container;
pub mod stop_container;
pub mod stop_pod;
pub mod tag_image;
pub(crate) mod teardown;
#[cfg(test)]
mod tests;
pub mod update_container_resources;
pub mod update_pod_resources;

pub use check_images::{BadLayer, CheckImages};
pub use collect_images::CollectImages;
pub use create_container::CreateContainer;
pub use exec_sync::ExecSync;
pub use load_images::LoadImages;
pub use pull_image::PullImage;
pub use push_image::PushImage;
pub use remove_container::RemoveContainer;
pub use remove_image::RemoveImage;
pub use remove_pod::RemovePod;
pub use reopen_log::ReopenLog;
pub use run_pod::RunPod;
pub use save_images::SaveImages;
pub use set_pod_cidrs::SetPodCidrs;
pub use start_container::StartContainer;
pub use stop_container::StopContainer;
pub use stop_pod::StopPod;
pub use tag_image::TagImage;
pub use update_container_resources::UpdateContainerResources;
pub use update_pod_resources::UpdatePodResources;
