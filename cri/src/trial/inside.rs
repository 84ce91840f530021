//! The roles this executable plays inside the containers of a trial: a server, a client, and one that tells where it is.
//!
//! They are ordinary programs: no privileges, no configuration, nothing from outside the container.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Role: answers HTTP requests on the port given and logs each of them.
pub const SERVE: &str = "try-serve";
/// Role: fetches the URL given and prints the body.
pub const FETCH: &str = "try-fetch";
/// Role: prints host name, pid, identity and confinement of itself.
pub const WHOAMI: &str = "try-whoami";

/// Every connection of the roles is given up after this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// A request line or an answer longer than this is cut.
const ANSWER_MAX: u64 = 64 * 1024;

/// Runs the role named by `arguments[0]`; `None`: not a role of this module.
pub fn run(arguments: &[String]) -> Option<ExitCode> {
    let operand = arguments.get(1).map(String::as_str);
    let outcome = match (arguments.first()?.as_str(), operand) {
        (SERVE, Some(port)) => serve(port),
        (FETCH, Some(url)) => fetch(url).map(|body| body + "\n").and_then(|body| print(&body)),
        (WHOAMI, None) => whoami().and_then(|text| print(&text)),
        (SERVE | FETCH | WHOAMI, _) => Err(io::Error::other("wrong number of arguments")),
        _ => return None,
    };
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{}: {error}", arguments[0]);
            ExitCode::FAILURE
        }
    })
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

// === the server ===

/// Serves until SIGTERM: as the first process of its PID namespace it has to handle the signal itself (pid_namespaces(7)).
fn serve(port: &str) -> io::Result<()> {
    let port: u16 = port.parse().map_err(|_| io::Error::other(format!("port {port:?} is not a number")))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let listener = listen(port).await?;
        print(&format!("listening on port {}\n", listener.local_addr()?.port()))?;
        writeln!(io::stderr(), "this line went to stderr")?;
        loop {
            tokio::select! {
                _ = terminate.recv() => return print("stopped by SIGTERM\n"),
                connection = listener.accept() => {
                    let (stream, peer) = connection?;
                    tokio::spawn(async move {
                        // A client that breaks off or says nothing ends its own connection only.
                        let _ = tokio::time::timeout(PATIENCE, answer(stream, peer)).await;
                    });
                }
            }
        }
    })
}

/// Both families on one socket; IPv4 alone where the kernel has no IPv6.
async fn listen(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

async fn answer(mut stream: tokio::net::TcpStream, peer: SocketAddr) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|window| window == b"\r\n\r\n") && request.len() < 8192 {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let line =
        String::from_utf8_lossy(request.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    print(&format!("{line} from {}\n", peer.ip().to_canonical()))?;
    let body = format!("hello {}, this is {}", peer.ip().to_canonical(), host_name()?);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await?;
    stream.shutdown().await
}

// === the client ===

/// The body of an HTTP GET; any status but 200 is an error. Blocks for at most a few seconds.
pub fn fetch(url: &str) -> io::Result<String> {
    let (authority, path) = split(url).ok_or_else(|| io::Error::other(format!("not an http URL: {url}")))?;
    let address = authority
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::other(format!("no address for {authority}")))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("cut off answer"))?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(io::Error::other(format!("{url} answered {:?}", head.lines().next().unwrap_or_default()))),
    }
}

/// `http://host:port/path` as authority and path.
fn split(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("http://")?;
    let at = rest.find('/').unwrap_or(rest.len());
    let path = if at == rest.len() { "/" } else { &rest[at..] };
    (at > 0).then_some((&rest[..at], path))
}

// === the one that tells where it is ===

fn whoami() -> io::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let environment = std::env::var("BERTH_TRIAL").unwrap_or_default();
    Ok(format!(
        "host {}, pid {}, uid {}, groups {}, seccomp {}, no_new_privs {}, capabilities {}, BERTH_TRIAL={environment:?}\n",
        host_name()?,
        std::process::id(),
        field(&status, "Uid"),
        status_line(&status, "Groups"),
        field(&status, "Seccomp"),
        field(&status, "NoNewPrivs"),
        field(&status, "CapEff"),
    ))
}

fn host_name() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim_end().to_owned())
}

/// All of a line of /proc/self/status (proc_pid_status(5)).
fn status_line<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map_or("?", str::trim)
}

/// The first value of such a line.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status_line(status, name).split_whitespace().next().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_split_at_its_path() {
        assert_eq!(split("http://10.0.0.1:8080/a/b"), Some(("10.0.0.1:8080", "/a/b")));
        assert_eq!(split("http://[fd00::1]:80"), Some(("[fd00::1]:80", "/")));
        assert_eq!(split("https://x/"), None);
        assert_eq!(split("http:///x"), None);
    }

    #[test]
    fn a_line_of_proc_status_is_found_by_its_whole_name() {
        let status = "Uid:\t1000\t1000\t1000\t1000\nGroups:\t1000 1001 \nSeccomp:\t2\nSeccomp_filters:\t1\n";
        assert_eq!(field(status, "Uid"), "1000");
        assert_eq!(status_line(status, "Groups"), "1000 1001");
        assert_eq!(field(status, "Seccomp"), "2");
        assert_eq!(field(status, "CapEff"), "?");
    }

    #[tokio::test]
    async fn the_client_gets_what_the_server_says() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let client = tokio::task::spawn_blocking(move || fetch(&url));
        let (stream, peer) = listener.accept().await.unwrap();
        answer(stream, peer).await.unwrap();
        let body = client.await.unwrap().unwrap();
        assert_eq!(body, format!("hello 127.0.0.1, this is {}", host_name().unwrap()));
    }

    #[test]
    fn only_roles_of_this_module_are_taken() {
        assert!(run(&["serve".to_owned()]).is_none());
        assert!(run(&[]).is_none());
        assert!(run(&[FETCH.to_owned()]).is_some());
    }
}
