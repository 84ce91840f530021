//! A TCP proxy in front of a registry that counts, cuts and holds what the registry sends.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

/// The proxy; its threads end with the connections.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) address: String,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes sent to clients.
    moved: AtomicU64,
    /// Each connection is cut after this many; 0: never.
    cut: AtomicU64,
    /// Nothing more is sent after this many in all; 0: never.
    hold: AtomicU64,
    holding: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    pub(super) fn start(upstream: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let state = Arc::new(State::default());
        let (shared, upstream) = (state.clone(), upstream.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (state, upstream) = (shared.clone(), upstream.clone());
                std::thread::spawn(move || {
                    let _ = serve(&client, &upstream, &state);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        Ok(Self { address, state })
    }

    pub(super) fn cut_every(&self, bytes: u64) {
        self.state.cut.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn hold_after(&self, bytes: u64) {
        self.state.hold.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn is_holding(&self) -> bool {
        self.state.holding.load(Ordering::Relaxed)
    }

    pub(super) fn release(&self) {
        self.state.hold.store(0, Ordering::Relaxed);
    }

    pub(super) fn cut_all(&self) {
        for stream in self.state.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(super) fn moved(&self) -> u64 {
        self.state.moved.load(Ordering::Relaxed)
    }
}

fn serve(client: &TcpStream, upstream: &str, state: &Arc<State>) -> std::io::Result<()> {
    let server = TcpStream::connect(upstream)?;
    {
        let mut open = state.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.extend([client.try_clone()?, server.try_clone()?]);
    }
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut server, mut client) = (server, client);
    let (mut buffer, mut sent) = (vec![0; 32 << 10], 0_u64);
    loop {
        let n = server.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        wait(state);
        client.write_all(&buffer[..n])?;
        state.moved.fetch_add(n as u64, Ordering::Relaxed);
        sent += n as u64;
        let cut = state.cut.load(Ordering::Relaxed);
        if cut > 0 && sent >= cut {
            return server.shutdown(Shutdown::Both);
        }
    }
}

/// Stands still as long as the proxy holds.
fn wait(state: &State) {
    loop {
        let hold = state.hold.load(Ordering::Relaxed);
        if hold == 0 || state.moved.load(Ordering::Relaxed) < hold {
            return;
        }
        state.holding.store(true, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(5));
    }
}
