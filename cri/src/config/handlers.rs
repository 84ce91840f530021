//! External OCI runtimes: `[handlers.NAME]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine::external::Config;

use super::{Error, duration, file};

/// The handler that is always there.
const NATIVE: &str = "native";

/// The handlers in the order of their names; a value without meaning is refused by its key.
pub(super) fn handlers(
    handlers: BTreeMap<String, file::Handler>,
    state: &Path,
) -> Result<Vec<Config>, Error> {
    handlers.into_iter().map(|(name, handler)| one(name, handler, state)).collect()
}

/// Our own OCI command line, for devices that ask for hooks; `None`: our program has no path.
pub(super) fn own(state: &Path) -> Option<Config> {
    Some(Config {
        name: NATIVE.into(),
        path: std::env::current_exe().ok()?,
        root: state.join("handlers").join(NATIVE),
        arguments: vec!["oci".into()],
        timeout: Config::TIMEOUT,
    })
}

fn one(name: String, handler: file::Handler, state: &Path) -> Result<Config, Error> {
    let at = format!("handlers.{name}");
    // As Kubernetes has it for the handler of a RuntimeClass: a DNS label.
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = name.starts_with('-') || name.ends_with('-');
    if name.is_empty() || name.len() > 63 || ends || !name.chars().all(letter) {
        return Err(Error::value(&at, "is not a name of lower-case letters, digits and \"-\"".into()));
    }
    if name == NATIVE {
        return Err(Error::value(&at, "is the name of Berth's own driver".into()));
    }
    let absolute = |key: &str, path: PathBuf| {
        let why = format!("{} is not an absolute path", path.display());
        if path.is_absolute() { Ok(path) } else { Err(Error::value(&format!("{at}.{key}"), why)) }
    };
    let path = handler.path.ok_or_else(|| {
        Error::value(&format!("{at}.path"), "must be set: the path of an OCI runtime".into())
    })?;
    let timeout = duration(&format!("{at}.timeout"), handler.timeout, Config::TIMEOUT)?;
    if timeout.as_secs() == 0 || timeout.as_secs() > 50 {
        return Err(Error::value(&format!("{at}.timeout"), "is not between one second and 50".into()));
    }
    Ok(Config {
        path: absolute("path", path)?,
        root: absolute("root", handler.root.unwrap_or_else(|| state.join("handlers").join(&name)))?,
        arguments: handler.arguments,
        timeout,
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Config>, String> {
        let file = super::super::File::parse(Path::new("config.toml"), text).map_err(|e| e.to_string())?;
        handlers(file.handlers.unwrap_or_default(), Path::new("/run/berth")).map_err(|e| e.to_string())
    }

    #[test]
    fn a_handler_needs_a_path_and_has_a_root_of_its_own() {
        let text = "[handlers.crun]\npath = \"/usr/bin/crun\"\narguments = [\"--debug\"]\ntimeout = \"5s\"\n";
        let handlers = read(text).unwrap();
        let [crun] = &handlers[..] else { panic!("{handlers:?}") };
        assert_eq!((crun.name.as_str(), crun.root.to_str()), ("crun", Some("/run/berth/handlers/crun")));
        assert_eq!((crun.arguments.as_slice(), crun.timeout.as_secs()), (&["--debug".to_owned()][..], 5));
        for (text, named) in [
            ("[handlers.crun]\n", "handlers.crun.path: must be set"),
            ("[handlers.crun]\npath = \"crun\"\n", "handlers.crun.path: crun is not an absolute path"),
            ("[handlers.crun]\npath = \"/c\"\nroot = \"r\"\n", "handlers.crun.root: r is not"),
            ("[handlers.crun]\npath = \"/c\"\ntimeout = \"0s\"\n", "handlers.crun.timeout"),
            ("[handlers.native]\npath = \"/c\"\n", "handlers.native: is the name"),
            ("[handlers.\"a/b\"]\npath = \"/c\"\n", "handlers.a/b: is not a name"),
            ("[handlers.crun]\nroute = 1\n", "config.toml:2:1"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(named), "{text:?} gave {error}");
        }
    }
}
