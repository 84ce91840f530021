//! Cgroups made by systemd: containers as scopes, pods as slices, over D-Bus (org.freedesktop.systemd1(5)).
//!
//! In reading order: this file (units: start, set, stop), [`properties`] (settings → properties; pure), [`bus`] (a connection, with a
//! deadline), [`wire`] (messages). Units are transient and delegated: systemd keeps its hands off what is below them, and their own
//! files it writes as the properties say, which are therefore always told what the files are.
//!
//! Of devices systemd is told nothing: a policy it knows of it would put back after every reload, without what was injected since.

mod bus;
mod properties;
mod wire;

use std::time::Duration;

use self::bus::{Bus, BusError};
use self::properties::{INFINITY, Written};
use self::wire::{Body, Property, Value};
use super::names;
use crate::error::{Error, Kind};

pub(crate) use self::bus::Address;

/// How long systemd may take for all of one operation.
const PATIENCE: Duration = Duration::from_secs(30);

/// A way to systemd's manager.
#[derive(Debug)]
pub(crate) struct Systemd {
    addresses: Vec<Address>,
    patience: Duration,
}

impl Systemd {
    /// The node's.
    pub(crate) fn usual() -> Self {
        Self { addresses: Address::usual(), patience: PATIENCE }
    }

    /// One at a place, with another patience.
    #[cfg(test)]
    pub(super) fn at(address: Address, patience: Duration) -> Self {
        Self { addresses: vec![address], patience }
    }

    fn open(&self) -> Result<Bus, BusError> {
        Bus::open(&self.addresses, self.patience)
    }

    /// Makes a scope with one process in it, and its slices. `shared`: if it is there already, the process joins it.
    pub(super) fn start_scope(
        &self,
        cgroup: &str,
        written: &[Written<'_>],
        pid: i32,
        shared: bool,
    ) -> Result<(), Error> {
        let Some((unit, true)) = names::unit(cgroup).filter(|(unit, _)| names::is_unit(unit)) else {
            return Err(Error::invalid("cgroup", format!("{cgroup} is not a scope of systemd")));
        };
        let pids = vec![pid.cast_unsigned()];
        let mut bus = self.open().map_err(|e| failed("make", unit, e))?;
        let version = bus.version().map_err(|e| failed("make", unit, e))?;
        let mut told = vec![
            ("Description", Value::Text(format!("Berth container cgroup {unit}"))),
            ("Slice", Value::Text(names::slice(cgroup).to_owned())),
            ("Delegate", Value::Flag(true)),
            ("PIDs", Value::Numbers(pids.clone())),
            // Otherwise the end of the system would stop containers before the kubelet does.
            ("DefaultDependencies", Value::Flag(false)),
        ];
        told.extend(common(version));
        let limits = properties::of(written, version, CFS_PERIOD)?;
        if !limits.iter().any(|(name, _)| *name == "TasksMax") {
            // Else it is a share of the node's, which nobody has asked for.
            told.push(("TasksMax", Value::Number(INFINITY)));
        }
        told.extend(limits);
        match start(&mut bus, unit, &told) {
            Err(e) if shared && e.is("UnitExists") => {
                let body = Body::default().text(unit).text("").numbers(&pids);
                bus.manager("AttachProcessesToUnit", &body).map(drop).map_err(|e| failed("join", unit, e))
            }
            other => other.map_err(|e| failed("make", unit, e)),
        }
    }

    /// Makes a slice, and those above it; one that is there stays as it is.
    pub(super) fn start_slice(&self, unit: &str) -> Result<(), Error> {
        let started = self.open().and_then(|mut bus| {
            let mut told = vec![("Description", Value::Text(format!("Berth pod cgroup {unit}")))];
            told.extend(common(bus.version()?));
            start(&mut bus, unit, &told)
        });
        match started {
            Err(e) if e.is("UnitExists") => Ok(()),
            other => other.map_err(|e| failed("make", unit, e)),
        }
    }

    /// Tells a unit's new limits. `period`: the CFS period that holds, in microseconds.
    pub(super) fn set(&self, unit: &str, written: &[Written<'_>], period: u64) -> Result<(), Error> {
        let mut bus = self.open().map_err(|e| failed("change", unit, e))?;
        let version = bus.version().map_err(|e| failed("change", unit, e))?;
        let told = properties::of(written, version, period)?;
        if told.is_empty() {
            return Ok(());
        }
        // Not to outlive the unit: it is transient.
        let body = Body::default().text(unit).flag(true).properties(&told);
        bus.manager("SetUnitProperties", &body).map(drop).map_err(|e| failed("change", unit, e))
    }

    /// Stops a unit and has it forgotten; one that is not there is fine.
    pub(super) fn stop(&self, unit: &str) -> Result<(), Error> {
        let absent = |result: Result<(), BusError>| match result {
            Err(e) if e.is("NoSuchUnit") => Ok(()),
            other => other.map_err(|e| failed("remove", unit, e)),
        };
        let mut bus = self.open().map_err(|e| failed("remove", unit, e))?;
        absent(bus.job("StopUnit", &Body::default().text(unit).text("replace")))?;
        absent(bus.manager("ResetFailedUnit", &Body::default().text(unit)).map(drop))
    }
}

/// CFS period of a fresh cgroup in microseconds.
pub(super) const CFS_PERIOD: u64 = 100_000;

/// What every unit has. Accounting makes systemd keep the controllers of all slices above switched on.
fn common(version: u32) -> Vec<Property> {
    let mut told: Vec<Property> = ["CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting"]
        .map(|name| (name, Value::Flag(true)))
        .into();
    if version >= 236 {
        // One that has failed is not kept for somebody to look at.
        told.push(("CollectMode", Value::Text("inactive-or-failed".into())));
    }
    told
}

/// Starts a transient unit. One of that name that has failed is forgotten first.
fn start(bus: &mut Bus, unit: &str, told: &[Property]) -> Result<(), BusError> {
    let body = Body::default().text(unit).text("replace").properties(told).no_units();
    match bus.job("StartTransientUnit", &body) {
        Err(e) if e.is("UnitExists") => {
            // That it had not failed shows in the second attempt.
            let _ = bus.manager("ResetFailedUnit", &Body::default().text(unit));
            bus.job("StartTransientUnit", &body)
        }
        other => other,
    }
}

fn failed(what: &str, unit: &str, error: BusError) -> Error {
    let timed_out =
        matches!(&error, BusError::Talk { source, .. } if source.kind() == std::io::ErrorKind::TimedOut);
    let kind = match &error {
        BusError::Talk { .. } if timed_out => Kind::DeadlineExceeded,
        BusError::Connect { .. } | BusError::Talk { .. } => Kind::Unavailable,
        e if e.is("UnitExists") => Kind::AlreadyExists,
        e if e.is("NoSuchUnit") => Kind::NotFound,
        _ => Kind::Internal,
    };
    Error::with(kind, format!("{what} the unit {unit}"), error)
}

#[cfg(test)]
#[path = "../../../../tests/support/systemd.rs"]
mod double;
#[cfg(test)]
mod tests;
