//! Pods whose supervisor is killed: another one takes over, and nobody in the pod notices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;

use support::handlers::Handler;
use support::{Pod, load, numbers};

on_every_handler! {
    a_container_outlives_its_killed_supervisor
    every_container_ends_as_itself_under_a_new_supervisor;
    no_line_is_lost_or_doubled_when_supervisors_are_killed_under_load
    a_container_that_logs_without_a_pause_outlives_every_killed_supervisor
}

/// Kills the supervisor and lets another one take over.
async fn replace_supervisor(pod: &mut Pod) {
    let pid = rustix::process::Pid::from_raw(pod.connection.supervisor.pid()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let state = pod.dir.join("state");
    while !matches!(pod.connection.events.recv().await, Some(engine::exec::Event::Gone) | None) {}
    pod.connection = pod.driver.connect(&pod.id, &state).await.unwrap().expect("nothing was adopted");
}

async fn a_container_outlives_its_killed_supervisor(on: &Handler) {
    let mut pod = Pod::on(on).await;
    let container = pod.container(
        "trap 'echo bye; exit 6' TERM; echo hello > /dev/shm/x; echo up; while :; do sleep 0.02; done",
    );
    let (id, spec) = (container.id.clone(), container.spec.clone());
    let started = pod.start(container).await;
    pod.exec(&id, &spec, "until [ -e /dev/shm/x ]; do sleep 0.01; done").await;
    let old = pod.connection.supervisor.pid();
    replace_supervisor(&mut pod).await;
    assert_ne!(pod.connection.supervisor.pid(), old);
    assert_eq!(pod.connection.survivors.len(), 1);
    assert_eq!(
        (pod.connection.survivors[0].pid, pod.connection.survivors[0].exit.clone()),
        (started.pid, None)
    );
    // Execs, new containers, signals, logs and exit codes go on.
    assert_eq!(pod.exec(&id, &spec, "echo in").await.1, "in\n");
    assert_eq!(pod.output("cat /dev/shm/x; hostname").await, "hello\ntest-pod\n");
    pod.connection.supervisor.signal(&id, 15).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 6);
    assert_eq!(pod.log(&id), "stdout F up\nstdout F bye\n");
    pod.end().await;
}

async fn no_line_is_lost_or_doubled_when_supervisors_are_killed_under_load(on: &Handler) {
    const LINES: u32 = 600_000;
    let mut pod = Pod::on(on).await;
    let script = format!("seq 1 {LINES} >&2 & seq 1 {LINES}; wait; exit 7");
    let container = pod.container(&script);
    let id = container.id.clone();
    pod.start(container).await;
    // Each time after some more of the log, at no particular point of a line, a batch or a system call.
    for kills in 0..12 {
        let until = (kills + 1) * 2_345_678;
        while fs::metadata(pod.log_path(&id)).unwrap().len() < until {
            tokio::task::yield_now().await;
        }
        replace_supervisor(&mut pod).await;
        assert_eq!(pod.connection.survivors.len(), 1);
    }
    assert_eq!(pod.only_exit(&id).await.code, 7);
    let log = pod.log(&id);
    let expected: Vec<u32> = (1..=LINES).collect();
    for stream in ["stdout", "stderr"] {
        assert!(numbers(&log, stream) == expected, "{stream} is not what was written");
    }
    assert_eq!(log.lines().count(), 2 * LINES as usize, "there is nothing else");
    pod.end().await;
}

/// The container tries to write as fast as it can, which is more than 50 MB/s on any machine that is not emulated.
async fn a_container_that_logs_without_a_pause_outlives_every_killed_supervisor(on: &Handler) {
    const KILLS: u64 = 12;
    const BETWEEN: u64 = 16 << 20;
    let mut pod = Pod::on(on).await;
    let container = pod.container(&load::script(0));
    let id = container.id.clone();
    let started = pod.start(container).await;
    for kill in 1..=KILLS {
        pod.logged(&id, kill * BETWEEN).await;
        replace_supervisor(&mut pod).await;
        let lives: Vec<_> = pod.connection.survivors.iter().map(|s| (s.pid, s.exit.clone())).collect();
        assert_eq!(lives, [(started.pid, None)], "the container was touched by kill {kill}");
    }
    pod.logged(&id, (KILLS + 1) * BETWEEN).await;
    load::enough(&pod);
    let exit = pod.only_exit(&id).await;
    assert_eq!((exit.code, exit.oom), (7, false));
    let bytes = load::assert_whole(&pod.log_path(&id));
    load::report(&format!("{KILLS} supervisors killed"), bytes, exit.at - started.at);
    pod.end().await;
}

async fn every_container_ends_as_itself_under_a_new_supervisor(on: &Handler) {
    let mut pod = Pod::on(on).await;
    for code in 1..4 {
        let ended = pod.container(&format!("exit {code}"));
        assert_eq!(pod.run(ended).await.0.code, code);
    }
    let mut running = Vec::new();
    for code in 11..14 {
        let script = format!("trap 'exit {code}' TERM; touch /dev/shm/{code}; while :; do sleep 0.02; done");
        let container = pod.container(&script);
        running.push((container.id.clone(), container.spec.clone(), code));
        pod.start(container).await;
    }
    replace_supervisor(&mut pod).await;
    assert_eq!(pod.connection.survivors.len(), 6);
    for (id, spec, code) in &running {
        let ready = format!("until [ -e /dev/shm/{code} ]; do sleep 0.01; done");
        assert_eq!(pod.exec(id, spec, &ready).await.0.code, 0);
        pod.connection.supervisor.signal(id, 15).await.unwrap();
        assert_eq!(pod.exit(id).await.code, *code);
    }
    pod.end().await;
}
