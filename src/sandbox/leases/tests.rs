//! Leases as files. What happens to those of killed and stopped processes is in `tests/leases.rs`.

use super::*;
use crate::sandbox::networks::tests::{Temp, make, make_in};

fn wanted(number: u32) -> Wanted {
    Wanted {
        sandbox_id: format!("{number:012x}"),
        sandbox_name: format!("c{number}"),
        pid: std::process::id(),
        interface: "eth0".to_owned(),
        ..Wanted::default()
    }
}

/// Ends as a killed process does: the locks go, the files stay.
fn die(mut held: HeldLease) {
    held.files.clear();
}

fn addresses(leases: &Leases) -> Vec<String> {
    leases.live().iter().map(|lease| lease.v4.to_string()).collect()
}

#[test]
fn taken_listed_changed_and_given_back() {
    let temp = Temp::new("taken");
    let store = temp.store();
    let foo = make(&store, "foo").unwrap();
    let leases = Leases::open(&temp.0, &foo);
    assert_eq!(leases.live(), []);
    assert!(!leases.dir().exists(), "looking makes nothing");
    let mut first = leases.take(&store, &foo, &wanted(1)).unwrap();
    let second = leases.take(&store, &foo, &wanted(2)).unwrap();
    assert_eq!(leases.live(), [first.lease().clone(), second.lease().clone()]);
    let before = first.lease().clone();
    first
        .update(|lease| {
            lease.names = vec!["x".repeat(100)];
            lease.v4 = "1.2.3.4".parse().unwrap();
        })
        .unwrap();
    first.update(|lease| lease.names = vec!["web".to_owned()]).unwrap();
    let changed = leases.live().remove(0);
    assert_eq!((changed.names.as_slice(), changed.v4), (&["web".to_owned()][..], before.v4));
    drop(first);
    assert_eq!(addresses(&leases), ["172.18.0.3"]);
    let again = leases.take(&store, &foo, &wanted(3)).unwrap();
    assert_eq!(again.lease().v4, before.v4, "at once, and the lowest");
    assert_ne!(again.lease().endpoint_id, before.endpoint_id);
}

#[test]
fn the_dead_hold_nothing() {
    let temp = Temp::new("dead");
    let store = temp.store();
    let foo = make_in(&store, "foo", &["10.0.0.0/30"]).unwrap();
    let leases = Leases::open(&temp.0, &foo);
    die(leases.take(&store, &foo, &wanted(1)).unwrap());
    let file = leases.files().join("10.0.0.2");
    assert!(file.exists());
    assert_eq!(leases.live(), []);
    assert!(!file.exists(), "looking removes what is a dead one's");
    die(leases.take(&store, &foo, &wanted(1)).unwrap());
    let held = leases.take(&store, &foo, &wanted(2)).unwrap();
    let full = leases.take(&store, &foo, &wanted(3)).unwrap_err().to_string();
    assert_eq!(full, format!("no available IPv4 addresses on this network's address pools: foo ({})", foo.id));
    // Not even what lies about there disturbs.
    std::fs::write(leases.files().join("notes"), "").unwrap();
    std::fs::write(leases.files().join("10.0.0.9"), "").unwrap();
    assert_eq!(leases.live(), [held.lease().clone()]);
}

#[test]
fn a_lease_that_cannot_be_read_is_held_all_the_same() {
    let temp = Temp::new("unreadable");
    let store = temp.store();
    let foo = make(&store, "foo").unwrap();
    let leases = Leases::open(&temp.0, &foo);
    let held = leases.take(&store, &foo, &wanted(1)).unwrap();
    std::fs::write(&held.files[0].0, "half a le").unwrap();
    assert_eq!(leases.live(), []);
    assert_eq!(leases.take(&store, &foo, &wanted(2)).unwrap().lease().v4.to_string(), "172.18.0.3");
    let error = remove_network(&temp.0, &store, &foo).unwrap_err().to_string();
    assert!(error.contains("leases/172.18.0.2 is held"), "{error}");
}

#[test]
fn a_network_with_members_stays_and_one_that_went_takes_none() {
    let temp = Temp::new("remove");
    let store = temp.store();
    let foo = make(&store, "foo").unwrap();
    let leases = Leases::open(&temp.0, &foo);
    let held = leases.take(&store, &foo, &wanted(1)).unwrap();
    assert_eq!(
        remove_network(&temp.0, &store, &foo).unwrap_err().to_string(),
        format!(
            "error while removing network: network foo has active endpoints (name:\"c1\" id:\"{}\")",
            &held.lease().endpoint_id[..12]
        )
    );
    die(held);
    remove_network(&temp.0, &store, &foo).unwrap();
    assert!(!leases.dir().exists(), "nothing is left of it");
    // Whoever looked it up before.
    let late = leases.take(&store, &foo, &wanted(2)).unwrap_err().to_string();
    assert_eq!(late, "network foo not found");
    assert!(!leases.dir().exists());
    let [bridge, ..] = Network::predefined(0);
    assert_eq!(
        remove_network(&temp.0, &store, &bridge).unwrap_err().to_string(),
        "bridge is a pre-defined network and cannot be removed"
    );
}

#[test]
fn removing_and_joining_at_once() {
    let temp = Temp::new("race");
    let store = temp.store();
    for round in 0..30 {
        let foo = make(&store, "foo").unwrap();
        let leases = Leases::open(&temp.0, &foo);
        let (joined, removed) = std::thread::scope(|scope| {
            let joined = scope.spawn(|| leases.take(&store, &foo, &wanted(round)));
            let removed = scope.spawn(|| remove_network(&temp.0, &store, &foo));
            (joined.join().unwrap(), removed.join().unwrap())
        });
        match (joined, removed) {
            (Ok(held), Err(error)) => {
                assert!(error.to_string().contains("active endpoints"), "{error}");
                drop(held);
                remove_network(&temp.0, &store, &foo).unwrap();
            }
            (Err(error), Ok(())) => assert_eq!(error.to_string(), "network foo not found"),
            both => panic!("{both:?}"),
        }
        assert!(!leases.dir().exists());
    }
}

#[test]
fn many_at_once() {
    let temp = Temp::new("many");
    let store = temp.store();
    let foo = make(&store, "foo").unwrap();
    let leases = Leases::open(&temp.0, &foo);
    let held: Vec<HeldLease> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|n| {
                let (leases, store, foo) = (&leases, &store, &foo);
                scope.spawn(move || {
                    (0..4).map(|m| leases.take(store, foo, &wanted(n * 4 + m)).unwrap()).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let expected: Vec<String> = (2..66).map(|n| format!("172.18.0.{n}")).collect();
    assert_eq!(addresses(&leases), expected);
    drop(held);
    assert_eq!(addresses(&leases), [""; 0]);
}
