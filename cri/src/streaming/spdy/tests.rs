//! The frame codec against the bytes of the SPDY/3 draft and against arbitrary input, and the connection against
//! clients that break the rules.

use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;

use super::dictionary::dictionary;
use super::frame::{self, Control, FrameError, Head, Status};
use super::headers::{HeaderError, Inflater, empty_block};
use super::{Connection, ReadError, read};
use crate::streaming::Config;
use crate::streaming::testing::{Client, Frame, ports, script, server, until};

fn compressor() -> Compress {
    let mut deflate = Compress::new(Compression::best(), true);
    deflate.set_dictionary(&dictionary()).unwrap();
    deflate
}

fn packed(deflate: &mut Compress, block: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(block.len() + 1024);
    deflate.compress_vec(block, &mut packed, FlushCompress::Sync).unwrap();
    packed
}

fn block(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut block = u32::try_from(pairs.len()).unwrap().to_be_bytes().to_vec();
    for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
        block.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
        block.extend_from_slice(text.as_bytes());
    }
    block
}

#[test]
fn the_dictionary_is_the_one_of_the_draft() {
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in dictionary() {
        a = (a + u32::from(byte)) % 65521;
        b = (b + a) % 65521;
    }
    assert_eq!(dictionary().len(), 1423);
    assert_eq!(b << 16 | a, super::headers::DICTIONARY_ID);
}

#[test]
fn heads_are_read_as_drawn() {
    assert_eq!(
        frame::head([0x80, 3, 0, 1, 1, 0, 0, 10]).unwrap(),
        Head::Control { kind: 1, flags: 1, length: 10 }
    );
    assert_eq!(
        frame::head([0x7f, 0xff, 0xff, 0xff, 1, 0xff, 0xff, 0xff]).unwrap(),
        Head::Data { stream: 0x7fff_ffff, fin: true, length: (1 << 24) - 1 }
    );
    assert!(matches!(frame::head([0x80, 2, 0, 1, 0, 0, 0, 10]), Err(FrameError::Version(2))));
    assert!(matches!(frame::head([0x80, 3, 0, 4, 0, 1, 0, 1]), Err(FrameError::TooLong(65537))));
}

#[test]
fn frames_are_written_as_drawn() {
    assert_eq!(frame::data_head(5, true, 0x0001_0203), [0, 0, 0, 5, 1, 1, 2, 3]);
    assert_eq!(frame::rst_stream(7, Status::Cancel), [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 5]);
    assert_eq!(frame::ping(9), [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9]);
    assert_eq!(frame::goaway(3), [0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 0]);
    assert_eq!(frame::syn_reply(1, b"xy"), [0x80, 3, 0, 2, 0, 0, 0, 6, 0, 0, 0, 1, b'x', b'y']);
}

#[test]
fn control_frames_are_understood_and_the_others_ignored() {
    let mut inflater = Inflater::new();
    let mut deflate = compressor();
    for stream in [1_u32, 3, 5] {
        let head = [&stream.to_be_bytes()[..], &[0; 6]].concat();
        let payload =
            [head, packed(&mut deflate, &block(&[("streamtype", "stdin"), ("many", "a\0b")]))].concat();
        let Control::SynStream { stream: id, fin: true, headers } =
            frame::control(1, 1, &payload, &mut inflater).unwrap()
        else {
            panic!("a SYN_STREAM");
        };
        assert_eq!((id, headers.get("streamtype"), headers.get("many")), (stream, Some("stdin"), Some("a")));
        assert_eq!(headers.get("absent"), None);
    }
    let mut read = |kind, payload: &[u8]| frame::control(kind, 0, payload, &mut inflater).unwrap();
    assert_eq!(read(3, &[0, 0, 0, 9, 0, 0, 0, 5]), Control::Reset { stream: 9 });
    assert_eq!(read(6, &[0, 0, 0, 1]), Control::Ping { id: 1 });
    assert_eq!(read(7, &[0; 8]), Control::GoAway);
    for kind in [4, 5, 9, 10, 77] {
        assert_eq!(read(kind, &[1, 2, 3]), Control::Ignored);
    }
    for kind in [1, 2, 3, 6, 8] {
        assert!(matches!(
            frame::control(kind, 0, &[0; 3], &mut Inflater::new()),
            Err(FrameError::Short { .. })
        ));
    }
}

#[test]
fn a_header_bomb_is_refused_before_it_grows() {
    let bomb = packed(&mut compressor(), &block(&[("streamtype", &"a".repeat(1 << 20))]));
    assert!(bomb.len() < 4096);
    assert!(matches!(Inflater::new().block(&bomb), Err(HeaderError::TooLong)));
}

#[test]
fn header_blocks_that_lie_about_their_contents_are_refused() {
    let mut count = block(&[("a", "b")]);
    count[3] = 2;
    let mut many = block(&[("a", "b")]);
    many[..4].fill(0xff);
    let mut long = block(&[("a", "b")]);
    long[4..8].fill(0xff);
    let behind = [block(&[("a", "b")]), b"x".to_vec()].concat();
    for lie in [count, many, long, behind, Vec::new()] {
        let result = Inflater::new().block(&packed(&mut compressor(), &lie));
        assert!(matches!(result, Err(HeaderError::Pairs)), "{lie:?}");
    }
    assert!(matches!(Inflater::new().block(b"not zlib at all"), Err(HeaderError::Zlib(_))));
}

#[test]
fn empty_replies_inflate_as_one_stream() {
    let mut inflater = Inflater::new();
    for first in [true, false, false] {
        assert_eq!(inflater.block(&empty_block(first)).unwrap().get("anything"), None);
    }
}

proptest! {
    #[test]
    fn no_control_frame_makes_the_decoder_fail_otherwise_than_by_an_error(
        frames in prop::collection::vec((0_u16..12, any::<u8>(), prop::collection::vec(any::<u8>(), 0..200)), 1..8),
    ) {
        let mut inflater = Inflater::new();
        for (kind, flags, payload) in &frames {
            let _ = frame::control(*kind, *flags, payload, &mut inflater);
        }
    }

    #[test]
    fn no_header_block_behind_a_true_compressor_does_either(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Inflater::new().block(&packed(&mut compressor(), &bytes));
    }

    #[test]
    fn data_heads_survive_a_round_trip(stream in 0_u32..0x8000_0000, fin: bool, length in 0_usize..1 << 24) {
        prop_assert_eq!(
            frame::head(frame::data_head(stream, fin, length)).unwrap(),
            Head::Data { stream, fin, length }
        );
    }
}

#[tokio::test]
async fn pings_are_echoed_and_answers_are_not() {
    let (server, _) = server(Config::default()).await;
    let mut client =
        Client::connect(&server.port_forward_url(ports(&[])).unwrap(), "portforward.k8s.io").await;
    client.control(4, &[0, 0, 0, 0]).await;
    client.control(9, &[0; 8]).await;
    client.control(6, &2_u32.to_be_bytes()).await;
    client.control(6, &77_u32.to_be_bytes()).await;
    assert_eq!(client.frame().await, Frame::Ping(77));
}

#[tokio::test]
async fn data_for_a_stream_that_never_was_or_has_ended_is_refused() {
    let (server, _) = server(Config::default()).await;
    let mut client =
        Client::connect(&server.port_forward_url(ports(&[])).unwrap(), "portforward.k8s.io").await;
    client.data(9, b"x", false).await;
    assert_eq!(client.frame().await, Frame::Reset(9, 2));
    let id = client.open(&[("streamtype", "data"), ("port", "80"), ("requestid", "1")]).await;
    client.data(id, b"", true).await;
    client.data(id, b"x", false).await;
    assert_eq!(client.frame().await, Frame::Reply(id));
    assert_eq!(client.frame().await, Frame::Reset(id, 9));
}

#[tokio::test]
async fn a_stream_out_of_order_ends_the_connection() {
    for id in [2, 1] {
        let (server, here) = server(Config::default()).await;
        let mut client = Client::connect(&server.exec_url(script("cat")).unwrap(), "v4.channel.k8s.io").await;
        client.streams(["error", "stdin", "stdout", "stderr"]).await;
        until("the command runs", || here.alive.load(std::sync::atomic::Ordering::SeqCst) == 1).await;
        client.open_as(id, &[("streamtype", "stdin")]).await;
        until("the command is gone", || here.alive.load(std::sync::atomic::Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test]
async fn streams_opened_and_reset_at_once_leave_room_for_honest_ones() {
    let (server, here) = server(Config::default()).await;
    let target = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = target.local_addr().unwrap().port().to_string();
    let mut client =
        Client::connect(&server.port_forward_url(ports(&[])).unwrap(), "portforward.k8s.io").await;
    for n in 0..2000 {
        let id = n.to_string();
        let stream = client.open(&[("streamtype", "error"), ("port", &port), ("requestid", &id)]).await;
        client.control(3, &[stream.to_be_bytes(), 5_u32.to_be_bytes()].concat()).await;
        assert!(matches!(client.frame().await, Frame::Reply(_) | Frame::Reset(_, 3)));
    }
    for kind in ["error", "data"] {
        client.open(&[("streamtype", kind), ("port", &port), ("requestid", "honest")]).await;
    }
    target.accept().await.unwrap();
    assert_eq!(here.alive.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_client_that_never_reads_its_answers_is_dropped_not_remembered() {
    let (ours, _theirs) = tokio::io::duplex(64);
    let connection = Connection::new(ours);
    // Data for a stream that never was asks for a reset each time; nobody reads them.
    let frames = [0, 0, 0, 9, 0, 0, 0, 0].repeat(1 << 20);
    let result = tokio::select! {
        result = read(&connection, &frames[..], |_, _| ()) => result,
        () = connection.pump_control() => Err(ReadError::Deaf),
    };
    assert!(matches!(result, Err(ReadError::Deaf)), "{result:?}");
}

#[tokio::test]
async fn a_flood_of_pings_costs_no_more_than_a_few_answers() {
    let (ours, _theirs) = tokio::io::duplex(64);
    let connection = Connection::new(ours);
    let frames = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1].repeat(1 << 16);
    let result = tokio::select! {
        result = read(&connection, &frames[..], |_, _| ()) => result,
        () = connection.pump_control() => Err(ReadError::Deaf),
    };
    assert!(result.is_ok(), "{result:?}");
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused_one_by_one() {
    let (server, _) = server(Config::default()).await;
    let mut client =
        Client::connect(&server.port_forward_url(ports(&[])).unwrap(), "portforward.k8s.io").await;
    let mut refused = 0;
    for n in 0..600 {
        let id = n.to_string();
        let stream = client.open(&[("streamtype", "error"), ("port", "80"), ("requestid", &id)]).await;
        match client.frame().await {
            Frame::Reply(id) => assert_eq!(id, stream),
            Frame::Reset(id, 3) => refused += u32::from(id == stream),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 600 - 512);
}
