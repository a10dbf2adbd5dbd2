use proptest::prelude::*;

use super::*;

const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PUBLIC: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

fn text(interface: &str, peer: &str) -> String {
    format!(
        "[Interface]\nPrivateKey = {KEY}\nAddress = 10.77.0.2/32\n{interface}\n[Peer]\nPublicKey={PUBLIC}\n{peer}\n"
    )
}

fn parse(interface: &str, peer: &str) -> Result<Config, ConfigError> {
    text(interface, peer).parse()
}

#[test]
fn a8_1_wg_quick_text_is_read() {
    let config = parse(
        "ListenPort = 51820 # ours\nMTU=1380\nDNS = 1.1.1.1, fd00::1\nTable = off\nFwMark = 0xca6c\naddress = fd00::2/128",
        "PresharedKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\nEndpoint = vpn.example.com:51820\nAllowedIPs = 0.0.0.0/0, ::/0\nPersistentKeepalive = 25",
    )
    .unwrap();
    assert_eq!(config.addresses, [("10.77.0.2".parse().unwrap(), 32)]);
    assert_eq!(
        (config.listen_port, config.mtu, config.fwmark),
        (Some(51820), Some(1380), Some(0xca6c))
    );
    assert_eq!(config.private_key.bytes()[..3], [0xc8, 0x09, 0xf3]);
    let peer = &config.peers[0];
    assert_eq!(peer.allowed, [Cidr::ALL]);
    assert_eq!(
        peer.endpoint,
        Some(Endpoint::Name("vpn.example.com".to_owned(), 51820))
    );
    assert_eq!(peer.keepalive, 25);
    assert!(peer.preshared_key.is_some());
}

#[test]
fn a8_1_what_runs_commands_or_is_unknown_is_refused_with_its_line() {
    for key in ["PreUp", "PostUp", "PreDown", "PostDown", "SaveConfig"] {
        assert_eq!(
            parse(&format!("{key} = id"), ""),
            Err(ConfigError::Forbidden { line: 4, key })
        );
    }
    assert_eq!(
        parse("Nonsense = 1", ""),
        Err(ConfigError::Unknown { line: 4 })
    );
    assert_eq!(
        parse("", "DNS = 1.1.1.1"),
        Err(ConfigError::Unknown { line: 7 })
    );
    for (line, key) in [
        ("MTU = 575", "MTU"),
        ("MTU = 9001", "MTU"),
        ("ListenPort = 70000", "ListenPort"),
        ("Address = 10.0.0.0/33", "Address"),
        ("FwMark = 0xzz", "FwMark"),
    ] {
        assert_eq!(
            parse(line, ""),
            Err(ConfigError::Value { line: 4, key }),
            "{line}"
        );
    }
    for line in [
        "Endpoint = host",
        "Endpoint = h:0",
        "Endpoint = a b:1",
        "AllowedIPs = x",
        "PersistentKeepalive = -1",
    ] {
        assert!(
            matches!(parse("", line), Err(ConfigError::Value { line: 7, .. })),
            "{line}"
        );
    }
    assert_eq!(
        "[Wrong]".parse::<Config>(),
        Err(ConfigError::Syntax { line: 1 })
    );
    assert_eq!(
        "Address = 1.1.1.1".parse::<Config>(),
        Err(ConfigError::Syntax { line: 1 })
    );
    assert_eq!(
        parse(&format!("PrivateKey = {KEY}"), ""),
        Err(ConfigError::Repeated { line: 4 })
    );
}

#[test]
fn a8_1_key_address_and_peer_must_be_there() {
    let missing = |text: String| match text.parse::<Config>() {
        Err(ConfigError::Missing { key }) => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        missing("[Interface]\nAddress = 10.0.0.1/32".to_owned()),
        "PrivateKey"
    );
    assert_eq!(
        missing(format!("[Interface]\nPrivateKey = {KEY}")),
        "Address"
    );
    assert_eq!(
        missing(format!(
            "[Interface]\nPrivateKey = {KEY}\nAddress = fd00::1/64"
        )),
        "Address"
    );
    assert_eq!(
        missing(format!(
            "[Interface]\nPrivateKey = {KEY}\nAddress = 10.0.0.1"
        )),
        "[Peer]"
    );
    let no_public = text("", "").replace(&format!("PublicKey={PUBLIC}"), "");
    assert_eq!(missing(no_public), "PublicKey");
}

#[test]
fn a8_1_keys_are_never_shown() {
    let config = parse("", "").unwrap();
    let shown = format!("{config:?}");
    assert!(
        !shown.contains(KEY) && !shown.contains(PUBLIC) && !shown.contains("201, 9"),
        "{shown}"
    );
    let bad = text("", "").replace(KEY, "c2VjcmV0LWJ1dC10b28tc2hvcnQ=");
    let error = bad.parse::<Config>().unwrap_err();
    assert!(!format!("{error} {error:?}").contains("c2Vj"));
    for bad in [
        "",
        "=",
        "AAAA",
        &"A".repeat(44),
        &format!("{}B=", "A".repeat(42)),
    ] {
        assert!(Key::new(bad).is_none(), "{bad}");
    }
}

proptest! {
    #[test]
    fn reading_never_panics(text in "(\\[(Interface|Peer)\\]\n|[A-Za-z]{1,12} ?= ?[ -~]{0,40}\n|\\PC{0,20}\n){0,12}") {
        let _ = text.parse::<Config>();
    }
}
