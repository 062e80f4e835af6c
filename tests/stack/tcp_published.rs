//! Published ports: connections and datagrams that come from outside, with the client's true address where that can be.

use std::net::{IpAddr, SocketAddr};

use smoltcp::time::Duration;
use tapway::network::config::EndpointConfig;
use tapway::stack::Limits;
use tapway::stack::arena::Id;
use tapway::stack::flow::GuestPort;
use tapway::stack::tcp::TcpLimits;
use tapway::stack::udp::{IDLE, UdpVia};
use tapway::stack::verdict::DropReason;

use crate::sim::*;

/// A client connects to the published port 80. Returns the flow and the SYN that the guest sees.
fn port(port: u16) -> GuestPort {
    GuestPort { addr: None, port }
}

fn connect(world: &mut World, client: SocketAddr) -> (Id, Seg) {
    let flow = world.stack.handle_tcp_accepted(world.now, (0, port(80)), client).expect("room");
    world.host.insert(flow, HostSocket::default());
    world.settle();
    (flow, world.segment())
}

/// The guest's answer to that SYN.
fn answer(world: &mut World, syn: &Seg) -> Conn {
    let mut conn = Conn::new(world, syn.dst, syn.src);
    conn.ack = syn.end();
    let mut segment = conn.seg(SYN | ACK, b"");
    segment.options = SYN_OPTIONS.to_vec();
    segment.window = 64_240;
    world.send(&segment);
    conn.seq = segment.end();
    let third = world.segment();
    assert_eq!((third.flags, third.seq, third.ack), (ACK, conn.ack, conn.seq));
    conn
}

/// Both ends in order, the guest first or last.
fn close(world: &mut World, conn: &mut Conn, flow: Id, guest_first: bool) {
    if guest_first {
        conn.push(world, ACK | FIN, b"");
        conn.take(world);
        world.host_ends(flow);
        assert!(conn.take(world).1);
        conn.acknowledge(world);
    } else {
        world.host_ends(flow);
        assert!(conn.take(world).1);
        conn.acknowledge(world);
        conn.push(world, ACK | FIN, b"");
        world.segments();
    }
    assert_eq!(world.closed.pop(), Some((flow, true)));
}

#[test]
fn the_guest_sees_the_client_and_serves_it() {
    for family in BOTH {
        let mut world = World::new();
        let client = at(family.far(), 51_000);
        let (flow, syn) = connect(&mut world, client);
        assert_eq!((syn.src, syn.dst, syn.flags), (client, at(family.guest(), 80), SYN));
        assert!(syn.mss().is_some() && syn.option(3).is_some(), "{syn:?}");
        // What the client sent already waits for the handshake.
        world.host_sends(flow, b"GET /");
        world.silent();
        let mut conn = answer_with_data(&mut world, &syn, b"GET /");
        conn.acknowledge(&mut world);
        conn.push(&mut world, ACK | PSH, b"200");
        conn.take(&mut world);
        assert_eq!(world.host(flow).received, b"200");
        close(&mut world, &mut conn, flow, true);
        assert_eq!(world.tcp_flows(), 0);
    }
}

fn answer_with_data(world: &mut World, syn: &Seg, data: &[u8]) -> Conn {
    let mut conn = Conn::new(world, syn.dst, syn.src);
    conn.ack = syn.end();
    let mut segment = conn.seg(SYN | ACK, b"");
    segment.options = SYN_OPTIONS.to_vec();
    world.send(&segment);
    conn.seq = segment.end();
    assert_eq!(conn.take(world), (data.to_vec(), false));
    conn
}

#[test]
fn refused_by_the_guest() {
    for family in BOTH {
        let mut world = World::new();
        let (flow, syn) = connect(&mut world, at(family.far(), 51_000));
        let mut conn = Conn::new(&mut world, syn.dst, syn.src);
        conn.ack = syn.end();
        conn.seq = 0;
        world.send(&conn.seg(RST | ACK, b""));
        world.silent();
        assert_eq!((world.close(), world.tcp_flows()), ((flow, false), 0), "the client is reset");
    }
}

#[test]
fn a_guest_that_does_not_answer() {
    let mut world = World::new();
    let (flow, syn) = connect(&mut world, at(Family::V4.far(), 51_000));
    world.pass(Duration::from_secs(120));
    let again = world.segments();
    assert!((4..12).contains(&again.len()), "{} SYNs in two minutes", again.len());
    assert!(again.iter().all(|s| s.flags == SYN && s.seq == syn.seq));
    world.pass(Duration::from_secs(10));
    assert_eq!((world.close(), world.tcp_flows()), ((flow, false), 0));
}

#[test]
fn a_client_that_resets_before_the_guest_answers() {
    let mut world = World::new();
    let (flow, syn) = connect(&mut world, at(Family::V4.far(), 51_000));
    world.host(flow).broken = true;
    world.poke(flow);
    assert_eq!(world.close(), (flow, false));
    let told = world.segments();
    assert!(told.iter().all(|s| s.has(RST)), "{told:?}");
    // The guest's SYN-ACK finds nobody.
    let mut conn = Conn::new(&mut world, syn.dst, syn.src);
    conn.ack = syn.end();
    world.send(&conn.seg(SYN | ACK, b""));
    let reset = world.segment();
    assert_eq!((reset.flags, reset.seq), (RST, syn.end()));
}

#[test]
fn a_client_comes_back_on_the_same_port() {
    // The guest has the last connection in TIME-WAIT and takes a SYN only with a number beyond the last one.
    for family in BOTH {
        let mut world = World::new();
        let client = at(family.far(), 51_000);
        let mut last = None;
        for round in 0..30 {
            let (flow, syn) = connect(&mut world, client);
            if let Some(last) = last {
                assert!((syn.seq.wrapping_sub(last) as i32) > 0, "round {round}");
            }
            let mut conn = answer(&mut world, &syn);
            let amount = [10, 3_000_000][usize::from(round % 5 == 4)];
            let mut left = amount;
            while left > 0 {
                let some = left.min(500_000);
                left -= some;
                world.host_sends(flow, &vec![7; some]);
                let mut got = 0;
                while got < some {
                    got += conn.take(&mut world).0.len();
                    conn.acknowledge(&mut world);
                }
            }
            close(&mut world, &mut conn, flow, round % 2 == 0);
            last = Some(conn.ack);
            world.pass(Duration::from_millis(2));
        }
    }
}

#[test]
fn a_recycled_socket_keeps_nothing_of_its_past() {
    // The ring pool hands out a socket that once held its SYN-ACK back.
    let limits = Limits { tcp: TcpLimits { large_rings: 1, ..TcpLimits::default() }, ..Limits::default() };
    let mut world = World::with(config(1500, all_offloads()), limits);
    let mut early = Conn::out(&mut world, Family::V4);
    world.send(&early.syn());
    early.seq = early.seq.wrapping_add(1);
    world.send(&early.seg(RST, b""));
    assert_eq!(world.tcp_flows(), 0);
    let (flow, syn) = connect(&mut world, at(Family::V4.far(), 51_000));
    let mut conn = answer(&mut world, &syn);
    conn.push(&mut world, ACK | PSH, b"fine");
    conn.take(&mut world);
    assert_eq!(world.host(flow).received, b"fine");
}

#[test]
fn the_gateway_stands_in_for_who_cannot_be_shown() {
    let both = config(1500, all_offloads());
    let only_v4 = EndpointConfig { v6: None, ..both.clone() };
    let only_v6 = EndpointConfig { v4: None, ..both.clone() };
    let cases: [(&EndpointConfig, &str, Family); 12] = [
        (&both, "127.0.0.1", Family::V4),
        (&both, "127.1.2.3", Family::V4),
        (&both, "169.254.7.7", Family::V4),
        (&both, "10.0.2.7", Family::V4),
        (&both, "10.0.2.100", Family::V4),
        (&both, "::1", Family::V6),
        (&both, "fe80::77", Family::V6),
        (&both, "fd00:1:2:3::77", Family::V6),
        (&both, "fd00:1:2:3::64", Family::V6),
        (&only_v4, "2001:db8::7", Family::V4),
        (&only_v6, "192.0.2.7", Family::V6),
        (&only_v6, "127.0.0.1", Family::V6),
    ];
    for (config, client, shown) in cases {
        let client = at(ip(client), 51_000);
        let mut world = World::with(config.clone(), Limits::default());
        let (_, syn) = connect(&mut world, client);
        assert_eq!((syn.src.ip(), syn.dst), (shown.gateway(), at(shown.guest(), 80)), "{client}");
        assert_eq!(syn.src.port(), 51_000);
        answer(&mut world, &syn);
        // And for datagrams.
        let local: IpAddr = ip("192.0.2.1");
        world.stack.handle_udp_published(world.now, (0, port(5353)), (client, local), b"x", None, &mut world.out);
        let packet = world.packet();
        assert_eq!((packet.src, packet.dst, packet.protocol), (shown.gateway(), shown.guest(), UDP), "{client}");
    }
}

#[test]
fn the_gateway_stands_in_where_the_ports_are_taken() {
    // 8080:80 and 8081:80, one client port to both.
    let mut world = World::new();
    let client = at(Family::V4.far(), 51_000);
    let (first, one) = connect(&mut world, client);
    let (second, two) = connect(&mut world, client);
    assert_eq!((one.src, two.src.ip()), (client, Family::V4.gateway()));
    let mut a = answer(&mut world, &one);
    let mut b = answer(&mut world, &two);
    a.push(&mut world, ACK | PSH, b"a");
    a.take(&mut world);
    b.push(&mut world, ACK | PSH, b"b");
    b.take(&mut world);
    assert_eq!((world.heard(first).0, world.heard(second).0), (&b"a"[..], &b"b"[..]));
    // Clients from loopback get a port each.
    let mut seen = Vec::new();
    for port in 0..50 {
        let (_, syn) = connect(&mut world, at(ip("127.0.0.1"), 60_000 + port));
        assert!(!seen.contains(&syn.src));
        seen.push(syn.src);
    }
}

#[test]
fn no_room_is_a_reset_of_the_client() {
    let limits = Limits { tcp: TcpLimits { max_flows: 1, ..TcpLimits::default() }, ..Limits::default() };
    let mut world = World::with(config(1500, all_offloads()), limits);
    connect(&mut world, at(Family::V4.far(), 51_000));
    let refused = world.stack.handle_tcp_accepted(world.now, (0, port(80)), at(Family::V4.far(), 51_001));
    assert_eq!(refused.err(), Some(DropReason::TableFull));
}

#[test]
fn datagrams_keep_to_the_address_that_the_client_used() {
    for family in BOTH {
        let mut world = World::new();
        let client = at(family.far(), 51_000);
        let local = ip(if family.is_v6() { "2001:db8::1" } else { "192.0.2.1" });
        world.stack.handle_udp_published(world.now, (3, port(53)), (client, local), b"question", None, &mut world.out);
        let packet = world.packet();
        assert_eq!((packet.src, packet.dst), (client.ip(), family.guest()));
        assert_eq!(packet.body[..4], [&51_000u16.to_be_bytes()[..], &53u16.to_be_bytes()].concat());
        assert_eq!(packet.body[8..], *b"question");
        // The answer leaves from the published socket and that address, not from a mapping.
        let guest = at(family.guest(), 53);
        world.inject(Ip::new(guest.ip(), client.ip(), UDP, udp_body(guest, client, b"answer")).frame());
        let sent = world.out.udp.remove(0);
        assert_eq!(sent.via, UdpVia::Listener { index: 3, local });
        assert_eq!((sent.target, &sent.payload[..]), (client, &b"answer"[..]));
        assert_eq!(world.stack.flows().1, 0);
        // To anybody else it is an ordinary datagram of that port.
        let other = at(client.ip(), 9);
        world.inject(Ip::new(guest.ip(), other.ip(), UDP, udp_body(guest, other, b"x")).frame());
        assert!(matches!(world.out.udp.remove(0).via, UdpVia::Mapping { .. }));
        // The pair ends when idle.
        assert_eq!(world.stack.flows().2, 1);
        world.pass(IDLE + Duration::from_secs(1));
        assert_eq!(world.stack.flows().2, 0);
    }
}
