//! What the daemon says about itself, in the Prometheus text format: calls, jobs and their steps, pods, its own resources.
//!
//! Not to be confused with [`crate::metrics`], which are the containers' numbers for the kubelet. [`text`] is the format
//! (pure), [`expose`] gathers and names the numbers, [`server`] serves them over HTTP where `[metrics] address` says.
//!
//! Tasks spawned: one accept loop, one per connection. Files owned: none.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::histogram::Histogram;
use tonic::Code;

pub mod expose;
pub mod server;
pub mod text;

/// What is counted while the daemon runs; everything else is read when it is asked for.
#[derive(Debug, Default)]
pub struct Telemetry {
    calls: Mutex<BTreeMap<&'static str, Calls>>,
    reloads: AtomicU64,
    refused_reloads: AtomicU64,
}

/// The calls of one RPC.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    /// How long they took.
    pub durations: Histogram,
    /// How they ended; [`Code::Ok`] included.
    pub codes: BTreeMap<i32, u64>,
}

impl Telemetry {
    /// Counts an answered call.
    pub fn call(&self, rpc: &'static str, took: Duration, code: Code) {
        let mut calls = self.lock();
        let calls = calls.entry(rpc).or_default();
        calls.durations.observe(took);
        *calls.codes.entry(i32::from(code)).or_default() += 1;
    }

    /// Counts an attempt to read the configuration again.
    pub fn reload(&self, accepted: bool) {
        let counter = if accepted { &self.reloads } else { &self.refused_reloads };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Accepted and refused attempts to read the configuration again.
    pub fn reloads(&self) -> [u64; 2] {
        [&self.reloads, &self.refused_reloads].map(|counter| counter.load(Ordering::Relaxed))
    }

    /// All calls so far, by RPC.
    pub fn calls(&self) -> BTreeMap<&'static str, Calls> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Calls>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
