//! As much HTTP/1.1 as a receiver needs: finds the end of a request in what has arrived, and the headers that matter.
//! Bounded: a head or a body that is larger than any that Herald sends is refused.

use super::verify::{Signed, number};

/// Herald's own headers are under 1 KiB; an endpoint may add 8 KiB.
const MAX_HEAD_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// The largest event is 64 KiB.
const MAX_BODY_BYTES: u64 = 128 * 1024;

/// A buffer never needs to hold more than one request; what a client sends ahead of its answers waits in the kernel.
pub const MAX_BUFFER: usize = MAX_HEAD_BYTES + MAX_BODY_BYTES as usize;

/// One whole request, where it arrived.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub signed: Signed<'a>,
    pub attempt: &'a [u8],
    pub sequence: &'a [u8],
    pub content_type: &'a [u8],
    pub body: &'a [u8],
}

#[derive(Debug)]
pub enum Read<'a> {
    /// More must arrive.
    Partial,
    /// This many bytes are the request; what follows belongs to the next one.
    Whole(usize, Request<'a>),
    /// Not HTTP, or beyond the limits.
    Bad(&'static str),
}

pub fn read(buffer: &[u8]) -> Read<'_> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let head = match parsed.parse(buffer) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD_BYTES => return Read::Partial,
        Ok(httparse::Status::Partial) => return Read::Bad("its head is longer than 16 KiB"),
        Err(_) => return Read::Bad("it is not an HTTP/1.1 request"),
    };
    let mut length = None;
    let mut request = Request {
        method: parsed.method.unwrap_or_default(),
        path: parsed.path.unwrap_or_default(),
        signed: Signed::default(),
        attempt: b"",
        sequence: b"",
        content_type: b"",
        body: b"",
    };
    for header in parsed.headers.iter() {
        let value = header.value;
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        match () {
            () if is("webhook-id") => request.signed.id = value,
            () if is("webhook-timestamp") => request.signed.timestamp = value,
            () if is("webhook-signature") => request.signed.standard = value,
            () if is("dojo-signature") => request.signed.dojo = value,
            () if is("herald-attempt") => request.attempt = value,
            () if is("herald-sequence") => request.sequence = value,
            () if is("content-type") => request.content_type = value,
            () if is("content-length") => length = Some(number(value)),
            () if is("transfer-encoding") => return Read::Bad("its body has no length"),
            () => {}
        }
    }
    let length = match length {
        Some(Some(length)) if length <= MAX_BODY_BYTES => length as usize,
        Some(_) => return Read::Bad("its length is invalid, or more than 128 KiB"),
        None => 0,
    };
    match buffer.get(head..head + length) {
        None => Read::Partial,
        Some(body) => Read::Whole(head + length, Request { body, ..request }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_requests_in_one_buffer_are_told_apart() {
        let one = b"POST /7 HTTP/1.1\r\nHost: h\r\nWebhook-Id: evt_1\r\nContent-Length: 2\r\n\r\n{}";
        let both = [&one[..], b"POST /8 HTTP/1.1\r\n\r\n"].concat();
        let Read::Whole(length, request) = read(&both) else { panic!() };
        assert_eq!(
            (length, request.path, request.signed.id, request.body),
            (one.len(), "/7", &b"evt_1"[..], &b"{}"[..])
        );
        let Read::Whole(_, request) = read(&both[length..]) else { panic!() };
        assert_eq!((request.method, request.path, request.body), ("POST", "/8", &b""[..]));
    }

    #[test]
    fn every_cut_of_a_request_is_partial() {
        let whole = b"POST /7 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        (0..whole.len()).for_each(|cut| assert!(matches!(read(&whole[..cut]), Read::Partial), "{cut}"));
        assert!(matches!(read(whole), Read::Whole(..)));
    }

    #[test]
    fn what_has_no_bound_is_refused() {
        for bad in [
            &b"\x00\x01\x02\x03 / \r\n\r\n"[..],
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 131073\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        ] {
            assert!(matches!(read(bad), Read::Bad(_)), "{bad:?}");
        }
        let long = [&b"POST / HTTP/1.1\r\nX: "[..], &vec![b'x'; MAX_HEAD_BYTES]].concat();
        assert!(matches!(read(&long), Read::Bad(_)));
    }
}
