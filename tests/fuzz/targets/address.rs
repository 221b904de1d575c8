//! A merchant's URL against the address guard: whatever goes in, no special address is admitted.
//! The first byte says how the rest is put together; the rest is a whole URL, a host, or an address in some notation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use herald::sender::AddressGuard;
use url::Host;

use super::{oracle, text};

pub fn run(input: &[u8]) {
    let Some((form, rest)) = input.split_first() else { return };
    // As configured by default; and with plain HTTP allowed, which exempts no address.
    let guard = AddressGuard::new(form & 0x80 != 0, &[]);
    let text = text(rest);
    match form & 0x0f {
        0 => check_url(&guard, &text),
        1 => check_url(&guard, &format!("https://{text}/hook")),
        2 => check_url(&guard, &format!("https://{text}")),
        3 => check_url(&guard, &format!("https://[{text}]:8443/")),
        4 => check_url(&guard, &format!("https://{text}@merchant.example/")),
        5 => check_url(&guard, &format!("https://merchant.example@{text}/")),
        form => {
            let mut bits = [0; 16];
            let count = rest.len().min(16);
            bits[..count].copy_from_slice(&rest[..count]);
            check_bits(&guard, form, u128::from_be_bytes(bits));
        }
    }
}

fn check_url(guard: &AddressGuard, text: &str) {
    let Ok(url) = guard.check_url(text) else { return };
    let address = match url.host().expect("what is admitted has a host") {
        Host::Ipv4(ip) => Some(IpAddr::V4(ip)),
        Host::Ipv6(ip) => Some(IpAddr::V6(ip)),
        // A name is checked again when it is resolved; an address in disguise is not even a name.
        Host::Domain(name) => oracle::old_notation(name).map(IpAddr::V4),
    };
    if let Some(address) = address {
        assert!(!oracle::is_special(address), "{text:?} is admitted and leads to {address}");
    }
    let scheme = url.scheme();
    assert!(matches!(scheme, "https" | "http"), "{text:?} is admitted with the scheme {scheme}");
    assert!(url.username().is_empty() && url.password().is_none(), "{text:?} is admitted with user information");
    // The code that connects reads the URL with another parser: both must see the same host and port.
    let uri: http::Uri = url.as_str().parse().expect("what is admitted can be sent");
    assert_eq!(uri.host(), url.host_str(), "{text:?}: the parsers see different hosts");
    assert_eq!(uri.port_u16(), url.port(), "{text:?}: the parsers see different ports");
    assert!(!uri.authority().expect("it has a host").as_str().contains('@'), "{text:?}");
    // Its own text means the same again.
    assert_eq!(guard.check_url(url.as_str()).as_ref(), Ok(&url), "{text:?}");
}

/// One address in each notation: all of them are judged, and none is a way around.
fn check_bits(guard: &AddressGuard, form: u8, bits: u128) {
    let (v4, v6) = (Ipv4Addr::from((bits >> 96) as u32), Ipv6Addr::from(bits));
    for address in [IpAddr::V4(v4), IpAddr::V6(v6)] {
        let is_admitted = guard.check_address(address).is_ok();
        assert!(!(is_admitted && oracle::is_special(address)), "{address} is admitted");
    }
    let number = u32::from(v4);
    let [a, b, c, d] = v4.octets();
    let [high, low] = [number >> 16, number & 0xffff];
    let host = match form {
        6 => format!("{number}"),
        7 => format!("{number:#x}"),
        8 => format!("0{number:o}"),
        9 => format!("{a}.{}", number & 0xff_ffff),
        10 => format!("{a:#x}.{b:#X}.{low}."),
        11 => format!("[::ffff:{v4}]"),
        12 => format!("[64:ff9b::{high:x}:{low:x}]"),
        13 => format!("[2002:{high:x}:{low:x}::1]"),
        14 => format!("%{:02x}{}.0{b:o}.{c}.{d}", b'0' + a / 100, a % 100),
        _ => format!("[{v6}]"),
    };
    check_url(guard, &format!("https://{host}/"));
}
