//! Requests and their answers.

use std::io;
use std::os::fd::AsFd;

use rustix::termios::{Winsize, tcsetwinsize};

use super::{Podd, Process, setup};
use crate::exec::Exit;
use crate::exec::wire::{self, Kind, LINE, Message, TREE, Tag};
use crate::sys::{process, socket};

/// Adds how a process ended to a message.
pub(super) fn describe_exit(message: Message, exit: &Exit) -> Message {
    message
        .number(Tag::Code, wire::int(exit.code))
        .number(Tag::Oom, exit.oom.into())
        .number(Tag::Ended, exit.at.cast_unsigned())
}

impl Podd {
    /// Carries out a request and answers it; a launch is answered later.
    pub(super) fn request(&mut self, connection: u64, mut message: Message) {
        let request = message.request();
        let answer = match message.kind() {
            Kind::Hello => return self.hello(connection, request),
            Kind::Setup if self.ready => Err(wire::error("setup", &io::ErrorKind::AlreadyExists.into())),
            Kind::Setup => match setup::setup(self, &mut message) {
                Ok(()) => Ok(self.pod(request)),
                Err((what, e)) => {
                    // A half-made pod is no pod: its namespaces go with this process.
                    self.ending = true;
                    Err(wire::error(&what, &e))
                }
            },
            Kind::Adopt if !self.ready => match self.adopt(&mut message) {
                Ok(()) => Ok(self.pod(request)),
                Err(e) => Err(wire::error("adopt the pod", &e)),
            },
            Kind::Keep => match self.keep(message) {
                Ok(()) => Ok(Message::new(Kind::Ok, request)),
                Err(e) => Err(wire::error("adopt the container", &e)),
            },
            Kind::Upgrade if self.ready => match self.upgrade(connection, &mut message) {
                Ok(never) => match never {},
                Err(e) => Err(wire::error("go on as another program", &e)),
            },
            Kind::Start | Kind::Exec if self.ready => {
                let has = message.get(Tag::Has);
                let mut line = if has & LINE != 0 { message.fds.pop() } else { None };
                match (self.launch(connection, message, &mut line), line) {
                    (Ok(()), _) => return,
                    (Err((what, e)), None) => Err(wire::error(what, &e)),
                    (Err((what, e)), Some(line)) => {
                        return drop(socket::send(&line, wire::error(what, &e).bytes(), &[]));
                    }
                }
            }
            Kind::Signal => self.signal(&message),
            Kind::Reopen => self.reopen(&mut message),
            Kind::Resize => self.resize(&message),
            Kind::Attach => self.attach(&message),
            Kind::Shutdown => self.shutdown(),
            _ => Err(wire::error("request", &io::ErrorKind::Unsupported.into())),
        };
        let answer = answer.unwrap_or_else(|error| error);
        self.say(connection, answer.with_number(request));
    }

    /// Everything about every container.
    fn hello(&mut self, connection: u64, request: u32) {
        let containers = self.processes.iter().filter(|p| p.exec.is_none() && p.starting.is_none());
        let mut answers: Vec<_> = containers.map(|p| p.describe(Kind::Container, request)).collect();
        answers.push(self.pod(request));
        answers.into_iter().for_each(|answer| self.say(connection, answer));
    }

    /// The process a message means.
    fn meant(&mut self, message: &Message) -> Result<&mut Process, Message> {
        let (id, exec) = (message.text(Tag::Container), message.numbers(Tag::Exec).next());
        let found = self.processes.iter_mut().find(|p| p.container == id && p.exec == exec);
        found.ok_or_else(|| wire::error("no such process", &io::ErrorKind::NotFound.into()))
    }

    fn signal(&mut self, message: &Message) -> Result<Message, Message> {
        let (signal, tree) = (message.int(Tag::Signal), message.get(Tag::Has) & TREE != 0);
        let process = self.meant(message)?;
        if process.exit.is_some() {
            return Ok(Message::new(Kind::Ok, 0));
        }
        if tree && let Some(group) = rustix::process::Pid::from_raw(process.pid) {
            // An exec leads a session of its own, so its group is what it started and did not send away. Not reaped yet, its number
            // cannot have been given to anybody else.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let sent = process::signal(process.pidfd.as_fd(), signal);
        sent.map(|()| Message::new(Kind::Ok, 0)).map_err(|e| wire::error("signal", &e))
    }

    fn reopen(&mut self, message: &mut Message) -> Result<Message, Message> {
        let file =
            message.fds.pop().ok_or_else(|| wire::error("reopen", &io::ErrorKind::InvalidInput.into()))?;
        self.meant(message)?.log.switch(file);
        Ok(Message::new(Kind::Ok, 0))
    }

    fn resize(&mut self, message: &Message) -> Result<Message, Message> {
        let narrow = |tag| u16::try_from(message.get(tag)).unwrap_or(u16::MAX);
        let size =
            Winsize { ws_col: narrow(Tag::Columns), ws_row: narrow(Tag::Rows), ws_xpixel: 0, ws_ypixel: 0 };
        let process = self.meant(message)?;
        let Some(terminal) = &process.terminal else {
            return Err(wire::error(
                "resize",
                &io::Error::new(io::ErrorKind::Unsupported, "there is no terminal"),
            ));
        };
        match tcsetwinsize(terminal, size) {
            Ok(()) => Ok(Message::new(Kind::Ok, 0)),
            Err(e) => Err(wire::error("resize", &e.into())),
        }
    }

    fn attach(&mut self, message: &Message) -> Result<Message, Message> {
        let wanted = message.get(Tag::Has);
        let key = self.meant(message)?.key;
        let (given, fds) = self.pipes_for_client(key, wanted).map_err(|e| wire::error("attach", &e))?;
        let mut answer = Message::new(Kind::Ok, 0).number(Tag::Has, given);
        answer.fds = fds;
        Ok(answer)
    }

    /// Kills what still runs; the kernel takes the rest.
    #[allow(clippy::unnecessary_wraps)]
    fn shutdown(&mut self) -> Result<Message, Message> {
        for process in self.processes.iter().filter(|p| p.exit.is_none()) {
            let _ = process::signal(process.pidfd.as_fd(), libc::SIGKILL);
        }
        if let Some(init) = &self.init {
            let _ = process::signal(init.as_fd(), libc::SIGKILL);
        }
        self.ending = true;
        Ok(Message::new(Kind::Ok, 0))
    }
}
