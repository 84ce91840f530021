//! A connection to systemd's manager: its private socket, or the system bus. Everything on it has one deadline.
//!
//! A connection serves one operation. One that was kept would have to survive systemd being executed anew, and would make containers
//! wait for each other; making one costs a fraction of what systemd takes for a unit.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::wire::{self, Body, Call, Garbled, Message};

/// Where systemd's manager is, on a bus as on its own socket.
const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// Signals that are kept for whoever waits for one of them.
const KEPT: usize = 4096;

/// What can go wrong with a call.
#[derive(Debug, thiserror::Error)]
pub(super) enum BusError {
    /// There is no connection to be had.
    #[error("connect to systemd at {place}")]
    Connect {
        /// The socket.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection ended, or the deadline passed.
    #[error("talk to systemd ({during})")]
    Talk {
        /// The method.
        during: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What came is not D-Bus.
    #[error("understand systemd")]
    Garbled(#[from] Garbled),
    /// The other side does not know us.
    #[error("systemd's socket refuses us: {0}")]
    Rejected(String),
    /// The call was answered with an error.
    #[error("{member}: {text} ({name})")]
    Refused {
        /// The method.
        member: String,
        /// D-Bus's name of the error.
        name: String,
        /// Words for a person.
        text: String,
    },
    /// A job came to another end than "done".
    #[error("systemd's job ended with \"{0}\"")]
    Job(String),
}

impl BusError {
    /// Whether it is systemd's error of this name.
    pub(super) fn is(&self, last: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name.strip_prefix("org.freedesktop.systemd1.") == Some(last))
    }
}

/// Where a manager can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// systemd's own socket, for root alone: no bus in between.
    Private(PathBuf),
    /// A message bus.
    Bus(PathBuf),
}

impl Address {
    /// What this process is to use: the bus that the environment names, else systemd's own socket and the system bus.
    pub(super) fn usual() -> Vec<Self> {
        match std::env::var("DBUS_SYSTEM_BUS_ADDRESS") {
            Ok(text) if !text.is_empty() => Self::parse(&text),
            _ => vec![
                Self::Private("/run/systemd/private".into()),
                Self::Bus("/run/dbus/system_bus_socket".into()),
            ],
        }
    }

    /// The sockets among a list of D-Bus addresses (`unix:path=/run/x,guid=…;…`).
    fn parse(text: &str) -> Vec<Self> {
        let socket = |address: &str| {
            let options = address.strip_prefix("unix:")?;
            options
                .split(',')
                .find_map(|option| option.strip_prefix("path="))
                .map(|path| Self::Bus(path.into()))
        };
        text.split(';').filter_map(socket).collect()
    }

    fn path(&self) -> &PathBuf {
        let (Self::Private(path) | Self::Bus(path)) = self;
        path
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    until: Instant,
    serial: u32,
    buffer: Vec<u8>,
    /// Who answers for systemd: on a bus anybody could send us a signal.
    manager: String,
    /// Ends of jobs that came before anybody waited for them.
    ended: VecDeque<(String, String)>,
}

impl Bus {
    /// Connects to the first address that answers.
    pub(super) fn open(addresses: &[Address], patience: Duration) -> Result<Self, BusError> {
        let until = Instant::now() + patience;
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in addresses {
            match socket(address.path(), until) {
                Ok(stream) => return Self::greet(stream, until, matches!(address, Address::Bus(_))),
                Err(e) => last = e,
            }
        }
        let places: Vec<_> = addresses.iter().map(|a| a.path().display().to_string()).collect();
        let place = if places.is_empty() { "DBUS_SYSTEM_BUS_ADDRESS".into() } else { places.join(" or ") };
        Err(BusError::Connect { place, source: last })
    }

    /// Says who we are and, on a bus, what we want to hear of.
    fn greet(stream: UnixStream, until: Instant, shared: bool) -> Result<Self, BusError> {
        let mut bus = Self {
            stream,
            until,
            serial: 0,
            buffer: Vec::new(),
            manager: String::new(),
            ended: VecDeque::new(),
        };
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        // BEGIN goes along, as in systemd's own clients: sent after OK, it may be read together with the first message, and that is
        // then overlooked until more comes (sd-bus, bus_socket_read_auth).
        bus.write("authentication", format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes())?;
        let line = bus.line()?;
        if !line.starts_with("OK ") {
            return Err(BusError::Rejected(line));
        }
        if shared {
            let call = |member| Call {
                destination: "org.freedesktop.DBus",
                path: "/org/freedesktop/DBus",
                interface: "org.freedesktop.DBus",
                member,
            };
            bus.ask(&call("Hello"), &Body::default())?;
            let rule = format!(
                "type='signal',sender='{NAME}',path='{PATH}',interface='{MANAGER}',member='JobRemoved'"
            );
            bus.ask(&call("AddMatch"), &Body::default().text(&rule))?;
            bus.manager("Subscribe", &Body::default())?;
        }
        Ok(bus)
    }

    /// Calls a method of the manager.
    pub(super) fn manager(&mut self, member: &str, body: &Body) -> Result<Message, BusError> {
        let answer = self.ask(&Call { destination: NAME, path: PATH, interface: MANAGER, member }, body)?;
        answer.sender.clone_into(&mut self.manager);
        Ok(answer)
    }

    /// Has a job done by the manager, and waits for its end.
    pub(super) fn job(&mut self, member: &str, body: &Body) -> Result<(), BusError> {
        let answer = self.manager(member, body)?;
        let job = answer.body("o")?.text()?.to_owned();
        loop {
            let at = self.ended.iter().position(|(path, _)| *path == job);
            if let Some((_, result)) = at.and_then(|at| self.ended.remove(at)) {
                return if result == "done" { Ok(()) } else { Err(BusError::Job(result)) };
            }
            let message = self.receive(&format!("the end of {member}'s job"))?;
            self.heed(&message)?;
        }
    }

    /// systemd's version; 0: it says none that we understand.
    pub(super) fn version(&mut self) -> Result<u32, BusError> {
        let call = Call {
            destination: NAME,
            path: PATH,
            interface: "org.freedesktop.DBus.Properties",
            member: "Get",
        };
        let answer = self.ask(&call, &Body::default().text(MANAGER).text("Version"))?;
        let mut body = answer.body("v")?;
        if body.signature()? != "s" {
            return Err(Garbled("has a version that is no text").into());
        }
        let text = body.text()?.trim_start_matches('v');
        let digits = text.find(|c: char| !c.is_ascii_digit()).map_or(text, |end| &text[..end]);
        Ok(digits.parse().unwrap_or(0))
    }

    fn ask(&mut self, call: &Call<'_>, body: &Body) -> Result<Message, BusError> {
        self.serial += 1;
        self.write(call.member, &call.encode(self.serial, body))?;
        loop {
            let message = self.receive(call.member)?;
            match message.kind {
                wire::ANSWER if message.answers == Some(self.serial) => return Ok(message),
                wire::ERROR if message.answers == Some(self.serial) => {
                    return Err(BusError::Refused {
                        member: call.member.to_owned(),
                        name: message.error.clone(),
                        text: message.words().to_owned(),
                    });
                }
                _ => self.heed(&message)?,
            }
        }
    }

    /// Keeps the end of a job; anything else is not for us.
    fn heed(&mut self, message: &Message) -> Result<(), BusError> {
        let wanted = message.kind == wire::SIGNAL
            && (message.interface.as_str(), message.member.as_str()) == (MANAGER, "JobRemoved")
            && message.sender == self.manager;
        if wanted {
            let mut body = message.body("uoss")?;
            body.number()?;
            let job = body.text()?.to_owned();
            body.text()?;
            self.ended.push_back((job, body.text()?.to_owned()));
            if self.ended.len() > KEPT {
                self.ended.pop_front();
            }
        }
        Ok(())
    }

    fn write(&mut self, during: &str, bytes: &[u8]) -> Result<(), BusError> {
        let written = left(self.until)
            .and_then(|left| self.stream.set_write_timeout(Some(left)))
            .and_then(|()| self.stream.write_all(bytes));
        written.map_err(|source| BusError::Talk { during: during.to_owned(), source: timely(source) })
    }

    /// A line of the authentication.
    fn line(&mut self) -> Result<String, BusError> {
        let during = "authentication";
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            if self.buffer.len() > 1024 {
                return Err(Garbled("begins with an endless line").into());
            }
            self.read_more(during)?;
        }
    }

    fn receive(&mut self, during: &str) -> Result<Message, BusError> {
        self.fill(during, wire::FIXED)?;
        let length = wire::length(&self.buffer[..wire::FIXED])?;
        self.fill(during, length)?;
        let bytes: Vec<u8> = self.buffer.drain(..length).collect();
        Ok(Message::decode(&bytes)?)
    }

    fn fill(&mut self, during: &str, length: usize) -> Result<(), BusError> {
        while self.buffer.len() < length {
            self.read_more(during)?;
        }
        Ok(())
    }

    fn read_more(&mut self, during: &str) -> Result<(), BusError> {
        let mut bytes = [0; 4096];
        let read = left(self.until)
            .and_then(|left| self.stream.set_read_timeout(Some(left)))
            .and_then(|()| self.stream.read(&mut bytes))
            .and_then(
                |length| if length == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(length) },
            );
        match read {
            Ok(length) => self.buffer.extend_from_slice(&bytes[..length]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(BusError::Talk { during: during.to_owned(), source: timely(source) });
            }
        }
        Ok(())
    }
}

/// Time until a deadline; past it, an error.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A socket's own timeout by its name.
fn timely(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

/// Connects; a listener that accepts nobody does not hold us for ever.
fn socket(path: &PathBuf, until: Instant) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(left(until)?))?;
    connect(&socket, &SocketAddrUnix::new(path)?).map_err(|e| timely(e.into()))?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_environment_are_buses() {
        assert_eq!(
            Address::parse("tcp:host=x;unix:path=/run/a,guid=12;unix:guid=9,path=/b"),
            [Address::Bus("/run/a".into()), Address::Bus("/b".into())]
        );
        assert!(Address::parse("nonsense").is_empty());
    }

    #[test]
    fn nobody_listening_is_named_by_its_place() {
        let nowhere =
            [Address::Private("/nonexistent/private".into()), Address::Bus("/nonexistent/bus".into())];
        let error = Bus::open(&nowhere, Duration::from_secs(1)).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/private or /nonexistent/bus"), "{error}");
    }
}
