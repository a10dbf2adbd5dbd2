use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn spec(json: &str) -> PolicySpec {
    serde_json::from_str(json).unwrap()
}

fn fields(json: &str) -> Vec<String> {
    spec(json)
        .check()
        .unwrap_err()
        .faults()
        .iter()
        .map(|fault| fault.field.clone())
        .collect()
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn name(text: &str) -> DomainName {
    DomainName::new(text).unwrap()
}

fn allows(policy: &Policy, address: &str) -> bool {
    policy.judge(ip(address), 6, Some(443), |_, _| false) == Action::Allow
}

#[test]
fn b4_2_the_default_is_the_public_internet() {
    let policy = spec("{}").check().unwrap();
    assert_eq!(policy, Policy::allow_all());
    assert!(allows(&policy, "1.1.1.1"));
    for private in ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1"] {
        assert!(!allows(&policy, private), "{private}");
    }
}

#[test]
fn unknown_fields_are_refused() {
    assert!(serde_json::from_str::<PolicySpec>(r#"{"allow_domains":[]}"#).is_err());
    assert!(
        serde_json::from_str::<PolicySpec>(r#"{"rules":[{"action":"allow","cidr":"1.1.1.1"}]}"#)
            .is_err()
    );
}

#[test]
fn a7_4_all_faults_are_reported_together() {
    let found = fields(
        r#"{"mode":"deny-all","allowed_domains":["bad domain"],"allowed_cidrs":["1.2.3","169.254.169.254"],
            "rules":[{"action":"allow","ports":[80]},{"action":"deny","protocol":"tcp","ports":[0,"9-8",70000]}],
            "publish":["8080:80","0.0.0.0:8080:81","x"],"bandwidth":{"download":"fast"}}"#,
    );
    assert_eq!(
        found,
        [
            "mode",
            "rules[0].ports",
            "rules[1].ports[0]",
            "rules[1].ports[1]",
            "rules[1].ports[2]",
            "allowed_domains[0]",
            "allowed_cidrs[0]",
            "allowed_cidrs[1]",
            "publish[1]",
            "publish[2]",
            "bandwidth.download",
        ]
    );
}

#[test]
fn denied_networks_win_over_allowed_ones() {
    let policy =
        spec(r#"{"allowed_cidrs":["203.0.113.0/24"],"denied_cidrs":["203.0.113.128/25"]}"#)
            .check()
            .unwrap();
    assert!(allows(&policy, "203.0.113.1"));
    assert!(!allows(&policy, "203.0.113.200"));
    assert!(!allows(&policy, "1.1.1.1"));
}

#[test]
fn everything_does_not_include_private_ranges_unless_named() {
    let wide = spec(r#"{"allowed_cidrs":["0.0.0.0/0"]}"#).check().unwrap();
    assert!(allows(&wide, "8.8.8.8") && !allows(&wide, "10.0.0.1"));
    let named = spec(r#"{"allowed_cidrs":["10.7.0.0/16"]}"#)
        .check()
        .unwrap();
    assert!(allows(&named, "10.7.1.1") && !allows(&named, "10.8.0.1"));
    let opened = spec(r#"{"mode":"custom","default_action":"allow","private_networks":true}"#);
    assert!(allows(&opened.check().unwrap(), "10.0.0.1"));
}

#[test]
fn a7_1_the_first_matching_rule_wins_then_the_default() {
    let policy = spec(
        r#"{"default_action":"allow","rules":[
            {"action":"allow","cidrs":["203.0.113.7"],"protocol":"tcp","ports":["80-90"]},
            {"action":"deny","cidrs":["203.0.113.0/24"]}]}"#,
    )
    .check()
    .unwrap();
    let judge = |address, protocol, port| policy.judge(ip(address), protocol, port, |_, _| false);
    assert_eq!(judge("203.0.113.7", 6, Some(85)), Action::Allow);
    assert_eq!(judge("203.0.113.7", 6, Some(443)), Action::Deny);
    assert_eq!(judge("203.0.113.7", 17, Some(85)), Action::Deny);
    assert_eq!(judge("203.0.113.7", 1, None), Action::Deny);
    assert_eq!(judge("198.51.100.1", 1, None), Action::Allow);
}

#[test]
fn names_are_judged_in_order() {
    let policy = spec(
        r#"{"rules":[{"action":"deny","domains":["bad.good.example"]},
                     {"action":"deny","domains":["*.good.example"],"protocol":"tcp","ports":[25]},
                     {"action":"allow","domains":["*.good.example","one.example"]}]}"#,
    )
    .check()
    .unwrap();
    let verdict = |text| policy.judge_name(&name(text));
    assert_eq!(verdict("BAD.good.example."), NameVerdict::Refuse);
    assert_eq!(
        verdict("a.b.good.example"),
        NameVerdict::Resolve {
            clauses: vec![1, 2]
        }
    );
    assert_eq!(
        verdict("one.example"),
        NameVerdict::Resolve { clauses: vec![2] }
    );
    for closed in ["good.example", "xgood.example", "x.one.example", "example"] {
        assert_eq!(verdict(closed), NameVerdict::Refuse, "{closed}");
    }
}

#[test]
fn names_resolve_in_general_only_where_the_internet_is_open() {
    let resolve = NameVerdict::Resolve { clauses: vec![] };
    let of = |json| spec(json).check().unwrap().judge_name(&name("x.example"));
    assert_eq!(of("{}"), resolve);
    assert_eq!(of(r#"{"denied_cidrs":["1.1.1.1"]}"#), resolve);
    assert_eq!(of(r#"{"mode":"deny-all"}"#), NameVerdict::Refuse);
    assert_eq!(
        of(r#"{"allowed_cidrs":["203.0.113.0/24"]}"#),
        NameVerdict::Refuse
    );
}

#[test]
fn domain_patterns_refuse_what_is_not_a_host_name() {
    for bad in [
        "",
        ".",
        "*.",
        "a..b",
        "-a.b",
        "a*.b",
        "*.*.b",
        "a b",
        "ä.example",
        "a/b",
        "a\\.b",
    ] {
        assert!(DomainPattern::new(bad).is_none(), "{bad}");
    }
    assert!(DomainPattern::new(&"a".repeat(64)).is_none());
    assert!(DomainPattern::new("*").unwrap().matches(&name("x.y")));
}

#[test]
fn published_ports_are_read() {
    let port = PublishedPort::new("127.0.0.1:8080:80/udp").unwrap();
    assert_eq!(port.to_string(), "127.0.0.1:8080:80/udp");
    assert_eq!(PublishedPort::new("443").unwrap().guest, 443);
    assert_eq!(PublishedPort::new("0.0.0.0:1:2").unwrap().address, None);
    for bad in [
        "",
        "0:1",
        "1:0",
        "1:2:3",
        "1:2/sctp",
        "70000:1",
        "+1:2",
        "::1:80:80",
        "a:1:2",
    ] {
        assert!(PublishedPort::new(bad).is_none(), "{bad}");
    }
}

#[test]
fn rates_are_read() {
    assert_eq!(Rate::new("50mbit").unwrap().bytes_per_second(), 6_250_000);
    for bad in [
        "",
        "50",
        "mbit",
        "0mbit",
        "-1mbit",
        "1.5mbit",
        "101gbit",
        "99999999999999999999gbit",
    ] {
        assert!(Rate::new(bad).is_none(), "{bad}");
    }
}

proptest! {
    #[test]
    fn checking_never_panics(texts in proptest::collection::vec("\\PC{0,20}", 4)) {
        let spec = PolicySpec {
            allowed_domains: vec![texts[0].clone()],
            allowed_cidrs: vec![texts[1].clone()],
            publish: vec![texts[2].clone()],
            rules: vec![RuleSpec { action: Action::Deny, domains: vec![], cidrs: vec![], protocol: Protocol::Tcp,
                ports: vec![PortSpec::Text(texts[3].clone())], comment: None }],
            ..PolicySpec::default()
        };
        let _ = spec.check();
    }

    #[test]
    fn a_name_below_matches_by_whole_labels(labels in proptest::collection::vec("[a-z0-9]{1,8}", 1..4), glued in "[a-z]{1,5}") {
        let below = DomainPattern::new("*.good.example").unwrap();
        let prefix = labels.join(".");
        let under = format!("{}.good.example", prefix);
        let beside = format!("{}.{}good.example", prefix, glued);
        prop_assert!(below.matches(&name(&under)));
        prop_assert!(!below.matches(&name(&beside)));
    }

    #[test]
    fn nothing_special_is_ever_opened_by_wide_rules(bits in any::<u32>(), prefix in 0u8..8) {
        let cidr = Cidr::of(Ipv4Addr::from_bits(bits), prefix);
        prop_assume!(!PRIVATE.iter().chain(&NEVER).any(|p| p.covers(cidr)));
        let policy = PolicySpec { allowed_cidrs: vec![cidr.to_string()], ..PolicySpec::default() }.check().unwrap();
        for private in PRIVATE {
            let (first, last) = private.bounds();
            for edge in [first, last] {
                prop_assert!(!allows(&policy, &Ipv4Addr::from_bits(edge).to_string()));
            }
        }
    }
}
