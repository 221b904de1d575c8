use proptest::prelude::*;

use super::*;

fn strict() -> AddressGuard {
    AddressGuard::new(true, &[])
}

fn allowing(networks: &[&str]) -> AddressGuard {
    let networks: Vec<IpNet> = networks.iter().map(|net| net.parse().unwrap()).collect();
    AddressGuard::new(true, &networks)
}

/// Every host of FIELD.md and its kin, as a URL would carry it.
const REFUSED_HOSTS: &[&str] = &[
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.255.255.254",
    "0x7f.1",
    "0x7f000001",
    "0177.0.0.1",
    "2130706433",
    "017700000001",
    "①②⑦.⓪.⓪.①",
    "127。0。0。1",
    "%31%32%37.0.0.1",
    "0",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "[::]",
    "[::1]",
    "[::127.0.0.1]",
    "[::8.8.8.8]",
    "[::ffff:127.0.0.1]",
    "[::ffff:169.254.169.254]",
    "[::ffff:7f00:1]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::8.8.8.8]",
    "[64:ff9b:1::7f00:1]",
    "[100::1]",
    "[2001::1]",
    "[2001:0:4136:e378:8000:63bf:3fff:fdd2]",
    "[2001:2::1]",
    "[2001:10::1]",
    "[2001:20::1]",
    "[2001:db8::1]",
    "[2002:7f00:1::]",
    "[2002:a00:1::1]",
    "[3fff::1]",
    "[4000::1]",
    "[5f00::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fdff::1]",
    "[fe80::1]",
    "[febf::1]",
    "[fec0::1]",
    "[ff02::1]",
];

#[test]
fn every_special_literal_is_refused_in_every_notation() {
    for host in REFUSED_HOSTS {
        for url in [format!("https://{host}/hook"), format!("http://{host}:8080/")] {
            let refused = strict().check_url(&url);
            assert!(matches!(refused, Err(GuardError::Address { .. })), "{url}: {refused:?}");
        }
    }
}

#[test]
fn public_addresses_and_names_are_allowed() {
    for host in [
        "1.1.1.1",
        "8.8.8.8",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.0.1",
        "172.32.0.1",
        "192.0.1.1",
        "198.20.0.1",
        "223.255.255.255",
        "[2606:4700::1111]",
        "[2001:4860:4860::8888]",
        "[2a00:1450::1]",
        "merchant.example",
        "bücher.example",
        "sub.merchant.example:8443",
    ] {
        let url = format!("https://{host}/hook?shop=1");
        strict().check_url(&url).unwrap_or_else(|e| panic!("{url}: {e}"));
    }
}

#[test]
fn a_url_that_is_no_plain_https_url_is_refused_by_its_reason() {
    let guard = AddressGuard::new(false, &[]);
    let refused = |url: &str| guard.check_url(url).expect_err(url);
    assert_eq!(refused("http://merchant.example/"), GuardError::PlainHttp);
    for url in ["ftp://merchant.example/", "file:///etc/passwd", "gopher://merchant.example/", "javascript:alert(1)"] {
        assert!(matches!(refused(url), GuardError::Scheme { .. }), "{url}");
    }
    assert_eq!(refused("https://user@merchant.example/"), GuardError::UserInfo);
    assert_eq!(refused("https://:word@merchant.example/"), GuardError::UserInfo);
    assert_eq!(refused("https://merchant.example:0/"), GuardError::PortZero);
    for url in [
        "https://merchant.example/\r\nx: y",
        "https://merchant.example/\nx",
        "https://merchant.example/\tx",
        " https://merchant.example/",
        "https://merchant.example/a b",
        "https://merchant.example/\u{0}",
        "https://merchant.example/\u{2028}",
    ] {
        assert_eq!(refused(url), GuardError::Character, "{url:?}");
    }
    let long = format!("https://merchant.example/{}", "x".repeat(MAX_URL_BYTES));
    assert!(matches!(refused(&long), GuardError::TooLong { .. }));
    let long_once_encoded = format!("https://merchant.example/{}", "字".repeat(MAX_URL_BYTES / 4));
    assert!(long_once_encoded.len() < MAX_URL_BYTES);
    assert!(matches!(refused(&long_once_encoded), GuardError::TooLong { .. }));
    for url in ["", "merchant.example", "https://", "https:///", "https://[::1", "https://a_b\u{ff0f}c.example/"] {
        assert!(matches!(refused(url), GuardError::NotAUrl(_)), "{url:?}: {:?}", refused(url));
    }
}

#[test]
fn userinfo_tricks_do_not_hide_the_host() {
    for url in ["https://merchant.example@127.0.0.1/", "https://127.0.0.1\\@merchant.example/", "https:127.0.0.1/"] {
        assert!(strict().check_url(url).is_err(), "{url}");
    }
}

#[test]
fn an_exempt_network_also_covers_its_embedded_forms_and_nothing_else() {
    let guard = allowing(&["127.0.0.0/8", "fd00::/8"]);
    for host in
        ["127.0.0.1", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[::ffff:0:127.0.0.1]", "[64:ff9b::7f00:1]", "[fd00::1]"]
    {
        guard.check_url(&format!("http://{host}:8081/")).unwrap_or_else(|e| panic!("{host}: {e}"));
    }
    for host in ["10.0.0.1", "[::1]", "[::ffff:10.0.0.1]", "[2002:7f00:1::]", "[64:ff9b::a00:1]", "[fc00::1]"] {
        assert!(guard.check_url(&format!("http://{host}:8081/")).is_err(), "{host}");
    }
}

#[tokio::test]
async fn a_name_is_refused_at_registration_when_it_leads_inside_or_nowhere() {
    let url = strict().check_url("http://localhost:8080/").unwrap();
    assert!(matches!(strict().check_resolved(&url).await, Err(GuardError::Address { .. })));
    allowing(&["127.0.0.0/8", "::1/128"]).check_resolved(&url).await.unwrap();
    let nowhere = strict().check_url("https://no-such-name.invalid/").unwrap();
    assert!(matches!(strict().check_resolved(&nowhere).await, Err(GuardError::Unresolved(_))));
    let literal = Url::parse("http://10.0.0.1/").unwrap();
    assert!(matches!(strict().check_resolved(&literal).await, Err(GuardError::Address { .. })));
}

proptest! {
    #[test]
    fn an_ipv4_address_is_judged_alike_however_it_is_written(bits: u32) {
        let ip = Ipv4Addr::from(bits);
        let [a, b, c, d] = ip.octets();
        let allowed = strict().check_address(ip.into()).is_ok();
        for host in [format!("{bits}"), format!("{bits:#x}"), format!("0{bits:o}"), format!("{a:#x}.{b}.{c}.0{d:o}")] {
            prop_assert_eq!(strict().check_url(&format!("https://{host}/")).is_ok(), allowed, "{}", host);
        }
        // No form that carries an IPv4 address is a way around the verdict on that address.
        for carrier in [ip.to_ipv6_mapped(), ip.to_ipv6_compatible()] {
            prop_assert!(strict().check_address(carrier.into()).is_err());
        }
    }

    #[test]
    fn nothing_outside_global_unicast_is_ever_allowed(bits: u128) {
        let ip = Ipv6Addr::from(bits);
        if strict().check_address(ip.into()).is_ok() {
            prop_assert_eq!(bits >> 125, 1, "{}", ip);
            prop_assert!(!ip.is_loopback() && !ip.is_multicast() && !ip.is_unspecified());
        }
    }

    #[test]
    fn no_text_makes_the_guard_panic(text in ".{0,64}", host in "[0-9a-fx.:\\[\\]%]{0,24}") {
        let _ = strict().check_url(&text);
        let _ = strict().check_url(&format!("https://{host}/"));
    }
}

#[test]
fn ports_where_no_web_server_listens_are_refused_until_they_are_opened() {
    let open = AddressGuard::with(GuardRules { allow_ports: vec![6379], ..GuardRules::default() });
    for port in [22, 25, 6000, 6379, 11211, 27017, 9092, 2375, 10250] {
        let url = format!("https://shop.example:{port}/hook");
        assert!(matches!(strict().check_url(&url), Err(GuardError::Port { .. })), "{url}");
        assert_eq!(open.check_url(&url).is_ok(), port == 6379, "{url}");
    }
    for url in
        ["https://shop.example/", "http://shop.example/", "https://shop.example:8443/", "http://shop.example:8080/"]
    {
        assert!(strict().check_url(url).is_ok(), "{url}");
    }
}

#[test]
fn what_is_denied_is_refused_although_it_is_public_or_exempt() {
    let networks = ["8.8.8.0/24", "2600:1::/96", "10.1.0.0/16"].map(|net| net.parse().unwrap());
    let allow_networks = vec!["10.0.0.0/8".parse().unwrap()];
    let guard =
        AddressGuard::with(GuardRules { allow_networks, deny_networks: networks.to_vec(), ..GuardRules::default() });
    for denied in ["8.8.8.8", "2600:1::808:808", "10.1.2.3", "::ffff:10.1.2.3", "::ffff:8.8.8.8"] {
        assert!(guard.check_address(denied.parse().unwrap()).is_err(), "{denied}");
    }
    for allowed in ["8.8.4.4", "2600:2::1", "10.2.3.4"] {
        assert!(guard.check_address(allowed.parse().unwrap()).is_ok(), "{allowed}");
    }
}

#[test]
fn an_exempt_network_opens_no_metadata_address_in_it() {
    let everything: Vec<IpNet> = ["169.254.0.0/16", "100.64.0.0/10", "192.0.0.0/24", "fd00::/8", "168.63.0.0/16"]
        .map(|n| n.parse().unwrap())
        .into();
    let rules = GuardRules { allow_networks: everything, ..GuardRules::default() };
    let (closed, open) =
        (AddressGuard::with(rules.clone()), AddressGuard::with(GuardRules { allow_metadata: true, ..rules }));
    for metadata in [
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "fd00:ec2::254",
        "::ffff:169.254.169.254",
    ] {
        assert!(closed.check_address(metadata.parse().unwrap()).is_err(), "{metadata}");
        assert!(open.check_address(metadata.parse().unwrap()).is_ok(), "{metadata}");
    }
    assert!(closed.check_address("169.254.1.1".parse().unwrap()).is_ok());
}

#[test]
fn heralds_own_sockets_are_refused_in_an_exempt_network() {
    let own =
        |port, address: Option<&str>| Own { what: "service", port, address: address.map(|ip| ip.parse().unwrap()) };
    let guard = AddressGuard::with(GuardRules {
        allow_http: true,
        allow_networks: vec!["127.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()],
        own: vec![own(8080, Some("127.0.0.1")), own(7000, None)],
        ..GuardRules::default()
    });
    for (url, is_open) in [
        ("http://127.0.0.1:8080/", false),
        ("http://[::ffff:127.0.0.1]:8080/", false),
        ("http://127.0.0.2:8080/", false),
        ("http://127.0.0.1:8081/", true),
        ("http://10.0.0.1:8080/", true),
        ("http://10.0.0.1:7000/", false),
        ("http://8.8.8.8:7000/", true),
    ] {
        assert_eq!(guard.check_url(url).is_ok(), is_open, "{url}");
    }
}
