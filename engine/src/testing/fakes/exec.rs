//! Supervisors and processes that are entries of a table.
//!
//! Commands an exec understands: `true`, `false`, `echo WORDS…`, `sleep` (until killed), `flood BYTES`, and `orphan`, which
//! ends and leaves its standard output open.

use std::collections::BTreeMap;
use std::io::{PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};

use super::{Process as Entry, World, now};
use crate::exec::{
    Call, Connection, ContainerLaunch, Driver, Event, Exec, ExecLaunch, Exit, Features, PodLaunch, Process,
    Started, Stdio, Supervisor, Survivor,
};
use crate::spec::Resources;
use crate::{Error, Kind};

/// The execution driver `fake`.
#[derive(Debug)]
pub struct FakeExec {
    world: Arc<World>,
}

impl FakeExec {
    /// A driver in this world.
    pub fn new(world: Arc<World>) -> Arc<Self> {
        Arc::new(Self { world })
    }

    fn connection(&self, pod: &str, dir: &Path) -> Connection {
        let (sender, events) = mpsc::unbounded_channel::<Event>();
        let mut things = self.world.things();
        things.supervisors.insert(pod.to_owned(), Some(sender));
        let own = things.processes.iter().filter(|(_, process)| process.pod == pod);
        let survivors = own.map(|(id, process)| Survivor {
            id: id.clone(),
            pid: process.pid,
            started: process.started,
            exit: process.exit.clone(),
        });
        let survivors = survivors.collect();
        let supervisor =
            FakeSupervisor { world: self.world.clone(), pod: pod.to_owned(), dir: dir.to_owned() };
        Connection { supervisor: Arc::new(supervisor), events, survivors }
    }
}

impl Driver for FakeExec {
    fn name(&self) -> &str {
        "fake"
    }

    fn features(&self) -> Features {
        Features {
            recursive_readonly_mounts: true,
            mount_options: true,
            supplemental_groups_policy: true,
            user_namespaces: true,
            user_namespaces_host_network: true,
        }
    }

    fn launch<'a>(&'a self, launch: PodLaunch<'a>) -> Call<'a, Connection> {
        async move { Ok(self.connection(launch.pod, launch.dir)) }.boxed()
    }

    fn connect<'a>(&'a self, pod: &'a str, dir: &'a Path) -> Call<'a, Option<Connection>> {
        async move {
            let alive = self.world.things().supervisors.contains_key(pod);
            Ok(alive.then(|| self.connection(pod, dir)))
        }
        .boxed()
    }

    fn recorded_exits(&self, dir: &Path) -> BTreeMap<String, Exit> {
        self.world.things().records.get(dir).cloned().unwrap_or_default()
    }

    fn remove_cgroup<'a>(&'a self, cgroup: &'a str) -> Call<'a, ()> {
        async move {
            let mut things = self.world.things();
            let inside = things.processes.iter().filter(|(_, process)| process.cgroup == cgroup);
            for id in inside.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
                things.end(&id, Exit { code: 137, oom: false, at: now() });
            }
            things.cgroups.remove(cgroup);
            Ok(())
        }
        .boxed()
    }

    fn update_cgroup(&self, cgroup: &str, _: &Resources) -> Result<(), Error> {
        let there = self.world.things().cgroups.contains(cgroup);
        if there { Ok(()) } else { Err(Error::not_found("cgroup", cgroup)) }
    }

    fn update_pod_cgroup(&self, cgroup: &str, resources: &Resources) -> Result<(), Error> {
        self.world.things().cgroups.insert(cgroup.to_owned());
        self.update_cgroup(cgroup, resources)
    }
}

/// The supervisor of one pod.
#[derive(Debug)]
struct FakeSupervisor {
    world: Arc<World>,
    pod: String,
    dir: PathBuf,
}

impl FakeSupervisor {
    fn call<'a, T: Send + 'a>(
        &'a self,
        work: impl FnOnce(&World) -> Result<T, Error> + Send + 'a,
    ) -> Call<'a, T> {
        async move {
            if !self.world.things().supervisors.contains_key(&self.pod) {
                return Err(Error::new(Kind::Unavailable, "the supervisor is dead"));
            }
            work(&self.world)
        }
        .boxed()
    }
}

impl Supervisor for FakeSupervisor {
    fn pid(&self) -> i32 {
        1
    }

    fn start<'a>(&'a self, launch: ContainerLaunch<'a>) -> Call<'a, Started> {
        self.call(move |world| {
            if launch.process.args.first().is_some_and(|arg| arg == "/missing") {
                return Err(Error::invalid("command", "execve /missing: no such file or directory"));
            }
            let mut things = world.things();
            let pid = i32::try_from(things.number()).unwrap_or(i32::MAX);
            let at = now();
            things.cgroups.insert(launch.cgroup.to_owned());
            let (pod, dir, cgroup) = (self.pod.clone(), self.dir.clone(), launch.cgroup.to_owned());
            let entry = Entry { pod, dir, cgroup, pid, started: at, exit: None };
            things.processes.insert(launch.id.to_owned(), entry);
            if launch.process.args.first().is_some_and(|arg| arg == "/instant") {
                things.end(launch.id, Exit { code: 3, oom: false, at });
            }
            Ok(Started { pid, at })
        })
    }

    fn exec<'a>(&'a self, _: &'a str, process: &'a Process, launch: ExecLaunch<'a>) -> Call<'a, Exec> {
        self.call(move |world| run(world, &process.args, launch))
    }

    fn signal<'a>(&'a self, container: &'a str, signal: i32) -> Call<'a, ()> {
        self.call(move |world| {
            let mut things = world.things();
            things.signals.push((container.to_owned(), signal));
            if !things.stubborn {
                things.end(container, Exit { code: 128 + signal, oom: false, at: now() });
            }
            Ok(())
        })
    }

    fn kill<'a>(&'a self, container: &'a str) -> Call<'a, ()> {
        self.call(move |world| {
            world.things().end(container, Exit { code: 137, oom: false, at: now() });
            Ok(())
        })
    }

    fn kill_exec<'a>(&'a self, _: &'a str, exec: u64) -> Call<'a, ()> {
        self.call(move |world| {
            let ending = world.things().execs.remove(&exec);
            let _ = ending.map(|ending| ending.send(Exit { code: 137, oom: false, at: now() }));
            Ok(())
        })
    }

    fn reopen_log<'a>(&'a self, _: &'a str, _: OwnedFd) -> Call<'a, ()> {
        self.call(|_| Ok(()))
    }

    fn resize<'a>(&'a self, _: &'a str, _: Option<u64>, _: u16, _: u16) -> Call<'a, ()> {
        self.call(|_| Ok(()))
    }

    fn attach<'a>(&'a self, _: &'a str, _: bool, _: bool, _: bool) -> Call<'a, Stdio> {
        self.call(|_| Ok(Stdio::default()))
    }

    fn shutdown(&self) -> Call<'_, ()> {
        async move {
            let mut things = self.world.things();
            let own = things.processes.iter().filter(|(_, process)| process.pod == self.pod);
            for id in own.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
                things.end(&id, Exit { code: 137, oom: false, at: now() });
            }
            things.supervisors.remove(&self.pod);
            Ok(())
        }
        .boxed()
    }
}

fn run(world: &World, args: &[String], launch: ExecLaunch<'_>) -> Result<Exec, Error> {
    let broken = |e: std::io::Error| Error::with(Kind::Internal, "pipe", e);
    let (reader, mut writer) = std::io::pipe().map_err(broken)?;
    let (ending, end) = oneshot::channel();
    let mut code = 0;
    let mut ending = Some(ending);
    let mut orphan = None;
    let mut things = world.things();
    let id = things.number();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["true"] => {}
        ["false"] => code = 1,
        ["echo", words @ ..] => writer.write_all(words.join(" ").as_bytes()).map_err(broken)?,
        ["sleep"] => things.execs.extend(ending.take().map(|ending| (id, ending))),
        ["orphan"] => {
            writer.write_all(b"mine").map_err(broken)?;
            orphan = Some(writer.try_clone().map_err(broken)?);
        }
        ["flood", count] => flood(writer.try_clone().map_err(broken)?, count.parse().unwrap_or(0)),
        _ => return Err(Error::invalid("cmd", format!("{args:?}: not found in the image"))),
    }
    if let Some(ending) = ending {
        let _ = ending.send(Exit { code, oom: false, at: now() });
    }
    drop(writer);
    let exit = async move {
        let exit = end.await.map_err(|e| Error::with(Kind::Internal, "exec", e));
        // Held for as long as somebody waits for the exec.
        drop(orphan);
        exit
    };
    let stdio = Stdio { stdout: launch.stdout.then(|| reader.into()), ..Stdio::default() };
    Ok(Exec { id, pid: 2, stdio, exit: exit.boxed() })
}

fn flood(mut writer: PipeWriter, count: usize) {
    std::thread::spawn(move || {
        let piece = [b'y'; 64 << 10];
        let mut left = count;
        while left > 0 && writer.write_all(&piece[..left.min(piece.len())]).is_ok() {
            left = left.saturating_sub(piece.len());
        }
    });
}
