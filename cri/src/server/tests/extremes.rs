//! Requests that are large where nobody expects it: answered in a line, with a code that means something, and nothing left.

use std::time::Duration;

use prost::Message;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::harness::*;
use super::refusals::Raw;
use crate::fields::tests::with_each_text;
use crate::proto::*;
use crate::server::LARGEST_MESSAGE;

/// Sends bytes to a method of either service; what it answers, or the first message of a stream.
async fn send(daemon: &Daemon, path: String, bytes: Vec<u8>, streams: bool) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(daemon.channel.clone()).max_encoding_message_size(usize::MAX);
    client.ready().await.unwrap();
    let mut request = Request::new(Raw(bytes));
    request.set_timeout(Duration::from_secs(30));
    let codec: ProstCodec<Raw, ()> = ProstCodec::default();
    let path = path.parse().unwrap();
    if streams {
        client.server_streaming(request, path, codec).await.map(drop)
    } else {
        client.unary(request, path, codec).await.map(drop)
    }
}

/// What is wrong with an answer to a large request.
fn wrong(what: &str, outcome: &Result<(), Status>) -> Option<String> {
    let status = outcome.as_ref().err()?;
    let text = status.message();
    let clear = !matches!(
        status.code(),
        Code::Unknown | Code::Internal | Code::DataLoss | Code::Unavailable | Code::DeadlineExceeded
    );
    let short = text.len() < 4096 && !text.contains('\n');
    (!clear || !short).then(|| {
        let begin: String = text.chars().take(200).collect();
        format!("{what}: {:?} in {} bytes: {begin}", status.code(), text.len())
    })
}

#[tokio::test]
async fn every_text_of_every_request_may_be_huge_or_hold_a_newline() {
    let mut daemon = Daemon::start().await;
    let mut bad = Vec::new();
    for value in ["x".repeat(256 << 10), "two\nlines\0and \u{7f}more".to_owned()] {
        for (method, way, request) in with_each_text(&value) {
            let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
            let sent = send(&daemon, path, request.encode_to_vec(), method.is_server_streaming()).await;
            bad.extend(wrong(&format!("{} {way}", method.name()), &sent));
        }
    }
    assert_eq!(bad, Vec::<String>::new());
    daemon.settled().await;
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}

#[tokio::test]
async fn ten_thousand_labels_of_a_pod_come_back_in_status_and_list() {
    let mut daemon = Daemon::start().await;
    let mut config = pod_config("many");
    config.labels = (0..10_000).map(|i| (format!("label-{i}"), "v".repeat(60))).collect();
    config.annotations = (0..10_000).map(|i| (format!("note-{i}"), "v".repeat(60))).collect();
    let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    let id = daemon.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
    let mut client = daemon.runtime.clone().max_decoding_message_size(LARGEST_MESSAGE);
    let request = PodSandboxStatusRequest { pod_sandbox_id: id, verbose: false };
    let shown = client.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
    assert_eq!((&shown.labels, &shown.annotations), (&config.labels, &config.annotations));
    let filter = PodSandboxFilter { label_selector: config.labels.clone(), ..Default::default() };
    let listed = client.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await.unwrap();
    assert_eq!(listed.into_inner().items.len(), 1);
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_message_above_the_limit_is_refused_and_the_connection_lives() {
    let daemon = Daemon::start().await;
    let name = "x".repeat(LARGEST_MESSAGE);
    let request = VersionRequest { version: name };
    let path = "/runtime.v1.RuntimeService/Version".to_owned();
    let status = send(&daemon, path.clone(), request.encode_to_vec(), false).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status}");
    send(&daemon, path, Vec::new(), false).await.unwrap();
}

/// Numbers below zero mean what zero means, or are refused by name.
#[tokio::test]
async fn negative_times_and_ports_are_no_surprise() {
    let mut daemon = Daemon::start().await;
    let pod = daemon.pod("p").await;
    let container_id = daemon.container(&pod, "c").await;
    for port in [-1, 0] {
        let forward = PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![port] };
        let status = daemon.runtime.port_forward(forward).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    for timeout in [-1, i64::MIN] {
        let exec = ExecSyncRequest { container_id: container_id.clone(), cmd: vec!["true".into()], timeout };
        daemon.runtime.exec_sync(exec).await.unwrap();
    }
    for timeout in [i64::MIN, -1] {
        let stop = StopContainerRequest { container_id: container_id.clone(), timeout };
        daemon.runtime.stop_container(stop).await.unwrap();
    }
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}
