//! Ids that say which event of which run they are: a receiver finds an event's books by arithmetic, and an id that this
//! run did not make is recognised. To everyone else they look like Dojo's. Pure.

use super::draw::mix;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// 128 bits in characters of 6.
pub const TOKEN: usize = 22;

/// The ids of one kind of one run. The lower half of an id is its number under a mask, the upper half vouches for it.
#[derive(Debug, Clone, Copy)]
pub struct Ids {
    prefix: &'static str,
    mask: u64,
    seal: u64,
}

impl Ids {
    pub fn events(run: u64) -> Self {
        Self { prefix: "evt_", mask: mix(run), seal: mix(run ^ 1) }
    }

    pub fn intents(run: u64) -> Self {
        Self { prefix: "pi_", mask: mix(run ^ 2), seal: mix(run ^ 3) }
    }

    pub fn of(&self, number: u32) -> String {
        let masked = u64::from(number) ^ self.mask;
        let mut rest = u128::from(masked) | u128::from(mix(masked ^ self.seal)) << 64;
        let mut text = String::with_capacity(self.prefix.len() + TOKEN);
        text.push_str(self.prefix);
        for _ in 0..TOKEN {
            text.push(char::from(ALPHABET[(rest & 63) as usize]));
            rest >>= 6;
        }
        text
    }

    /// None for an id that this run did not make.
    pub fn number(&self, id: &[u8]) -> Option<u32> {
        let token = id.strip_prefix(self.prefix.as_bytes()).filter(|token| token.len() == TOKEN)?;
        let mut value = 0u128;
        for character in token.iter().rev() {
            // The last character has two bits only: the others are shifted out and compared below.
            value = value << 6 | u128::from(digit(*character)?);
        }
        let masked = value as u64;
        let is_ours = (value >> 64) as u64 == mix(masked ^ self.seal) && digit(token[TOKEN - 1])? < 4;
        u32::try_from(masked ^ self.mask).ok().filter(|_| is_ours)
    }
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'A'..=b'Z' => Some(character - b'A'),
        b'a'..=b'z' => Some(character - b'a' + 26),
        b'0'..=b'9' => Some(character - b'0' + 52),
        b'-' => Some(62),
        b'_' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::id::EventId;

    #[test]
    fn an_id_leads_back_to_its_number() {
        let ids = Ids::events(7);
        for number in (0..10_000).chain([u32::MAX - 1, u32::MAX]) {
            let id = ids.of(number);
            assert_eq!((id.len(), ids.number(id.as_bytes())), (26, Some(number)));
            EventId::new(&id).unwrap();
        }
    }

    #[test]
    fn an_id_of_another_run_or_kind_or_with_one_other_character_is_not_ours() {
        let (ids, id) = (Ids::events(7), Ids::events(7).of(3));
        assert_eq!(Ids::events(8).number(id.as_bytes()), None);
        assert_eq!(ids.number(Ids::intents(7).of(3).replace("pi_", "evt_").as_bytes()), None);
        for at in 4..id.len() {
            for other in ["A", "B", "z", "_", "."] {
                let mut changed = id.clone();
                changed.replace_range(at..=at, other);
                assert!(changed == id || ids.number(changed.as_bytes()).is_none(), "{changed}");
            }
        }
    }
}
