//! Promises of the server, kept over a real socket by a real client; the drivers below the engine are in memory.

mod extremes;
mod fuzz;
mod harness;
pub(crate) mod reads;
mod refusals;

use std::time::{Duration, Instant};

use engine::testing::Act;
use futures_util::StreamExt;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use crate::proto::*;
use harness::*;

#[tokio::test]
async fn all_43_rpcs_are_registered_and_what_is_not_built_names_itself() {
    let daemon = Daemon::start().await;
    let pool = prost_reflect::DescriptorPool::decode(SCHEMA).unwrap();
    let mut unimplemented = Vec::new();
    let mut count = 0;
    for service in pool.services().filter(|s| s.package_name() == "runtime.v1") {
        for method in service.methods() {
            count += 1;
            let mut client = tonic::client::Grpc::new(daemon.channel.clone());
            client.ready().await.unwrap();
            let path = format!("/{}/{}", service.full_name(), method.name()).parse().unwrap();
            let codec: ProstCodec<(), ()> = ProstCodec::default();
            // Unary on our side: a stream answers its first message, or ends.
            let mut request = Request::new(());
            request.set_timeout(Duration::from_secs(5));
            let code = if method.is_server_streaming() {
                client.server_streaming(request, path, codec).await.map(drop).err()
            } else {
                client.unary(request, path, codec).await.map(drop).err()
            };
            if let Some(status) = code.filter(|s| s.code() == Code::Unimplemented) {
                assert!(status.message().contains(method.name()), "{} is silent", method.name());
                unimplemented.push(method.name().to_owned());
            }
        }
    }
    assert_eq!(count, 43);
    assert_eq!(unimplemented, ["CheckpointContainer", "CheckpointPod", "RestorePod"]);
}

#[tokio::test]
async fn a_pod_and_its_container_go_their_whole_way() {
    let mut daemon = Daemon::start().await;
    let pod = daemon.pod("web").await;
    let status = PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
    let answer = daemon.runtime.pod_sandbox_status(status).await.unwrap().into_inner();
    let shown = answer.status.unwrap();
    assert_eq!(shown.state(), PodSandboxState::SandboxReady);
    assert!(shown.created_at > 0 && answer.timestamp > 0 && !shown.network.unwrap().ip.is_empty());
    assert_eq!(shown.annotations["note"], "kept");
    assert_eq!(shown.linux.unwrap().namespaces.unwrap().options, Some(NamespaceOption::default()));
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    assert_eq!(info["config"]["name"], "web");

    let container = daemon.container(&pod, "app").await;
    let status = ContainerStatusRequest { container_id: container.clone(), verbose: true };
    let answer = daemon.runtime.container_status(status.clone()).await.unwrap().into_inner();
    let shown = answer.status.unwrap();
    assert_eq!(shown.state(), ContainerState::ContainerRunning);
    assert_eq!(shown.stop_signal(), Signal::Sigusr1);
    assert_eq!((shown.image.unwrap().image.as_str(), shown.mounts.len()), (IMAGE, 0));
    assert!(shown.started_at > 0 && shown.image_id.starts_with("sha256:") && shown.resources.is_some());
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    assert_eq!(info["sandboxID"], pod.as_str());

    daemon.node.world.end(&container, 3);
    let stop = StopContainerRequest { container_id: container.clone(), timeout: 1 };
    daemon.runtime.stop_container(stop).await.unwrap();
    let shown = daemon.runtime.container_status(status).await.unwrap().into_inner().status.unwrap();
    assert_eq!((shown.state(), shown.exit_code), (ContainerState::ContainerExited, 3));
    assert_eq!(shown.reason, "Error");
    assert!(shown.finished_at > 0);
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_absent_gives_the_code_the_kubelet_expects() {
    let mut daemon = Daemon::start().await;
    let pod = || "absent".to_owned();
    let (r, i) = (&mut daemon.runtime, &mut daemon.images);
    // Stop and Remove of what is not there succeed.
    r.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod() }).await.unwrap();
    r.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod() }).await.unwrap();
    r.stop_container(StopContainerRequest { container_id: pod(), timeout: 0 }).await.unwrap();
    r.remove_container(RemoveContainerRequest { container_id: pod() }).await.unwrap();
    let image = || Some(ImageSpec { image: "absent:1".into(), ..Default::default() });
    i.remove_image(RemoveImageRequest { image: image() }).await.unwrap();
    let status = ImageStatusRequest { image: image(), verbose: true };
    assert_eq!(i.image_status(status).await.unwrap().into_inner().image, None);
    // Everything else says NotFound.
    let exec = ExecSyncRequest { container_id: pod(), cmd: vec!["true".into()], timeout: 0 };
    let create = CreateContainerRequest {
        pod_sandbox_id: pod(),
        config: Some(container_config("c")),
        sandbox_config: None,
    };
    let status = PodSandboxStatusRequest { pod_sandbox_id: pod(), verbose: false };
    let exec_url =
        ExecRequest { container_id: pod(), cmd: vec!["sh".into()], stdout: true, ..Default::default() };
    let attach = AttachRequest { container_id: pod(), stdout: true, ..Default::default() };
    let forward = PortForwardRequest { pod_sandbox_id: pod(), port: vec![80] };
    let update = UpdateContainerResourcesRequest { container_id: pod(), ..Default::default() };
    let resize = UpdatePodSandboxResourcesRequest { pod_sandbox_id: pod(), ..Default::default() };
    let codes = [
        r.pod_sandbox_status(status).await.map(drop),
        r.container_status(ContainerStatusRequest { container_id: pod(), verbose: false }).await.map(drop),
        r.create_container(create).await.map(drop),
        r.start_container(StartContainerRequest { container_id: pod() }).await.map(drop),
        r.exec_sync(exec).await.map(drop),
        r.exec(exec_url).await.map(drop),
        r.attach(attach).await.map(drop),
        r.port_forward(forward).await.map(drop),
        r.reopen_container_log(ReopenContainerLogRequest { container_id: pod() }).await.map(drop),
        r.update_container_resources(update).await.map(drop),
        r.update_pod_sandbox_resources(resize).await.map(drop),
        r.container_stats(ContainerStatsRequest { container_id: pod() }).await.map(drop),
        r.pod_sandbox_stats(PodSandboxStatsRequest { pod_sandbox_id: pod() }).await.map(drop),
    ];
    for (n, result) in codes.into_iter().enumerate() {
        let status = result.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "call {n}: {status}");
        assert!(status.message().contains("absent"), "call {n}: {status}");
    }
}

#[tokio::test]
async fn lists_are_filtered_by_every_field_at_once_and_stream_the_same() {
    let mut daemon = Daemon::start().await;
    let (a, b) = (daemon.pod("a").await, daemon.pod("b").await);
    let (c, d) = (daemon.container(&a, "c").await, daemon.container(&b, "d").await);
    let label = |k: &str, v: &str| [(k.to_owned(), v.to_owned())].into();
    let pods = [
        (PodSandboxFilter::default(), vec![&a, &b]),
        (PodSandboxFilter { id: a[..13].into(), ..Default::default() }, vec![&a]),
        (PodSandboxFilter { label_selector: label("pod", "b"), ..Default::default() }, vec![&b]),
        (PodSandboxFilter { id: a.clone(), label_selector: label("pod", "b"), ..Default::default() }, vec![]),
        (PodSandboxFilter { state: Some(PodSandboxStateValue { state: 1 }), ..Default::default() }, vec![]),
    ];
    for (filter, expected) in pods {
        let unary = ListPodSandboxRequest { filter: Some(filter.clone()) };
        let items = daemon.runtime.list_pod_sandbox(unary).await.unwrap().into_inner().items;
        let mut ids: Vec<&String> = items.iter().map(|p| &p.id).collect();
        ids.sort();
        let mut expected = expected;
        expected.sort();
        assert_eq!(ids, expected);
        let stream = StreamPodSandboxesRequest { filter: Some(filter) };
        let mut stream = daemon.runtime.stream_pod_sandboxes(stream).await.unwrap().into_inner();
        let mut streamed = Vec::new();
        while let Some(message) = stream.next().await {
            let message = message.unwrap();
            assert!(!message.pod_sandboxes.is_empty());
            streamed.extend(message.pod_sandboxes);
        }
        assert_eq!(streamed, items);
    }
    let containers = [
        (ContainerFilter { pod_sandbox_id: b.clone(), ..Default::default() }, vec![&d]),
        (ContainerFilter { label_selector: label("container", "c"), ..Default::default() }, vec![&c]),
        (ContainerFilter { state: Some(ContainerStateValue { state: 2 }), ..Default::default() }, vec![]),
    ];
    for (filter, expected) in containers {
        let list = ListContainersRequest { filter: Some(filter) };
        let shown = daemon.runtime.list_containers(list).await.unwrap().into_inner().containers;
        assert_eq!(shown.iter().map(|c| &c.id).collect::<Vec<_>>(), expected);
    }
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}

#[tokio::test]
async fn an_identifier_of_an_image_is_the_same_everywhere() {
    let mut daemon = Daemon::start().await;
    let image = ImageSpec { image: "example.org/other:2".into(), ..Default::default() };
    let pull = PullImageRequest { image: Some(image.clone()), ..Default::default() };
    let pulled = daemon.images.pull_image(pull).await.unwrap().into_inner().image_ref;
    let status = ImageStatusRequest { image: Some(image.clone()), verbose: true };
    let answer = daemon.images.image_status(status).await.unwrap().into_inner();
    assert_eq!(answer.image.unwrap().id, pulled);
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    assert_eq!(info["imageSpec"]["config"]["WorkingDir"], "/srv");
    let filter = Some(ImageFilter { image: Some(image.clone()) });
    let listed = daemon.images.list_images(ListImagesRequest { filter }).await.unwrap().into_inner().images;
    assert_eq!(listed.iter().map(|i| &i.id).collect::<Vec<_>>(), [&pulled]);
    let all = daemon.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!(all.len(), 2);
    let fs = daemon.images.image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(fs.container_filesystems, [], "what containers write is not kept apart");
    let fs = &fs.image_filesystems[0];
    assert!(fs.timestamp > 0 && fs.used_bytes.is_some() && fs.inodes_used.is_some());
    assert!(std::path::Path::new(&fs.fs_id.as_ref().unwrap().mountpoint).is_dir());
    daemon.images.remove_image(RemoveImageRequest { image: Some(image.clone()) }).await.unwrap();
    let status = ImageStatusRequest { image: Some(image), verbose: false };
    assert_eq!(daemon.images.image_status(status).await.unwrap().into_inner().image, None);
}

#[tokio::test]
async fn an_image_volume_shows_the_identifier_of_its_image() {
    let mut daemon = Daemon::start().await;
    let pod_sandbox_id = daemon.pod("p").await;
    let image = ImageSpec { image: IMAGE.into(), ..Default::default() };
    let mut config = container_config("c");
    let mount = Mount {
        container_path: "/data".into(),
        readonly: true,
        image: Some(image.clone()),
        ..Default::default()
    };
    config.mounts = vec![mount];
    let create = CreateContainerRequest { pod_sandbox_id, config: Some(config), sandbox_config: None };
    let container_id = daemon.runtime.create_container(create).await.unwrap().into_inner().container_id;
    let status = ContainerStatusRequest { container_id, verbose: false };
    let status = daemon.runtime.container_status(status).await.unwrap().into_inner().status.unwrap();
    let pull = PullImageRequest { image: Some(image), ..Default::default() };
    let pulled = daemon.images.pull_image(pull).await.unwrap().into_inner().image_ref;
    assert_eq!(status.mounts[0].image.as_ref().unwrap().image_ref, pulled);
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}

#[tokio::test]
async fn status_is_complete_and_does_not_wait_for_a_hanging_pod() {
    let mut daemon = Daemon::start().await;
    daemon.node.script.on("attach", [Act::Hang]);
    let mut other = daemon.runtime.clone();
    let request = RunPodSandboxRequest { config: Some(pod_config("slow")), ..Default::default() };
    let running = tokio::spawn(async move { other.run_pod_sandbox(request).await });
    daemon.node.script.hanging().await;
    let status = daemon.runtime.status(StatusRequest { verbose: true }).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    assert_eq!(
        conditions.iter().map(|c| c.r#type.as_str()).collect::<Vec<_>>(),
        ["RuntimeReady", "NetworkReady"]
    );
    assert!(conditions.iter().all(|c| c.status));
    assert_eq!(status.runtime_handlers.iter().map(|h| h.name.as_str()).collect::<Vec<_>>(), ["", "fake"]);
    assert!(status.features.unwrap().supplemental_groups_policy);
    let config: serde_json::Value = serde_json::from_str(&status.info["config"]).unwrap();
    assert_eq!(config["stateDir"], daemon.node.config.state.to_str().unwrap());
    let quiet = daemon.runtime.status(StatusRequest { verbose: false }).await.unwrap().into_inner();
    assert!(quiet.info.is_empty());
    let list = daemon.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
    assert_eq!(list.into_inner().items, []);
    daemon.node.script.release();
    running.await.unwrap().unwrap();
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}

#[tokio::test]
async fn the_callers_deadline_ends_the_call_and_leaves_nothing() {
    let mut daemon = Daemon::start().await;
    daemon.node.script.on("attach", [Act::Hang]);
    let request = RunPodSandboxRequest { config: Some(pod_config("late")), ..Default::default() };
    // Past the transport, whose client side would give up by itself.
    let deadline = Instant::now() + Duration::from_millis(50);
    let error = super::run_pod_sandbox::handle(&daemon.service, request, Some(deadline)).await.unwrap_err();
    assert_eq!(super::edge::code(error.kind()), Code::DeadlineExceeded, "{error}");
    daemon.node.script.release();
    daemon.settled().await;
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}

#[tokio::test]
async fn events_carry_the_complete_pod() {
    let mut daemon = Daemon::start().await;
    let mut events = daemon.runtime.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
    let pod = daemon.pod("told").await;
    let container = daemon.container(&pod, "c").await;
    daemon.node.world.end(&container, 0);
    let mut seen = Vec::new();
    while !seen.contains(&(container.clone(), ContainerEventType::ContainerStoppedEvent)) {
        let event = events.next().await.unwrap().unwrap();
        let status = event.pod_sandbox_status.as_ref().unwrap();
        assert_eq!(status.metadata.as_ref().unwrap().name, "told");
        assert!(event.created_at > 0);
        if event.container_id == container {
            assert!(event.containers_statuses.iter().any(|c| c.id == container));
        }
        seen.push((event.container_id.clone(), event.container_event_type()));
    }
    use ContainerEventType::*;
    let of = |id: &String| seen.iter().filter(|(i, _)| i == id).map(|(_, e)| *e).collect::<Vec<_>>();
    assert_eq!(of(&container), [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent]);
    assert_eq!(of(&pod), [ContainerCreatedEvent, ContainerStartedEvent]);
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}

#[tokio::test]
async fn statistics_are_found_by_id_and_label() {
    let mut daemon = Daemon::start().await;
    let pod = daemon.pod("p").await;
    let container = daemon.container(&pod, "c").await;
    let one = ContainerStatsRequest { container_id: container.clone() };
    let one = daemon.runtime.container_stats(one).await.unwrap().into_inner().stats.unwrap();
    assert_eq!(one.attributes.unwrap().id, container);
    let labels = [("container".to_owned(), "nobody".to_owned())].into();
    for (filter, count) in [
        (None, 1),
        (Some(ContainerStatsFilter { pod_sandbox_id: pod.clone(), ..Default::default() }), 1),
        (Some(ContainerStatsFilter { label_selector: labels, ..Default::default() }), 0),
    ] {
        let list = ListContainerStatsRequest { filter };
        let stats = daemon.runtime.list_container_stats(list).await.unwrap().into_inner().stats;
        assert_eq!(stats.len(), count);
    }
    let one = PodSandboxStatsRequest { pod_sandbox_id: pod.clone() };
    let one = daemon.runtime.pod_sandbox_stats(one).await.unwrap().into_inner().stats.unwrap();
    assert_eq!(one.linux.unwrap().containers.len(), 1);
    let metrics = daemon.runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await.unwrap();
    assert_eq!(metrics.into_inner().pod_metrics[0].pod_sandbox_id, pod);
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_large_request_is_taken_and_a_larger_one_is_refused() {
    let mut daemon = Daemon::start().await;
    let with = |count: usize| {
        let mut config = pod_config("large");
        config.labels = (0..count).map(|i| (format!("label-{i}"), "v".repeat(1000))).collect();
        RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() }
    };
    let pod = daemon.runtime.run_pod_sandbox(with(10_000)).await.unwrap().into_inner().pod_sandbox_id;
    let list = daemon.runtime.clone().max_decoding_message_size(super::LARGEST_MESSAGE);
    let items = { list }.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().into_inner().items;
    assert_eq!((items[0].id.as_str(), items[0].labels.len()), (pod.as_str(), 10_000));
    let status = daemon.runtime.run_pod_sandbox(with(20_000)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    for pod_sandbox_id in [pod] {
        daemon.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await.unwrap();
    }
    assert_eq!(daemon.node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn exec_and_attach_hand_out_urls_for_running_containers_only() {
    let mut daemon = Daemon::start().await;
    let pod = daemon.pod("p").await;
    let container = daemon.container(&pod, "c").await;
    let exec = |container_id: &str, tty: bool, stderr: bool| ExecRequest {
        container_id: container_id.into(),
        cmd: vec!["sh".into()],
        tty,
        stdout: true,
        stderr,
        ..Default::default()
    };
    let url = daemon.runtime.exec(exec(&container, false, true)).await.unwrap().into_inner().url;
    assert!(url.starts_with("http://127.0.0.1:") && url.contains("/exec/"), "{url}");
    let status = daemon.runtime.exec(exec(&container, true, true)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "tty and stderr: {status}");
    daemon.node.world.end(&container, 0);
    let stop = StopContainerRequest { container_id: container.clone(), timeout: 1 };
    daemon.runtime.stop_container(stop).await.unwrap();
    let status = daemon.runtime.exec(exec(&container, false, true)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    let attach = AttachRequest { container_id: container, stdout: true, ..Default::default() };
    assert_eq!(daemon.runtime.attach(attach).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}

#[tokio::test]
async fn the_daemons_own_numbers_are_served_for_prometheus() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut daemon = Daemon::start().await;
    let pod = daemon.pod("p").await;
    daemon.runtime.version(VersionRequest::default()).await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let address = "127.0.0.1:0".parse().unwrap();
    let address =
        crate::telemetry::server::start(address, daemon.service.clone(), stop.clone()).await.unwrap();
    let get = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let page = get("/metrics").await;
    for line in [
        "content-type: text/plain; version=0.0.4",
        "berth_rpc_answers_total{rpc=\"Version\",code=\"Ok\"} 1",
        "berth_job_duration_seconds_count{job=\"RunPodSandbox\"} 1",
        "berth_job_step_duration_seconds_count{job=\"RunPodSandbox\",step=\"attach network\"} 1",
        "berth_pods{state=\"ready\"} 1",
        "berth_ready{condition=\"network\"} 1",
    ] {
        assert!(page.lines().any(|found| found.starts_with(line)), "{line} is not in {page}");
    }
    assert!(get("/").await.starts_with("HTTP/1.1 404 "));
    stop.cancel();
    daemon.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod }).await.unwrap();
    assert_eq!(daemon.node.left(), Vec::<String>::new());
}
