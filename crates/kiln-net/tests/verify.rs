//! `kiln network verify`: its findings are right where all is well, and where something is broken.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a test may"
)]

mod support;

use std::collections::BTreeMap;

use kiln_net::Network;
use kiln_net::verify::{Finding, Side, ask};
use support::{Guest, Lab, privileged, server, sh};

/// What each kind of question found.
fn findings(
    lab: &Lab,
    network: &Network,
    guest: &Guest,
    wanted: impl Fn(&str) -> bool,
) -> BTreeMap<String, Vec<Finding>> {
    let verification = lab.host.run(|| network.verification()).unwrap().unwrap();
    let mut all: BTreeMap<String, Vec<Finding>> = BTreeMap::new();
    for probe in verification
        .probes()
        .iter()
        .filter(|probe| wanted(&probe.about))
    {
        let finding = match probe.from {
            Side::Guest => {
                let observed = guest.run(|| ask(&probe.question));
                lab.host
                    .run(|| verification.judge(probe, observed))
                    .unwrap()
            }
            Side::Host => lab
                .host
                .run(|| verification.judge_from_host(probe))
                .unwrap(),
        };
        eprintln!("{} {}: {finding:?}", probe.about, probe.question);
        all.entry(probe.about.clone()).or_default().push(finding);
    }
    all
}

#[test]
fn what_is_broken_is_found() {
    if !privileged("verify") {
        return;
    }
    let lab = Lab::new();
    // The public address that is asked about, and an answering metadata service.
    lab.internet_sh("ip address add 1.1.1.1/32 dev lo");
    let _public = [80, 443, 853].map(|port| server::tcp(&lab.internet, [1, 1, 1, 1].into(), port));
    let network = lab.network(
        1,
        r#"{"allowed_cidrs":["198.51.100.9/31"],"publish":["8080:80"]}"#,
    );
    let neighbour = lab.network(2, "{}");
    let (guest, other) = (lab.guest(&network), lab.guest(&neighbour));
    let _inside = server::tcp(&guest.inside, guest.facts.address, 80);
    let healthy = findings(&lab, &network, &guest, |_| true);
    let closed = [
        "a service of the host",
        "another sandbox",
        "cloud metadata",
        "DNS over TLS",
        "DNS over HTTPS",
        "the internet",
    ];
    for about in closed.into_iter().chain(["a published port"]) {
        let found = &healthy[about];
        assert!(
            found.iter().all(|finding| *finding == Finding::Holds),
            "{about}: {found:?}"
        );
    }
    assert!(
        healthy
            .values()
            .flatten()
            .all(|finding| *finding != Finding::Broken),
        "{healthy:?}"
    );

    // One protection after the other is taken away.
    let interface = network.record().interface;
    let break_it = |script: &str, about: &str| {
        lab.host_sh(script);
        let found = findings(&lab, &network, &guest, |of| of == about);
        assert!(
            found[about].contains(&Finding::Broken),
            "{about} after {script}: {found:?}"
        );
    };
    break_it("nft flush chain inet kiln vm_host", "a service of the host");
    break_it(
        &format!("nft add element inet kiln pol_all '{{ \"{interface}\" }}'"),
        "the internet",
    );
    break_it(
        "nft flush chain inet kiln dnsport; nft add rule inet kiln dnsport accept",
        "DNS over TLS",
    );
    break_it("nft flush set inet kiln doh4", "DNS over HTTPS");
    break_it(
        "nft flush set inet kiln never4; nft flush chain inet kiln vm_out; nft flush chain inet kiln vm_in",
        "cloud metadata",
    );
    for one in [&network, &neighbour] {
        one.namespace()
            .run(|| sh("nft flush chain inet kiln forward"))
            .unwrap();
    }
    let found = findings(&lab, &network, &guest, |of| of == "another sandbox");
    assert!(
        found["another sandbox"].contains(&Finding::Broken),
        "{found:?}"
    );
    drop(other);
}
