//! Limits and counters as cgroups-rs reads them: a second opinion on what the kernel was told. Needs root and busybox-static.

mod support;

use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Cgroup, hierarchies};
use support::*;

#[tokio::test]
async fn another_reader_finds_the_limits_that_were_asked_for() {
    let mut pod = Pod::new().await;
    let mut container = pod.container("read line; echo over");
    container.spec.resources.cpu_period = 50_000;
    container.spec.resources.cpu_quota = 20_000;
    container.spec.resources.cpu_shares = 512;
    container.spec.resources.cpuset_cpus = "0".into();
    container.spec.resources.memory_limit = 64 << 20;
    container.process.stdin = true;
    container.spec.stdin = true;
    let id = container.id.clone();
    pod.start(container).await;

    let cgroup = Cgroup::load(hierarchies::auto(), pod.cgroup(&id).trim_start_matches('/'));
    let cpu: &CpuController = cgroup.controller_of().unwrap();
    assert_eq!((cpu.cfs_quota().unwrap(), cpu.cfs_period().unwrap()), (20_000, 50_000));
    // cgroup v2 has weights, on another scale.
    let shares = if cgroup.v2() { None } else { Some(512) };
    assert_eq!(cpu.shares().ok().filter(|_| !cgroup.v2()), shares);
    let cpuset: &CpuSetController = cgroup.controller_of().unwrap();
    assert_eq!(cpuset.cpuset().cpus, [(0, 0)]);
    let memory: &MemController = cgroup.controller_of().unwrap();
    assert_eq!(memory.memory_stat().limit_in_bytes, 64 << 20);
    assert!((1..64 << 20).contains(&memory.memory_stat().usage_in_bytes));
    let pids: &PidController = cgroup.controller_of().unwrap();
    assert_eq!(pids.get_pid_current().unwrap(), 1, "the shell and nobody else");

    pod.connection.supervisor.kill(&id).await.unwrap();
    assert_eq!(pod.exit(&id).await.code, 137);
    pod.end().await;
}
