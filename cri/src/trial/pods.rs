//! The two pods of a trial, worded as a kubelet would word them.

use crate::proto as cri;

use super::client::image_spec;
use super::site::Site;

/// Port the server listens on.
pub const PORT: u16 = 8080;
/// Memory limit of each container in bytes.
const MEMORY: i64 = 64 << 20;

/// A pod with one container, and what has become of it.
#[derive(Debug)]
pub struct Pod {
    /// The request.
    pub config: cri::PodSandboxConfig,
    /// Pod id; empty: not running.
    pub id: String,
    /// Container id; empty: none.
    pub container: String,
    /// Addresses, primary first.
    pub ips: Vec<String>,
}

impl Pod {
    /// The request for a pod called `name`.
    pub fn plan(name: &str, site: &Site) -> Self {
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("{name}-{}", site.pid()),
                namespace: "berth-try".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: site.logs().join(name).display().to_string(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: site.cgroup.clone(),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    seccomp: Some(runtime_default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        Self { config, id: String::new(), container: String::new(), ips: Vec::new() }
    }

    /// Path of the container's log.
    pub fn log(&self) -> std::path::PathBuf {
        std::path::Path::new(&self.config.log_directory).join(LOG)
    }
}

/// Log file of the only container.
const LOG: &str = "main.log";

/// The request for a container of `image`; `arguments`, if any, replace the image's Cmd.
pub fn container(image: &str, arguments: &[String]) -> cri::ContainerConfig {
    let paths = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
        image: Some(image_spec(image)),
        args: arguments.to_vec(),
        envs: vec![cri::KeyValue { key: "BERTH_TRIAL".to_owned(), value: b"from the pod".to_vec() }],
        log_path: LOG.to_owned(),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(cri::LinuxContainerResources {
                memory_limit_in_bytes: MEMORY,
                cpu_shares: 256,
                ..Default::default()
            }),
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                seccomp: Some(runtime_default()),
                no_new_privs: true,
                masked_paths: paths(&["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"]),
                readonly_paths: paths(&[
                    "/proc/bus",
                    "/proc/fs",
                    "/proc/irq",
                    "/proc/sys",
                    "/proc/sysrq-trigger",
                ]),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// What a kubelet sends for an ordinary pod.
fn namespaces() -> cri::NamespaceOption {
    cri::NamespaceOption {
        network: cri::NamespaceMode::Pod.into(),
        ipc: cri::NamespaceMode::Pod.into(),
        pid: cri::NamespaceMode::Container.into(),
        ..Default::default()
    }
}

fn runtime_default() -> cri::SecurityProfile {
    cri::SecurityProfile {
        profile_type: cri::security_profile::ProfileType::RuntimeDefault.into(),
        ..Default::default()
    }
}

/// A complete line of a CRI log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Without its newline.
    pub text: String,
}

/// Reads a log in the CRI's form: `time stream P|F text`, partial pieces joined.
pub fn log_lines(log: &str) -> Vec<LogLine> {
    let mut lines: Vec<LogLine> = Vec::new();
    let mut open: std::collections::BTreeMap<&str, String> = std::collections::BTreeMap::new();
    for record in log.lines() {
        let mut fields = record.splitn(4, ' ');
        let (Some(_time), Some(stream), Some(tag), text) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let piece = open.entry(stream).or_default();
        piece.push_str(text.unwrap_or_default());
        if tag.split(':').next() == Some("F") {
            lines.push(LogLine { stream: stream.to_owned(), text: std::mem::take(piece) });
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_line_are_joined_per_stream() {
        let log = "2026-01-01T00:00:00.0Z stdout P ab\n2026-01-01T00:00:00.1Z stderr F oh no\n\
                   2026-01-01T00:00:00.2Z stdout F cd e\n2026-01-01T00:00:00.3Z stdout F \ngarbage\n";
        let line = |stream: &str, text: &str| LogLine { stream: stream.into(), text: text.into() };
        assert_eq!(log_lines(log), [line("stderr", "oh no"), line("stdout", "abcd e"), line("stdout", "")]);
        assert!(log_lines("").is_empty());
    }
}
