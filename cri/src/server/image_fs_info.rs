//! ImageFsInfo: what the store uses, counted as it changes and never walked.

use super::Service;
use crate::convert::stats;
use crate::proto::{ImageFsInfoRequest, ImageFsInfoResponse};

pub(super) fn handle(service: &Service, _: &ImageFsInfoRequest) -> ImageFsInfoResponse {
    let store = service.engine.store();
    let at = engine::exec::nanos(std::time::SystemTime::now());
    let usage = stats::filesystem(at, store.root(), store.usage());
    // The other list is for a runtime that keeps what containers write apart from images; the proto's default is none.
    ImageFsInfoResponse { image_filesystems: vec![usage], container_filesystems: Vec::new() }
}
