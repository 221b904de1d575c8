//! New inputs derived from kept ones: bytes changed, pieces moved, two of them joined. The same for the same seed.

/// splitmix64: small, and the same on every machine.
pub struct Chance(pub u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A name for an input.
pub fn hash(input: &[u8]) -> u64 {
    input.iter().fold(input.len() as u64, |hash, byte| mix(hash ^ u64::from(*byte)))
}

/// Longer inputs only make each try slower.
const MAX_BYTES: usize = 8 * 1024;

/// Bytes at which parsers change their state.
const TELLING: &[u8] = b"\0\n\r\t \"'%&+,-./0129:;=?@AZ[\\]^_az{|}~\x7f\x80\xc3\xe2\xff";

pub fn another(inputs: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut input = inputs[chance.below(inputs.len())].clone();
    for _ in 0..=chance.below(4) {
        let at = chance.below(input.len() + 1);
        match chance.below(7) {
            0 if at < input.len() => input[at] = TELLING[chance.below(TELLING.len())],
            1 if at < input.len() => input[at] ^= 1 << chance.below(8),
            2 => input.insert(at, TELLING[chance.below(TELLING.len())]),
            3 => drop(input.drain(at..(at + chance.below(9)).min(input.len()))),
            4 => {
                let piece = input[at..(at + chance.below(33)).min(input.len())].to_vec();
                let to = chance.below(input.len() + 1);
                input.splice(to..to, piece);
            }
            5 => {
                let other = &inputs[chance.below(inputs.len())];
                let from = chance.below(other.len() + 1);
                input.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let number = (chance.next() >> chance.below(64)).to_string();
                input.splice(at..at, number.bytes());
            }
        }
        input.truncate(MAX_BYTES);
    }
    input
}
