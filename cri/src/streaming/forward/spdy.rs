//! Forwarded connections over SPDY (`portforward.k8s.io`): per connection an `error` and a `data` stream with the same
//! `requestid` and `port`.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::{carry, dial};
use crate::streaming::pipe::{Inlet, Outlet};
use crate::streaming::server::Shared;
use crate::streaming::session::{Io, SessionError, over_spdy};
use crate::streaming::spdy::{Headers, Offer, Sender};

/// Streams that may have been opened and not yet been looked at.
const UNSEEN: usize = 64;
/// Halves that may wait before those are looked for whose client has reset them meanwhile; the others are bounded by the
/// streams a connection may have open.
const MOST_WAITING: usize = 64;
/// Longest request id; clients count.
const LONGEST_ID: usize = 64;

/// One stream of a pair.
struct Half {
    pair: String,
    port: u16,
    end: End,
}

enum End {
    Error(Sender),
    Data(Sender, DuplexStream),
}

/// Halves whose other one has not come yet.
#[derive(Default)]
struct Pairs {
    waiting: HashMap<String, (Instant, Half)>,
}

/// Serves forwarded connections until the client leaves.
pub(in crate::streaming) async fn serve(
    shared: &Arc<Shared>,
    pod: String,
    io: impl Io,
) -> Result<(), SessionError> {
    let (opened, halves) = mpsc::channel(UNSEEN);
    let open = |offer: Offer, headers: &Headers| match opened.try_reserve() {
        Ok(place) => {
            if let Some(half) = Half::open(offer, headers) {
                place.send(half);
            }
        }
        Err(_) => offer.refuse(),
    };
    over_spdy(shared, io, open, pair_up(shared, pod, halves)).await
}

async fn pair_up(
    shared: &Arc<Shared>,
    pod: String,
    mut halves: mpsc::Receiver<Half>,
) -> Result<(), SessionError> {
    let mut pairs = Pairs::default();
    // Dropped with the session, and all connections with it.
    let mut connections = JoinSet::new();
    loop {
        let expiry = pairs.first_expiry(shared);
        tokio::select! {
            Some(half) = halves.recv() => {
                if let Some((port, error, data, reader)) = pairs.add(half) {
                    connections.spawn(connection(shared.clone(), pod.clone(), port, error, data, reader));
                }
            }
            Some(_) = connections.join_next() => {}
            () = sleep_until(expiry.unwrap_or_else(Instant::now)), if expiry.is_some() => pairs.expire(shared),
            () = shared.stop.cancelled() => return Ok(()),
        }
    }
}

/// One forwarded connection.
async fn connection(
    shared: Arc<Shared>,
    pod: String,
    port: u16,
    mut error: Sender,
    data: Sender,
    from_client: DuplexStream,
) {
    let reset = data.reset();
    let mut data = Outlet::Spdy(data);
    let work = async {
        match dial(&shared, &pod, port).await {
            // Clients wait for the end of the error stream before they close their side.
            Ok(target) => carry(target, from_client, &mut data, error.finish()).await,
            Err(why) => {
                let mut error = Outlet::Spdy(error);
                let _ = error.say(why.as_bytes()).await;
                let _ = error.finish().await;
            }
        }
    };
    reset.run_until_cancelled(work).await;
}

// === impl Half ===

impl Half {
    /// Takes a stream whose headers make sense; any other is refused by being dropped.
    fn open(offer: Offer, headers: &Headers) -> Option<Self> {
        let port = headers.get("port")?.parse::<u16>().ok().filter(|&port| port != 0)?;
        let kind = headers.get("streamtype")?;
        // Clients older than request ids open the error stream first and the data stream right after it.
        let id = match headers.get("requestid") {
            Some(id) if id.len() <= LONGEST_ID => id.to_owned(),
            Some(_) => return None,
            None if kind == "error" => offer.stream().to_string(),
            None => offer.stream().checked_sub(2)?.to_string(),
        };
        let end = match kind {
            "error" => End::Error(offer.accept(Inlet::Nothing)),
            "data" => {
                let (inlet, reader) = Inlet::pipe();
                End::Data(offer.accept(inlet), reader)
            }
            _ => return None,
        };
        Some(Self { pair: id, port, end })
    }

    fn is_reset(&self) -> bool {
        let (End::Error(sender) | End::Data(sender, _)) = &self.end;
        sender.reset().is_cancelled()
    }
}

// === impl Pairs ===

impl Pairs {
    /// Keeps the first half of a pair and completes it with the second. Twice the same half, or two ports: both go.
    fn add(&mut self, half: Half) -> Option<(u16, Sender, Sender, DuplexStream)> {
        if self.waiting.len() >= MOST_WAITING {
            self.waiting.retain(|_, (_, half)| !half.is_reset());
        }
        let Some((_, first)) = self.waiting.remove(&half.pair) else {
            self.waiting.insert(half.pair.clone(), (Instant::now(), half));
            return None;
        };
        match (first, half) {
            (
                Half { end: End::Error(error), port, .. },
                Half { end: End::Data(data, reader), port: same, .. },
            )
            | (
                Half { end: End::Data(data, reader), port, .. },
                Half { end: End::Error(error), port: same, .. },
            ) if port == same => Some((port, error, data, reader)),
            _ => None,
        }
    }

    fn first_expiry(&self, shared: &Shared) -> Option<Instant> {
        self.waiting.values().map(|(at, _)| *at + shared.limits().creation).min()
    }

    /// Drops, and so resets, halves that were left alone.
    fn expire(&mut self, shared: &Shared) {
        let limit = shared.limits().creation;
        self.waiting.retain(|_, (at, _)| at.elapsed() < limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streaming::spdy::{Connection, read};
    use crate::streaming::testing::Client;

    #[tokio::test]
    async fn halves_that_were_reset_are_not_kept_until_their_time_is_up() {
        let (near, far) = tokio::io::duplex(1 << 10);
        let (from_client, to_client) = tokio::io::split(far);
        let connection = Connection::new(to_client);
        let (mut pairs, mut most) = (Pairs::default(), 0);
        let open = |offer: Offer, headers: &Headers| {
            assert!(pairs.add(Half::open(offer, headers).unwrap()).is_none());
            most = most.max(pairs.waiting.len());
        };
        let client = async {
            let mut client = Client::over(near);
            for n in 0..500 {
                let headers = [("streamtype", "data"), ("port", "80"), ("requestid", &n.to_string())];
                let stream = client.open(&headers).await;
                client.control(3, &[stream.to_be_bytes(), 5_u32.to_be_bytes()].concat()).await;
            }
        };
        let (ended, ()) = tokio::join!(read(&connection, from_client, open), client);
        ended.unwrap();
        assert!(most <= MOST_WAITING + 1, "{most}");
    }
}
