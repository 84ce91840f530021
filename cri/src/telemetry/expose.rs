//! Which numbers are shown, under which names.

use std::collections::BTreeMap;

use engine::api::{ContainerState, PodState, Readiness};
use tonic::Code;

use super::text::Page;
use crate::server::Service;

/// The page as it is now. Blocks: reads procfs.
pub fn page(service: &Service, ready: &Readiness) -> String {
    let mut page = Page::default();
    page.family("berth_build_info", "gauge", "The daemon's version.");
    page.sample("berth_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    calls(&mut page, service);
    jobs(&mut page, service);
    objects(&mut page, service, ready);
    page.family(
        "berth_config_reloads_total",
        "counter",
        "Attempts to read the configuration again, by result.",
    );
    for (result, count) in ["accepted", "refused"].into_iter().zip(service.telemetry.reloads()) {
        page.sample("berth_config_reloads_total", &[("result", result)], count);
    }
    process(&mut page);
    page.finish()
}

fn calls(page: &mut Page, service: &Service) {
    let calls = service.telemetry.calls();
    page.family("berth_rpc_duration_seconds", "histogram", "Time from a call's arrival to its answer.");
    for (rpc, calls) in &calls {
        page.histogram("berth_rpc_duration_seconds", &[("rpc", rpc)], &calls.durations);
    }
    page.family("berth_rpc_answers_total", "counter", "Answered calls by gRPC code.");
    for (rpc, calls) in &calls {
        for (code, count) in &calls.codes {
            let code = format!("{:?}", Code::from(*code));
            page.sample("berth_rpc_answers_total", &[("rpc", rpc), ("code", &code)], count);
        }
    }
}

fn jobs(page: &mut Page, service: &Service) {
    let durations = service.engine.durations();
    page.family("berth_job_duration_seconds", "histogram", "Time of ended jobs.");
    for ((job, _), histogram) in durations.iter().filter(|((_, step), _)| step.is_empty()) {
        page.histogram("berth_job_duration_seconds", &[("job", job)], histogram);
    }
    page.family("berth_job_step_duration_seconds", "histogram", "Time of the steps of ended jobs.");
    for ((job, step), histogram) in durations.iter().filter(|((_, step), _)| !step.is_empty()) {
        page.histogram("berth_job_step_duration_seconds", &[("job", job), ("step", step)], histogram);
    }
    let mut running: BTreeMap<String, u64> = BTreeMap::new();
    for job in service.engine.jobs().into_iter().filter(|job| job.outcome == "running") {
        *running.entry(job.name).or_default() += 1;
    }
    page.family("berth_jobs_running", "gauge", "Jobs that run.");
    for (job, count) in &running {
        page.sample("berth_jobs_running", &[("job", job)], count);
    }
}

fn objects(page: &mut Page, service: &Service, ready: &Readiness) {
    let (pods, containers) = (service.engine.pods(), service.engine.containers());
    page.family("berth_pods", "gauge", "Pods by state.");
    for (name, state) in [("ready", PodState::Ready), ("notready", PodState::NotReady)] {
        let count = pods.iter().filter(|pod| pod.state == state).count();
        page.sample("berth_pods", &[("state", name)], count);
    }
    page.family("berth_containers", "gauge", "Containers by state.");
    for (name, state) in [
        ("created", ContainerState::Created),
        ("running", ContainerState::Running),
        ("exited", ContainerState::Exited),
        ("unknown", ContainerState::Unknown),
    ] {
        let count = containers.iter().filter(|container| container.state == state).count();
        page.sample("berth_containers", &[("state", name)], count);
    }
    page.family("berth_ready", "gauge", "Whether a condition of Status holds.");
    for (condition, state) in [("runtime", &ready.runtime), ("network", &ready.network)] {
        page.sample("berth_ready", &[("condition", condition)], u8::from(state.is_ok()));
    }
    page.family("berth_images", "gauge", "Images on this node.");
    page.sample("berth_images", &[], service.engine.store().images().len());
    let used = service.engine.store().usage();
    page.family("berth_image_filesystem_used_bytes", "gauge", "What images occupy.");
    page.sample("berth_image_filesystem_used_bytes", &[], used.bytes);
    page.family("berth_streaming_sessions", "gauge", "Exec, attach and port-forward sessions that are open.");
    page.sample("berth_streaming_sessions", &[], service.streaming.sessions());
}

/// The daemon's own resources, under the names every Prometheus client uses.
fn process(page: &mut Page) {
    let entries = |dir: &str| std::fs::read_dir(dir).map_or(0, Iterator::count);
    page.family("process_open_fds", "gauge", "Open file descriptors.");
    page.sample("process_open_fds", &[], entries("/proc/self/fd"));
    page.family("process_threads", "gauge", "Threads.");
    page.sample("process_threads", &[], entries("/proc/self/task"));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    if let Some(kilobytes) = resident.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()) {
        page.family("process_resident_memory_bytes", "gauge", "Resident memory.");
        page.sample("process_resident_memory_bytes", &[], kilobytes << 10);
    }
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    page.family("process_cpu_seconds_total", "counter", "Processor time.");
    page.sample("process_cpu_seconds_total", &[], format_args!("{}.{:09}", spent.tv_sec, spent.tv_nsec));
}
