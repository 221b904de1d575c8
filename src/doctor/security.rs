//! Judges who can reach Redis, and what a client can do there. Pure, like [`findings`](super::findings), of which it is
//! a part.

use super::{finding::Findings, observe::Server};
use crate::{store::connection::Reach, surface::words::bytes};

/// No value of Herald's comes near it, and one this long stops Redis for a moment. With the default of 512 MB one entry
/// can fill the memory.
const LONGEST_VALUE_BYTES: u64 = 16 << 20;

pub fn judge(findings: &mut Findings, server: &Server) {
    let mut is_well = true;
    // Anyone who may open a socket in the file system was let in by its permissions.
    if server.lets_strangers_in == Some(true) && server.reach != Reach::Socket {
        is_well = false;
        findings.warn(
            "security",
            "Redis serves anyone who can reach it, without a password: they can forge events and read every secret",
            "give each its own user: herald doctor --print-acl; its last line shuts the others out",
        );
    }
    if server.reach == Reach::Plain {
        is_well = false;
        findings.warn(
            "security",
            "the connection to Redis is not encrypted: passwords, secrets and events can be read and changed on it",
            "use rediss:// (tls-port of Redis), or a tunnel that ends on both machines",
        );
    }
    if let Some(most) = server.settings.longest_value_bytes.filter(|most| *most > LONGEST_VALUE_BYTES) {
        is_well = false;
        findings.warn(
            "security",
            format!("one value may be as long as {}: a single entry of a producer can fill Redis", bytes(most)),
            "redis-cli CONFIG SET proto-max-bulk-len 1mb, and put it into redis.conf",
        );
    }
    match (is_well, server.lets_strangers_in, server.reach) {
        (true, None, reach) if reach != Reach::Socket => {
            findings.ok("security", "whether Redis serves strangers could not be found out");
        }
        (true, ..) => {
            findings.ok("security", "only users with a password get in, over a connection that nobody else reads")
        }
        (false, ..) => {}
    }
}
