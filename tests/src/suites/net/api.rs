//! A double of the API server: lists Nodes and lets them be watched, over plain HTTP, and can be made to fail.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use serde_json::{Value, json};

/// What whoever asks has to show.
pub(super) const TOKEN: &str = "the-agents-own";

/// The double; its threads end with the suite.
#[derive(Clone, Debug)]
pub(super) struct Api {
    shared: Arc<(Mutex<State>, Condvar)>,
    pub(super) port: u16,
}

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<String, Value>,
    /// Version and line of every change.
    history: Vec<(u64, String)>,
    version: u64,
    /// Versions up to this one are forgotten.
    expired: u64,
    /// Watches of an older generation end.
    generation: u64,
    lists: usize,
    watches: usize,
}

impl Api {
    pub(super) fn start() -> Result<Self> {
        let listener = TcpListener::bind("0.0.0.0:0")?;
        let api = Self { shared: Arc::default(), port: listener.local_addr()?.port() };
        let serving = api.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let api = serving.clone();
                // A client that went away is its own business.
                std::thread::spawn(move || api.serve(&stream));
            }
        });
        Ok(api)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A Node is there.
    pub(super) fn put(&self, name: &str, addresses: &[&str], cidrs: &[&str]) {
        let addresses: Vec<Value> =
            addresses.iter().map(|ip| json!({ "type": "InternalIP", "address": ip })).collect();
        let spec = json!({ "podCIDR": cidrs.first(), "podCIDRs": cidrs });
        self.change("ADDED", name, &json!({ "spec": spec, "status": { "addresses": addresses } }));
    }

    /// A Node is gone.
    pub(super) fn remove(&self, name: &str) {
        self.change("DELETED", name, &json!({}));
    }

    /// How often it was listed and watched.
    pub(super) fn asked(&self) -> (usize, usize) {
        let state = self.state();
        (state.lists, state.watches)
    }

    /// Ends every watch; if `forget`, no watch can go on from where it was.
    pub(super) fn interrupt(&self, forget: bool) {
        let mut state = self.state();
        state.generation += 1;
        if forget {
            state.version += 1;
            state.expired = state.version;
        }
        self.shared.1.notify_all();
    }

    fn change(&self, kind: &str, name: &str, node: &Value) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let mut node = node.clone();
        node["metadata"] = json!({ "name": name, "resourceVersion": version.to_string() });
        state.history.push((version, json!({ "type": kind, "object": node }).to_string()));
        match kind {
            "DELETED" => state.nodes.remove(name),
            _ => state.nodes.insert(name.to_owned(), node),
        };
        self.shared.1.notify_all();
    }

    fn serve(&self, mut stream: &TcpStream) -> Result<()> {
        let mut lines = BufReader::new(stream).lines();
        let request = lines.next().transpose()?.unwrap_or_default();
        let mut authorized = false;
        for line in lines.by_ref() {
            let line = line?;
            authorized |= line.eq_ignore_ascii_case(&format!("authorization: bearer {TOKEN}"));
            if line.is_empty() {
                break;
            }
        }
        let mut answer = |status: &str, body: &str| {
            write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{body}"
            )
        };
        if !authorized {
            return Ok(answer("401 Unauthorized", r#"{"message":"Unauthorized","code":401}"#)?);
        }
        let path = request.split(' ').nth(1).unwrap_or_default();
        let parameter = |name: &str| {
            let pairs = path.split_once('?').map_or("", |(_, query)| query).split('&');
            pairs
                .filter_map(|pair| pair.split_once('='))
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value)
        };
        if parameter("watch") != Some("true") {
            let body = self.list(parameter("continue"));
            return Ok(answer("200 OK", &body.to_string())?);
        }
        let from = parameter("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
        answer("200 OK", "")?;
        self.watch(stream, from)
    }

    /// One Node a page, so that going through pages is needed.
    fn list(&self, from: Option<&str>) -> Value {
        let mut state = self.state();
        state.lists += usize::from(from.is_none());
        let skip = from.and_then(|n| n.parse().ok()).unwrap_or(0);
        let page: Vec<&Value> = state.nodes.values().skip(skip).take(1).collect();
        let next = if skip + 1 < state.nodes.len() { (skip + 1).to_string() } else { String::new() };
        json!({ "metadata": { "resourceVersion": state.version.to_string(), "continue": next }, "items": page })
    }

    fn watch(&self, mut stream: &TcpStream, mut from: u64) -> Result<()> {
        let mut state = self.state();
        state.watches += 1;
        if from < state.expired {
            let gone = json!({ "code": 410, "message": "too old resource version" });
            return Ok(writeln!(stream, "{}", json!({ "type": "ERROR", "object": gone }))?);
        }
        let generation = state.generation;
        while state.generation == generation {
            for (version, line) in &state.history {
                if *version > from {
                    writeln!(stream, "{line}")?;
                    from = *version;
                }
            }
            state = self.shared.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}
