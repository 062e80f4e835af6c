//! DHCPv6 without addresses: who asks only for configuration is told where names are asked for (RFC 8415, section 18.3.6;
//! option of RFC 3646). Guests form their addresses themselves, and most take the name server from router advertisements;
//! this is for those that do not. Nothing is stored.

use std::net::{Ipv6Addr, SocketAddrV6};

use crate::network::config::Mac;

/// Where servers listen, and the group that clients ask: All_DHCP_Relay_Agents_and_Servers (RFC 8415, section 7.1).
pub const SERVER_PORT: u16 = 547;
/// See [`SERVER_PORT`].
pub const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const CLIENT_PORT: u16 = 546;

const INFORMATION_REQUEST: u8 = 11;
const REPLY: u8 = 7;
const OPTION_CLIENT_ID: u16 = 1;
const OPTION_SERVER_ID: u16 = 2;
/// Options for addresses and prefixes, which a request for information must not have (section 16.12).
const OPTIONS_ADDRESSES: [u16; 3] = [3, 4, 25];
const OPTION_DNS: u16 = 23;
/// Longest DUID with its type (section 11.1).
const MAX_DUID: usize = 130;
/// Longest answer: header, our identifier, the client's, one name server.
pub const MAX_ANSWER: usize = 4 + (4 + 10) + (4 + MAX_DUID) + (4 + 16);

/// Answers the UDP payload of `client`'s datagram; the answer's length in `out`, None where there is none.
pub fn answer(
    request: &[u8],
    client: SocketAddrV6,
    mac: Mac,
    dns: Ipv6Addr,
    out: &mut [u8; MAX_ANSWER],
) -> Option<usize> {
    let &[INFORMATION_REQUEST, a, b, c, ref options @ ..] = request else { return None };
    // DUID-LL over Ethernet (section 11.4).
    let mut own = [0, 3, 0, 1, 0, 0, 0, 0, 0, 0];
    own[4..].copy_from_slice(&mac.0);
    let mut client_id = None;
    let mut rest = options;
    while !rest.is_empty() {
        let (head, tail) = rest.split_at_checked(4)?;
        let (kind, length) = (u16::from_be_bytes([head[0], head[1]]), u16::from_be_bytes([head[2], head[3]]));
        let (data, tail) = tail.split_at_checked(usize::from(length))?;
        match kind {
            OPTION_CLIENT_ID if data.len() <= MAX_DUID => client_id = Some(data),
            OPTION_CLIENT_ID => return None,
            OPTION_SERVER_ID if data != own => return None,
            kind if OPTIONS_ADDRESSES.contains(&kind) => return None,
            _ => {}
        }
        rest = tail;
    }
    if client.port() != CLIENT_PORT {
        return None;
    }
    out[..4].copy_from_slice(&[REPLY, a, b, c]);
    let mut at = 4;
    let mut put = |kind: u16, data: &[u8]| {
        out[at..at + 2].copy_from_slice(&kind.to_be_bytes());
        out[at + 2..at + 4].copy_from_slice(&(data.len() as u16).to_be_bytes());
        out[at + 4..at + 4 + data.len()].copy_from_slice(data);
        at += 4 + data.len();
    };
    put(OPTION_SERVER_ID, &own);
    if let Some(id) = client_id {
        put(OPTION_CLIENT_ID, id);
    }
    put(OPTION_DNS, &dns.octets());
    Some(at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = Mac([0x52, 0x56, 0, 0, 0, 2]);
    const DNS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);

    fn ask(request: &[u8]) -> Option<Vec<u8>> {
        let client = SocketAddrV6::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9), 546, 0, 0);
        let mut out = [0; MAX_ANSWER];
        answer(request, client, MAC, DNS, &mut out).map(|n| out[..n].to_vec())
    }

    #[test]
    fn who_asks_for_information_gets_the_name_server() {
        let own = [0, 2, 0, 10, 0, 3, 0, 1, 0x52, 0x56, 0, 0, 0, 2];
        let mut expected = vec![7, 1, 2, 3];
        expected.extend(own);
        let mut with_id = expected.clone();
        with_id.extend([0, 1, 0, 3, 9, 8, 7]);
        for answer in [&mut expected, &mut with_id] {
            answer.extend([0, 23, 0, 16]);
            answer.extend(DNS.octets());
        }
        assert_eq!(ask(&[11, 1, 2, 3]), Some(expected));
        // Client identifier, elapsed time, option request, our own identifier.
        let mut request = vec![11, 1, 2, 3, 0, 1, 0, 3, 9, 8, 7, 0, 8, 0, 2, 0, 0, 0, 6, 0, 2, 0, 23];
        request.extend(own);
        assert_eq!(ask(&request), Some(with_id));
        // Another server's, an address wanted, cut short, another message, an identifier too long.
        *request.last_mut().unwrap() = 9;
        let long: Vec<u8> = [11, 1, 2, 3, 0, 1, 0, 131].into_iter().chain([0; 131]).collect();
        for bad in [&request[..], &[11, 1, 2, 3, 0, 3, 0, 0], &[11, 1, 2, 3, 0], &[1, 1, 2, 3], &[], &long] {
            assert_eq!(ask(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = 11;
            }
            let _ = ask(&bytes);
        }
    }
}
