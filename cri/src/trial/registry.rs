//! A registry endpoint on loopback that serves one image, as the OCI distribution specification v1.1 says (pull part).
//!
//! `GET|HEAD /v2/`, `/v2/<name>/manifests/<tag or digest>`, `/v2/<name>/blobs/<digest>`; blobs honour a single byte
//! range. Tasks spawned: one that accepts, one per connection; all end when [`Registry`] is dropped.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use hyper::http::response::Builder;
use hyper::{Method, Request, Response, StatusCode, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

use super::image::{Blob, Packed};

/// Repository name it answers to.
pub const REPOSITORY: &str = "berth/try";
/// Tag it answers to.
pub const TAG: &str = "latest";

/// A running endpoint; dropping it closes the socket and every connection.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    accepting: AbortHandle,
    served: Arc<Served>,
}

/// What is served, and how often it was asked for.
#[derive(Debug)]
struct Served {
    image: Packed,
    requests: AtomicU64,
}

impl Registry {
    /// Listens on a free port of 127.0.0.1 and serves `image`.
    pub async fn serve(image: Packed) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let served = Arc::new(Served { image, requests: AtomicU64::new(0) });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&served))).abort_handle();
        Ok(Self { address, accepting, served })
    }

    /// The image's reference as a client writes it: `127.0.0.1:<port>/berth/try:latest`.
    pub fn reference(&self) -> String {
        format!("{}/{REPOSITORY}:{TAG}", self.address)
    }

    /// Host and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests answered so far.
    pub fn requests(&self) -> u64 {
        self.served.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Accepts until aborted. Connections belong to the set, so they end together with this task.
async fn accept(listener: TcpListener, served: Arc<Served>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        while connections.try_join_next().is_some() {}
        let served = Arc::clone(&served);
        connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                served.requests.fetch_add(1, Ordering::Relaxed);
                let response = answer(&served.image, &request);
                async move { Ok::<_, Infallible>(response) }
            });
            // A client that breaks off is its own affair.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// What a request path names.
#[derive(Debug, PartialEq, Eq)]
enum Resource<'a> {
    /// `/v2/`: the API version check.
    Version,
    /// A manifest by tag or digest.
    Manifest(&'a str),
    /// A blob by digest.
    Blob(&'a str),
    /// Another repository or no such endpoint.
    Unknown,
}

fn resource(path: &str) -> Resource<'_> {
    let Some(rest) = path.strip_prefix("/v2") else { return Resource::Unknown };
    if rest.is_empty() || rest == "/" {
        return Resource::Version;
    }
    let Some(rest) = rest.strip_prefix('/').and_then(|rest| rest.strip_prefix(REPOSITORY)) else {
        return Resource::Unknown;
    };
    match (rest.strip_prefix("/manifests/"), rest.strip_prefix("/blobs/")) {
        (Some(reference), _) => Resource::Manifest(reference),
        (_, Some(digest)) => Resource::Blob(digest),
        _ => Resource::Unknown,
    }
}

fn answer<B>(image: &Packed, request: &Request<B>) -> Response<Full<Bytes>> {
    let head = request.method() == Method::HEAD;
    if !head && request.method() != Method::GET {
        return failure(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED");
    }
    match resource(request.uri().path()) {
        Resource::Version => {
            content("application/json", Bytes::from_static(b"{}"), head, Response::builder())
        }
        Resource::Manifest(reference) => {
            let digest = if reference == TAG { image.index.as_str() } else { reference };
            match image.manifests.get(digest) {
                Some(blob) => whole(digest, blob, head),
                None => failure(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            }
        }
        Resource::Blob(digest) => match image.blobs.get(digest) {
            Some(blob) => ranged(digest, blob, head, request),
            None => failure(StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
        },
        Resource::Unknown => failure(StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
    }
}

fn whole(digest: &str, blob: &Blob, head: bool) -> Response<Full<Bytes>> {
    content(
        blob.media_type,
        blob.bytes.clone(),
        head,
        Response::builder().header("Docker-Content-Digest", digest),
    )
}

/// A blob, or the part of it that a satisfiable single range asks for (RFC 9110 §14).
fn ranged<B>(digest: &str, blob: &Blob, head: bool, request: &Request<B>) -> Response<Full<Bytes>> {
    let asked = request.headers().get(RANGE).and_then(|value| value.to_str().ok());
    let length = blob.bytes.len();
    let builder = Response::builder().header("Docker-Content-Digest", digest).header(ACCEPT_RANGES, "bytes");
    match asked.map(|text| range(text, length)) {
        None | Some(Asked::Ignored) => content("application/octet-stream", blob.bytes.clone(), head, builder),
        Some(Asked::Part(part)) => {
            let shown = format!("bytes {}-{}/{length}", part.start, part.end - 1);
            let builder = builder.status(StatusCode::PARTIAL_CONTENT).header(CONTENT_RANGE, shown);
            content("application/octet-stream", blob.bytes.slice(part), head, builder)
        }
        Some(Asked::Unsatisfiable) => {
            let builder = builder.status(StatusCode::RANGE_NOT_SATISFIABLE);
            content(
                "text/plain",
                Bytes::new(),
                head,
                builder.header(CONTENT_RANGE, format!("bytes */{length}")),
            )
        }
    }
}

/// How a Range header is to be taken.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Part(Range<usize>),
    Unsatisfiable,
    /// Not a single byte range: the header is ignored and the whole is sent (RFC 9110 §14.2).
    Ignored,
}

fn range(header: &str, length: usize) -> Asked {
    let Some((first, last)) = header.strip_prefix("bytes=").and_then(|spec| spec.split_once('-')) else {
        return Asked::Ignored;
    };
    let part = match (first.parse::<usize>(), last.parse::<usize>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(length),
        (Ok(first), Err(_)) if last.is_empty() => first..length,
        (Err(_), Ok(suffix)) if first.is_empty() => length.saturating_sub(suffix)..length,
        _ => return Asked::Ignored,
    };
    if part.start < part.end { Asked::Part(part) } else { Asked::Unsatisfiable }
}

/// The answer with its length; a HEAD answer has the length and no body.
fn content(media_type: &str, bytes: Bytes, head: bool, builder: Builder) -> Response<Full<Bytes>> {
    let length = bytes.len();
    let body = if head { Bytes::new() } else { bytes };
    builder
        .header(CONTENT_TYPE, media_type)
        .header(CONTENT_LENGTH, length)
        .body(Full::new(body))
        .unwrap_or_else(|_| Response::new(Full::default()))
}

/// An error as the specification words it.
fn failure(status: StatusCode, code: &str) -> Response<Full<Bytes>> {
    let text = format!(r#"{{"errors":[{{"code":"{code}"}}]}}"#);
    content("application/json", text.into(), false, Response::builder().status(status))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::trial::image::{MANIFEST, pack};

    async fn ask(
        image: &Packed,
        method: Method,
        path: &str,
        range: Option<&str>,
    ) -> (StatusCode, usize, Bytes) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        let response = answer(image, &request.body(()).unwrap());
        let status = response.status();
        let length = response.headers()[CONTENT_LENGTH].to_str().unwrap().parse().unwrap();
        (status, length, response.into_body().collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn a_tag_and_its_digest_give_the_same_manifest_and_head_gives_only_its_length() {
        let image = pack(b"x", &[]).unwrap();
        let by_tag = ask(&image, Method::GET, "/v2/berth/try/manifests/latest", None).await;
        let by_digest =
            ask(&image, Method::GET, &format!("/v2/berth/try/manifests/{}", image.index), None).await;
        assert_eq!(by_tag, by_digest);
        let (status, length, body) = ask(&image, Method::HEAD, "/v2/berth/try/manifests/latest", None).await;
        assert_eq!((status, length, body.len()), (StatusCode::OK, by_tag.2.len(), 0));
        assert!(image.manifests.values().any(|blob| blob.media_type == MANIFEST));
    }

    #[tokio::test]
    async fn blobs_come_whole_or_in_the_range_asked_for() {
        let image = pack(b"x", &[]).unwrap();
        let path = format!("/v2/berth/try/blobs/{}", image.id);
        let whole = ask(&image, Method::GET, &path, None).await.2;
        let (status, length, part) = ask(&image, Method::GET, &path, Some("bytes=2-5")).await;
        assert_eq!((status, length, &part[..]), (StatusCode::PARTIAL_CONTENT, 4, &whole[2..6]));
        let (status, ..) = ask(&image, Method::GET, &path, Some("bytes=999999-")).await;
        assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
    }

    #[tokio::test]
    async fn what_is_not_there_and_what_is_not_allowed_is_refused() {
        let image = pack(b"x", &[]).unwrap();
        let missing = format!("/v2/berth/try/blobs/{}", image.index);
        for (method, path, expected) in [
            (Method::GET, "/v2/", StatusCode::OK),
            (Method::GET, "/v2/other/manifests/latest", StatusCode::NOT_FOUND),
            (Method::GET, "/v2/berth/try/manifests/v1", StatusCode::NOT_FOUND),
            (Method::GET, &missing, StatusCode::NOT_FOUND),
            (Method::PUT, "/v2/berth/try/manifests/latest", StatusCode::METHOD_NOT_ALLOWED),
        ] {
            assert_eq!(ask(&image, method, path, None).await.0, expected, "{path}");
        }
    }

    #[test]
    fn a_range_header_is_read_as_rfc_9110_says() {
        for (header, expected) in [
            ("bytes=0-0", Asked::Part(0..1)),
            ("bytes=3-", Asked::Part(3..10)),
            ("bytes=-4", Asked::Part(6..10)),
            ("bytes=5-99", Asked::Part(5..10)),
            ("bytes=10-", Asked::Unsatisfiable),
            ("bytes=-0", Asked::Unsatisfiable),
            ("bytes=0-1,3-4", Asked::Ignored),
            ("bytes=4-2", Asked::Ignored),
            ("lines=0-1", Asked::Ignored),
        ] {
            assert_eq!(range(header, 10), expected, "{header}");
        }
    }

    #[tokio::test]
    async fn the_endpoint_answers_on_loopback_and_goes_away_when_dropped() {
        let registry = Registry::serve(pack(b"x", &[]).unwrap()).await.unwrap();
        let address = registry.address();
        let url = format!("http://{address}/v2/");
        let answer = tokio::task::spawn_blocking(move || crate::trial::inside::fetch(&url)).await.unwrap();
        assert_eq!(answer.unwrap(), "{}");
        assert_eq!(registry.requests(), 1);
        drop(registry);
        tokio::task::yield_now().await;
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
    }
}
