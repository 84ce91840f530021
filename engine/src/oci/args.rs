//! The command line: runc's options, parsed by one small table.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::error::{Error, Kind};

/// Text of `berth oci help`.
pub(super) const HELP: &str = "\
berth oci: an OCI runtime with runc's command line

usage: berth oci [GLOBAL OPTIONS] COMMAND [OPTIONS] [ID]

  create ID             make a container from the bundle in the current directory or --bundle
  start ID              run the program of a created container
  run ID                create and start; --detach returns at once
  exec ID COMMAND...    run another process in a container; --process FILE takes it from JSON
  state ID              the container's state as JSON
  list                  all containers
  ps ID                 the container's processes
  kill ID [SIGNAL]      send a signal, SIGTERM unless told otherwise; --all to every process
  delete ID             remove a stopped container; --force kills it first
  pause, resume ID      stop all processes and let them go on
  update ID             change resource limits
  events ID             statistics; --stats once
  spec                  write a config.json to start from
  features              what this runtime can do, as JSON

global options:
  --root DIR            where state is kept (/run/berth/oci)
  --log FILE            also log errors to this file
  --log-format FORMAT   text or json
  --debug               also log what is done
  --systemd-cgroup      have cgroups made by systemd; cgroupsPath is slice:prefix:name then

berth oci COMMAND --help lists the options of a command; they mean what runc's do.
";

/// Text of `berth oci COMMAND --help`.
pub(super) fn help(command: &str, options: &[Option]) -> String {
    let mut text = format!("usage: berth oci {command} [OPTIONS] ID\n");
    for Option { long, short, value } in options {
        let short = if short.is_empty() { String::new() } else { format!(", -{short}") };
        let value = if *value { " VALUE" } else { "" };
        text.push_str(&format!("  --{long}{short}{value}\n"));
    }
    text
}

/// One option of a verb: its names, and whether a value follows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Option {
    long: &'static str,
    short: &'static str,
    value: bool,
}

const fn value(long: &'static str, short: &'static str) -> Option {
    Option { long, short, value: true }
}

const fn flag(long: &'static str, short: &'static str) -> Option {
    Option { long, short, value: false }
}

/// No options.
pub(super) const NONE: &[Option] = &[];
/// `create`.
pub(super) const CREATE: &[Option] = &[
    value("bundle", "b"),
    value("console-socket", ""),
    value("pidfd-socket", ""),
    value("pid-file", ""),
    flag("no-pivot", ""),
    flag("no-new-keyring", ""),
    value("preserve-fds", ""),
];
/// `run`: as `create`, and more.
pub(super) const RUN: &[Option] = &[
    value("bundle", "b"),
    value("console-socket", ""),
    value("pidfd-socket", ""),
    value("pid-file", ""),
    flag("no-pivot", ""),
    flag("no-new-keyring", ""),
    value("preserve-fds", ""),
    flag("detach", "d"),
    flag("keep", ""),
    flag("no-subreaper", ""),
];
/// `exec`.
pub(super) const EXEC: &[Option] = &[
    value("console-socket", ""),
    value("pidfd-socket", ""),
    value("cwd", ""),
    value("env", "e"),
    flag("tty", "t"),
    value("user", "u"),
    value("additional-gids", "g"),
    value("process", "p"),
    flag("detach", "d"),
    value("pid-file", ""),
    value("process-label", ""),
    value("apparmor", ""),
    flag("no-new-privs", ""),
    value("cap", "c"),
    value("preserve-fds", ""),
    value("cgroup", ""),
    flag("ignore-paused", ""),
];
/// `list`.
pub(super) const LIST: &[Option] = &[value("format", "f"), flag("quiet", "q")];
/// `ps`.
pub(super) const PS: &[Option] = &[value("format", "f")];
/// `kill`.
pub(super) const KILL: &[Option] = &[flag("all", "a")];
/// `delete`.
pub(super) const DELETE: &[Option] = &[flag("force", "f")];
/// `events`.
pub(super) const EVENTS: &[Option] = &[value("interval", ""), flag("stats", "")];
/// `spec`.
pub(super) const SPEC: &[Option] = &[value("bundle", "b"), flag("rootless", "")];
/// `update`.
pub(super) const UPDATE: &[Option] = &[
    value("resources", "r"),
    value("blkio-weight", ""),
    value("cpu-period", ""),
    value("cpu-quota", ""),
    value("cpu-burst", ""),
    value("cpu-share", ""),
    value("cpu-rt-period", ""),
    value("cpu-rt-runtime", ""),
    value("cpuset-cpus", ""),
    value("cpuset-mems", ""),
    value("memory", ""),
    value("memory-reservation", ""),
    value("memory-swap", ""),
    value("pids-limit", ""),
    value("cpu-idle", ""),
    value("l3-cache-schema", ""),
    value("mem-bw-schema", ""),
    value("kernel-memory", ""),
    value("kernel-memory-tcp", ""),
];

/// Options before the verb.
#[derive(Debug)]
pub(super) struct Global {
    pub(super) root: PathBuf,
    pub(super) log: std::option::Option<PathBuf>,
    pub(super) json: bool,
    pub(super) debug: bool,
    pub(super) systemd: bool,
    rootless: bool,
}

/// A verb with what follows it.
type Split = (Global, std::option::Option<String>, Vec<OsString>);

impl Global {
    /// Takes the options before the verb off the arguments.
    pub(super) fn parse(arguments: &[OsString]) -> Result<Split, String> {
        const OPTIONS: &[Option] = &[
            value("root", ""),
            value("log", ""),
            value("log-format", ""),
            flag("debug", ""),
            flag("systemd-cgroup", ""),
            value("rootless", ""),
            value("criu", ""),
        ];
        let at = verb_at(OPTIONS, arguments)?;
        let (before, after) = arguments.split_at(at);
        let options = Parsed::parse(OPTIONS, before, false)?;
        let json = match options.text("log-format")?.as_deref() {
            None | Some("text" | "") => false,
            Some("json") => true,
            Some(other) => return Err(format!("--log-format: {other} is neither text nor json")),
        };
        let global = Self {
            root: options.path("root").unwrap_or_else(|| "/run/berth/oci".into()),
            log: options.path("log").filter(|path| !path.as_os_str().is_empty()),
            json,
            debug: options.has("debug"),
            systemd: options.has("systemd-cgroup"),
            rootless: options.text("rootless")?.is_some_and(|text| text == "true"),
        };
        let mut after = after.iter();
        let verb = after.next().map(|verb| verb.to_string_lossy().into_owned());
        Ok((global, verb, after.cloned().collect()))
    }

    /// What is asked for and not built.
    pub(super) fn refused(&self) -> std::option::Option<Error> {
        let text = "--rootless is not built: `berth oci` needs root";
        self.rootless.then(|| Error::new(Kind::Unimplemented, text))
    }
}

/// Where the verb is: the first argument that is no option and no option's value. `--version` and `--help` stand for verbs.
fn verb_at(options: &[Option], arguments: &[OsString]) -> Result<usize, String> {
    let mut at = 0;
    while let Some(argument) = arguments.get(at).and_then(|a| a.to_str()) {
        if !argument.starts_with('-') || ["--version", "-v", "--help", "-h"].contains(&argument) {
            return Ok(at);
        }
        let (option, inline) = find(options, argument.as_ref())?;
        at += if option.value && inline.is_none() { 2 } else { 1 };
    }
    Ok(at.min(arguments.len()))
}

/// The option an argument names, and the value behind its `=`.
fn find<'o>(
    options: &'o [Option],
    argument: &OsStr,
) -> Result<(&'o Option, std::option::Option<OsString>), String> {
    let bytes = argument.as_bytes();
    let (name, inline) = match bytes.iter().position(|b| *b == b'=') {
        Some(at) => (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..]).to_owned())),
        None => (bytes, None),
    };
    let bare = name.strip_prefix(b"--").or_else(|| name.strip_prefix(b"-")).unwrap_or(name);
    let option = options
        .iter()
        .find(|o| o.long.as_bytes() == bare || (!o.short.is_empty() && o.short.as_bytes() == bare));
    let option =
        option.ok_or_else(|| format!("unknown option {}", OsStr::from_bytes(name).to_string_lossy()))?;
    Ok((option, inline))
}

/// The options and words of a verb.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    values: Vec<(&'static str, OsString)>,
    words: Vec<OsString>,
}

impl Parsed {
    /// Parses; with `stop` the first word ends the options and all behind it are words, too (after at most one `--`).
    pub(super) fn parse(options: &[Option], arguments: &[OsString], stop: bool) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut arguments = arguments.iter();
        let mut only_words = false;
        while let Some(argument) = arguments.next() {
            let is_option = argument.as_bytes().starts_with(b"-") && argument != "-";
            if only_words || !is_option {
                parsed.words.push(argument.clone());
                if stop && !only_words {
                    only_words = true;
                    let mut rest = arguments.as_slice().iter();
                    if rest.clone().next().is_some_and(|next| next == "--") {
                        rest.next();
                        arguments = rest;
                    }
                }
                continue;
            }
            if argument == "--" {
                only_words = true;
                continue;
            }
            let (option, inline) = find(options, argument)?;
            let value = match (option.value, inline) {
                (true, Some(value)) => value,
                (true, None) => {
                    arguments.next().cloned().ok_or_else(|| format!("--{} needs a value", option.long))?
                }
                (false, Some(value)) if value == "false" => continue,
                (false, Some(value)) if value != "true" => {
                    return Err(format!("--{} takes no value", option.long));
                }
                (false, _) => OsString::new(),
            };
            parsed.values.push((option.long, value));
        }
        Ok(parsed)
    }

    /// Whether an option is given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.values.iter().any(|(n, _)| *n == name)
    }

    /// All values of an option, in order.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a OsStr> {
        self.values.iter().filter(move |(n, _)| *n == name).map(|(_, value)| value.as_os_str())
    }

    /// The last value of an option as a path.
    pub(super) fn path(&self, name: &str) -> std::option::Option<PathBuf> {
        self.all(name).last().map(PathBuf::from)
    }

    /// The last value of an option as text.
    pub(super) fn text(&self, name: &str) -> Result<std::option::Option<String>, String> {
        let text = |value: &OsStr| value.to_str().map(str::to_owned);
        self.all(name).last().map(|v| text(v).ok_or_else(|| format!("--{name}: is not UTF-8"))).transpose()
    }

    /// As [`Parsed::text`], for verbs.
    pub(super) fn string(&self, name: &str) -> Result<std::option::Option<String>, Error> {
        self.text(name).map_err(|why| Error::new(Kind::InvalidArgument, why))
    }

    /// The last value of an option as a number.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<std::option::Option<T>, Error> {
        let Some(text) = self.string(name)? else { return Ok(None) };
        let bad = |_| Error::invalid(&format!("--{name}"), format!("{text:?} is no such number"));
        text.parse().map(Some).map_err(bad)
    }

    /// The container's id, which is the first word.
    pub(super) fn id(&self) -> Result<&str, Error> {
        let word = self.words.first().ok_or_else(|| Error::invalid("ID", "is missing"))?;
        word.to_str().ok_or_else(|| Error::invalid("ID", "is not UTF-8"))
    }

    /// The words behind the id.
    pub(super) fn rest(&self) -> &[OsString] {
        self.words.get(1..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').filter(|w| !w.is_empty()).map(Into::into).collect()
    }

    #[test]
    fn global_options_end_at_the_verb() {
        let line = "--root /r --log=/l --log-format json create --bundle /b id";
        let (global, verb, rest) = Global::parse(&words(line)).unwrap();
        assert_eq!((global.root.to_str(), global.json, verb.as_deref()), (Some("/r"), true, Some("create")));
        assert_eq!(rest, words("--bundle /b id"));
        assert!(Global::parse(&words("--log-format xml state a")).unwrap_err().contains("xml"));
        assert!(Global::parse(&words("--wild state a")).unwrap_err().contains("--wild"));
        assert!(Global::parse(&words("--rootless true state a")).unwrap().0.refused().is_some());
        assert!(Global::parse(&words("--systemd-cgroup state a")).unwrap().0.systemd);
    }

    #[test]
    fn options_of_a_verb_stand_before_and_behind_the_id() {
        let parsed = Parsed::parse(KILL, &words("--all id 9"), false).unwrap();
        assert!(parsed.has("all"));
        assert_eq!((parsed.id().unwrap(), parsed.rest()), ("id", &words("9")[..]));
        let parsed = Parsed::parse(CREATE, &words("id -b /x --pid-file=/p"), false).unwrap();
        assert_eq!(parsed.path("bundle").unwrap().to_str(), Some("/x"));
        assert_eq!(parsed.path("pid-file").unwrap().to_str(), Some("/p"));
        assert!(Parsed::parse(CREATE, &words("id --bundle"), false).unwrap_err().contains("needs a value"));
    }

    #[test]
    fn what_follows_the_id_of_an_exec_is_its_command() {
        let parsed = Parsed::parse(EXEC, &words("-t --env A=1 -e B=2 id ls -l --tty"), true).unwrap();
        assert_eq!(parsed.all("env").collect::<Vec<_>>(), ["A=1", "B=2"]);
        assert_eq!(parsed.rest(), words("ls -l --tty"));
        let parsed = Parsed::parse(EXEC, &words("id -- -x"), true).unwrap();
        assert_eq!(parsed.rest(), words("-x"));
    }
}
