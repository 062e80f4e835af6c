//! What is a further lane's (`runtime::lanes`) and what the first's, and that a lane is a stack like another.

use smoltcp::time::Instant;
use tapway::stack::census::{Cursor, FlowFilter, Lane};
use tapway::stack::{Limits, Stack};
use tapway::wire::tcp_segment::{ACK, FIN, PSH, RST, SYN};

use crate::sim::*;

/// A world whose stack is the second of two.
fn second(limits: Limits) -> World {
    let mut world = World::with(config(1500, all_offloads()), limits);
    world.stack.set_lane(Lane(1), 2);
    world
}

fn owns(world: &World, frame: &[u8]) -> bool {
    world.stack.owns(frame)
}

#[test]
fn whole_segments_that_begin_or_belong_are_owned_and_nothing_else() {
    for family in [Family::V4, Family::V6] {
        let mut world = second(Limits::default());
        let mut flow = Conn::out(&mut world, family);
        let stranger = Conn::new(&mut world, at(family.guest(), 4999), at(family.far(), 80));
        assert!(owns(&world, &stranger.syn().frame()), "a flow that begins");
        for flags in [ACK, ACK | PSH, FIN | ACK, RST, RST | ACK, SYN | ACK, SYN | RST] {
            assert!(!owns(&world, &stranger.seg(flags, b"").frame()), "{flags:#x} of no flow here");
        }
        let id = flow.open(&mut world);
        for flags in [ACK, ACK | PSH, FIN | ACK, RST, SYN | ACK] {
            assert!(owns(&world, &flow.seg(flags, b"x").frame()), "{flags:#x} of a flow that began here");
        }
        flow.receives(&mut world, id, b"from the host");

        let datagram = udp_body(at(family.guest(), 4000), at(family.far(), 53), b"?");
        let datagram = Ip::new(family.guest(), family.far(), 17, datagram).frame();
        assert!(!owns(&world, &datagram), "a datagram");
        // Whatever is cut off, nothing is read beyond, and what is not a whole header is the first lane's.
        let frame = flow.seg(ACK, b"").frame();
        let least = 10 + 14 + family.header() + 14;
        for len in 0..=frame.len() {
            assert_eq!(owns(&world, &frame[..len]), len >= least, "{len} bytes of {}", frame.len());
        }
        // To another MAC: a member's, or a group.
        for mac in [[2, 0, 0, 0, 0, 9], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            let mut other = frame.clone();
            other[10..16].copy_from_slice(&mac);
            assert!(!owns(&world, &other), "for {mac:?}");
        }
        if family == Family::V4 {
            for (at, bits) in [(6, 0x20), (6, 0x1f), (7, 1)] {
                let mut fragment = frame.clone();
                fragment[24 + at] |= bits;
                assert!(!owns(&world, &fragment), "a fragment");
            }
        }
    }
}

#[test]
fn a_lane_says_nothing_unasked_and_has_its_share_of_the_bounds() {
    let mut limits = Limits::default();
    limits.tcp.max_flows = 8;
    let mut world = second(limits);
    // Longer than a router advertises at its start (RFC 4861, section 6.2.4).
    world.pass(smoltcp::time::Duration::from_secs(700));
    world.silent();
    let mut flows: Vec<Conn> = (0..4)
        .map(|n| {
            let mut flow = Conn::new(&mut world, at(Family::V4.guest(), 5000 + n), at(Family::V4.far(), 80));
            flow.open(&mut world);
            flow
        })
        .collect();
    let late = Conn::new(&mut world, at(Family::V4.guest(), 6000), at(Family::V4.far(), 80));
    world.send(&late.syn());
    assert_eq!(world.tcp_flows(), 4, "half of eight");
    assert_eq!(world.drops(tapway::stack::verdict::DropReason::TableFull), 1);
    // They are named apart from those of other lanes.
    let mut page = Vec::new();
    assert_eq!(world.stack.flows_page(Cursor::START, 100, &FlowFilter::default(), &mut page), None);
    assert_eq!(page.len(), 4);
    for record in page {
        let (lane, own) = record.id.split();
        assert_eq!(lane, Lane(1));
        let now = Instant::from_secs(1000);
        assert!(kill(&mut world.stack, own, now), "{own} is its name in the lane");
    }
    world.settle();
    assert_eq!(world.tcp_flows(), 0);
    flows.clear();
}

fn kill(stack: &mut Stack, id: tapway::stack::census::FlowId, now: Instant) -> bool {
    struct Nobody;
    impl tapway::stack::Output for Nobody {
        fn to_guest(&mut self, _: &[u8]) -> bool {
            true
        }
        fn udp_to_host(&mut self, _: &tapway::stack::UdpToHost<'_>) {}
        fn ping_to_host(&mut self, _: &tapway::stack::PingToHost<'_>) {}
        fn dns_query(&mut self, _: std::net::SocketAddr, _: std::net::SocketAddr, _: &[u8]) {}
    }
    stack.kill_flow(id, now, &mut Nobody)
}
