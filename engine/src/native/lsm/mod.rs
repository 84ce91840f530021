//! Linux security modules: which label a container's processes take at execve(2).
//!
//! A module is asked when a container is made ([`Module::labels`] refuses by name what it cannot give) and again at each start and exec;
//! the label is written to the process's `attr/…exec` by the plan, before the root is changed, and takes effect at execve(2). A module
//! that the kernel does not have answers as the other runtimes do: what asks for nothing it could give is fine, a profile by name is not.

mod apparmor;
mod selinux;

use std::ffi::CStr;

use crate::error::Error;
use crate::selinux::{ContainerLabels, Context};
use crate::spec::ContainerSpec;

/// What a module decides by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// The container as requested.
    pub(crate) container: &'a ContainerSpec,
    /// The SELinux labels in its record; `None`: SELinux is off.
    pub(crate) selinux: Option<&'a ContainerLabels>,
}

/// A label to be taken at execve(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    /// File below /proc it is written to.
    pub(crate) file: &'static CStr,
    /// What is written.
    pub(crate) value: Vec<u8>,
}

/// One security module of the kernel, there or not.
pub(crate) trait Module: Send + Sync + std::fmt::Debug {
    /// The labels of a container's processes; none: they keep the supervisor's, or what the policy makes of it.
    fn labels(&self, request: &Request<'_>) -> Result<Vec<Label>, Error>;
}

/// The modules as this kernel has them.
pub(crate) fn probe() -> Vec<Box<dyn Module>> {
    vec![Box::new(apparmor::AppArmor::probe()), Box::new(selinux::Selinux)]
}

/// The label that stands for the AppArmor profile which a bundle names: it has to be loaded.
pub(crate) fn of_profile(name: &str) -> Result<Label, Error> {
    apparmor::AppArmor::probe().named(name)
}

/// The labels that stand for the SELinux label of a process which a bundle names.
pub(crate) fn of_context(context: &Context) -> [Label; 2] {
    selinux::wishes(context)
}

/// The AppArmor profile that a label asks for, as a bundle names it.
pub(crate) fn profile(label: &Label) -> Option<String> {
    let name = label.value.strip_prefix(b"exec ").filter(|_| label.file == apparmor::ATTRIBUTE)?;
    Some(String::from_utf8_lossy(name).into_owned())
}

/// The SELinux label of a process that a label asks for, as a bundle names it.
pub(crate) fn context(label: &Label) -> Option<String> {
    (label.file == selinux::EXEC).then(|| String::from_utf8_lossy(&label.value).into_owned())
}

/// The labels of all modules.
pub(crate) fn labels(modules: &[Box<dyn Module>], request: &Request<'_>) -> Result<Vec<Label>, Error> {
    let labels = modules.iter().map(|module| module.labels(request)).collect::<Result<Vec<_>, _>>()?;
    Ok(labels.into_iter().flatten().collect())
}
