//! The engine on the real drivers: pods with addresses, containers with processes. Needs root and busybox-static.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod house;

use std::time::Duration;

use engine::api::{ContainerState, PodState};
use engine::jobs::{CreateContainer, ExecSync, RemoveContainer, ReopenLog, StartContainer, StopContainer};
use engine::jobs::{StopPod, UpdateContainerResources};
use engine::spec::{MountSpec, NamespaceMode, Resources};
use engine::{Engine, Kind};
use house::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Waits for a container's end by the engine's events.
async fn end(engine: &Engine, id: &str) -> i32 {
    let mut events = engine.events();
    let wait = async {
        while engine.container(id).unwrap().state != ContainerState::Exited {
            events.recv().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
    engine.container(id).unwrap().exit.clone().unwrap().code
}

fn exec(container: &str, script: &str) -> ExecSync {
    let command = ["/bin/sh", "-c", script].map(Into::into).into();
    ExecSync { container: container.into(), command, timeout: Some(Duration::from_secs(20)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job() {
    let house = House::new();
    let engine = house.engine().await;
    let pod = run_pod(&engine, house.pod("web")).await;
    let view = engine.pod(&pod).unwrap();
    assert_eq!((view.state, view.ips.is_empty()), (PodState::Ready, false));

    let script = "echo hello; echo content > /tmp/index.html; exec httpd -f -p 8080 -h /tmp";
    let id = start(&engine, &pod, house.shell("app", script)).await;
    let output = ok(engine.run(exec(&id, "hostname; cat /etc/hosts | tail -1; exit 4"), None).await);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!((text.lines().next(), output.code), (Some("web"), 4), "{text}");
    assert!(text.contains(&view.ips[0].to_string()), "{text}");

    // From the node, by the pod's address; and through port-forward.
    let get = "while ! wget -q -O - http://127.0.0.1:8080/; do :; done";
    assert_eq!(ok(engine.run(exec(&id, get), None).await).stdout, b"content\n");
    let request = b"GET / HTTP/1.0\r\n\r\n";
    let mut streams: Vec<Box<dyn engine::api::Stream>> = vec![ok(engine.port_forward(&pod, 8080).await)];
    streams.push(Box::new(tokio::net::TcpStream::connect((view.ips[0], 8080)).await.unwrap()));
    for mut stream in streams {
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("content\n"), "{answer}");
    }

    // A second pod talks to the first.
    let other = run_pod(&engine, house.pod("client")).await;
    let fetch = format!("wget -q -O - http://{}:8080/", view.ips[0]);
    let client = start(&engine, &other, house.shell("fetch", &fetch)).await;
    assert_eq!(end(&engine, &client).await, 0);
    assert_eq!(house.log("client", "fetch"), "stdout F content\n");
    assert_eq!(house.log("web", "app"), "stdout F hello\n");

    let stats = ok(engine.pod_stats(&pod).await);
    assert!(stats.network.iter().any(|i| i.name == "eth0" && i.rx[0] > 0), "{:?}", stats.network);
    assert!(stats.containers[0].cgroup.memory.unwrap()[0] > 0 && stats.cgroup.cpu.unwrap()[0] > 0);
    let again = ok(engine.container_stats(&id).await);
    assert!(again.cgroup.nano_cores.is_some());

    let grace = Duration::from_secs(10);
    ok(engine.run(StopContainer { container: id.clone(), grace }, None).await);
    assert_eq!(engine.container(&id).unwrap().state, ContainerState::Exited);
    ok(engine.run(StopPod { pod: pod.clone() }, None).await);
    assert_eq!(engine.pod(&pod).unwrap().state, PodState::NotReady);
    house.close(engine).await;
}

/// The node's mount table is what every mount, every umount and every look at it pays for.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_adds_at_most_one_entry_to_the_nodes_mount_table_and_a_container_none() {
    let house = House::new();
    let engine = house.engine().await;
    for name in ["one", "two"] {
        let before = house.mount_table();
        let mut spec = house.pod(name);
        spec.security.privileged = true;
        let pod = run_pod(&engine, spec).await;
        let with_pod = house.mount_table();
        let added: Vec<_> = with_pod.difference(&before).collect();
        assert!(added.len() <= 1 && before.is_subset(&with_pod), "{added:?}");
        for (kind, volume, privileged) in
            [("plain", false, false), ("volume", true, false), ("privileged", true, true)]
        {
            let mut spec = house.shell(kind, "exec sleep 1000");
            let data =
                MountSpec { container_path: "/srv".into(), host_path: house.data(), ..MountSpec::default() };
            spec.mounts = Some(data).filter(|_| volume).into_iter().collect();
            spec.security.privileged = privileged;
            let id = ok(engine.run(CreateContainer { pod: pod.clone(), spec }, None).await);
            assert_eq!(house.mount_table(), with_pod, "{kind}: created");
            ok(engine.run(StartContainer { container: id.clone() }, None).await);
            let inside = ok(engine.run(exec(&id, "cat /proc/self/mountinfo"), None).await).stdout;
            assert!(String::from_utf8_lossy(&inside).lines().count() > 5, "{kind}: mounts of its own");
            assert_eq!(house.mount_table(), with_pod, "{kind}: running");
        }
    }
    house.close(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_was_killed_finds_everything_again() {
    let house = House::new();
    let engine = house.engine().await;
    let mut ids = Vec::new();
    for name in ["one", "two", "three"] {
        let pod = run_pod(&engine, house.pod(name)).await;
        let count = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); echo $i; sleep 0.01; done";
        let counter = start(&engine, &pod, house.shell("count", count)).await;
        let ending =
            start(&engine, &pod, house.shell("ending", "cat > /dev/null < /tmp/go-$(hostname); exit 42"))
                .await;
        ids.push((pod, counter, ending));
    }
    drop(engine);
    let engine = house.engine().await;
    for (pod, counter, _) in &ids {
        assert_eq!(engine.pod(pod).unwrap().state, PodState::Ready);
        assert_eq!(engine.container(counter).unwrap().state, ContainerState::Running);
    }
    for (pod, counter, ending) in &ids {
        // The fifo was never made: the script ended at once, while nobody looked.
        let _ = pod;
        assert_ne!(end(&engine, ending).await, 255);
        assert!(engine.container(ending).unwrap().exit.clone().unwrap().at > 0);
        ok(engine.run(StopContainer { container: counter.clone(), grace: Duration::ZERO }, None).await);
        assert_eq!(engine.container(counter).unwrap().exit.clone().unwrap().code, 137);
    }
    for name in ["one", "two", "three"] {
        let log = house.log(name, "count");
        let whole = log.lines().enumerate().all(|(n, line)| line == format!("stdout F {}", n + 1));
        assert!(whole, "no line is lost");
    }
    house.close(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_is_in_force() {
    let house = House::new();
    let engine = house.engine().await;
    let pod = run_pod(&engine, house.pod("web")).await;
    let data = house.dir.join("data");
    std::fs::create_dir(&data).unwrap();
    let mut spec = house.shell("app", "exec sleep 1000");
    spec.mounts = vec![MountSpec {
        container_path: "/data".into(),
        host_path: data.clone(),
        readonly: true,
        ..MountSpec::default()
    }];
    spec.security.user.username = "app".into();
    spec.resources.memory_limit = 64 << 20;
    let id = start(&engine, &pod, spec).await;
    let run = async |script: &str| {
        let output = ok(engine.run(exec(&id, script), None).await);
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    assert_eq!(run("id -u; echo $HOME; echo $HOSTNAME").await, "1000\n/home/app\nweb\n");
    assert!(run("touch /data/x").await.contains("Read-only"));
    std::fs::write(data.join("y"), "seen").unwrap();
    assert_eq!(run("cat /data/y").await, "seen");

    let resources = Resources { memory_limit: 32 << 20, ..Resources::default() };
    let update =
        UpdateContainerResources { container: id.clone(), resources, annotations: Default::default() };
    ok(engine.run(update, None).await);
    assert_eq!(ok(engine.container_stats(&id).await).cgroup.memory_limit, Some(32 << 20));
    assert_eq!(engine.container(&id).unwrap().resources.memory_limit, 32 << 20);

    let log = house.dir.join("logs/web/app/0.log");
    std::fs::rename(&log, log.with_extension("old")).unwrap();
    ok(engine.run(ReopenLog { container: id.clone() }, None).await);
    assert!(log.exists());
    ok(engine.run(RemoveContainer { container: id }, None).await);
    house.close(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_named_and_leaves_nothing() {
    let house = House::new();
    let engine = house.engine().await;
    let pod = run_pod(&engine, house.pod("web")).await;
    let mut spec = house.shell("missing", "");
    spec.command = vec!["/no/such/command".into()];
    let id = ok(engine.run(CreateContainer { pod: pod.clone(), spec }, None).await);
    let error = engine.run(StartContainer { container: id.clone() }, None).await.unwrap_err();
    assert!(error.chain().contains("/no/such/command"), "{}", error.chain());
    assert_eq!(engine.container(&id).unwrap().reason, "StartError");

    let mut spec = house.shell("log", "true");
    spec.log_path = "x/y.log".into();
    std::fs::create_dir_all(house.dir.join("logs/web")).unwrap();
    std::fs::write(house.dir.join("logs/web/x"), "a file").unwrap();
    let id = ok(engine.run(CreateContainer { pod: pod.clone(), spec }, None).await);
    let error = engine.run(StartContainer { container: id }, None).await.unwrap_err();
    assert!(error.chain().contains("x/y.log"), "{}", error.chain());

    let error = engine.port_forward(&pod, 9).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Unavailable);
    house.close(engine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timed_out_exec_and_its_children_are_gone() {
    let house = House::new();
    let engine = house.engine().await;
    let mut spec = house.pod("web");
    spec.security.namespaces.pid = NamespaceMode::Pod;
    let pod = run_pod(&engine, spec).await;
    let id = start(&engine, &pod, house.shell("app", "exec sleep 1000")).await;
    let mut job = exec(&id, "sleep 4242 & sleep 4242");
    job.timeout = Some(Duration::from_millis(100));
    let error = engine.run(job, None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    house.close(engine).await;
}
