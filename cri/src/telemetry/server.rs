//! `GET /metrics`, and nothing else.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{expose, text};
use crate::server::Service;

/// Readers at once; the next one waits.
const READERS: usize = 8;
/// Time for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// Longest life of a connection; scrapers come back.
const LIFETIME: Duration = Duration::from_secs(300);
/// Pause after a failed accept (out of descriptors), which would otherwise spin.
const PAUSE: Duration = Duration::from_millis(100);

/// The address cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for metrics")]
pub struct StartError {
    /// The configured address.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Binds the address and serves until `stop`. Returns the bound address.
pub async fn start(
    address: SocketAddr,
    service: Service,
    stop: CancellationToken,
) -> Result<SocketAddr, StartError> {
    let failed = |source| StartError { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    tracing::info!(address = %bound, "metrics are served");
    tokio::spawn(async move { stop.run_until_cancelled_owned(accept(listener, service)).await });
    Ok(bound)
}

async fn accept(listener: TcpListener, service: Service) -> Infallible {
    let places = Arc::new(Semaphore::new(READERS));
    loop {
        let place = places.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = service.clone();
                tokio::spawn(async move {
                    let _ = timeout(LIFETIME, converse(stream, service)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a reader of metrics");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, service: Service) {
    let answers = service_fn(move |request| answer(request, service.clone()));
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD);
    // A reader that leaves early is no news.
    let _ = server.serve_connection(TokioIo::new(stream), answers).await;
}

async fn answer(request: Request<Incoming>, service: Service) -> Result<Response<Full<Bytes>>, Infallible> {
    let (code, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            let ready = service.engine.readiness().await;
            match tokio::task::spawn_blocking(move || expose::page(&service, &ready)).await {
                Ok(page) => (StatusCode::OK, page),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "only /metrics is here\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    if let Ok(kind) = text::CONTENT_TYPE.parse() {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    Ok(response)
}
