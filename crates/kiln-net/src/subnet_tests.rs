use proptest::prelude::*;

use super::*;

#[test]
fn a6_1_subnets_are_read_normalised_and_bounded() {
    let subnet: Subnet = "172.30.0.77/24".parse().unwrap();
    assert_eq!(subnet.cidr().to_string(), "172.30.0.0/24");
    for good in ["0.0.0.0/1", "10.0.0.0/8", "192.168.1.252/30"] {
        assert!(good.parse::<Subnet>().is_ok(), "{good}");
    }
    for bad in [
        "",
        "10.0.0.0",
        "10.0.0.0/",
        "10.0.0.0/0",
        "10.0.0.0/31",
        "10.0.0.0/32",
        "10.0.0.0/33",
        "10.0.0/24",
        "10.0.0.256/24",
        "10.0.0.0.0/24",
        " 10.0.0.0/24",
        "10.0.0.0/24 ",
        "10. 0.0.0/24",
        "0x0a.0.0.0/24",
        "10.0.0.0/0x18",
        "10.0.0.0/024",
        "010.0.0.0/24",
        "10.0.0.0/+24",
        "10.0.0.0/-1",
        "::/64",
        "a.b.c.d/24",
        "10.0.0.0/24/24",
        "10.0.0.0/٢٤",
    ] {
        assert!(bad.parse::<Subnet>().is_err(), "{bad}");
    }
}

#[test]
fn a6_2_gateway_first_guests_from_the_second_and_exhaustion_is_an_error() {
    let subnet: Subnet = "192.168.7.0/29".parse().unwrap();
    assert_eq!(subnet.gateway().to_string(), "192.168.7.1");
    assert_eq!(subnet.guests(), 5);
    let mut taken = BTreeSet::new();
    for last in 2..=6 {
        let address = subnet.next_free(&taken).unwrap();
        assert_eq!(address.octets()[3], last);
        taken.insert(address);
    }
    assert_eq!(
        subnet.next_free(&taken),
        Err(SubnetError::Exhausted {
            subnet: subnet.cidr()
        })
    );
    taken.remove(&"192.168.7.4".parse().unwrap());
    assert_eq!(subnet.next_free(&taken).unwrap().to_string(), "192.168.7.4");
}

#[test]
fn a6_3_macs_and_tap_names_are_deterministic_local_and_short() {
    let mac = MacAddr::for_guest("vm-1", "eth0");
    assert_eq!(mac, MacAddr::for_guest("vm-1", "eth0"));
    assert_ne!(mac, MacAddr::for_guest("vm-1", "eth1"));
    assert_ne!(MacAddr::for_guest("ab", "c"), MacAddr::for_guest("a", "bc"));
    assert!(mac.to_string().starts_with("02:"));
    let tap = InterfaceName::for_tap("kln", "a-very-long-machine-name", "eth0").unwrap();
    assert!(tap.as_str().len() <= 15);
    assert_eq!(
        tap,
        InterfaceName::for_tap("kln", "a-very-long-machine-name", "eth0").unwrap()
    );
    for bad in [
        "",
        "a/b",
        "a b",
        "0123456789abcdef",
        ".",
        "..",
        "a\0",
        "a:1",
    ] {
        assert!(InterfaceName::new(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a6_5_kernel_argument() {
    let subnet: Subnet = "172.30.0.0/24".parse().unwrap();
    let eth0 = InterfaceName::new("eth0").unwrap();
    assert_eq!(
        kernel_ip_argument(
            subnet.guest(0).unwrap(),
            subnet.gateway(),
            subnet.cidr().netmask(),
            &eth0
        ),
        "ip=172.30.0.2::172.30.0.1:255.255.255.0::eth0:off"
    );
}

#[test]
fn the_last_network_of_ipv4_is_kept_whole() {
    let ranges = Ranges::of(["255.255.255.0/24".parse().unwrap()]);
    assert_eq!(ranges.as_slice(), [(0xffff_ff00, u32::MAX)]);
    let without = Ranges::of([Cidr::ALL]).without(&ranges);
    assert_eq!(without.as_slice(), [(0, 0xffff_feff)]);
}

fn any_cidr() -> impl Strategy<Value = Cidr> {
    (any::<u32>(), 0u8..=32).prop_map(|(bits, prefix)| Cidr::of(Ipv4Addr::from_bits(bits), prefix))
}

proptest! {
    #[test]
    fn parsing_never_panics_and_round_trips(text in "\\PC{0,24}") {
        if let Ok(cidr) = text.parse::<Cidr>() {
            prop_assert_eq!(cidr.to_string().parse::<Cidr>().unwrap(), cidr);
        }
    }

    #[test]
    fn guests_are_inside_distinct_and_never_the_gateway(bits in any::<u32>(), prefix in 1u8..=30, index in any::<u32>()) {
        let subnet = Subnet::new(Cidr::of(Ipv4Addr::from_bits(bits), prefix)).unwrap();
        let (first, last) = subnet.cidr().bounds();
        match subnet.guest(index) {
            Some(guest) => {
                prop_assert!(subnet.cidr().contains(guest));
                prop_assert!(guest > subnet.gateway() && guest.to_bits() < last);
            }
            None => prop_assert!(index >= last - first - 2),
        }
    }

    #[test]
    fn ranges_say_the_same_as_the_networks(
        kept in proptest::collection::vec(any_cidr(), 0..6),
        removed in proptest::collection::vec(any_cidr(), 0..6),
        probe in any::<u32>(),
    ) {
        let ranges = Ranges::of(kept.clone()).without(&Ranges::of(removed.clone()));
        let edges = kept.iter().chain(&removed).flat_map(|cidr| [cidr.bounds().0, cidr.bounds().1]);
        for bits in edges.flat_map(|edge| [edge.wrapping_sub(1), edge, edge.wrapping_add(1)]).chain([probe]) {
            let address = Ipv4Addr::from_bits(bits);
            let expected = kept.iter().any(|cidr| cidr.contains(address))
                && !removed.iter().any(|cidr| cidr.contains(address));
            prop_assert_eq!(ranges.contains(address), expected);
        }
        prop_assert!(ranges.as_slice().windows(2).all(|pair| pair[0].1 < pair[1].0));
    }
}
