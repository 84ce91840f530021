//! The main job, step by step: what happens to an image between a registry and a pod that answers requests.
//!
//! [`STEPS`] is the whole story; each step is a method of [`Stage`] that returns what it saw. Steps that need Berth's
//! own executable inside the container are left out for other images, and say so.

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use super::client::{CallError, Client};
use super::daemon::{Daemon, DaemonError};
use super::image::{EXECUTABLE, PackError, Packed, pack};
use super::inside::{FETCH, SERVE, WHOAMI, fetch};
use super::leaks::collect::{CollectError, snapshot};
use super::leaks::{Kind, Marks, Object, Snapshot};
use super::pods::{LogLine, PORT, Pod, container, log_lines};
use super::registry::Registry;
use super::report::Report;
use super::site::Site;
use crate::proto as cri;
use crate::proto::admin::Job;

/// How long something that happens in a container may take to be seen.
const SEEN_WITHIN: Duration = Duration::from_secs(10);
/// How long a foreign image is watched for a first line of output.
const WATCHED_FOR: Duration = Duration::from_secs(3);
/// How long what was removed may take to be gone.
const SETTLED_WITHIN: Duration = Duration::from_secs(3);
/// Grace period of StopContainer in seconds.
const GRACE: i64 = 10;
/// Lines of a foreign image's log that are shown.
const LOG_SHOWN: usize = 10;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A call to the daemon.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The daemon itself.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// Packing the image.
    #[error("pack the image")]
    Pack(#[from] PackError),
    /// The leak count.
    #[error("count what is left")]
    Count(#[from] CollectError),
    /// A file or connection of ours.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// An answer that is wrong.
    #[error("expected {expected}, got {got}")]
    Unexpected {
        /// What should be.
        expected: String,
        /// What is.
        got: String,
    },
}

/// What a step saw, for the report.
pub type Outcome = Result<String, StepError>;

/// One step.
#[derive(Debug)]
pub struct Step {
    /// Name, the RPC's where it is one.
    pub name: &'static str,
    /// Works with Berth's own image only.
    own_image_only: bool,
    /// What is done.
    run: for<'a> fn(&'a mut Stage) -> BoxFuture<'a, Outcome>,
}

/// The whole story, in order.
pub const STEPS: &[Step] = &[
    Step { name: "pack an image", own_image_only: true, run: |s| Box::pin(s.pack()) },
    Step { name: "serve it", own_image_only: true, run: |s| Box::pin(s.serve()) },
    Step { name: "start a daemon", own_image_only: false, run: |s| Box::pin(s.start_daemon()) },
    Step { name: "Version, Status", own_image_only: false, run: |s| Box::pin(s.status()) },
    Step { name: "PullImage", own_image_only: false, run: |s| Box::pin(s.pull()) },
    Step { name: "RunPodSandbox", own_image_only: false, run: |s| Box::pin(s.run_pod()) },
    Step { name: "CreateContainer", own_image_only: false, run: |s| Box::pin(s.create()) },
    Step { name: "StartContainer", own_image_only: false, run: |s| Box::pin(s.start()) },
    Step { name: "read the log", own_image_only: false, run: |s| Box::pin(s.read_log()) },
    Step { name: "ExecSync", own_image_only: true, run: |s| Box::pin(s.exec()) },
    Step { name: "HTTP from the node", own_image_only: true, run: |s| Box::pin(s.request_from_node()) },
    Step { name: "a second pod", own_image_only: true, run: |s| Box::pin(s.second_pod()) },
    Step { name: "HTTP from pod to pod", own_image_only: true, run: |s| Box::pin(s.request_from_pod()) },
    Step { name: "stats", own_image_only: false, run: |s| Box::pin(s.stats()) },
    Step { name: "count while it runs", own_image_only: false, run: |s| Box::pin(s.count_running()) },
    Step { name: "StopContainer", own_image_only: false, run: |s| Box::pin(s.stop()) },
    Step { name: "StopPodSandbox", own_image_only: false, run: |s| Box::pin(s.stop_pods()) },
    Step { name: "RemoveContainer, …Pod", own_image_only: false, run: |s| Box::pin(s.remove()) },
    Step { name: "RemoveImage", own_image_only: false, run: |s| Box::pin(s.remove_image()) },
    Step { name: "count what is left", own_image_only: false, run: |s| Box::pin(s.count_left()) },
];

/// Runs the steps until one fails.
pub async fn run(stage: &mut Stage, report: &Report) -> Result<(), (&'static str, StepError)> {
    for step in STEPS {
        if step.own_image_only && !stage.own_image {
            report.skip_step(step.name, "needs Berth's own program in the container");
            continue;
        }
        report.begin_step(step.name);
        let begun = Instant::now();
        let outcome = (step.run)(stage).await;
        let shown = outcome.as_ref().map_or("FAILED", String::as_str);
        report.end_step(step.name, begun.elapsed(), shown);
        outcome.map_err(|error| (step.name, error))?;
    }
    Ok(())
}

/// Everything the steps work on.
#[derive(Debug)]
pub struct Stage {
    /// The run's place.
    pub site: Site,
    /// The private daemon, once started.
    pub daemon: Option<Daemon>,
    /// The connection, once made.
    pub client: Option<Client>,
    /// The jobs of the pod start, for the waterfall.
    pub start_jobs: Vec<Job>,
    /// What was still there after everything had been removed.
    pub left: Vec<Object>,
    /// What the daemon keeps for itself when it has nothing to do.
    pub idle: Snapshot,
    /// By what the run's objects are known: grows with every pod and container.
    pub marks: Marks,
    own_image: bool,
    image: String,
    image_id: String,
    command: Vec<String>,
    packed: Option<Packed>,
    registry: Option<Registry>,
    web: Pod,
    visitor: Pod,
}

impl Stage {
    /// A stage for Berth's own image, or for `image` with `command` in place of its Cmd.
    pub fn new(site: Site, image: Option<&str>, command: &[String]) -> Self {
        Self {
            own_image: image.is_none(),
            image: image.unwrap_or_default().to_owned(),
            image_id: String::new(),
            command: command.to_vec(),
            packed: None,
            registry: None,
            web: Pod::plan("web", &site),
            visitor: Pod::plan("visitor", &site),
            marks: site.marks(),
            idle: Snapshot::default(),
            left: Vec::new(),
            start_jobs: Vec::new(),
            daemon: None,
            client: None,
            site,
        }
    }

    fn client(&mut self) -> Result<&mut Client, StepError> {
        self.client.as_mut().ok_or_else(|| unexpected("a connection", "none"))
    }

    // === image and daemon ===

    async fn pack(&mut self) -> Outcome {
        let packing = tokio::task::spawn_blocking(|| {
            let executable = std::fs::read("/proc/self/exe").map_err(io("read /proc/self/exe"))?;
            Ok::<_, StepError>(pack(&executable, &[SERVE, &PORT.to_string()])?)
        });
        let packed = packing.await.map_err(|error| unexpected("an image", error))??;
        let (plain, compressed) = packed.layer;
        let detail =
            format!("this executable as one layer: {}, {} compressed", bytes(plain), bytes(compressed));
        self.packed = Some(packed);
        Ok(detail)
    }

    async fn serve(&mut self) -> Outcome {
        let packed = self.packed.take().ok_or_else(|| unexpected("a packed image", "none"))?;
        self.image_id.clone_from(&packed.id);
        let registry = Registry::serve(packed).await.map_err(io("listen on 127.0.0.1"))?;
        self.image = registry.reference();
        let detail = format!("registry on {}", registry.address());
        self.registry = Some(registry);
        Ok(detail)
    }

    async fn start_daemon(&mut self) -> Outcome {
        let daemon = Daemon::start(&mut self.site).await?;
        let pid = daemon.pid().unwrap_or_default();
        self.daemon = Some(daemon);
        self.client = Some(Client::connect(&self.site.socket()).await?);
        self.idle = snapshot(&self.marks).await?;
        Ok(format!("pid {pid}, ready on {}", self.site.socket().display()))
    }

    async fn status(&mut self) -> Outcome {
        let client = self.client()?;
        let version = client.version().await?;
        let broken = client.not_ready().await?;
        if !broken.is_empty() {
            return Err(unexpected("a daemon that is ready", broken.join("; ")));
        }
        let cri::VersionResponse { runtime_name, runtime_version, runtime_api_version, .. } = version;
        Ok(format!("{runtime_name} {runtime_version}, CRI {runtime_api_version}, runtime and network ready"))
    }

    async fn pull(&mut self) -> Outcome {
        let image = self.image.clone();
        let client = self.client()?;
        let id = client.pull(&image).await?;
        let stored = client.image(&image).await?.ok_or_else(|| unexpected("the pulled image", "none"))?;
        if stored.id != id || (self.own_image && id != self.image_id) {
            return Err(unexpected(format!("image id {}", self.image_id), format!("{id} and {}", stored.id)));
        }
        self.image_id = id;
        let requests = self.registry.as_ref().map(|registry| format!(", {} requests", registry.requests()));
        Ok(format!(
            "{image} = {:.19}…, {} on disk{}",
            stored.id,
            bytes(stored.size),
            requests.unwrap_or_default()
        ))
    }

    // === the first pod ===

    async fn run_pod(&mut self) -> Outcome {
        let config = self.web.config.clone();
        let (id, ips) = self.run_one(&config).await?;
        (self.web.id, self.web.ips) = (id, ips);
        Ok(format!("pod {:.12}, {}", self.web.id, self.web.ips.join(" and ")))
    }

    async fn create(&mut self) -> Outcome {
        let request = container(&self.image, &self.command);
        let (pod, config) = (self.web.id.clone(), self.web.config.clone());
        let id = self.client()?.create(&pod, request, &config).await?;
        self.marks.words.push(id.clone());
        self.web.container = id;
        Ok(format!("container {:.12}", self.web.container))
    }

    async fn start(&mut self) -> Outcome {
        let container = self.web.container.clone();
        let client = self.client()?;
        client.start(&container).await?;
        let jobs = client.jobs().await?;
        let status = client.container(&container).await?;
        let wanted = ["RunPodSandbox", "CreateContainer", "StartContainer"];
        let last = |name: &&str| jobs.iter().rev().find(|job| job.name == **name).cloned();
        self.start_jobs = wanted.iter().filter_map(last).collect();
        Ok(format!("started {} after its creation", show(status.started_at - status.created_at)))
    }

    async fn read_log(&mut self) -> Outcome {
        if !self.own_image {
            return self.watch_foreign().await;
        }
        let path = self.web.log();
        let lines = until("two lines in the log", SEEN_WITHIN, || {
            let lines = std::fs::read_to_string(&path).map(|text| log_lines(&text)).unwrap_or_default();
            (lines.len() >= 2).then_some(lines)
        })
        .await?;
        for (stream, text) in
            [("stdout", format!("listening on port {PORT}")), ("stderr", "this line went to stderr".into())]
        {
            let wanted = LogLine { stream: stream.to_owned(), text };
            if !lines.contains(&wanted) {
                return Err(unexpected(format!("{wanted:?}"), format!("{lines:?}")));
            }
        }
        Ok(show_lines(&lines))
    }

    /// A foreign image may print nothing, run for ever, or end at once: all of it is shown as it is.
    async fn watch_foreign(&mut self) -> Outcome {
        let (container, path) = (self.web.container.clone(), self.web.log());
        let begun = Instant::now();
        loop {
            let status = self.client()?.container(&container).await?;
            let lines = std::fs::read_to_string(&path).map(|text| log_lines(&text)).unwrap_or_default();
            let exited = status.state() == cri::ContainerState::ContainerExited;
            if exited || !lines.is_empty() || begun.elapsed() > WATCHED_FOR {
                let state = match exited {
                    true => format!("exited with {} ({})", status.exit_code, status.reason),
                    false => "running".to_owned(),
                };
                return Ok(format!("{state}, {} lines so far\n{}", lines.len(), show_lines(&lines)));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn exec(&mut self) -> Outcome {
        let container = self.web.container.clone();
        let answer = self.client()?.exec(&container, &[EXECUTABLE, WHOAMI]).await?;
        let output = String::from_utf8_lossy(&answer.stdout).trim_end().to_owned();
        let expected =
            ["host web,", "uid 1000,", "groups 1000 1001,", "seccomp 2,", "BERTH_TRIAL=\"from the pod\""];
        match expected.iter().find(|part| !output.contains(**part)) {
            _ if answer.exit_code != 0 => {
                let errors = String::from_utf8_lossy(&answer.stderr);
                Err(unexpected("exit code 0", format!("{}: {}", answer.exit_code, errors.trim_end())))
            }
            Some(missing) => Err(unexpected(format!("\"{missing}\""), output)),
            None => Ok(output),
        }
    }

    // === the network ===

    async fn request_from_node(&mut self) -> Outcome {
        let mut answers = Vec::new();
        for ip in self.web.ips.clone() {
            let url = url(&ip);
            let fetching = tokio::task::spawn_blocking({
                let url = url.clone();
                move || fetch(&url)
            });
            let fetched = fetching.await.map_err(|error| unexpected("an answer", error))?;
            let body = fetched.map_err(io(&url))?;
            if !body.ends_with("this is web") {
                return Err(unexpected("a greeting of web", body));
            }
            answers.push(format!("{url} answers \"{body}\""));
        }
        Ok(answers.join("\n"))
    }

    async fn second_pod(&mut self) -> Outcome {
        let config = self.visitor.config.clone();
        let (id, ips) = self.run_one(&config).await?;
        (self.visitor.id, self.visitor.ips) = (id.clone(), ips);
        let target = self.web.ips.last().map(|ip| url(ip)).unwrap_or_default();
        let request = container(&self.image, &[FETCH.to_owned(), target]);
        let container = self.client()?.create(&id, request, &config).await?;
        self.marks.words.push(container.clone());
        self.visitor.container.clone_from(&container);
        self.client()?.start(&container).await?;
        Ok(format!("pod {id:.12}, {}", self.visitor.ips.join(" and ")))
    }

    async fn request_from_pod(&mut self) -> Outcome {
        let (container, path) = (self.visitor.container.clone(), self.visitor.log());
        let begun = Instant::now();
        let status = loop {
            let status = self.client()?.container(&container).await?;
            if status.state() == cri::ContainerState::ContainerExited {
                break status;
            }
            if begun.elapsed() > SEEN_WITHIN {
                return Err(unexpected("a visitor that ends", "one that still runs"));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        let lines = std::fs::read_to_string(&path)
            .map(|text| log_lines(&text))
            .map_err(io("read the visitor's log"))?;
        let greeted = lines.iter().any(|line| line.stream == "stdout" && line.text.ends_with("this is web"));
        if status.exit_code != 0 || status.reason != "Completed" || !greeted {
            let got = format!("{} {}: {}", status.exit_code, status.reason, show_lines(&lines));
            return Err(unexpected("exit 0 Completed after a greeting of web", got));
        }
        Ok(format!("{}; exited with 0 ({})", show_lines(&lines), status.reason))
    }

    // === numbers ===

    async fn stats(&mut self) -> Outcome {
        let (pod, container) = (self.web.id.clone(), self.web.container.clone());
        let client = self.client()?;
        if client.container(&container).await?.state() != cri::ContainerState::ContainerRunning {
            return Ok("the container has ended: nothing to read".to_owned());
        }
        let one = client.container_stats(&container).await?;
        let all = client.pod_stats(&pod).await?;
        let store = client.image_bytes().await?;
        let value = |value: Option<cri::UInt64Value>| value.map(|value| value.value);
        let cpu = one.cpu.and_then(|cpu| value(cpu.usage_core_nano_seconds));
        let memory = one.memory.and_then(|memory| value(memory.working_set_bytes));
        let received = all
            .linux
            .and_then(|linux| linux.network?.default_interface)
            .and_then(|link| value(link.rx_bytes));
        match (cpu, memory, received) {
            (Some(cpu), Some(memory), Some(received)) if cpu > 0 && memory > 0 => Ok(format!(
                "cpu {}, memory {}, received {}, image store {}",
                show(cpu.cast_signed()),
                bytes(memory),
                bytes(received),
                bytes(store)
            )),
            other => Err(unexpected("cpu, memory and network figures", format!("{other:?}"))),
        }
    }

    async fn count_running(&mut self) -> Outcome {
        let running = snapshot(&self.marks).await?;
        Ok(running.summary())
    }

    // === the end ===

    async fn stop(&mut self) -> Outcome {
        let container = self.web.container.clone();
        let client = self.client()?;
        client.stop(&container, GRACE).await?;
        let status = client.container(&container).await?;
        if self.own_image && (status.exit_code, status.reason.as_str()) != (0, "Completed") {
            return Err(unexpected("exit 0 Completed", format!("{} {}", status.exit_code, status.reason)));
        }
        Ok(format!("exited with {} ({})", status.exit_code, status.reason))
    }

    async fn stop_pods(&mut self) -> Outcome {
        let pods = self.pods();
        for pod in &pods {
            self.client()?.stop_pod(pod).await?;
        }
        Ok(format!("{} stopped", counted(pods.len(), "pod")))
    }

    async fn remove(&mut self) -> Outcome {
        let containers = [self.web.container.clone(), self.visitor.container.clone()];
        let containers: Vec<String> = containers.into_iter().filter(|id| !id.is_empty()).collect();
        for container in &containers {
            self.client()?.remove(container).await?;
        }
        let pods = self.pods();
        for pod in &pods {
            self.client()?.remove_pod(pod).await?;
        }
        Ok(format!("{} and {} removed", counted(containers.len(), "container"), counted(pods.len(), "pod")))
    }

    async fn remove_image(&mut self) -> Outcome {
        let image = self.image.clone();
        let client = self.client()?;
        client.remove_image(&image).await?;
        let listed =
            (client.list_images().await?, client.list_pods().await?, client.list_containers().await?);
        if !(listed.0.is_empty() && listed.1.is_empty() && listed.2.is_empty()) {
            return Err(unexpected("empty lists of images, pods and containers", format!("{listed:?}")));
        }
        Ok("no image, pod or container is listed any more".to_owned())
    }

    /// The daemon still runs: what is there beyond its idle state was left by the pods.
    async fn count_left(&mut self) -> Outcome {
        let waited = self.look_for_leaks().await?;
        let files = self.left.iter().filter(|object| object.kind == Kind::File).count();
        let (others, files) = (counted(self.left.len() - files, "kernel object"), counted(files, "file"));
        Ok(format!("{others} and {files} more than before the first pod, {} ms later", waited.as_millis()))
    }

    /// Compares with the idle daemon until nothing is left or patience ends: the kernel takes links down and the store empties
    /// its trash behind the answer. Returns how long it took. Nothing to compare before there was a daemon.
    pub async fn look_for_leaks(&mut self) -> Result<Duration, CollectError> {
        let begun = Instant::now();
        while self.daemon.is_some() {
            self.left = snapshot(&self.marks).await?.since(&self.idle);
            if self.left.is_empty() || begun.elapsed() > SETTLED_WITHIN {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(begun.elapsed())
    }

    /// Runs a pod and asks for its addresses.
    async fn run_one(&mut self, config: &cri::PodSandboxConfig) -> Result<(String, Vec<String>), StepError> {
        std::fs::create_dir_all(&config.log_directory).map_err(io(&config.log_directory))?;
        let id = self.client()?.run_pod(config).await?;
        self.marks.words.push(id.clone());
        let ips = self.client()?.pod_ips(&id).await?;
        if ips.is_empty() {
            return Err(unexpected("a pod with an address", "none"));
        }
        Ok((id, ips))
    }

    fn pods(&self) -> Vec<String> {
        [&self.web.id, &self.visitor.id].into_iter().filter(|id| !id.is_empty()).cloned().collect()
    }
}

fn unexpected(expected: impl Into<String>, got: impl std::fmt::Display) -> StepError {
    StepError::Unexpected { expected: expected.into(), got: got.to_string() }
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> StepError {
    let what = what.into();
    move |source| StepError::Io { what, source }
}

/// Looks again every few milliseconds until there is something to see.
async fn until<T>(what: &str, within: Duration, look: impl Fn() -> Option<T>) -> Result<T, StepError> {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look() {
            return Ok(seen);
        }
        if begun.elapsed() > within {
            return Err(unexpected(what, format!("nothing within {within:?}")));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn url(ip: &str) -> String {
    if ip.contains(':') { format!("http://[{ip}]:{PORT}/") } else { format!("http://{ip}:{PORT}/") }
}

fn show_lines(lines: &[LogLine]) -> String {
    let shown: Vec<String> =
        lines.iter().take(LOG_SHOWN).map(|line| format!("{}: {}", line.stream, line.text)).collect();
    shown.join("\n")
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A signed span of nanoseconds in milliseconds.
fn show(nanoseconds: i64) -> String {
    format!("{}.{:01} ms", nanoseconds / 1_000_000, (nanoseconds % 1_000_000).abs() / 100_000)
}

fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{} kB", count / 1000),
        _ => format!("{} MB", count / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_make_urls() {
        assert_eq!(url("10.0.0.2"), "http://10.0.0.2:8080/");
        assert_eq!(url("fd00::2"), "http://[fd00::2]:8080/");
    }

    #[test]
    fn sizes_and_counts_read_well() {
        assert_eq!(
            (bytes(9), bytes(12_345), bytes(12_345_678)),
            ("9 B".into(), "12 kB".into(), "12 MB".into())
        );
        assert_eq!((counted(1, "pod"), counted(2, "pod")), ("1 pod".to_owned(), "2 pods".to_owned()));
        assert_eq!(show(12_345_678), "12.3 ms");
    }

    #[test]
    fn the_story_begins_with_a_pull_and_ends_with_a_count_for_every_image() {
        let foreign: Vec<&str> =
            STEPS.iter().filter(|step| !step.own_image_only).map(|step| step.name).collect();
        assert_eq!(foreign.first(), Some(&"start a daemon"));
        assert!(foreign.contains(&"PullImage"));
        assert_eq!(STEPS.last().map(|step| step.name), Some("count what is left"));
    }
}
