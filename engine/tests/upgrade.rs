//! Supervisors that go on as another program while their containers work: a new daemon finds them running an older one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use engine::exec::{Driver, Exec};
use engine::spec::ContainerSpec;
use futures_util::future::join_all;
use support::{Pod, driver_of, load, read_all, shell, text};

/// The supervisor's program with a byte behind its end, which changes nothing but what it is.
struct Newer(PathBuf);

impl Newer {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("berth-podd-{name}-{}", std::process::id()));
        fs::copy(env!("CARGO_BIN_EXE_podd"), &path).unwrap();
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"\n").unwrap();
        Self(path)
    }

    /// A driver as a daemon of that program would have, for pods of one driver.
    fn driver(&self, pod: &Pod) -> Arc<dyn Driver> {
        driver_of(&self.0, &format!("/berth-test-{}", pod.id))
    }
}

impl Drop for Newer {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// Connects as a new daemon does; the pod keeps its process and gets the program.
async fn upgrade(pod: &mut Pod, driver: Arc<dyn Driver>) -> engine::exec::Connection {
    let (pid, program) = (pod.connection.supervisor.pid(), pod.program());
    let connection = driver.connect(&pod.id, &pod.dir.join("state")).await.unwrap().unwrap();
    assert_eq!(connection.supervisor.pid(), pid, "another process");
    pod.driver = driver;
    assert_ne!(pod.program(), program, "still the old program");
    std::mem::replace(&mut pod.connection, connection)
}

/// Starts a command in a container.
async fn exec(pod: &Pod, id: &str, spec: &ContainerSpec, script: &str) -> Exec {
    let started = pod.try_exec(id, spec, &shell(script), [false, true, true], false).await;
    started.unwrap_or_else(|e| panic!("{}", e.chain()))
}

/// Together the containers try to write 110 MB/s: forty streams of up to 2.75 MB/s each. Without any pause they would leave the
/// supervisors no processor to be upgraded with.
#[tokio::test]
async fn twenty_busy_supervisors_become_another_program_and_no_line_is_lost_or_doubled() {
    const PODS: usize = 20;
    /// Milliseconds between 330 KB of a stream.
    const PAUSE: u32 = 120;
    /// So much of each log is written before and after.
    const SOME: u64 = 1 << 20;
    let newer = Newer::new("busy");
    let cgroup = format!("/berth-test-busy-{}", std::process::id());
    let mut pods = Vec::new();
    for _ in 0..PODS {
        let pod = Pod::new().await;
        let container = pod.container(&load::script(PAUSE));
        let id = container.id.clone();
        let started = pod.start(container).await;
        pods.push((pod, id, started));
    }
    // One driver for all of them and all at the same time, as a new daemon does it.
    let driver = driver_of(&newer.0, &cgroup);
    join_all(pods.iter_mut().map(async |(pod, id, started)| {
        pod.logged(id, SOME).await;
        drop(upgrade(pod, driver.clone()).await);
        let lives: Vec<_> = pod.connection.survivors.iter().map(|s| (s.pid, s.exit.clone())).collect();
        assert_eq!(lives, [(started.pid, None)], "{id} was touched");
        let now = fs::metadata(pod.log_path(id)).unwrap().len();
        pod.logged(id, now + SOME).await;
    }))
    .await;
    pods.iter().for_each(|(pod, ..)| load::enough(pod));
    let (mut bytes, mut first, mut last) = (0, i64::MAX, 0);
    for (mut pod, id, started) in pods {
        let exit = pod.only_exit(&id).await;
        assert_eq!((exit.code, exit.oom), (7, false));
        bytes += load::assert_whole(&pod.log_path(&id));
        (first, last) = (first.min(started.at), last.max(exit.at));
        pod.end().await;
    }
    driver.remove_cgroup(&cgroup).await.unwrap();
    load::report(&format!("{PODS} supervisors upgraded"), bytes, last - first);
}

#[tokio::test]
async fn sessions_terminals_and_exit_codes_live_through_it() {
    let newer = Newer::new("sessions");
    let mut pod = Pod::new().await;
    let waits = "until [ -e /dev/shm/go ]; do sleep 0.01; done";
    let plain = pod.container(&format!(
        "echo before; {waits}; echo after; until [ -e /dev/shm/end ]; do sleep 0.01; done; exit 3"
    ));
    let (id, spec) = (plain.id.clone(), plain.spec.clone());
    pod.start(plain).await;
    let mut terminal = pod.container(&format!("printf par; {waits}; echo tial; exit 4"));
    terminal.process.tty = true;
    let (terminal_id, terminal_spec) = (terminal.id.clone(), terminal.spec.clone());
    pod.start(terminal).await;
    let client = pod.connection.supervisor.attach(&id, false, true, false).await.unwrap();
    let session = exec(&pod, &id, &spec, &format!("echo in; {waits}; exit 9")).await;
    let silent = pod
        .try_exec(&id, &spec, &shell(&format!("{waits}; exit 8")), [false, true, true], true)
        .await
        .unwrap();

    let driver = newer.driver(&pod);
    let before = upgrade(&mut pod, driver).await;
    let program = pod.program();
    pod.connection.supervisor.resize(&terminal_id, None, 101, 51).await.unwrap();
    assert_eq!(pod.exec(&terminal_id, &terminal_spec, "touch /dev/shm/go").await.0.code, 0);
    assert_eq!(session.exit.await.unwrap().code, 9);
    assert_eq!(silent.exit.await.unwrap().code, 8);
    assert_eq!(pod.exec(&id, &spec, "touch /dev/shm/end").await.0.code, 0);
    assert_eq!(pod.exits([&id, &terminal_id]).await.map(|exit| exit.code), [3, 4]);
    assert_eq!(read_all(session.stdio.stdout.unwrap()).await, "in\n");
    assert!(read_all(client.stdout.unwrap()).await.ends_with("after\n"));
    assert_eq!(text(&pod.log(&id)), "before\nafter\n");
    assert_eq!(text(&pod.log(&terminal_id)), "partial\n");
    drop(before);

    // The same program once more changes nothing.
    let again = pod.driver.connect(&pod.id, &pod.dir.join("state")).await.unwrap().unwrap();
    assert_eq!(pod.program(), program);
    drop(again);
    let late = pod.container("exit 5");
    assert_eq!(pod.run(late).await.0.code, 5);
    pod.end().await;
}
