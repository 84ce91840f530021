//! `runtime.v1.ImageService`: which file answers which RPC.

use tonic::{Request, Response, Status};

use super::Service;
use super::batch::Batches;
use super::{image_fs_info, image_status, list_images, pull_image, remove_image};
use crate::proto::image_service_server::ImageService;
use crate::proto::*;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(&self, r: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let call = self.call("ListImages", &r);
        call.answer(Ok(list_images::handle(self, r.into_inner())))
    }

    type StreamImagesStream = Batches<StreamImagesResponse>;

    async fn stream_images(&self, r: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let call = self.call("StreamImages", &r);
        call.answer(list_images::stream(self, r.into_inner()))
    }

    async fn image_status(&self, r: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let call = self.call("ImageStatus", &r);
        call.answer(image_status::handle(self, r.into_inner()))
    }

    async fn pull_image(&self, r: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let call = self.call("PullImage", &r);
        call.answer(pull_image::handle(self, r.into_inner(), call.deadline).await)
    }

    async fn remove_image(&self, r: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let call = self.call("RemoveImage", &r);
        call.answer(remove_image::handle(self, r.into_inner(), call.deadline).await)
    }

    async fn image_fs_info(&self, r: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        let call = self.call("ImageFsInfo", &r);
        call.answer(Ok(image_fs_info::handle(self, &r.into_inner())))
    }
}
