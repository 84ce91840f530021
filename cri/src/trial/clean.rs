//! Leaves the machine as it was: first in order, through the daemon; then by force, whatever still carries the mark.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

use super::client::{CallError, Client};
use super::daemon::Daemon;
use super::leaks::collect;
use super::leaks::parse;
use super::links;
use super::netlink;
use super::site::Site;

/// How long jobs of calls that were given up may go on.
const QUIET_WITHIN: Duration = Duration::from_secs(60);
/// How long killed processes may take to vanish.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Stops and removes every pod and image of the daemon. Returns what did not work, one line each.
///
/// A call whose client went away goes on as a job, and may publish a pod after the list was made: so this repeats until
/// nothing is listed while no job runs.
pub async fn through_daemon(client: &mut Client) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let problems = remove_listed(client).await;
        if !problems.is_empty() {
            return problems;
        }
        match is_quiet(client).await {
            Ok(true) => return Vec::new(),
            Ok(false) if begun.elapsed() > QUIET_WITHIN => {
                return vec![format!("the daemon's jobs did not end within {QUIET_WITHIN:?}")];
            }
            Ok(false) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => return vec![super::chain(&error)],
        }
    }
}

/// Whether no job runs and then nothing is listed, in this order.
async fn is_quiet(client: &mut Client) -> Result<bool, CallError> {
    let running = client.jobs().await?.iter().any(|job| job.outcome == "running");
    Ok(!running && client.list_pods().await?.is_empty() && client.list_images().await?.is_empty())
}

async fn remove_listed(client: &mut Client) -> Vec<String> {
    let mut problems = Vec::new();
    let pods =
        client.list_pods().await.map_err(|error| problems.push(super::chain(&error))).unwrap_or_default();
    for pod in pods {
        for outcome in [client.stop_pod(&pod).await, client.remove_pod(&pod).await] {
            problems.extend(outcome.err().map(|error| super::chain(&error)));
        }
    }
    let images =
        client.list_images().await.map_err(|error| problems.push(super::chain(&error))).unwrap_or_default();
    for image in images {
        problems.extend(client.remove_image(&image.id).await.err().map(|error| super::chain(&error)));
    }
    problems
}

/// Clears away what a run of an earlier process left: a daemon on the old directories removes what it knows, force the rest.
pub async fn leftover(site: &mut Site) -> Vec<String> {
    let mut problems = Vec::new();
    if !site.is_from_another_boot() {
        problems.extend(kill_old_daemon(site));
        if site.root().is_dir() {
            problems.extend(with_new_daemon(site).await);
        }
    }
    problems.extend(by_force(site).await);
    problems
}

/// The old daemon is asked nothing: it may die at any instruction, and the new one reads everything back. Waits for its end
/// by pidfd: a process whose first thread is a zombie still holds its locks until the other threads are gone.
fn kill_old_daemon(site: &Site) -> Option<String> {
    let daemon = site.daemon.as_ref()?;
    let pidfd = rustix::process::pidfd_open(Pid::from_raw(daemon.pid)?, PidfdFlags::empty()).ok()?;
    if !daemon.is_alive() {
        return None;
    }
    // It may end by itself just now.
    let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
    let patience = Timespec { tv_sec: GONE_WITHIN.as_secs().cast_signed(), tv_nsec: 0 };
    match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)) {
        Ok(0) => Some(format!("the daemon of the broken run, pid {}, does not die", daemon.pid)),
        Ok(_) => None,
        Err(error) => Some(format!("wait for the daemon of the broken run, pid {}: {error}", daemon.pid)),
    }
}

async fn with_new_daemon(site: &mut Site) -> Vec<String> {
    let daemon = match Daemon::start(site).await {
        Ok(daemon) => daemon,
        Err(error) => return vec![super::chain(&error)],
    };
    let mut problems = match Client::connect(&site.socket()).await {
        Ok(mut client) => through_daemon(&mut client).await,
        Err(error) => vec![super::chain(&error)],
    };
    problems.extend(daemon.stop().await.err().map(|error| super::chain(&error)));
    problems
}

/// Removes every marked object without anybody's help. Returns what could not be removed.
pub async fn by_force(site: &Site) -> Vec<String> {
    let mut problems = Vec::new();
    if !site.is_from_another_boot() {
        problems.extend(kill_processes(site));
        problems.extend(unmount(site));
        problems.extend(remove_links(site).await);
        problems.extend(remove_nft(site));
        problems.extend(remove_cgroups(site));
    }
    if problems.is_empty() {
        problems.extend(site.erase().err().map(|error| super::chain(&error)));
    }
    problems
}

/// Kills until none is left: a process may clone another while the list is made.
fn kill_processes(site: &Site) -> Option<String> {
    let marks = site.marks();
    let begun = Instant::now();
    loop {
        reap();
        let processes = match collect::processes(&marks) {
            Ok(processes) => processes,
            Err(error) => return Some(super::chain(&error)),
        };
        // None left: nothing to complain about.
        let one = processes.first()?;
        if begun.elapsed() > GONE_WITHIN {
            return Some(format!("process {} ({}) does not die, state {}", one.pid, one.command, one.state));
        }
        for pid in processes.iter().filter_map(|process| Pid::from_raw(process.pid)) {
            // It may have ended since the list was made.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Collects ended children: as subreaper this process inherits the daemon's.
pub fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

/// Detaches the mounts below the run's directory, the latest first.
fn unmount(site: &Site) -> Vec<String> {
    let mountinfo = match std::fs::read_to_string("/proc/self/mountinfo") {
        Ok(text) => text,
        Err(error) => return vec![format!("read /proc/self/mountinfo: {error}")],
    };
    let mut mounts = parse::mounts(&mountinfo);
    mounts.reverse();
    let below = mounts.iter().filter(|line| Path::new(&line.point).starts_with(&site.directory));
    below
        .filter_map(|line| {
            let error = rustix::mount::unmount(line.point.as_str(), UnmountFlags::DETACH).err()?;
            Some(format!("unmount {}: {error}", line.point))
        })
        .collect()
}

async fn remove_links(site: &Site) -> Vec<String> {
    let network = match links::network().await {
        Ok(network) => network,
        Err(error) => return vec![format!("list links: {error}")],
    };
    let mut problems = Vec::new();
    for link in network.links.iter().filter(|link| link.name.starts_with(&site.link_prefix)) {
        let outcome = links::delete(link.index).await;
        problems.extend(outcome.err().map(|error| format!("remove link {}: {error}", link.name)));
    }
    problems
}

fn remove_nft(site: &Site) -> Vec<String> {
    let objects = match netlink::nft_objects(&site.link_prefix) {
        Ok(objects) => objects,
        Err(error) => return vec![format!("list nft tables: {error}")],
    };
    let tables = objects.iter().filter(|object| object.set.is_none());
    tables
        .filter_map(|object| {
            let error = netlink::delete_nft_table(object.family, &object.table).err()?;
            Some(format!("remove nft table {}: {error}", object.table))
        })
        .collect()
}

/// Removes the run's empty cgroups, children first; the parent of the pods is the client's to remove.
pub fn remove_cgroups(site: &Site) -> Vec<String> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let hierarchies = collect::hierarchies(&parse::mounts(&mountinfo));
    let mut directories = collect::cgroup_directories(&hierarchies, &site.marks());
    directories.reverse();
    let remove = |directory: std::path::PathBuf| {
        let error = std::fs::remove_dir(&directory).err()?;
        Some(format!("remove cgroup {}: {error}", directory.display()))
    };
    directories.into_iter().filter_map(remove).collect()
}
