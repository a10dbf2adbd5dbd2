//! Each policy, probed with real packets: what is forbidden fails, and the same probe succeeds
//! where it is allowed.

mod support;

use support::{
    HOST, Lab, METADATA, OTHER, PRIVATE, PUBLIC_DNS, SERVER, THIRD, at, privileged, probe,
};

#[test]
fn b4_2_allow_all_is_the_public_internet() {
    if !privileged("allow_all") {
        return;
    }
    let lab = Lab::new();
    let network = lab.network(1, "{}");
    let guest = lab.guest(&network);
    guest.run(|| {
        assert_eq!(
            probe::tcp(at(SERVER, 80)),
            Some(HOST),
            "behind the host's address"
        );
        assert!(probe::udp(at(OTHER, 443)));
        assert!(probe::icmp(OTHER));
        assert_eq!(probe::tcp(at(PRIVATE, 80)), None, "private range");
        assert!(!probe::icmp(PRIVATE));
        assert_eq!(probe::tcp(at(METADATA, 80)), None, "metadata");
    });
    let open = lab.network(2, r#"{"private_networks":true}"#);
    let guest = lab.guest(&open);
    guest.run(|| {
        assert!(
            probe::tcp(at(PRIVATE, 80)).is_some(),
            "the same probe where it is allowed"
        );
        assert!(probe::icmp(PRIVATE));
        assert_eq!(probe::tcp(at(METADATA, 80)), None, "metadata is never open");
    });
}
