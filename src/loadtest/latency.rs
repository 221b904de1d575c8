//! Latencies as HDR histograms, and their published form. Owns the bounds that all of them share, so that any two can
//! be added. Never measures: callers say how long something took.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use hdrhistogram::{
    Histogram,
    serialization::{Deserializer, Serializer, V2Serializer},
};
use thiserror::Error;

use super::result::Latency;

/// Shorter ones count as this: a microsecond.
const LOWEST_US: u64 = 1;
/// Longer ones count as this: an hour. A run waits less.
const HIGHEST_US: u64 = 3_600_000_000;
/// A thousandth of each value: at most 190 KiB of counts.
const DIGITS: u8 = 3;

/// Cookie, length, offset, digits, lowest, highest and ratio.
const HEADER_BYTES: usize = 40;
/// What begins a V2 histogram whose counts take up to 9 bytes each.
const COOKIE: u32 = 0x1c84_9303 | 0x10;
/// Base64 of the header and of each of the 24 000 counts at its longest, rounded up.
const MAX_TEXT_BYTES: usize = 300_000;
/// More deliveries than any run makes; sums of a thousand such results still fit.
const MAX_COUNT: u64 = 1 << 50;

/// Anyone may have written a result file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LatencyError {
    #[error("the histogram is {0} bytes of text; Herald writes at most {MAX_TEXT_BYTES}")]
    TooLong(usize),
    #[error("the histogram is not base64")]
    NotBase64,
    #[error("the histogram is not an HDR histogram (V2) from 1 us to 1 h with 3 digits, as Herald writes it")]
    Foreign,
    #[error("the histogram is cut off or counts what no run can count")]
    Damaged,
    #[error("the histogram holds {held} values, but its count says {said}")]
    WrongCount { held: u64, said: u64 },
}

/// An empty histogram, with the bounds that all of them share.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(LOWEST_US, HIGHEST_US, DIGITS).expect("the bounds are in order")
}

/// Longer than an hour counts as an hour.
pub fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    let us = u64::try_from(latency.as_micros()).unwrap_or(HIGHEST_US);
    histogram.saturating_record(us.clamp(LOWEST_US, HIGHEST_US));
}

impl Latency {
    /// None for an empty histogram, which has no percentiles. The histogram must come from [`histogram`].
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        if histogram.is_empty() {
            return None;
        }
        Some(Self {
            count: histogram.len(),
            min_us: histogram.min(),
            mean_us: histogram.mean(),
            p50_us: histogram.value_at_quantile(0.5),
            p90_us: histogram.value_at_quantile(0.9),
            p99_us: histogram.value_at_quantile(0.99),
            p999_us: histogram.value_at_quantile(0.999),
            p9999_us: histogram.value_at_quantile(0.9999),
            max_us: histogram.max(),
            hdr: encode(histogram),
        })
    }

    /// The whole histogram.
    pub fn histogram(&self) -> Result<Histogram<u64>, LatencyError> {
        let histogram = decode(&self.hdr)?;
        match histogram.len() == self.count {
            true => Ok(histogram),
            false => Err(LatencyError::WrongCount { held: histogram.len(), said: self.count }),
        }
    }
}

/// As if all had been recorded in one. None if there is none.
pub fn merge<'a>(latencies: impl IntoIterator<Item = &'a Latency>) -> Result<Option<Latency>, LatencyError> {
    let mut sum = histogram();
    for latency in latencies {
        sum.add(latency.histogram()?).map_err(|_| LatencyError::Foreign)?;
    }
    Ok(Latency::of(&sum))
}

fn encode(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    // Writing to memory does not fail, and no count comes near the 2^63 that the format cannot hold.
    V2Serializer::new().serialize(histogram, &mut bytes).expect("a histogram of a run can be written");
    STANDARD.encode(bytes)
}

fn decode(text: &str) -> Result<Histogram<u64>, LatencyError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(LatencyError::TooLong(text.len()));
    }
    let bytes = STANDARD.decode(text).map_err(|_| LatencyError::NotBase64)?;
    let counts = counts_of(&bytes).ok_or(LatencyError::Foreign)?;
    check_counts(counts).ok_or(LatencyError::Damaged)?;
    Deserializer::new().deserialize(&mut bytes.as_slice()).map_err(|_| LatencyError::Damaged)
}

/// The part with the counts, if everything before it is what Herald writes. The library would allocate whatever a
/// header asks for.
fn counts_of(bytes: &[u8]) -> Option<&[u8]> {
    let (header, counts) = bytes.split_at_checked(HEADER_BYTES)?;
    let mut expected = Vec::with_capacity(HEADER_BYTES);
    expected.extend(COOKIE.to_be_bytes());
    expected.extend(u32::try_from(counts.len()).ok()?.to_be_bytes());
    expected.extend(0_u32.to_be_bytes());
    expected.extend(u32::from(DIGITS).to_be_bytes());
    expected.extend(LOWEST_US.to_be_bytes());
    expected.extend(HIGHEST_US.to_be_bytes());
    expected.extend(1_f64.to_be_bytes());
    (header == expected).then_some(counts)
}

/// Walks over the counts as the library will, because the library would overflow on some that no histogram has.
fn check_counts(counts: &[u8]) -> Option<()> {
    let (mut rest, mut place, mut total) = (counts, 0_u64, 0_u64);
    let places = histogram().distinct_values() as u64;
    while !rest.is_empty() {
        let (number, after) = varint(rest)?;
        rest = after;
        // Zigzag: an odd number is that many zeros, an even one twice a count.
        match number & 1 {
            1 => place = place.checked_add((number >> 1).checked_add(1)?)?,
            _ => {
                total = total.checked_add(number >> 1).filter(|total| *total <= MAX_COUNT)?;
                place += 1;
            }
        }
        if place > places {
            return None;
        }
    }
    Some(())
}

/// LEB128 of at most nine bytes, whose ninth is taken whole.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (place, &byte) in bytes.iter().take(9).enumerate() {
        let is_last = place == 8 || byte & 0x80 == 0;
        let bits = if place == 8 { byte } else { byte & 0x7f };
        value |= u64::from(bits) << (7 * place);
        if is_last {
            return Some((value, &bytes[place + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn latency(values_us: impl IntoIterator<Item = u64>) -> Latency {
        let mut all = histogram();
        values_us.into_iter().for_each(|us| record(&mut all, Duration::from_micros(us)));
        Latency::of(&all).unwrap()
    }

    #[test]
    fn a_histogram_survives_its_published_form() {
        let latency = latency((1..=10_000).chain([0, 5_000_000, u64::MAX]));
        let read = latency.histogram().unwrap();
        assert_eq!(Latency::of(&read).unwrap(), latency);
        assert_eq!((latency.count, latency.min_us), (10_003, 1));
        assert!(latency.max_us >= HIGHEST_US && latency.max_us < HIGHEST_US * 1001 / 1000);
        assert!(latency.p50_us.abs_diff(5_000) <= 5 && latency.p99_us.abs_diff(9_900) <= 10, "{latency:?}");
    }

    #[test]
    fn nothing_has_no_percentile() {
        assert_eq!(Latency::of(&histogram()), None);
        assert_eq!(merge([]), Ok(None));
    }

    #[test]
    fn several_runs_add_up_without_losing_a_percentile() {
        let (fast, slow) = (latency((0..9_999).map(|_| 1_000)), latency([80_000]));
        let sum = merge([&fast, &slow]).unwrap().unwrap();
        assert_eq!(sum.count, 10_000);
        assert!(sum.p9999_us < 1_100 && sum.max_us >= 80_000, "{sum:?}");
    }

    fn refused(hdr: String) -> LatencyError {
        Latency { hdr, ..latency([1]) }.histogram().unwrap_err()
    }

    #[test]
    fn what_is_no_histogram_of_ours_is_refused_with_a_reason() {
        let good = STANDARD.decode(latency([7]).hdr).unwrap();
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            refused(STANDARD.encode(bytes))
        };
        assert_eq!(refused("%".into()), LatencyError::NotBase64);
        assert_eq!(refused("A".repeat(MAX_TEXT_BYTES + 4)), LatencyError::TooLong(MAX_TEXT_BYTES + 4));
        assert_eq!(refused(String::new()), LatencyError::Foreign);
        assert_eq!(refused(STANDARD.encode(&good[..20])), LatencyError::Foreign);
        assert_eq!(changed(0, 9), LatencyError::Foreign);
        assert_eq!(changed(4, 0xff), LatencyError::Foreign, "a length of 4 GiB");
        assert_eq!(changed(15, 5), LatencyError::Foreign, "five digits are 100 times the memory");
        let counted = Latency { count: 2, ..latency([1]) };
        assert_eq!(counted.histogram().unwrap_err(), LatencyError::WrongCount { held: 1, said: 2 });
    }

    fn with_counts(counts: &[u8]) -> String {
        let mut bytes = STANDARD.decode(latency([7]).hdr).unwrap();
        bytes.truncate(HEADER_BYTES);
        bytes[4..8].copy_from_slice(&u32::try_from(counts.len()).unwrap().to_be_bytes());
        bytes.extend(counts);
        STANDARD.encode(bytes)
    }

    #[test]
    fn counts_that_no_run_has_are_refused() {
        for counts in
            [&[0xff; 9][..], &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0x80], &[0xff, 0xff, 0x7f]]
        {
            assert_eq!(refused(with_counts(counts)), LatencyError::Damaged, "{counts:x?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_panic(counts in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,80}") {
            let _ = decode(&with_counts(&counts));
            let _ = decode(&text);
        }
    }
}
