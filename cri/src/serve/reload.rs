//! SIGHUP: the configuration is read again, and what may change while pods run takes effect.
//!
//! A configuration that is wrong changes nothing: the last good one stays, and the log names file, line and key. Keys that
//! cannot change under way are named in the log and wait for a restart.

use std::sync::Arc;

use engine::Engine;

use crate::config::{Config, Error, Sources};
use crate::streaming;
use crate::telemetry::Telemetry;

/// Keys that take effect at once.
pub const AT_ONCE: [&str; 9] = [
    "log",
    "engine.hosts_file",
    "engine.resolv_conf",
    "engine.unprivileged_ports",
    "engine.kill_wait",
    "engine.exec_drain",
    "engine.abandoned_pull",
    "streaming.idle_timeout",
    "streaming.creation_timeout",
];

/// Sets the log filter; the error says what is wrong with it.
pub type SetLog = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// The parts of a running daemon that take new settings.
#[expect(missing_debug_implementations, reason = "a closure has none")]
pub struct Reload {
    /// What is in force, or waits for a restart.
    pub sources: Sources,
    /// The log's filter.
    pub set_log: SetLog,
    /// Limits and files.
    pub engine: Arc<Engine>,
    /// Time limits of sessions.
    pub streaming: Arc<streaming::Server>,
    /// Counts the attempts.
    pub telemetry: Arc<Telemetry>,
}

/// What became of the keys that have changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In force now.
    pub applied: Vec<String>,
    /// Waiting for a restart.
    pub waiting: Vec<String>,
}

impl Reload {
    /// Reads everything again, applies what can be applied, and says in the log what happened.
    pub fn reload(&mut self) {
        let outcome = self.try_reload();
        self.telemetry.reload(outcome.is_ok());
        match outcome {
            Ok(changes) => {
                let Changes { applied, waiting } = changes;
                tracing::info!(applied = applied.join(", "), "configuration read again");
                if !waiting.is_empty() {
                    tracing::warn!(
                        keys = waiting.join(", "),
                        "these changes wait for a restart of the daemon"
                    );
                }
            }
            Err(error) => {
                let why = engine::error::chain(&error);
                tracing::error!("configuration not taken over, the last good one stays: {why}");
            }
        }
    }

    fn try_reload(&mut self) -> Result<Changes, Error> {
        let new = Config::load(&self.sources.flags)?;
        let changes = sort(self.sources.file.differences(&new.sources.file));
        if changes.applied.iter().any(|key| key == "log") {
            (self.set_log)(&new.log).map_err(|why| Error::value("log", why))?;
        }
        self.engine.reconfigure(&new.engine);
        self.streaming.set_timeouts(new.streaming.idle_timeout, new.streaming.creation_timeout);
        self.sources = new.sources;
        Ok(changes)
    }
}

/// Tells the keys that take effect at once from the others.
fn sort(keys: Vec<String>) -> Changes {
    let (applied, waiting) = keys.into_iter().partition(|key| AT_ONCE.contains(&key.as_str()));
    Changes { applied, waiting }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::File;

    #[test]
    fn every_key_is_either_applied_or_named_as_waiting() {
        let parse = |text: &str| File::parse(Path::new("c.toml"), text).unwrap();
        let old =
            parse("log = \"info\"\n[engine]\nkill_wait = \"1s\"\n[network]\npod_cidrs = [\"10.0.0.0/16\"]\n");
        let new = parse(
            "log = \"debug\"\nroot = \"/x\"\n[engine]\nkill_wait = \"1s\"\n[streaming]\nidle_timeout = \"1m\"\n[streaming.tls]\nself_signed = true\n",
        );
        let changes = sort(old.differences(&new));
        assert_eq!(changes.applied, ["log", "streaming.idle_timeout"]);
        assert_eq!(changes.waiting, ["root", "network.pod_cidrs", "streaming.tls"]);
        assert_eq!(sort(new.differences(&new)), Changes::default());
    }

    #[test]
    fn the_sample_configuration_marks_exactly_the_keys_that_take_effect_at_once() {
        let sample = include_str!("../../../deploy/config.toml");
        let mut marked = Vec::new();
        let (mut section, mut reload) = (String::new(), false);
        for line in sample.lines() {
            let text = line.trim_start_matches(['#', ' ']);
            if let Some(name) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = format!("{name}.");
            }
            if let (Some((key, _)), true) = (text.split_once(" = "), reload) {
                let root = section.is_empty() || marked.is_empty();
                marked.push(if root { key.to_owned() } else { format!("{section}{key}") });
            }
            // A comment opens a group of keys.
            if line.starts_with("# ") && !text.contains(" = ") {
                reload = line.starts_with("# (reload) ") || (reload && !line.ends_with('.'));
            }
        }
        assert_eq!(marked, AT_ONCE);
    }
}
