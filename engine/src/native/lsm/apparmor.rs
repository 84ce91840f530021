//! AppArmor: profiles by name, checked to be loaded; a default profile of our own (apparmor(7), apparmor.d(5)).

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Label, Module, Request};
use crate::error::{Error, Kind};
use crate::exec::program;
use crate::spec::Profile;

/// Where a process asks for its next profile (apparmor(7)); since Linux 5.8 under the module's own name.
pub(super) const ATTRIBUTE: &std::ffi::CStr = c"self/attr/apparmor/exec";
/// Name of our default profile.
const DEFAULT: &str = "berth-default";
/// Its text.
const DEFAULT_TEXT: &str = include_str!("berth-default.apparmor");
/// Where distributions keep the compiler of profiles.
const PARSERS: [&str; 2] = ["/sbin/apparmor_parser", "/usr/sbin/apparmor_parser"];
/// More than any node has loaded.
const MAX_PROFILES: usize = 1 << 16;
/// How long the compiler may take for the default profile; it takes some 20 ms.
const COMPILE_TIME: Duration = Duration::from_secs(10);

/// AppArmor as this kernel has it.
#[derive(Debug)]
pub(crate) struct AppArmor {
    enabled: bool,
    /// The module's directory of securityfs.
    files: PathBuf,
    /// Compiler of profiles.
    parser: Option<PathBuf>,
    /// Held while the default profile is loaded.
    loading: Mutex<()>,
}

impl AppArmor {
    /// Looks for the module and for what compiles its profiles.
    pub(crate) fn probe() -> Self {
        let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        Self {
            enabled: enabled.is_ok_and(|text| text.starts_with('Y')),
            files: "/sys/kernel/security/apparmor".into(),
            parser: PARSERS.into_iter().map(PathBuf::from).find(|path| path.exists()),
            loading: Mutex::new(()),
        }
    }

    /// Whether a profile is loaded.
    fn loaded(&self, name: &str) -> Result<bool, Error> {
        let path = self.files.join("profiles");
        let failed = |e| {
            let what = format!("read {}, to see whether profile \"{name}\" is loaded", path.display());
            Error::with(Kind::FailedPrecondition, what, e)
        };
        let file = BufReader::new(fs::File::open(&path).map_err(failed)?);
        for line in file.lines().take(MAX_PROFILES) {
            if profile_name(&line.map_err(failed)?) == Some(name) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The wish for a profile, which has to be loaded.
    pub(super) fn named(&self, name: &str) -> Result<Label, Error> {
        let refused = |why: &str| Error::new(Kind::FailedPrecondition, format!("apparmorProfile: {why}"));
        if !self.enabled {
            return Err(refused("AppArmor is not enabled on this node"));
        }
        if !self.loaded(name)? {
            return Err(refused(&format!("profile \"{name}\" is not loaded on this node")));
        }
        Ok(wish(name))
    }

    /// Loads the default profile unless it is there.
    fn load_default(&self) -> Result<(), Error> {
        let _turn = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if self.loaded(DEFAULT)? {
            return Ok(());
        }
        let parser = self.parser.as_deref().ok_or_else(|| {
            let why = "the default profile cannot be loaded: apparmor_parser is not installed";
            Error::new(Kind::FailedPrecondition, format!("apparmor: {why}"))
        })?;
        compile(parser, DEFAULT_TEXT)
    }
}

impl Module for AppArmor {
    fn labels(&self, request: &Request<'_>) -> Result<Vec<Label>, Error> {
        let security = &request.container.security;
        let unconfined = security.privileged || security.apparmor == Some(Profile::Unconfined);
        let take = |name: &str| Ok(vec![wish(name)]);
        match &security.apparmor {
            _ if unconfined => Ok(Vec::new()),
            Some(Profile::Localhost(name)) if !self.enabled => Err(Error::invalid(
                "security_context.apparmor",
                format!("profile \"{name}\" cannot be applied: AppArmor is not enabled on this node"),
            )),
            _ if !self.enabled => Ok(Vec::new()),
            Some(Profile::Localhost(name)) if !self.loaded(name)? => Err(Error::invalid(
                "security_context.apparmor",
                format!("profile \"{name}\" is not loaded on this node"),
            )),
            Some(Profile::Localhost(name)) => take(name),
            // Nobody asked for it, and a node that cannot load it still has to run pods.
            None if self.parser.is_none() && !self.loaded(DEFAULT)? => Ok(Vec::new()),
            Some(Profile::RuntimeDefault | Profile::Unconfined) | None => {
                self.load_default()?;
                take(DEFAULT)
            }
        }
    }
}

/// What asks for a profile at execve(2).
fn wish(name: &str) -> Label {
    Label { file: ATTRIBUTE, value: format!("exec {name}").into_bytes() }
}

/// The name in a line of the kernel's list, `NAME (MODE)`.
fn profile_name(line: &str) -> Option<&str> {
    line.rsplit_once(" (").map(|(name, _)| name)
}

/// Compiles a profile and loads it into the kernel.
fn compile(parser: &Path, text: &str) -> Result<(), Error> {
    let mut command = Command::new(parser);
    command.args(["--skip-cache", "--replace"]);
    let error =
        |kind, why| Error::new(kind, format!("apparmor: the default profile cannot be loaded: {why}"));
    match program::run(command, text, COMPILE_TIME) {
        Ok((Some(status), _)) if status.success() => Ok(()),
        Ok((Some(_), said)) => Err(error(Kind::FailedPrecondition, said)),
        Ok((None, _)) => {
            let why = format!("{} did not end within {COMPILE_TIME:?} and was killed", parser.display());
            Err(error(Kind::DeadlineExceeded, why))
        }
        Err(e) => {
            Err(Error::with(Kind::FailedPrecondition, format!("apparmor: run {}", parser.display()), e))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ContainerSpec;

    /// A node whose kernel has these profiles; `None`: no AppArmor.
    fn node(directory: &Path, profiles: Option<&str>) -> AppArmor {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("profiles"), profiles.unwrap_or_default()).unwrap();
        AppArmor {
            enabled: profiles.is_some(),
            files: directory.to_owned(),
            parser: None,
            loading: Mutex::new(()),
        }
    }

    fn asked(node: &AppArmor, profile: Option<Profile>, privileged: bool) -> Result<Option<String>, String> {
        let mut container = ContainerSpec::default();
        (container.security.apparmor, container.security.privileged) = (profile, privileged);
        let request = Request { container: &container, selinux: None };
        let labels = node.labels(&request).map_err(|e| e.chain())?;
        assert!(labels.len() <= 1 && labels.iter().all(|label| label.file == ATTRIBUTE));
        Ok(labels.into_iter().next().map(|label| String::from_utf8(label.value).unwrap()))
    }

    #[test]
    fn a_profile_is_applied_or_refused_by_its_name() {
        let directory = std::env::temp_dir().join(format!("berth-apparmor-{}", std::process::id()));
        let local = || Some(Profile::Localhost("my app".into()));
        let off = node(&directory, None);
        assert_eq!(asked(&off, None, false), Ok(None));
        assert_eq!(asked(&off, Some(Profile::RuntimeDefault), false), Ok(None));
        assert_eq!(asked(&off, Some(Profile::Unconfined), false), Ok(None));
        let refused = asked(&off, local(), false).unwrap_err();
        assert!(refused.contains("my app") && refused.contains("not enabled"), "{refused}");

        let on = node(&directory, Some("berth-default (enforce)\nmy app (complain)\n"));
        assert_eq!(asked(&on, None, false), Ok(Some("exec berth-default".into())));
        assert_eq!(asked(&on, Some(Profile::RuntimeDefault), false), Ok(Some("exec berth-default".into())));
        assert_eq!(asked(&on, Some(Profile::Unconfined), false), Ok(None));
        assert_eq!(asked(&on, local(), false), Ok(Some("exec my app".into())));
        assert_eq!(asked(&on, local(), true), Ok(None), "privileged containers are not confined");

        let bare = node(&directory, Some("other (enforce)\n"));
        assert_eq!(asked(&bare, None, false), Ok(None), "nobody asked for it");
        for profile in [Some(Profile::RuntimeDefault), local()] {
            asked(&bare, profile, false).unwrap_err();
        }
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_compiler_that_fails_or_is_not_there_is_named() {
        let error = compile(Path::new("/bin/false"), DEFAULT_TEXT).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        let error = compile(Path::new("/no/such/parser"), DEFAULT_TEXT).unwrap_err();
        assert!(error.chain().contains("/no/such/parser"), "{}", error.chain());
    }
}
