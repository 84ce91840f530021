//! Supervisors are forked from a zygote: nothing of it shows, and nothing depends on it. One test, because it looks at all zygotes of
//! this process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use engine::exec::{Connection, PodLaunch};
use futures_util::future::join_all;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use support::*;

/// Children of ours of this name.
fn children(name: &str) -> Vec<i32> {
    let ours = std::process::id().to_string();
    let of_ours = |stat: &String| {
        let (before, after) = stat.rsplit_once(')').unwrap();
        let mut fields = after.split_whitespace();
        before.ends_with(&format!("({name}")) && fields.next() != Some("Z") && fields.next() == Some(&ours)
    };
    let numbers =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| of_ours(&stat)))
        .collect()
}

fn pidfd(pid: i32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::NONBLOCK).unwrap()
}

async fn ended(pidfd: OwnedFd) {
    let pidfd = engine::sys::watch(pidfd).unwrap();
    let end = tokio::time::timeout(Duration::from_secs(20), pidfd.readable()).await;
    end.expect("it goes on").unwrap().retain_ready();
}

fn words(pid: i32) -> Vec<String> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    line.split('\0').filter(|word| !word.is_empty()).map(Into::into).collect()
}

/// The device of the procfs a process has at /proc (mountinfo of proc(5)).
fn procfs(pid: i32) -> String {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let mut devices =
        table.lines().filter(|line| line.contains(" - proc ")).map(|line| line.split(' ').nth(2));
    let device = devices.next().flatten().unwrap().to_owned();
    assert_eq!(devices.next(), None, "{table}");
    device
}

/// One more pod of a driver.
async fn launched(of: &Pod, name: &str) -> Connection {
    let (spec, dir, id) = (pod_spec(), of.dir.join(name), format!("{}-{name}", of.id));
    let owned = of.driver.namespaces(&spec).unwrap();
    let launch = PodLaunch { pod: &id, dir: &dir, spec: &spec, netns: None, owned, label: None };
    of.driver.launch(launch).await.unwrap_or_else(|e| panic!("{}", e.chain()))
}

#[tokio::test]
async fn a_supervisor_is_its_own_process_and_the_zygote_can_be_missed() {
    let first = Pod::new().await;
    let [zygote] = children("podd-zygote")[..] else { panic!("there is one zygote") };
    let supervisor = first.connection.supervisor.pid();
    assert_eq!(children("podd"), [supervisor], "it is a child of the daemon");
    assert_eq!(words(supervisor), ["berth", "podd", &first.id]);
    let files = fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap().flatten();
    let held: Vec<_> = files.map(|fd| fs::read_link(fd.path()).unwrap()).collect();
    assert!(
        held.iter().filter(|file| file.as_os_str().to_string_lossy().starts_with("/dev")).count() <= 3,
        "{held:?}"
    );
    let leads =
        |pid: i32| rustix::process::getsid(Pid::from_raw(pid)).unwrap() == Pid::from_raw(pid).unwrap();
    assert!(leads(supervisor) && leads(zygote));

    let end = pidfd(zygote);
    pidfd_send_signal(&end, Signal::KILL).unwrap();
    ended(end).await;
    for name in ["without", "with"] {
        let pod = launched(&first, name).await;
        assert_eq!(words(pod.supervisor.pid()), ["berth", "podd", &format!("{}-{name}", first.id)]);
        assert_eq!(children("podd-zygote").len(), usize::from(name == "with"), "{name}");
        pod.supervisor.shutdown().await.unwrap();
    }

    // So many at once that the zygote renews what they have in common while some of them are being born.
    let names: Vec<_> = (0..80).map(|number| format!("many{number}")).collect();
    let pods = join_all(names.iter().map(|name| launched(&first, name))).await;
    let mut with: BTreeMap<String, usize> = BTreeMap::new();
    for pod in &pods {
        *with.entry(procfs(pod.supervisor.pid())).or_default() += 1;
    }
    assert!(with.values().all(|pods| *pods <= 32), "they share a procfs: {with:?}");
    assert!(with.len() <= 4, "most have one in common: {with:?}");
    for pod in pods {
        pod.supervisor.shutdown().await.unwrap();
    }

    let [zygote] = children("podd-zygote")[..] else { panic!("there is one zygote again") };
    let end = pidfd(zygote);
    first.end().await;
    ended(end).await;
}
