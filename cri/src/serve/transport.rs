//! gRPC connections: a task for each, and an answer to every call by its deadline.
//!
//! tonic's own server answers a call whose `grpc-timeout` has passed with Cancelled. A client that tells a probe that took
//! too long from one that was given up by the code (the kubelet does) must read DeadlineExceeded, so connections are
//! served here, by hyper, and tonic only routes the calls.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::service::Routes;

use super::bulk::bulk;
use super::listen::{Connection, Listeners};
use crate::server::edge;

/// What a call gets beyond its deadline to answer by itself: it knows better than we do what it was waiting for.
const GRACE: Duration = Duration::from_millis(100);
/// A client whose host is gone says nothing; only `tcp://` endpoints have such clients.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Calls at once on one connection.
const STREAMS: u32 = 10_000;

/// Serves calls until `stop`; running calls are then let finish, which the caller bounds.
pub async fn serve(listeners: Listeners, routes: Routes, stop: CancellationToken) {
    let routes = routes.prepare();
    let tasks = TaskTracker::new();
    let mut incoming = listeners.incoming();
    loop {
        let accepted = tokio::select! {
            accepted = incoming.next() => accepted,
            () = stop.cancelled() => None,
        };
        match accepted {
            Some(Ok(connection)) => {
                tasks.spawn(converse(connection, routes.clone(), stop.clone()));
            }
            Some(Err(error)) => tracing::warn!(%error, "a connection was not accepted"),
            None => break,
        }
    }
    drop(incoming);
    tasks.close();
    tasks.wait().await;
}

/// One connection to its end.
async fn converse(connection: Connection, routes: Routes, stop: CancellationToken) {
    let service = service_fn(move |request| call(routes.clone(), request));
    let mut server = http2::Builder::new(TokioExecutor::new());
    server.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).max_concurrent_streams(STREAMS);
    let (connection, outbox) = bulk(connection);
    let mut served = std::pin::pin!(server.serve_connection(TokioIo::new(connection), service));
    let turn = |served: Pin<&mut _>, cx: &mut Context<'_>| {
        let ended = Future::poll(served, cx);
        outbox.empty(cx);
        ended
    };
    let ended = tokio::select! {
        ended = poll_fn(|cx| turn(served.as_mut(), cx)) => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            poll_fn(|cx| turn(served.as_mut(), cx)).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a client left without farewell");
    }
}

/// One call: its own answer, or DeadlineExceeded when there is none in time.
async fn call(mut routes: Routes, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let limit = edge::timeout(request.headers()).map(|limit| limit.saturating_add(GRACE));
    let path = request.uri().path().to_owned();
    let answer = routes.call(request);
    let Some(limit) = limit else { return answer.await };
    timeout(limit, answer).await.unwrap_or_else(|_| {
        let rpc = path.rsplit('/').next().unwrap_or_default();
        Ok(Status::deadline_exceeded(format!("{rpc}: deadline exceeded")).into_http())
    })
}
