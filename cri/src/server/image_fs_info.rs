//! ImageFsInfo: what the store uses, counted as it changes and never walked.

use super::Service;
use crate::convert::stats;
use crate::proto::{ImageFsInfoRequest, ImageFsInfoResponse};

pub(super) fn handle(service: &Service, _: &ImageFsInfoRequest) -> ImageFsInfoResponse {
    let store = service.engine.store();
    let at = engine::exec::nanos(std::time::SystemTime::now());
    let usage = stats::filesystem(at, store.root(), store.usage());
    // Images and writable layers live on one file system.
    ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] }
}
