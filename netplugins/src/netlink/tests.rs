//! The transport against the kernel, and the decoder against anything.

use proptest::prelude::*;

use super::*;
use crate::testing::on_a_node;

#[test]
fn a_refusal_names_the_message_and_speaks_the_kernels_words() {
    on_a_node(|| {
        let mut socket = Socket::open(NETLINK_ROUTE).unwrap();
        let missing =
            |op: route::Op| route::run(&mut Socket::open(NETLINK_ROUTE).unwrap(), &[op], None).unwrap_err();
        let error = missing(route::Op::Up("nowhere".into()));
        assert_eq!(error.chain(), "cannot set nowhere up: No such device (os error 19)");
        let ops = [
            route::Op::Up("lo".into()),
            route::Op::Address { link: "lo".into(), address: [10, 0, 0, 1].into(), prefix: 33 },
            route::Op::Up("lo".into()),
        ];
        let error = route::run(&mut socket, &ops, None).unwrap_err().chain();
        assert!(
            error.starts_with("cannot add address 10.0.0.1/33 to lo: Invalid argument (os error 22): "),
            "{error}"
        );
        // the socket is in step with the kernel afterwards
        assert_eq!(route::links(&mut socket).unwrap().iter().filter(|l| l.loopback).count(), 1);
    });
}

#[test]
fn a_dump_larger_than_one_datagram_is_complete() {
    on_a_node(|| {
        let mut socket = Socket::open(NETLINK_ROUTE).unwrap();
        let pair = |i: u8| route::Op::Veth {
            name: format!("a{i}"),
            mac: [2, 0, 0, 0, 0, i],
            mtu: 1500,
            peer: format!("b{i}"),
            peer_mac: [2, 0, 0, 0, 1, i],
        };
        let before = route::links(&mut socket).unwrap().len();
        route::run(&mut socket, &(0..40).map(pair).collect::<Vec<_>>(), None).unwrap();
        assert_eq!(route::links(&mut socket).unwrap().len(), before + 80);
        assert!(route::link(&mut socket, "b39").unwrap().is_some());
        assert!(route::link(&mut socket, "b40").unwrap().is_none());
    });
}

#[test]
fn what_is_encoded_is_decoded() {
    let mut batch = Batch::default();
    batch.push(7, flag::CREATE, |out| {
        wire::put_text(out, 3, "eth0");
        wire::nest(out, 4, |out| wire::put_be32(out, 1, 0x0102_0304));
    });
    batch.push_silent(8, 0, |out| out.extend_from_slice(&[1]));
    wire::renumber(&mut batch.bytes, 100);
    let frames: Vec<_> = wire::frames(&batch.bytes).map(Result::unwrap).collect();
    assert_eq!(frames.iter().map(|f| (f.kind, f.sequence)).collect::<Vec<_>>(), [(7, 100), (8, 101)]);
    assert_eq!(wire::attribute(frames[0].payload, 3), Some(&b"eth0\0"[..]));
    let nested = wire::attribute(frames[0].payload, 4).unwrap();
    assert_eq!(wire::attribute(nested, 1), Some(&[1, 2, 3, 4][..]));
    assert_eq!(frames[1].payload, [1]);
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic_or_loop(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let frames: Vec<_> = wire::frames(&bytes).collect();
        prop_assert!(frames.len() <= bytes.len() / 16 + 1);
        for frame in frames.into_iter().flatten() {
            prop_assert!(wire::attributes(frame.payload).count() <= frame.payload.len() / 4);
            let _ = judge(&frame);
        }
        let _ = crate::nft::element::decode("hp4", &bytes);
    }
}
