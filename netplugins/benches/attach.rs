//! What a pod costs: namespace, reservation, attachment and detachment, one at a time, as the node fills up.
//!
//! `cargo bench -p netplugins --bench attach -- [PODS]` as root; everything happens in a network namespace of its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use netplugins::{Attachment, Config, Endpoint, HostPort, NetNs, Protocol};

/// One step's durations.
#[derive(Default)]
struct Series(Vec<Duration>);

impl Series {
    fn line(&mut self) -> String {
        self.0.sort();
        let at = |percent: usize| self.0.get(self.0.len() * percent / 100).copied().unwrap_or_default();
        format!("p50 {:>9.1?}  p99 {:>9.1?}", at(50), at(99))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let wanted = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(200usize);
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    let dir = std::env::temp_dir().join(format!("net-bench-{}", std::process::id()));
    let driver = netplugins::open(Config {
        pod_cidrs: vec!["10.88.0.0/16".into(), "fd00:10:88::/64".into()],
        conf_dir: dir.join("net.d"),
        max_networks: 1,
        bin_dirs: vec![],
        netns_dir: dir.join("netns"),
        state_dir: dir.join("state"),
        link_prefix: "ntbe".into(),
        tap: netplugins::no_tap,
    })?;
    driver.restore(&[])?;
    let mut pods: Vec<(NetNs, Attachment)> = Vec::new();
    for goal in [10, wanted / 2, wanted] {
        let (mut create, mut reserve, mut attach) = (Series::default(), Series::default(), Series::default());
        while pods.len() < goal {
            let number = u16::try_from(pods.len())?;
            let endpoint = Endpoint {
                id: format!("pod{number}"),
                host_ports: vec![HostPort {
                    protocol: Protocol::Tcp,
                    host_port: 10_000 + number,
                    container_port: 80,
                    host_ip: None,
                }],
                annotations: BTreeMap::new(),
                ..Endpoint::default()
            };
            let start = Instant::now();
            let reserved = driver.reserve(&endpoint)?;
            reserve.0.push(start.elapsed());
            let start = Instant::now();
            let ns = driver.create_namespace(&endpoint.id)?;
            create.0.push(start.elapsed());
            let start = Instant::now();
            let attachment = driver.attach(&ns, &endpoint, reserved)?;
            attach.0.push(start.elapsed());
            pods.push((ns, attachment));
        }
        report(
            &format!("up to {goal} pods"),
            &mut [("reserve", reserve), ("namespace", create), ("attach", attach)],
        );
    }
    let (mut detach, mut remove) = (Series::default(), Series::default());
    for (ns, attachment) in pods.drain(..) {
        let start = Instant::now();
        driver.detach(Some(&ns), &attachment)?;
        detach.0.push(start.elapsed());
        let start = Instant::now();
        drop(ns);
        driver.remove_namespace(&attachment.id)?;
        remove.0.push(start.elapsed());
    }
    report("down to none", &mut [("detach", detach), ("namespace", remove)]);
    let start = Instant::now();
    let left = driver.wait_gone(&driver.inventory()?.links, Instant::now() + Duration::from_secs(120))?;
    report(&format!("links gone after {:.1?}, left {}", start.elapsed(), left.len()), &mut []);
    driver.retire()?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a benchmark reports on standard output")]
fn report(title: &str, series: &mut [(&str, Series)]) {
    println!("{title}");
    for (name, series) in series {
        println!("  {name:<10} {}", series.line());
    }
}
