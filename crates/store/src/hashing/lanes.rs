//! SHA-256 of many messages at once, one in each lane of a vector register.
//!
//! Every lane does what FIPS 180-4 says, on its own message; registers hold the same word of all
//! messages. A block of any one message costs as much as a block of all, so it pays from
//! [`Width::worth_it`] messages on.

use super::state::{SHA_BLOCK, State};

/// A vector unit that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Width {
    /// Messages at once.
    pub fn lanes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Width::Avx512 => 16,
            #[cfg(target_arch = "x86_64")]
            Width::Avx2 => 8,
        }
    }

    /// Messages from which this is faster than one after the other.
    pub fn worth_it(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Width::Avx512 => 3,
            #[cfg(target_arch = "x86_64")]
            Width::Avx2 => 4,
        }
    }
}

/// The widest that this machine has. None where SHA instructions make one message as fast.
pub fn detect() -> Option<Width> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512bw") {
            return Some(Width::Avx512);
        }
        if has!("avx2") && !has!("sha") {
            return Some(Width::Avx2);
        }
    }
    None
}

/// Continues each state by its data: as many messages as states, at most [`Width::lanes`], all of
/// one length, whole SHA-256 blocks.
pub fn compress(width: Width, states: &mut [State], data: &[&[u8]]) {
    let len = data.first().map_or(0, |first| first.len());
    let usable = data.iter().all(|message| message.len() == len) && len.is_multiple_of(SHA_BLOCK);
    assert!(usable && states.len() == data.len() && data.len() <= width.lanes());
    if data.is_empty() {
        return;
    }
    // Lanes without a message repeat the first one.
    let pick = |lane: usize| if lane < data.len() { lane } else { 0 };
    match width {
        #[cfg(target_arch = "x86_64")]
        Width::Avx512 => {
            let mut all = std::array::from_fn(|lane| states[pick(lane)]);
            // SAFETY: `detect` found the features, without which there is no such `Width`.
            unsafe { avx512::compress(&mut all, &std::array::from_fn(|lane| data[pick(lane)])) };
            states.copy_from_slice(&all[..states.len()]);
        }
        #[cfg(target_arch = "x86_64")]
        Width::Avx2 => {
            let mut all = std::array::from_fn(|lane| states[pick(lane)]);
            // SAFETY: as above.
            unsafe { avx2::compress(&mut all, &std::array::from_fn(|lane| data[pick(lane)])) };
            states.copy_from_slice(&all[..states.len()]);
        }
    }
}

/// FIPS 180-4, section 4.2.2.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
static K: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

/// The engine for one register type: `$lanes` messages, `$v` a register of one word of each.
///
/// Sixteen rounds at a time keep state and schedule in registers; the schedule word that a round
/// has used is replaced by the one sixteen rounds later.
#[cfg(target_arch = "x86_64")]
macro_rules! engine {
    ($features:literal, $lanes:literal, $v:ty) => {
        #[target_feature(enable = $features)]
        pub fn compress(states: &mut [State; $lanes], data: &[&[u8]; $lanes]) {
            let mut h: [$v; 8] = std::array::from_fn(|word| gather(|lane| states[lane].0[word]));
            let blocks = data[0].len() / SHA_BLOCK;
            for block in 0..blocks {
                let at = block * SHA_BLOCK;
                let mut w = load(|lane| &data[lane][at..at + SHA_BLOCK]);
                let mut s = h;
                for group in 0..4 {
                    let schedule = group < 3;
                    for t in 0..16 {
                        let k = splat(K[group * 16 + t]);
                        let [a, b, c, d, e, f, g, hh] = s;
                        let t1 = add(add(hh, add(k, w[t])), add(big_sigma1(e), choose(e, f, g)));
                        let t2 = add(big_sigma0(a), majority(a, b, c));
                        s = [add(t1, t2), a, b, c, add(d, t1), e, f, g];
                        if schedule {
                            let sigmas = add(small_sigma0(w[(t + 1) % 16]), small_sigma1(w[(t + 14) % 16]));
                            w[t] = add(add(w[t], w[(t + 9) % 16]), sigmas);
                        }
                    }
                }
                for (to, from) in h.iter_mut().zip(s) {
                    *to = add(*to, from);
                }
            }
            for (word, vector) in h.into_iter().enumerate() {
                for (state, value) in states.iter_mut().zip(scatter(vector)) {
                    state.0[word] = value;
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn widths() -> Vec<Width> {
        let mut widths = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx512bw") {
                widths.push(Width::Avx512);
            }
            if has!("avx2") {
                widths.push(Width::Avx2);
            }
        }
        if widths.is_empty() {
            println!("skipped: this machine has no wide vectors");
        }
        widths
    }

    proptest! {
        #[test]
        fn every_lane_is_sha256(
            blocks in 0usize..9,
            lanes in 1usize..=16,
            seed in prop::collection::vec(any::<u8>(), 64),
            words in any::<[u32; 8]>(),
        ) {
            // Each lane its own message and state, derived from the seed.
            let message = |lane: usize| -> Vec<u8> {
                let at = |i: usize| seed[i % 64].wrapping_mul(lane as u8 | 1).wrapping_add((i / 64) as u8 ^ lane as u8);
                (0..blocks * SHA_BLOCK).map(at).collect()
            };
            let state = |lane: usize| State(words.map(|word| word.rotate_left(lane as u32)));
            for width in widths() {
                let lanes = lanes.min(width.lanes());
                let messages: Vec<Vec<u8>> = (0..lanes).map(message).collect();
                let data: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
                let mut states: Vec<State> = (0..lanes).map(state).collect();
                let mut expected = states.clone();
                expected.iter_mut().zip(&data).for_each(|(state, data)| state.compress(data));
                compress(width, &mut states, &data);
                prop_assert_eq!(&states, &expected, "{:?}, {} lanes", width, lanes);
            }
        }

        #[test]
        fn state_finishes_as_sha256(message in prop::collection::vec(any::<u8>(), 0..400)) {
            let whole = message.len() - message.len() % SHA_BLOCK;
            let mut state = State::default();
            state.compress(&message[..whole]);
            let digest = state.finish(&message[whole..], message.len() as u64);
            prop_assert_eq!(digest, shoal_wire::nix::hash::sha256(&message));
        }
    }
}
