//! What may be asked: the requests behind the URLs, and the rules the CRI text sets for them (`api.proto`, ExecRequest,
//! AttachRequest, PortForwardRequest).

use engine::Error;

/// Run a command in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Container id.
    pub container: String,
    /// argv; not empty.
    pub command: Vec<String>,
    /// On a terminal.
    pub tty: bool,
    /// The client sends standard input.
    pub stdin: bool,
    /// The client wants standard output.
    pub stdout: bool,
    /// The client wants standard error; never with `tty`.
    pub stderr: bool,
}

/// Join the first process of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachRequest {
    /// Container id.
    pub container: String,
    /// The container runs on a terminal.
    pub tty: bool,
    /// The client sends standard input.
    pub stdin: bool,
    /// The client wants standard output.
    pub stdout: bool,
    /// The client wants standard error; never with `tty`.
    pub stderr: bool,
}

/// Connect to ports of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortForwardRequest {
    /// Pod id.
    pub pod: String,
    /// Ports; needed only by the oldest WebSocket form, the others name the port per connection.
    pub ports: Vec<i32>,
}

/// A checked request, waiting under its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward { pod: String, ports: Vec<u16> },
}

/// Which of a command's streams the client takes part in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Streams {
    pub(super) tty: bool,
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
}

// === impl Request ===

impl Request {
    /// First path segment of the request's URL.
    pub(super) fn path(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }

    /// Id of the container or pod.
    pub(super) fn subject(&self) -> &str {
        match self {
            Self::Exec(exec) => &exec.container,
            Self::Attach(attach) => &attach.container,
            Self::PortForward { pod, .. } => pod,
        }
    }

    /// The streams of a command; none for a port.
    pub(super) fn streams(&self) -> Streams {
        match self {
            Self::Exec(exec) => exec.streams(),
            Self::Attach(attach) => attach.streams(),
            Self::PortForward { .. } => Streams::default(),
        }
    }
}

impl TryFrom<ExecRequest> for Request {
    type Error = Error;

    fn try_from(request: ExecRequest) -> Result<Self, Error> {
        required("container_id", &request.container)?;
        if request.command.is_empty() {
            return Err(Error::invalid("cmd", "must not be empty"));
        }
        request.streams().check()?;
        Ok(Self::Exec(request))
    }
}

impl TryFrom<AttachRequest> for Request {
    type Error = Error;

    fn try_from(request: AttachRequest) -> Result<Self, Error> {
        required("container_id", &request.container)?;
        request.streams().check()?;
        Ok(Self::Attach(request))
    }
}

impl TryFrom<PortForwardRequest> for Request {
    type Error = Error;

    fn try_from(request: PortForwardRequest) -> Result<Self, Error> {
        required("pod_sandbox_id", &request.pod)?;
        let ports = request.ports.iter().map(|&port| checked_port(port)).collect::<Result<_, _>>()?;
        Ok(Self::PortForward { pod: request.pod, ports })
    }
}

// === impl Streams ===

impl Streams {
    fn check(self) -> Result<(), Error> {
        if self.tty && self.stderr {
            return Err(Error::invalid(
                "stderr",
                "cannot be asked for together with tty: a terminal has one output",
            ));
        }
        if !(self.stdin || self.stdout || self.stderr) {
            return Err(Error::invalid("stdin, stdout, stderr", "at least one of them must be set"));
        }
        Ok(())
    }
}

impl ExecRequest {
    fn streams(&self) -> Streams {
        Streams { tty: self.tty, stdin: self.stdin, stdout: self.stdout, stderr: self.stderr }
    }
}

impl AttachRequest {
    fn streams(&self) -> Streams {
        Streams { tty: self.tty, stdin: self.stdin, stdout: self.stdout, stderr: self.stderr }
    }
}

fn required(field: &str, value: &str) -> Result<(), Error> {
    if value.is_empty() { Err(Error::invalid(field, "is required")) } else { Ok(()) }
}

fn checked_port(port: i32) -> Result<u16, Error> {
    match u16::try_from(port) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Error::invalid("port", format_args!("{port} is not in 1..=65535"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::Kind;

    fn exec() -> ExecRequest {
        ExecRequest { container: "c".into(), command: vec!["sh".into()], stdout: true, ..Default::default() }
    }

    #[test]
    fn a_contradicting_request_is_refused_by_the_name_of_its_field() {
        let cases = [
            (ExecRequest { container: String::new(), ..exec() }, "container_id"),
            (ExecRequest { command: Vec::new(), ..exec() }, "cmd"),
            (ExecRequest { tty: true, stderr: true, ..exec() }, "stderr"),
            (ExecRequest { stdout: false, ..exec() }, "at least one"),
        ];
        for (request, expected) in cases {
            let error = Request::try_from(request).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains(expected), "{error}");
        }
        assert!(Request::try_from(exec()).is_ok());
    }

    #[test]
    fn a_port_outside_tcp_is_refused() {
        for port in [-1, 0, 65536] {
            let request = PortForwardRequest { pod: "p".into(), ports: vec![80, port] };
            assert_eq!(Request::try_from(request).unwrap_err().kind(), Kind::InvalidArgument);
        }
        let request = PortForwardRequest { pod: "p".into(), ports: vec![1, 65535] };
        assert_eq!(
            Request::try_from(request).unwrap(),
            Request::PortForward { pod: "p".into(), ports: vec![1, 65535] }
        );
    }
}
