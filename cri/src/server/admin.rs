//! Berth's own service: what an administrator asks of a running daemon.

use tonic::{Request, Response, Status};

use super::Service;
use super::edge::Call;
use crate::proto::admin::{Job, ListJobsRequest, ListJobsResponse, Step, admin_server::Admin};

#[tonic::async_trait]
impl Admin for Service {
    async fn list_jobs(&self, r: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        let call = Call::of("ListJobs", &r);
        let id = r.into_inner().id;
        let mut jobs = self.engine.jobs();
        jobs.retain(|job| id == 0 || job.id == id);
        jobs.sort_by_key(|job| job.id);
        call.answer(Ok(ListJobsResponse { jobs: jobs.into_iter().map(encode).collect() }))
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
    }
}
