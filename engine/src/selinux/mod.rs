//! SELinux: which labels pods, containers, their file systems and volumes have (container_selinux(8)).
//!
//! In reading order: [`context`] (a label and its parts), [`defaults`] (what the policy says of containers), [`levels`] (one pair of
//! categories per pod), [`labels`] (what is asked for → labels; pure), [`kernel`] (the node's policy: is there one, does it know a
//! label), [`relabel`] (volumes). What is decided here is written into the records of pods and containers, and acted on elsewhere: the
//! plan writes `attr/exec` (`native::lsm`), mounts get a `context`, the volume driver relabels.
//!
//! There is no libselinux in here: its files are read and written as they are.

mod context;
mod defaults;
mod kernel;
mod labels;
mod levels;
pub(crate) mod relabel;

use std::io;
use std::path::PathBuf;

pub use self::context::Context;
pub use self::labels::{ContainerLabels, PodLabels};

use self::defaults::Defaults;
use self::kernel::Kernel;
use self::levels::Levels;
use crate::error::{Error, Kind};
use crate::spec::{ContainerSpec, PodSpec, SelinuxLabel};

/// Where a node keeps what SELinux is known by: `sys/fs/selinux`, `proc/self/attr/current`, `etc/selinux` and
/// `usr/share/containers/selinux` are looked for below this directory, `/` but in tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(pub PathBuf);

impl Default for Place {
    fn default() -> Self {
        Self("/".into())
    }
}

/// The label of images and containers' layers, for the image store; `None`: SELinux is off. The kernel maps programs past the label of a
/// container's root, and then asks about what lies below.
pub fn image_label(place: &Place) -> Result<Option<storage::Label>, Error> {
    let Some(selinux) = Selinux::probe(place)? else { return Ok(None) };
    let Defaults { image, file, .. } = &selinux.defaults;
    let known = selinux.kernel.knows(image).map_err(|e| unanswered(image, e))?;
    let text = if known { image } else { file }.to_string();
    Ok(Some(storage::Label { text, apply: relabel::store }))
}

/// The label that a bundle names in `field`; `None`: SELinux is off. Fails when its policy does not know the label.
pub(crate) fn named(place: &Place, field: &str, text: &str) -> Result<Option<Context>, Error> {
    let label: Context = text.parse().map_err(|why| Error::invalid(field, format!("\"{text}\" {why}")))?;
    let Some(kernel) = Kernel::probe(&place.0) else { return Ok(None) };
    match kernel.knows(&label) {
        Ok(true) => Ok(Some(label)),
        Ok(false) => Err(Error::invalid(field, format!("the policy does not know \"{label}\""))),
        Err(e) => Err(unanswered(&label, e)),
    }
}

/// SELinux on a node that has it on, with a policy.
#[derive(Debug)]
pub(crate) struct Selinux {
    kernel: Kernel,
    defaults: Defaults,
    levels: Levels,
}

impl Selinux {
    /// Looks for it; `None`: it is off, or no policy is loaded. Fails when the policy's file about containers makes no sense.
    pub(crate) fn probe(place: &Place) -> Result<Option<Self>, Error> {
        let Some(kernel) = Kernel::probe(&place.0) else { return Ok(None) };
        let defaults = defaults::read(&place.0, kernel.has_levels())?;
        Ok(Some(Self { kernel, defaults, levels: Levels::default() }))
    }

    /// The labels of a pod that is going to be made; its level is taken until [`Selinux::release`].
    pub(crate) fn pod(&self, spec: &PodSpec) -> Result<PodLabels, Error> {
        let asked = spec.security.selinux.clone().unwrap_or_default();
        self.check(&asked)?;
        let free = asked.level.is_empty() && self.defaults.process.level.is_some();
        let level = if free { Some(self.levels.take()?) } else { None };
        let labels = labels::pod(&self.defaults, &asked, level.as_deref());
        match self.known(&asked, &labels) {
            Ok(()) => {
                if !free {
                    self.hold(&labels);
                }
                Ok(labels)
            }
            Err(error) => {
                self.levels.release(level.as_deref());
                Err(error)
            }
        }
    }

    /// The labels of a container in a pod of these labels.
    pub(crate) fn container(
        &self,
        pod: &PodLabels,
        pod_spec: &PodSpec,
        spec: &ContainerSpec,
    ) -> Result<ContainerLabels, Error> {
        let asked = spec.security.selinux.clone().unwrap_or_default();
        self.check(&asked)?;
        let merged = labels::merge(pod, &asked);
        self.known(&asked, &merged)?;
        Ok(labels::container(merged, pod_spec, spec))
    }

    /// Takes the level of a pod that exists.
    pub(crate) fn hold(&self, labels: &PodLabels) {
        self.levels.hold(labels.process.level.as_deref());
    }

    /// Gives the level of a pod back.
    pub(crate) fn release(&self, labels: &PodLabels) {
        self.levels.release(labels.process.level.as_deref());
    }

    /// Whether each part of what is asked for makes sense, by itself and to the policy.
    fn check(&self, asked: &SelinuxLabel) -> Result<(), Error> {
        labels::check(&self.defaults, asked, |label| self.kernel.knows(label))
    }

    /// Whether the policy knows the labels as a whole.
    fn known(&self, asked: &SelinuxLabel, labels: &PodLabels) -> Result<(), Error> {
        for label in [&labels.process, &labels.file] {
            if self.kernel.knows(label).map_err(|e| unanswered(label, e))? {
                continue;
            }
            if *asked != SelinuxLabel::default() {
                return Err(Error::invalid(
                    "selinux_options",
                    format!("the policy does not know \"{label}\""),
                ));
            }
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!(
                    "SELinux is on, and its policy does not know \"{label}\": install container-selinux, or set selinux = false in \
                     [engine]"
                ),
            ));
        }
        Ok(())
    }
}

/// The kernel could not be asked about a label.
fn unanswered(label: &Context, error: io::Error) -> Error {
    Error::with(Kind::Internal, format!("ask SELinux about the label \"{label}\""), error)
}

#[cfg(test)]
mod tests;
