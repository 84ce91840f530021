//! Berth's own service: what an administrator asks of a running daemon.

use std::io;

use bytes::Bytes;
use engine::jobs::{CheckImages, CollectImages, LoadImages, PushImage, SaveImages, TagImage};
use engine::{Error, Kind};
use storage::Credentials;
use storage::archive::Format;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Service;
use super::edge::code;
use crate::proto::admin::admin_server::Admin;
use crate::proto::admin::*;

/// Pieces of an archive that may wait for a slow reader.
const QUEUE: usize = 4;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Admin for Service {
    async fn list_jobs(&self, r: Request<ListJobsRequest>) -> Answer<ListJobsResponse> {
        let call = self.call("ListJobs", &r);
        let id = r.into_inner().id;
        let mut jobs = self.engine.jobs();
        jobs.retain(|job| id == 0 || job.id == id);
        jobs.sort_by_key(|job| job.id);
        call.answer(Ok(ListJobsResponse { jobs: jobs.into_iter().map(encode).collect() }))
    }

    async fn push_image(&self, r: Request<PushImageRequest>) -> Answer<PushImageResponse> {
        let call = self.call("PushImage", &r);
        let PushImageRequest { image, target, login, origin } = r.into_inner();
        let (credentials, origin) = (login.map(credentials), origin.map(credentials));
        let pushed = self.engine.run(PushImage { image, target, credentials, origin }, call.deadline).await;
        call.answer(pushed.map(|p| PushImageResponse { reference: p.reference, sent: p.sent }))
    }

    type SaveImagesStream = std::pin::Pin<Box<dyn Stream<Item = Result<Piece, Status>> + Send>>;

    async fn save_images(&self, r: Request<SaveImagesRequest>) -> Answer<Self::SaveImagesStream> {
        let call = self.call("SaveImages", &r);
        let SaveImagesRequest { images, format, login } = r.into_inner();
        let format = match format.as_str() {
            "" | "oci" => Format::Oci,
            "docker" => Format::Docker,
            _ => return call.answer(Err(Error::invalid("format", "is oci or docker"))),
        };
        let (out, mut pieces) = mpsc::channel::<Bytes>(QUEUE);
        let (to_client, stream) = mpsc::channel(QUEUE);
        let job = SaveImages { images, format, credentials: login.map(credentials), out };
        let engine = self.engine.clone();
        tokio::spawn(async move {
            let saving = engine.run(job, call.deadline);
            let forwarding = async {
                while let Some(data) = pieces.recv().await {
                    if to_client.send(Ok(Piece { data })).await.is_err() {
                        break;
                    }
                }
                // Nobody reads any more: the job's next write says so.
                drop(pieces);
            };
            let (saved, ()) = tokio::join!(saving, forwarding);
            if let Err(error) = saved {
                let _ = to_client.send(Err(Status::new(code(error.kind()), error.chain()))).await;
            }
        });
        call.answer(Ok(Box::pin(ReceiverStream::new(stream)) as Self::SaveImagesStream))
    }

    async fn load_images(&self, r: Request<Streaming<LoadImagesRequest>>) -> Answer<LoadImagesResponse> {
        let call = self.call("LoadImages", &r);
        let mut messages = r.into_inner();
        let Some(first) = messages.message().await? else {
            return call.answer(Err(Error::invalid("base", "the first message is missing")));
        };
        let (to_job, archive) = mpsc::channel(QUEUE);
        let base = Some(first.base).filter(|base| !base.is_empty());
        let loading = self.engine.run(LoadImages { base, archive }, call.deadline);
        let forwarding = async move {
            if !first.data.is_empty() && to_job.send(Ok(first.data)).await.is_err() {
                return;
            }
            loop {
                let piece = match messages.message().await {
                    Ok(None) => return,
                    Ok(Some(message)) => Ok(message.data),
                    Err(status) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, status.to_string())),
                };
                let last = piece.is_err();
                if to_job.send(piece).await.is_err() || last {
                    return;
                }
            }
        };
        let (loaded, ()) = tokio::join!(loading, forwarding);
        let image = |one: storage::archive::Loaded| LoadedImage { id: one.image.id.clone(), tags: one.tags };
        call.answer(loaded.map(|all| LoadImagesResponse { images: all.into_iter().map(image).collect() }))
    }

    async fn tag_image(&self, r: Request<TagImageRequest>) -> Answer<TagImageResponse> {
        let call = self.call("TagImage", &r);
        let TagImageRequest { image, tag } = r.into_inner();
        call.answer(
            self.engine.run(TagImage { image, tag }, call.deadline).await.map(|()| TagImageResponse {}),
        )
    }

    async fn inspect_image(&self, r: Request<InspectImageRequest>) -> Answer<InspectImageResponse> {
        let call = self.call("InspectImage", &r);
        let name = r.into_inner().image;
        let inspected = async {
            let store = self.engine.local_store()?;
            let value = tokio::task::spawn_blocking(move || store.inspect(&name)).await;
            let value = value.map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
            let value = value.map_err(|e| Error::of(engine::image::kind(e.kind()), &e))?;
            Ok(InspectImageResponse { json: format!("{value:#}") })
        };
        call.answer(inspected.await)
    }

    async fn search_images(&self, r: Request<SearchImagesRequest>) -> Answer<SearchImagesResponse> {
        let call = self.call("SearchImages", &r);
        let SearchImagesRequest { term, tags, login } = r.into_inner();
        let found = async {
            let store = self.engine.local_store()?;
            let found = if tags {
                let tags = store.remote_tags(&term, login.map(credentials)).await;
                tags.map(|tags| tags.into_iter().map(|tag| (tag, String::new())).collect())
            } else {
                store.search(&term, login.map(credentials)).await
            };
            let found: Vec<_> = found.map_err(|e| Error::of(engine::image::kind(e.kind()), &e))?;
            let result = |(name, description)| SearchResult { name, description };
            Ok(SearchImagesResponse { results: found.into_iter().map(result).collect() })
        };
        call.answer(found.await)
    }

    async fn check_images(&self, r: Request<CheckImagesRequest>) -> Answer<CheckImagesResponse> {
        let call = self.call("CheckImages", &r);
        let job = CheckImages { repair: r.into_inner().repair };
        let checked = self.engine.run(job, call.deadline).await;
        let bad = |b: engine::jobs::BadLayer| BadLayer {
            layer: b.layer,
            images: b.images,
            found: b.found,
            repaired: matches!(b.repaired, Some(Ok(()))),
            problem: b.repaired.and_then(Result::err).unwrap_or_default(),
        };
        call.answer(checked.map(|all| CheckImagesResponse { bad: all.into_iter().map(bad).collect() }))
    }

    async fn collect_images(&self, r: Request<CollectImagesRequest>) -> Answer<CollectImagesResponse> {
        let call = self.call("CollectImages", &r);
        let collected = self.engine.run(CollectImages { all: r.into_inner().all }, call.deadline).await;
        call.answer(collected.map(|c| CollectImagesResponse {
            images: c.images,
            freed_bytes: c.freed.bytes,
            freed_inodes: c.freed.inodes,
        }))
    }
}

fn credentials(login: Login) -> Credentials {
    Credentials {
        username: login.username,
        password: login.password,
        auth: login.auth,
        identity_token: login.identity_token,
        ..Credentials::default()
    }
}

fn encode(job: engine::api::JobView) -> Job {
    let nanos = |d: std::time::Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
    let step = |(name, offset, took)| Step { name, offset: nanos(offset), took: nanos(took) };
    Job {
        id: job.id,
        name: job.name,
        subject: job.subject,
        started_at: job.started_at,
        took: nanos(job.took),
        outcome: job.outcome,
        steps: job.steps.into_iter().map(step).collect(),
        progress: job.progress.map(progress),
    }
}

fn progress(p: storage::PullProgress) -> Progress {
    let layer = |l: storage::LayerProgress| LayerProgress {
        digest: l.digest,
        total: l.total,
        done: l.done,
        finished: l.done_for_good,
    };
    Progress {
        total: p.total,
        done: p.done,
        phase: p.phase,
        layers: p.layers.into_iter().map(layer).collect(),
    }
}
