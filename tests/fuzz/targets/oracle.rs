//! Which addresses belong to nobody's receiver, written from the list of what a sender must refuse and from RFC 6890,
//! bit by bit and without the guard's own tables. It errs on the side of calling an address public: what it calls
//! special must never be admitted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => is_special_v4(ip),
        IpAddr::V6(ip) => is_special_v6(ip),
    }
}

fn is_special_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let metadata = [[169, 254, 169, 254], [100, 100, 100, 200], [192, 0, 0, 192], [168, 63, 129, 16]];
    a == 0
        || a == 10
        || a == 127
        || a >= 224
        || (a == 100 && b & 0b1100_0000 == 64)
        || (a == 169 && b == 254)
        || (a == 172 && b & 0b1111_0000 == 16)
        || (a == 192 && b == 168)
        || (a == 192 && b == 0 && (c == 0 || c == 2))
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19))
        || (a == 198 && b == 51 && c == 100)
        || (a == 203 && b == 0 && c == 113)
        || metadata.contains(&ip.octets())
        || ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_broadcast()
        || ip.is_documentation()
        || ip.is_unspecified()
}

fn is_special_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    let tail = Ipv4Addr::from((u32::from(s[6]) << 16) | u32::from(s[7]));
    let second = Ipv4Addr::from((u32::from(s[1]) << 16) | u32::from(s[2]));
    let starts = |head: &[u16]| s[..head.len()] == *head;
    // Every form that carries an IPv4 address is judged by that address, and most are refused outright.
    let carries_special = (starts(&[0, 0, 0, 0, 0, 0xffff]) && is_special_v4(tail))
        || (starts(&[0, 0, 0, 0, 0xffff, 0]) && is_special_v4(tail))
        || (starts(&[0, 0, 0, 0, 0, 0]) && is_special_v4(tail))
        || (starts(&[0x2002]) && is_special_v4(second));
    carries_special
        || starts(&[0x64, 0xff9b])
        || starts(&[0x2002])
        || starts(&[0x2001, 0])
        || starts(&[0x2001, 0xdb8])
        || (s[0] == 0x2001 && s[1] < 0x200)
        || (s[0] == 0x3fff && s[1] < 0x1000)
        || starts(&[0x100, 0, 0, 0])
        || starts(&[0x5f00])
        || starts(&[0xfd00, 0xec2])
        || s[0] & 0xfe00 == 0xfc00
        || s[0] & 0xffc0 == 0xfe80
        || s[0] & 0xffc0 == 0xfec0
        || s[0] & 0xff00 == 0xff00
        || ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_multicast()
}

/// An address as the oldest resolvers read it (`inet_aton`): one to four parts, decimal, octal or hexadecimal, the last
/// of which fills what is left.
pub fn old_notation(host: &str) -> Option<Ipv4Addr> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let parts: Vec<u64> = host.split('.').map(part).collect::<Option<_>>()?;
    let (last, first) = parts.split_last()?;
    let fits = first.len() < 4 && first.iter().all(|part| *part < 256) && *last < 1 << (8 * (4 - first.len()));
    let high = first.iter().enumerate().map(|(at, part)| part << (24 - 8 * at)).sum::<u64>();
    fits.then(|| Ipv4Addr::from((high + last) as u32))
}

fn part(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    match lower.strip_prefix("0x") {
        Some("") => Some(0),
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None if lower.len() > 1 && lower.starts_with('0') => u64::from_str_radix(&lower, 8).ok(),
        None if lower.bytes().all(|b| b.is_ascii_digit()) => lower.parse().ok(),
        None => None,
    }
}
