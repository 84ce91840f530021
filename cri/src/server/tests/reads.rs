//! Fields of requests that only a running service can answer: each is sent alone, and the answer must show it.

use super::harness::*;
use crate::proto::*;

/// Message and field, as the table of fields has them.
pub(crate) const ROWS: [(&str, &str); 10] = [
    ("StatusRequest", "verbose"),
    ("PodSandboxStatusRequest", "pod_sandbox_id"),
    ("PodSandboxStatusRequest", "verbose"),
    ("ContainerStatusRequest", "container_id"),
    ("ContainerStatusRequest", "verbose"),
    ("ContainerStatsRequest", "container_id"),
    ("PodSandboxStatsRequest", "pod_sandbox_id"),
    ("ImageStatusRequest", "image"),
    ("ImageStatusRequest", "verbose"),
    ("VersionRequest", "version"),
];

/// The answer to a request whose field is set, or not, in words.
async fn answer(daemon: &mut Daemon, row: (&str, &str), set: bool, ids: &[String; 2]) -> String {
    let [pod, container] = ids.clone();
    let id = |id: String| if set { id } else { "absent".to_owned() };
    let image = || Some(ImageSpec { image: IMAGE.into(), ..Default::default() });
    let (r, i) = (&mut daemon.runtime, &mut daemon.images);
    match row {
        ("StatusRequest", "verbose") => {
            let answer = r.status(StatusRequest { verbose: set }).await.unwrap().into_inner();
            format!("{:?}", answer.info.keys())
        }
        ("PodSandboxStatusRequest", field) => {
            let named = field == "pod_sandbox_id";
            let request = PodSandboxStatusRequest {
                pod_sandbox_id: if named { id(pod) } else { pod },
                verbose: !named && set,
            };
            let answer = r.pod_sandbox_status(request).await.map(tonic::Response::into_inner);
            format!("{:?}", answer.map(|a| a.info.len()).map_err(|e| e.code()))
        }
        ("ContainerStatusRequest", field) => {
            let named = field == "container_id";
            let request = ContainerStatusRequest {
                container_id: if named { id(container) } else { container },
                verbose: !named && set,
            };
            let answer = r.container_status(request).await.map(tonic::Response::into_inner);
            format!("{:?}", answer.map(|a| a.info.len()).map_err(|e| e.code()))
        }
        ("ContainerStatsRequest", _) => {
            let answer = r.container_stats(ContainerStatsRequest { container_id: id(container) }).await;
            format!("{:?}", answer.map(drop).map_err(|e| e.code()))
        }
        ("PodSandboxStatsRequest", _) => {
            let answer = r.pod_sandbox_stats(PodSandboxStatsRequest { pod_sandbox_id: id(pod) }).await;
            format!("{:?}", answer.map(drop).map_err(|e| e.code()))
        }
        ("ImageStatusRequest", field) => {
            let (image, verbose) = if field == "image" {
                (
                    if set {
                        image()
                    } else {
                        Some(ImageSpec { image: "absent:1".into(), ..Default::default() })
                    },
                    false,
                )
            } else {
                (image(), set)
            };
            let answer = i.image_status(ImageStatusRequest { image, verbose }).await.unwrap().into_inner();
            format!("{} {}", answer.image.is_some(), answer.info.len())
        }
        ("VersionRequest", _) => {
            let version = if set { "0.1.0".to_owned() } else { String::new() };
            format!("{:?}", r.version(VersionRequest { version }).await.unwrap().into_inner())
        }
        row => panic!("nobody sends {row:?}"),
    }
}

/// What ListContainerStats shows, and what ListPodSandboxStats shows: ids, sorted; of pods with those of the containers in them. A pod that
/// was not read yet has no interfaces.
async fn listed(daemon: &mut Daemon) -> (Vec<String>, Vec<(String, Vec<String>)>) {
    let id = |stats: &ContainerStats| stats.attributes.clone().unwrap().id;
    let all = ListContainerStatsRequest::default();
    let all = daemon.runtime.list_container_stats(all).await.unwrap().into_inner().stats;
    let mut containers: Vec<String> = all.iter().map(id).collect();
    let all = ListPodSandboxStatsRequest::default();
    let all = daemon.runtime.list_pod_sandbox_stats(all).await.unwrap().into_inner().stats;
    let pod = |stats: &PodSandboxStats| {
        let linux = stats.linux.clone().unwrap();
        if let Some(interface) = linux.network.and_then(|network| network.default_interface) {
            assert_eq!(interface.name, "eth0");
        }
        (stats.attributes.clone().unwrap().id, linux.containers.iter().map(id).collect())
    };
    let mut pods: Vec<_> = all.iter().map(pod).collect();
    containers.sort();
    pods.sort();
    (containers, pods)
}

/// Asks until every pod has numbers.
async fn read(daemon: &mut Daemon) {
    let has = |stats: &PodSandboxStats| {
        let network = stats.linux.as_ref().and_then(|linux| linux.network.as_ref());
        network.is_some_and(|network| network.default_interface.is_some())
    };
    let all = async {
        while !daemon
            .runtime
            .list_pod_sandbox_stats(ListPodSandboxStatsRequest::default())
            .await
            .unwrap()
            .into_inner()
            .stats
            .iter()
            .all(has)
        {}
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), all).await.unwrap();
}

#[tokio::test]
async fn lists_of_statistics_show_what_is_there_now_however_fast_they_are_asked_for() {
    let mut daemon = Daemon::start().await;
    let (mut containers, mut pods) = (Vec::new(), Vec::new());
    for name in ["a", "b", "c"] {
        let pod = daemon.pod(name).await;
        let container = daemon.container(&pod, "c").await;
        containers.push(container.clone());
        pods.push((pod, vec![container]));
        containers.sort();
        pods.sort();
        // The first calls are read for, and those that follow fast are read ahead of.
        for _ in 0..10 {
            assert_eq!(listed(&mut daemon).await, (containers.clone(), pods.clone()));
        }
        read(&mut daemon).await;
    }
    let (pod, ended) = (pods[0].0.clone(), pods[0].1.remove(0));
    let stop = StopContainerRequest { container_id: ended.clone(), timeout: 1 };
    daemon.runtime.stop_container(stop).await.unwrap();
    assert_eq!(
        listed(&mut daemon).await,
        (containers.clone(), pods.clone()),
        "it is listed, and runs no more"
    );
    let gone = pods.remove(1);
    let remove = RemovePodSandboxRequest { pod_sandbox_id: gone.0 };
    daemon.runtime.remove_pod_sandbox(remove).await.unwrap();
    containers.retain(|container| *container != gone.1[0]);
    assert_eq!(listed(&mut daemon).await, (containers.clone(), pods.clone()));
    daemon.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod }).await.unwrap();
    pods.remove(0);
    assert_eq!(listed(&mut daemon).await, (containers, pods), "only ready pods have statistics");
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}

#[tokio::test]
async fn each_field_of_a_read_alone_changes_the_answer_unless_it_is_informational() {
    let mut daemon = Daemon::start().await;
    let pod = daemon.pod("p").await;
    let ids = [pod.clone(), daemon.container(&pod, "c").await];
    for row in ROWS {
        let without = answer(&mut daemon, row, false, &ids).await;
        let with = answer(&mut daemon, row, true, &ids).await;
        assert_eq!(with != without, row.0 != "VersionRequest", "{row:?}: {without} and {with}");
    }
    assert_eq!(daemon.clean().await, Vec::<String>::new());
}

#[tokio::test]
async fn the_kubelet_is_told_the_cgroup_driver_in_use_and_parents_of_the_other_are_refused() {
    use engine::exec::cgroup::CgroupDriver as Driver;
    for (driver, told, named, wrong) in [
        (Driver::Cgroupfs, CgroupDriver::Cgroupfs, "cgroupfs", "/kubepods.slice/kubepods-pod1.slice"),
        (Driver::Systemd, CgroupDriver::Systemd, "systemd", "/kubepods/pod1"),
    ] {
        let change = |config: &mut engine::Config| {
            config.cgroup_driver = driver;
            if driver == Driver::Systemd {
                config.cgroup_parent = "/berth.slice".into();
            }
        };
        let mut daemon = Daemon::with(change).await;
        let answer = daemon.runtime.runtime_config(RuntimeConfigRequest {}).await.unwrap().into_inner();
        assert_eq!(answer.linux.unwrap().cgroup_driver(), told);
        let status = daemon.runtime.status(StatusRequest { verbose: true }).await.unwrap().into_inner();
        assert!(
            status.info["config"].contains(&format!("\"cgroupDriver\":\"{named}\"")),
            "{:?}",
            status.info
        );
        let mut config = pod_config("wrong");
        config.linux.get_or_insert_default().cgroup_parent = wrong.into();
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let refused = daemon.runtime.run_pod_sandbox(request).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().contains("cgroup_parent"), "{}", refused.message());
        daemon.pod("right").await;
    }
}
