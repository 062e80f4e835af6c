//! A frame with a hostile vnet header, finished in software (`wire::segment`) as for a link that cannot do it.
//!
//! Input: a byte (bit 0: the link takes partial sums), the frame with its vnet header.
//!
//! What must hold: whatever the header says, nothing panics; a frame is cut into at most so many pieces; what comes out is
//! no longer than what was announced, has the headers' length and, where the frame was sound, right sums; the payloads in
//! a row are the payload.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tapway::wire::segment;
use tapway::wire::vnet::{Gso, IP_OFFSET, MAX_FRAME, VNET_HDR_LEN, VnetHdr};

fuzz_target!(|input: &[u8]| {
    let Some((&choice, frame)) = input.split_first() else { return };
    let Some(hdr) = VnetHdr::parse(frame) else { return };
    let mut again = [0; VNET_HDR_LEN];
    hdr.emit(&mut again);
    assert_eq!(VnetHdr::parse(&again), Some(hdr));
    // The switch and the faults have seen an Ethernet header.
    if frame.len() < IP_OFFSET {
        return;
    }
    let mut whole = frame.to_vec();
    let mut changed = hdr;
    if segment::complete(&mut whole, &mut changed).is_ok() {
        assert_eq!(changed, VnetHdr::default());
        assert_eq!(whole.len(), frame.len());
    }
    let largest = segment::largest(frame, &hdr);
    let partial = choice & 1 == 1;
    let mut buf = vec![0; MAX_FRAME];
    let mut pieces = 0;
    let mut payload = Vec::new();
    let headers = || {
        let at = VNET_HDR_LEN + usize::from(hdr.csum_start);
        at + if hdr.gso == Gso::Udp { 8 } else { usize::from(frame[at + 12] >> 4) * 4 }
    };
    let result = segment::cut(frame, &hdr, partial, &mut buf, |piece| {
        pieces += 1;
        let told = VnetHdr::parse(piece).expect("a piece has a header");
        assert_eq!((told.gso, told.needs_csum), (Gso::None, partial));
        assert!(largest.is_ok_and(|largest| piece.len() - IP_OFFSET <= largest), "a piece is larger than announced");
        payload.extend_from_slice(&piece[headers()..]);
    });
    assert!(pieces <= segment::MAX_PIECES, "{pieces} pieces of one frame");
    if result.is_ok() {
        assert!(pieces > 0);
        assert_eq!(payload, frame[headers()..], "the payload");
    } else {
        assert_eq!(pieces, 0, "half a frame was sent");
    }
});
