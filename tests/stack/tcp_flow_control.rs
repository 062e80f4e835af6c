//! TCP: windows, repetitions, order, and the sizes of what is sent.

use smoltcp::time::Duration;
use tapway::network::config::Offloads;
use tapway::stack::Limits;
use tapway::stack::tcp::{ACK_DELAY, TcpLimits};
use tapway::stack::verdict::DropReason;

use crate::sim::*;

/// Sends `data` in segments of `size` bytes as far as the window lets, as a kernel would. Returns how much went.
fn pour(world: &mut World, conn: &mut Conn, data: &[u8], size: usize, scale: u8) -> usize {
    let mut sent = 0;
    while sent < data.len() && conn.room > 0 {
        let part = &data[sent..data.len().min(sent + size.min(conn.room))];
        conn.push(world, ACK | PSH, part);
        conn.room -= part.len();
        sent += part.len();
        for answer in world.segments() {
            assert!(!answer.has(RST));
            assert_eq!(answer.ack, conn.seq, "all that was sent in its window is kept");
            conn.room = usize::from(answer.window) << scale;
        }
    }
    sent
}

/// The window scale that the stack announced in answer to ours.
fn open_scaled(world: &mut World, conn: &mut Conn) -> (tapway::stack::arena::Id, u8) {
    world.send(&conn.syn());
    let flow = world.accept();
    let answer = world.segment();
    let scale = answer.option(3).expect("window scale")[0];
    conn.room = usize::from(answer.window);
    conn.seq = conn.seq.wrapping_add(1);
    conn.ack = answer.end();
    conn.acknowledge(world);
    (flow, scale)
}

#[test]
fn a_host_that_takes_nothing_closes_the_window_and_loses_nothing() {
    for (family, large_rings) in [(Family::V4, 256), (Family::V6, 256), (Family::V4, 0)] {
        let limits = Limits { tcp: TcpLimits { large_rings, ..TcpLimits::default() }, ..Limits::default() };
        let mut world = World::with(config(65_520, all_offloads()), limits);
        let mut conn = Conn::out(&mut world, family);
        let (flow, scale) = open_scaled(&mut world, &mut conn);
        world.host(flow).takes = 0;
        let data = pattern(3 << 20, 5);
        let sent = pour(&mut world, &mut conn, &data, 60_000, scale);
        assert!((60_000..2 << 20).contains(&sent), "{sent} bytes before the window closed");
        assert!(world.host(flow).received.is_empty());

        // The guest's kernel probes a closed window with one byte from the past, and is answered.
        for _ in 0..3 {
            let mut probe = conn.seg(ACK, b"");
            probe.seq = conn.seq.wrapping_sub(1);
            world.send(&probe);
            let answer = world.segment();
            assert_eq!((answer.ack, answer.flags), (conn.seq, ACK));
            assert!(usize::from(answer.window) << scale < 60_000);
            world.pass(Duration::from_secs(5));
        }

        // The host takes it all: the guest hears of the room without asking.
        world.segments();
        world.host(flow).takes = usize::MAX;
        world.poke(flow);
        let updates = world.segments();
        let update = updates.last().expect("a window update");
        assert_eq!((update.ack, update.payload.len()), (conn.seq, 0));
        assert!(usize::from(update.window) << scale > 30_000, "{update:?}");
        conn.room = usize::from(update.window) << scale;
        assert_eq!(world.host(flow).received, data[..sent]);

        // And the rest goes on.
        let mut done = sent;
        while done < data.len() {
            done += pour(&mut world, &mut conn, &data[done..], 60_000, scale);
        }
        assert_eq!(world.host(flow).received, data);
    }
}

#[test]
fn a_host_that_takes_in_sips_never_stalls_the_guest() {
    let mut world = World::new();
    let mut conn = Conn::out(&mut world, Family::V4);
    let (flow, scale) = open_scaled(&mut world, &mut conn);
    let data = pattern(4 << 20, 6);
    world.host(flow).takes = 0;
    let mut sent = 0;
    for sip in 0.. {
        assert!(sip < 20_000, "stalled after {sent} bytes");
        if sent < data.len() {
            sent += pour(&mut world, &mut conn, &data[sent..], 1460, scale);
        }
        // The guest is now waiting for room: keep sipping until it is told.
        loop {
            world.host(flow).takes += 7001;
            world.poke(flow);
            let told = world.segments();
            if let Some(last) = told.last() {
                conn.room = usize::from(last.window) << scale;
            }
            if conn.room > 0 || world.host(flow).received.len() == data.len() {
                break;
            }
        }
        if world.host(flow).received.len() == data.len() {
            break;
        }
    }
    assert_eq!(world.host(flow).received, data);
}

#[test]
fn a_guest_that_takes_nothing_is_probed_and_then_served() {
    for family in BOTH {
        let mut world = World::new();
        let mut conn = Conn::out(&mut world, family);
        conn.window = 0;
        let flow = conn.open(&mut world);
        let data = pattern(100_000, 7);
        world.host_sends(flow, &data);
        // Probes come, each with a byte at most, further and further apart; smoltcp sends the first at once.
        let mut probes = 0;
        for _ in 0..120 {
            world.pass(Duration::from_secs(1));
            for probe in world.segments() {
                assert!(!probe.has(RST) && probe.payload.len() <= 1, "{probe:?}");
                probes += 1;
                conn.acknowledge(&mut world);
            }
        }
        assert!((2..60).contains(&probes), "{probes} probes in two minutes");
        assert_eq!(world.tcp_flows(), 1, "a guest that answers probes lives");
        conn.window = 0x2000;
        conn.acknowledge(&mut world);
        let mut got: Vec<u8> = Vec::new();
        for _ in 0..20 {
            let (part, _) = conn.take(&mut world);
            got.extend(part);
            conn.acknowledge(&mut world);
        }
        assert_eq!(got, data);
    }
}

#[test]
fn a_byte_of_a_probe_is_not_lost() {
    // Some guests take the probe's byte after all.
    let mut world = World::new();
    let mut conn = Conn::out(&mut world, Family::V4);
    conn.window = 0;
    let flow = conn.open(&mut world);
    let data = pattern(5000, 8);
    world.host_sends(flow, &data);
    let mut got: Vec<u8> = Vec::new();
    for _ in 0..10 {
        world.pass(Duration::from_secs(10));
        for segment in world.segments() {
            if segment.seq == conn.ack && !segment.payload.is_empty() {
                got.extend(&segment.payload);
                conn.ack = segment.end();
            }
        }
        conn.acknowledge(&mut world);
    }
    conn.window = 0x2000;
    conn.acknowledge(&mut world);
    for _ in 0..5 {
        got.extend(conn.take(&mut world).0);
        conn.acknowledge(&mut world);
        world.pass(Duration::from_secs(2));
    }
    assert_eq!(got, data);
}

#[test]
fn never_more_than_the_guests_window() {
    for window in [1u16, 10, 100, 1000] {
        let mut world = World::new();
        let mut conn = Conn::out(&mut world, Family::V4);
        conn.window = window;
        let flow = conn.open(&mut world);
        let data = pattern(500_000, 9);
        world.host_sends(flow, &data);
        let mut got: Vec<u8> = Vec::new();
        while got.len() < data.len() {
            let before = got.len();
            got.extend(conn.take(&mut world).0);
            assert!(got.len() - before <= usize::from(window) << 7, "beyond the window of {window}");
            assert!(got.len() > before, "stalled at {before}");
            conn.acknowledge(&mut world);
        }
        assert_eq!(got, data);
    }
}

#[test]
fn the_acknowledgement_of_a_request_travels_with_its_answer() {
    let mut world = World::new();
    let mut conn = Conn::out(&mut world, Family::V4);
    let flow = conn.open(&mut world);
    for _ in 0..3 {
        conn.push(&mut world, ACK | PSH, b"ping");
        world.silent();
        world.host_sends(flow, b"pong");
        let answer = world.segment();
        assert_eq!((answer.ack, answer.payload.as_slice()), (conn.seq, &b"pong"[..]));
        conn.ack = answer.end();
    }
    // A second segment before an answer is acknowledged at once.
    conn.push(&mut world, ACK | PSH, b"one");
    world.silent();
    conn.push(&mut world, ACK | PSH, b"two");
    assert_eq!(world.segment().ack, conn.seq);
    // And a lone one after the delay.
    conn.push(&mut world, ACK | PSH, b"three");
    world.silent();
    world.pass(ACK_DELAY);
    assert_eq!(world.segment().ack, conn.seq);
}

#[test]
fn a_keepalive_probe_is_answered_and_passed_on() {
    for octets in [&b""[..], b"\0"] {
        let mut world = World::new();
        let mut conn = Conn::out(&mut world, Family::V4);
        let flow = conn.open(&mut world);
        conn.push(&mut world, ACK | PSH, b"hello");
        world.pass(ACK_DELAY);
        conn.take(&mut world);
        assert!(!world.host(flow).keepalive);
        let mut probe = conn.seg(ACK, octets);
        probe.seq = conn.seq.wrapping_sub(1);
        world.send(&probe);
        let answer = world.segment();
        assert_eq!((answer.flags, answer.seq, answer.ack), (ACK, conn.ack, conn.seq));
        assert!(world.host(flow).keepalive, "the host's socket probes too (dataplane.md, rule 13)");
        assert_eq!(world.host(flow).received, b"hello");
    }
}

#[test]
fn data_with_an_old_acknowledgement_is_taken() {
    // Two segments of the guest change places with an acknowledgement between them: seen with a busy guest.
    let mut world = World::new();
    let mut conn = Conn::out(&mut world, Family::V4);
    let flow = conn.open(&mut world);
    let old = conn.ack;
    world.host_sends(flow, b"something to acknowledge");
    conn.take(&mut world);
    conn.acknowledge(&mut world);
    let new = conn.ack;
    // A late acknowledgement without data comes first, and is not the newest because it is the last.
    conn.ack = old;
    conn.acknowledge(&mut world);
    conn.ack = old.wrapping_add(5);
    conn.push(&mut world, ACK | PSH, b"in order, with yesterday's acknowledgement");
    conn.ack = new;
    assert_eq!(conn.take(&mut world), (vec![], false), "acknowledged at once");
    assert_eq!(world.host(flow).received, b"in order, with yesterday's acknowledgement");
}

#[test]
fn an_acknowledgement_from_the_future_does_no_harm() {
    let mut world = World::new();
    let mut conn = Conn::out(&mut world, Family::V4);
    let flow = conn.open(&mut world);
    let right = conn.ack;
    conn.ack = right.wrapping_add(1 << 20);
    conn.acknowledge(&mut world);
    world.segments();
    conn.ack = right;
    conn.push(&mut world, ACK | PSH, b"sane again");
    world.segments();
    assert_eq!(world.host(flow).received, b"sane again");
    world.host_sends(flow, b"answer");
    assert_eq!(conn.take(&mut world).0, b"answer");
}

#[test]
fn repeated_data_is_taken_once() {
    let mut world = World::new();
    let mut conn = Conn::out(&mut world, Family::V4);
    let flow = conn.open(&mut world);
    let first = conn.seg(ACK | PSH, b"once");
    conn.push(&mut world, ACK | PSH, b"once");
    conn.take(&mut world);
    for _ in 0..3 {
        world.send(&first);
        assert_eq!(world.segment().ack, conn.seq, "answered, so that the guest stops");
    }
    // Old and new in one segment.
    let mut both = conn.seg(ACK | PSH, b"once more");
    both.seq = first.seq;
    world.send(&both);
    conn.seq = both.end();
    assert_eq!(world.segment().ack, conn.seq);
    assert_eq!(world.host(flow).received, b"once more");
}

#[test]
fn data_out_of_order_waits_for_the_gap() {
    let mut world = World::new();
    let mut conn = Conn::out(&mut world, Family::V4);
    let flow = conn.open(&mut world);
    let data = pattern(4000, 10);
    let base = conn.seq;
    let part = |range: std::ops::Range<usize>| {
        let mut segment = conn.seg(ACK | PSH, &data[range.clone()]);
        segment.seq = base.wrapping_add(range.start as u32);
        segment
    };
    for range in [1000..2000, 3000..4000] {
        world.send(&part(range));
        for answer in world.segments() {
            assert_eq!(answer.ack, base, "a duplicate acknowledgement");
        }
    }
    assert!(world.host(flow).received.is_empty());
    world.send(&part(0..1000));
    assert_eq!(world.segments().last().map(|s| s.ack), Some(base.wrapping_add(2000)));
    world.send(&part(2000..3000));
    assert_eq!(world.segments().last().map(|s| s.ack), Some(base.wrapping_add(4000)));
    assert_eq!(world.host(flow).received, data);
}

#[test]
fn a_fin_that_overtakes_data_waits() {
    let mut world = World::new();
    let mut conn = Conn::out(&mut world, Family::V4);
    let flow = conn.open(&mut world);
    let mut fin = conn.seg(ACK | FIN, b"");
    fin.seq = conn.seq.wrapping_add(4);
    world.send(&fin);
    world.segments();
    assert!(!world.host(flow).shut);
    conn.push(&mut world, ACK | PSH, b"data");
    world.segments();
    world.send(&fin);
    world.segments();
    assert_eq!(world.heard(flow), (&b"data"[..], true));
}

#[test]
fn what_the_guest_did_not_get_is_sent_again() {
    let mut world = World::new();
    let mut conn = Conn::out(&mut world, Family::V4);
    let flow = conn.open(&mut world);
    world.host_sends(flow, b"lost once");
    world.segments();
    world.pass(Duration::from_millis(1100));
    assert_eq!(conn.take(&mut world).0, b"lost once", "after a second, smoltcp's least");
    conn.acknowledge(&mut world);
    world.pass(Duration::from_secs(100));
    world.silent();
    // Three duplicate acknowledgements bring it back at once.
    world.host_sends(flow, &pattern(1000, 1));
    world.segments();
    let mut again = Vec::new();
    for _ in 0..4 {
        world.host_sends(flow, b"x");
        conn.acknowledge(&mut world);
        again.extend(world.segments());
    }
    assert!(again.iter().any(|s| s.seq == conn.ack && s.payload.len() >= 1000), "fast retransmission");
}

#[test]
fn super_frames_are_cut_to_the_guests_segment_size() {
    for family in BOTH {
        for (mtu, mss) in [(1500u16, 1460u16), (1500, 1440), (9000, 8900), (65_520, 65_460)] {
            let mss = mss.min(mtu - family.header() as u16 - 20);
            let mut world = World::with(config(mtu, all_offloads()), Limits::default());
            let mut conn = Conn::out(&mut world, family);
            let mut syn = conn.syn();
            syn.options[2..4].copy_from_slice(&mss.to_be_bytes());
            world.send(&syn);
            let flow = world.accept();
            let answer = world.segment();
            // What we announce bounds what the guest sends in one packet.
            assert!(usize::from(answer.mss().unwrap()) + family.header() + 20 <= 65_535);
            conn.seq = conn.seq.wrapping_add(1);
            conn.ack = answer.end();
            conn.window = 0x4000;
            conn.acknowledge(&mut world);
            conn.turn_bulky(&mut world, flow);
            let data = pattern(600_000, 11);
            world.host_sends(flow, &data);
            let segments = world.segments();
            for segment in &segments {
                let limit = if segment.payload.len() > usize::from(mss) { Some(mss) } else { None };
                assert_eq!(segment.gso_size, limit, "{} bytes", segment.payload.len());
            }
            assert!(segments.iter().any(|s| s.payload.len() > 60_000), "large frames at MTU {mtu}");
            let mut got: Vec<u8> = segments.iter().flat_map(|s| s.payload.clone()).collect();
            conn.ack = segments.last().unwrap().end();
            conn.acknowledge(&mut world);
            got.extend(conn.take(&mut world).0);
            assert_eq!(got, data);
        }
    }
}

/// Found by fuzzing: pieces had the size that the guest said, above the MTU, too.
#[test]
fn a_segment_size_above_the_mtu_is_not_believed() {
    for family in BOTH {
        for mss in [1461, 9000, 65_535_u16] {
            let mut world = World::with(config(1500, all_offloads()), Limits::default());
            let mut conn = Conn::out(&mut world, family);
            let mut syn = conn.syn();
            syn.options[2..4].copy_from_slice(&mss.to_be_bytes());
            world.send(&syn);
            let flow = world.accept();
            let answer = world.segment();
            (conn.seq, conn.ack) = (conn.seq.wrapping_add(1), answer.end());
            conn.acknowledge(&mut world);
            let data = pattern(20_000, 11);
            world.host_sends(flow, &data);
            // Each frame is checked as it is taken apart.
            let segments = world.segments();
            let most = 1500 - family.header() - 20;
            assert!(segments.iter().all(|s| s.payload.len() <= most || s.gso_size == Some(most as u16)));
            assert_eq!(segments.iter().map(|s| s.payload.len()).sum::<usize>(), data.len());
        }
    }
}

#[test]
fn without_offloads_every_packet_fits_the_mtu_and_is_summed() {
    for family in BOTH {
        for offloads in [
            Offloads::default(),
            Offloads { vnet_hdr: true, ..Offloads::default() },
            Offloads { vnet_hdr: true, csum: true, ..Offloads::default() },
            Offloads { vnet_hdr: true, csum: true, tso4: true, ..Offloads::default() },
        ] {
            for mtu in [1500, 9000] {
                let mut world = World::with(config(mtu, offloads), Limits::default());
                let mut conn = Conn::out(&mut world, family);
                conn.window = 0x2000;
                let flow = conn.open(&mut world);
                let data = pattern(300_000, 12);
                world.host_sends(flow, &data);
                let mut got: Vec<u8> = Vec::new();
                while got.len() < data.len() {
                    let before = got.len();
                    for segment in world.segments() {
                        let size = segment.gso_size.map_or(segment.payload.len(), usize::from);
                        assert!(size <= 1460, "the MSS that the guest announced");
                        assert_eq!(segment.seq, conn.ack);
                        conn.ack = segment.end();
                        got.extend(&segment.payload);
                    }
                    assert!(got.len() > before, "stalled");
                    conn.acknowledge(&mut world);
                }
                assert_eq!(got, data, "{family:?} {offloads:?} {mtu}");
            }
        }
    }
}

#[test]
fn a_guest_without_options_gets_small_segments_and_an_unscaled_window() {
    for family in BOTH {
        let mut world = World::new();
        let mut conn = Conn::out(&mut world, family);
        world.send(&conn.seg(SYN, b""));
        let flow = world.accept();
        let answer = world.segment();
        assert_eq!(answer.option(3), None, "no window scale without being asked (RFC 7323, 1.3)");
        conn.seq = conn.seq.wrapping_add(1);
        conn.ack = answer.end();
        conn.window = 4000;
        conn.acknowledge(&mut world);
        let data = pattern(20_000, 13);
        world.host_sends(flow, &data);
        let mut got: Vec<u8> = Vec::new();
        while got.len() < data.len() {
            let before = got.len();
            for segment in world.segments() {
                let default = if family.is_v6() { 1220 } else { 536 };
                let size = segment.gso_size.map_or(segment.payload.len(), usize::from);
                assert!(size <= default, "{size} bytes (RFC 9293, 3.7.1)");
                conn.ack = segment.end();
                got.extend(&segment.payload);
            }
            assert!(got.len() - before <= 4000 && got.len() > before);
            conn.acknowledge(&mut world);
        }
        assert_eq!(got, data);
    }
}

#[test]
fn a_super_frame_of_the_guest_is_taken_whole() {
    for family in BOTH {
        let mut world = World::new();
        let mut conn = Conn::out(&mut world, family);
        let flow = conn.open(&mut world);
        let data = pattern(65_535 - family.header() - 20, 14);
        // As Linux hands it to a TAP: partial checksum and segmentation in the vnet header.
        let segment = conn.seg(ACK | PSH, &data);
        let mut frame = segment.frame();
        let start = 14 + family.header();
        let header = tapway::wire::vnet::VnetHdr {
            needs_csum: true,
            gso: if family.is_v6() { tapway::wire::vnet::Gso::Tcp6 } else { tapway::wire::vnet::Gso::Tcp4 },
            hdr_len: (start + 20) as u16,
            gso_size: 1440,
            csum_start: start as u16,
            csum_offset: 16,
            data_valid: false,
        };
        header.emit(&mut frame);
        // The checksum field holds the pseudo-header's sum only.
        let at = 10 + start + 16;
        let partial = tapway::wire::csum::partial(segment.src.ip(), segment.dst.ip(), TCP, data.len() + 20);
        frame[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        world.inject(frame);
        conn.seq = segment.end();
        assert_eq!(world.segment().ack, conn.seq);
        assert_eq!(world.host(flow).received, data);
        assert_eq!(world.drops(DropReason::Checksum), 0);
    }
}

#[test]
fn sequence_numbers_may_wrap() {
    let mut world = World::new();
    let mut conn = Conn::out(&mut world, Family::V4);
    conn.seq = u32::MAX - 5000;
    let (flow, scale) = open_scaled(&mut world, &mut conn);
    let data = pattern(200_000, 15);
    let mut sent = 0;
    while sent < data.len() {
        sent += pour(&mut world, &mut conn, &data[sent..], 1460, scale);
    }
    assert_eq!(world.host(flow).received, data);
    conn.push(&mut world, ACK | FIN, b"");
    conn.take(&mut world);
    assert!(world.host(flow).shut);
}

#[test]
fn what_was_lost_while_the_window_closed_is_sent_when_it_opens() {
    // A kernel that is short of memory drops what is in its window and says that it is shut.
    for family in BOTH {
        let mut world = World::new();
        let mut conn = Conn::out(&mut world, family);
        let flow = conn.open(&mut world);
        conn.turn_bulky(&mut world, flow);
        let data = pattern(120_000, 16);
        world.host_sends(flow, &data);
        let sent = world.segments();
        assert!(sent.len() > 1);
        conn.ack = sent[0].end();
        conn.window = 0;
        conn.acknowledge(&mut world);
        world.pass(Duration::from_millis(300));
        world.segments();
        conn.window = 0x2000;
        conn.acknowledge(&mut world);
        let again = world.segments();
        assert_eq!(again.first().map(|s| s.seq), Some(conn.ack), "at once, not at some timer: {again:?}");
        assert_eq!(again[0].payload, data[sent[0].payload.len()..][..again[0].payload.len()]);
    }
}

#[test]
fn what_was_lost_is_sent_again_though_the_opening_of_the_window_was_lost_too() {
    let mut world = World::new();
    let mut conn = Conn::out(&mut world, Family::V4);
    let flow = conn.open(&mut world);
    world.host_sends(flow, &pattern(120_000, 17));
    let sent = world.segments();
    conn.ack = sent[0].end();
    conn.window = 0;
    conn.acknowledge(&mut world);
    for _ in 0..60 {
        world.pass(Duration::from_secs(1));
        // All that was sent is lost, and the guest says nothing. What comes must make it speak.
        if world.segments().iter().any(|s| s.seq == conn.ack && !s.payload.is_empty()) {
            return;
        }
    }
    panic!("a minute without a question that a guest must answer");
}

#[test]
fn a_guest_that_closed_first_and_reads_slowly_is_served_without_pauses() {
    for family in BOTH {
        let mut world = World::new();
        let mut conn = Conn::out(&mut world, family);
        conn.window = 0x100;
        let flow = conn.open(&mut world);
        conn.push(&mut world, ACK | FIN, b"");
        conn.take(&mut world);
        let data = pattern(500_000, 18);
        world.host(flow).sending.extend(&data);
        world.host_ends(flow);
        let start = world.now;
        let mut got = Vec::new();
        let mut fin = false;
        while !fin {
            let (part, end) = conn.take(&mut world);
            assert!(!part.is_empty() || end, "no pause: {} of {}", got.len(), data.len());
            got.extend(part);
            fin = end;
            // The reader is slow: the window is shut when all is acknowledged, and opens a moment later.
            conn.window = 0;
            conn.acknowledge(&mut world);
            let probes = world.segments();
            assert!(probes.iter().all(|s| s.payload.len() <= 1), "into a shut window: {probes:?}");
            if probes.iter().any(|s| s.has(FIN)) {
                break;
            }
            world.pass(Duration::from_millis(10));
            conn.window = 0x100;
            conn.acknowledge(&mut world);
        }
        assert_eq!(got, data);
        assert!(world.now - start < Duration::from_millis(300), "{:?}", world.now - start);
    }
}
