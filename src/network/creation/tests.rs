//! Requests, what becomes of them, and Docker's texts.

use super::*;
use proptest::prelude::*;

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

fn fresh(n: u8) -> Fresh {
    Fresh { id: [n; 32], ula: [n; 7], now: Timestamp::default() }
}

/// What was typed after `create`.
#[derive(Clone, Copy, Default)]
struct Typed<'a> {
    subnets: &'a [&'a str],
    ranges: &'a [&'a str],
    gateways: &'a [&'a str],
    aux: &'a [(&'a str, &'a str)],
    ipv6: bool,
    options: &'a [(&'a str, &'a str)],
}

impl Typed<'_> {
    fn make(&self, name: &str, networks: &[Network], host: &[&str]) -> Result<Network, CreateError> {
        let aux: Vec<_> = self.aux.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let subnets = assemble(&texts(self.subnets), &texts(self.ranges), &texts(self.gateways), &aux)?;
        let options = self.options.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let request = Request { name: name.to_owned(), subnets, ipv6: self.ipv6, options, ..Request::default() };
        let host: Vec<Ipv4Net> = host.iter().map(|text| text.parse().unwrap()).collect();
        let existing = Existing { networks, subnets: &[], host: &host };
        create(request, existing, fresh(networks.len() as u8 + 1))
    }

    fn refused(&self) -> String {
        let networks = Network::predefined(0);
        self.make("foo", &networks, &[]).unwrap_err().to_string()
    }
}

fn shown(network: &Network) -> Vec<String> {
    network.ipam.iter().map(|c| format!("{} {}", c.subnet, c.gateway)).collect()
}

#[test]
fn without_a_word_the_pools_give_a_subnet() {
    let mut networks = Network::predefined(0).to_vec();
    let first = Typed::default().make("a", &networks, &[]).unwrap();
    assert_eq!(shown(&first), ["172.18.0.0/16 172.18.0.1"]);
    assert_eq!((first.id.as_str(), first.driver.as_str()), ("04".repeat(32).as_str(), "bridge"));
    networks.push(first);
    let second = Typed { ipv6: true, ..Typed::default() }.make("b", &networks, &["172.19.0.0/24"]).unwrap();
    assert_eq!(shown(&second), ["172.20.0.0/16 172.20.0.1", "fd05:505:505:505::/64 fd05:505:505:505::1"]);
}

#[test]
fn everything_said() {
    let typed = Typed {
        subnets: &["10.1.0.0/16", "fd00:1::/64"],
        ranges: &["10.1.4.0/24"],
        gateways: &["fd00:1::f", "10.1.0.9"],
        aux: &[("printer", "10.1.4.0"), ("host", "10.1.9.9")],
        ipv6: true,
        options: &[(options::ICC, "false"), (options::MTU, "1500"), (options::HOST_BINDING, "127.0.0.1")],
    };
    let network = typed.make("foo", &Network::predefined(0), &[]).unwrap();
    assert_eq!(shown(&network), ["10.1.0.0/16 10.1.0.9", "fd00:1::/64 fd00:1::f"]);
    let v4 = &network.ipam[0];
    assert_eq!(v4.lowest_free(&BTreeSet::new()), Some("10.1.4.1".parse().unwrap()));
    assert!(!network.icc() && network.mtu() == Some(1500));
    assert_eq!(network.host_binding_ipv4(), Some("127.0.0.1".parse().unwrap()));
}

#[test]
fn any_of_this_size() {
    let networks = Network::predefined(0);
    let typed = Typed { subnets: &["0.0.0.0/24"], ..Typed::default() };
    assert_eq!(shown(&typed.make("a", &networks, &[]).unwrap()), ["172.18.0.0/24 172.18.0.1"]);
    let typed = Typed { subnets: &["::/64"], ipv6: true, ..Typed::default() };
    let network = typed.make("a", &networks, &[]).unwrap();
    assert_eq!(shown(&network), ["172.18.0.0/16 172.18.0.1", "fd04:404:404:404::/64 fd04:404:404:404::1"]);
    let typed = Typed { subnets: &["0.0.0.0/8"], ..Typed::default() };
    assert_eq!(typed.refused(), "all predefined address pools have been fully subnetted");
}

#[test]
fn dockers_words() {
    let t = Typed::default();
    for (typed, text) in [
        (Typed { ranges: &["10.0.0.0/24"], ..t }, "every ip-range or gateway must have a corresponding subnet"),
        (Typed { gateways: &["10.0.0.1"], ..t }, "every ip-range or gateway must have a corresponding subnet"),
        (Typed { subnets: &["10.0.0.0/24"], gateways: &["10.0.1.1"], ..t }, "no matching subnet for gateway 10.0.1.1"),
        (
            Typed { subnets: &["10.0.0.0/24"], ranges: &["10.0.1.0/28"], ..t },
            "no matching subnet for range 10.0.1.0/28",
        ),
        (
            Typed { subnets: &["10.0.0.0/24"], aux: &[("a", "10.0.1.1")], ..t },
            "no matching subnet for aux-address 10.0.1.1",
        ),
        (
            Typed { subnets: &["10.0.0.0/24", "10.1.0.0/24"], ranges: &["10.0.0.0/28", "10.0.0.16/28"], ..t },
            "cannot configure multiple ranges (10.0.0.16/28, 10.0.0.0/28) on the same subnet (10.0.0.0/24)",
        ),
        (
            Typed { subnets: &["10.0.0.0/24", "10.1.0.0/24"], gateways: &["10.0.0.1", "10.0.0.2"], ..t },
            "cannot configure multiple gateways (10.0.0.2, 10.0.0.1) for the same subnet (10.0.0.0/24)",
        ),
        (
            Typed { subnets: &["10.0.0.0/24", "10.0.0.0/16"], ..t },
            "multiple overlapping subnet configuration is not supported",
        ),
        (Typed { subnets: &["10.0.0.0/24", "10.0.1.0/24"], ..t }, "bridge driver doesn't support multiple subnets"),
        (
            Typed { subnets: &["10.0.0.5/24"], ..t },
            "invalid network config:\ninvalid subnet 10.0.0.5/24: it should be 10.0.0.0/24",
        ),
        (Typed { subnets: &["ten"], ..t }, "invalid network config:\ninvalid subnet ten: invalid CIDR block notation"),
        (
            Typed { subnets: &["10.0.0.0/24"], ranges: &["10.0.0.0/16"], ..t },
            "invalid network config:\ninvalid ip-range 10.0.0.0/16: CIDR block is bigger than its parent subnet 10.0.0.0/24",
        ),
        (
            Typed { subnets: &["10.0.0.0/24"], ranges: &["10.0.0.5/28"], ..t },
            "invalid network config:\ninvalid ip-range 10.0.0.5/28: it should be 10.0.0.0/28",
        ),
        (
            Typed { subnets: &["172.17.5.0/24"], ..t },
            "invalid pool request: Pool overlaps with other one on this address space",
        ),
        (
            Typed { subnets: &["10.0.0.0/24"], gateways: &["10.0.0.255"], ..t },
            "failed to allocate gateway (10.0.0.255): Address already in use",
        ),
        (
            Typed { subnets: &["10.0.0.0/24"], aux: &[("a", "10.0.0.1")], ..t },
            "failed to allocate secondary ip address (a:10.0.0.1): Address already in use",
        ),
    ] {
        assert_eq!(typed.refused(), text);
    }
    let [bridge, ..] = Network::predefined(0);
    assert_eq!(
        Typed { subnets: &["172.17.0.0/16"], ranges: &["172.17.5.0/24"], ..t }.refused(),
        format!(
            "cannot create network {} (br-040404040404): conflicts with network {} (br-{}): networks have overlapping IPv4",
            "04".repeat(32),
            bridge.id,
            bridge.short_id()
        )
    );
}

#[test]
fn words_of_our_own_name_the_value_and_the_remedy() {
    let t = Typed::default();
    for (typed, parts) in [
        (Typed { subnets: &["fd00::/64"], ..t }, &["fd00::/64", "--ipv6"][..]),
        (Typed { subnets: &["10.0.0.0/32"], ..t }, &["10.0.0.0/32", "8 to 31"]),
        (Typed { subnets: &["10.0.0.1"], ..t }, &["10.0.0.1/32", "8 to 31"]),
        (Typed { subnets: &["fd00::/127"], ipv6: true, ..t }, &["fd00::/127", "3 to 126"]),
        (Typed { subnets: &["127.0.0.0/8"], ..t }, &["127.0.0.0/8", "reserved"]),
        (Typed { subnets: &["10.0.0.0/24"], gateways: &["ten"], ..t }, &["invalid gateway \"ten\"", "10.0.0.1"]),
        (Typed { subnets: &["10.0.0.0/24"], aux: &[("a", "b\n")], ..t }, &["invalid aux-address \"b\\n\""]),
    ] {
        let text = typed.refused();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
}

#[test]
fn names_and_bridges_are_taken_once() {
    let mut networks = Network::predefined(0).to_vec();
    let named = Typed { options: &[(options::BRIDGE_NAME, "br0")], ..Typed::default() };
    networks.push(named.make("foo", &networks, &[]).unwrap());
    let text = |made: Result<Network, CreateError>| made.unwrap_err().to_string();
    assert_eq!(text(named.make("foo", &networks, &[])), "network with name foo already exists");
    assert_eq!(text(named.make("host", &networks, &[])), "operation is not permitted on predefined host network ");
    assert!(text(named.make("bar", &networks, &[])).ends_with("(br0): networks have same bridge name"));
    assert!(Typed::default().make("bar", &networks, &[]).is_ok());
}

#[test]
fn subnets_of_broken_definitions_are_left_alone() {
    let subnets = ["172.18.0.0/16".parse().unwrap(), "fd00:9::/64".parse().unwrap()];
    let existing = Existing { networks: &Network::predefined(0), subnets: &subnets, host: &[] };
    let request = Request { name: "a".to_owned(), ..Request::default() };
    assert_eq!(shown(&create(request, existing, fresh(1)).unwrap()), ["172.19.0.0/16 172.19.0.1"]);
    let subnets = assemble(&texts(&["172.18.5.0/24"]), &[], &[], &[]).unwrap();
    let request = Request { name: "a".to_owned(), subnets, ..Request::default() };
    assert_eq!(create(request, existing, fresh(1)), Err(CreateError::Overlap));
}

proptest! {
    /// Whatever is asked for, what is made is sound and overlaps nothing.
    #[test]
    fn made_networks_are_sound(asked in proptest::collection::vec(
        (prop_oneof![Just(None), "(10|172)\\.1[6-9]\\.[0-3]\\.0/(1[6-9]|2[0-9]|3[01])".prop_map(Some),
            "0\\.0\\.0\\.0/(1[6-9]|2[0-9])".prop_map(Some)], any::<bool>()), 0..40)) {
        let mut networks = Network::predefined(0).to_vec();
        for (i, (subnet, ipv6)) in asked.iter().enumerate() {
            let subnet: Vec<&str> = subnet.iter().map(String::as_str).collect();
            let typed = Typed { subnets: &subnet, ipv6: *ipv6, ..Typed::default() };
            if let Ok(made) = typed.make(&format!("n{i}"), &networks, &["172.20.0.0/16"]) {
                prop_assert_eq!(made.check(), Ok(()));
                let text = serde_json::to_string(&made).unwrap();
                prop_assert_eq!(serde_json::from_str::<Network>(&text).unwrap(), made.clone());
                for other in networks.iter().flat_map(|n| &n.ipam) {
                    prop_assert!(made.ipam.iter().all(|config| !overlap(&config.subnet, &other.subnet)));
                }
                networks.push(made);
            }
        }
    }

    #[test]
    fn hostile_texts_do_not_panic(text in "\\PC{0,20}", other in "[0-9a-f:./]{0,20}") {
        for text in [text, other] {
            let list = [text.clone()];
            let _ = assemble(&list, &list, &list, &[(text.clone(), text)]);
        }
    }
}
