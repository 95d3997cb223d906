//! Eight messages in 256-bit registers.

use super::{K, SHA_BLOCK, State};
use std::arch::x86_64::*;

engine!("avx2", 8, __m256i);

#[target_feature(enable = "avx2")]
#[inline]
fn add(a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi32(a, b)
}

#[target_feature(enable = "avx2")]
#[inline]
fn xor(a: __m256i, b: __m256i) -> __m256i {
    _mm256_xor_si256(a, b)
}

#[target_feature(enable = "avx2")]
#[inline]
fn splat(word: u32) -> __m256i {
    _mm256_set1_epi32(word as i32)
}

/// Rotates right by `R`; `L` must be `32 - R`.
#[target_feature(enable = "avx2")]
#[inline]
fn rotate<const R: i32, const L: i32>(x: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_srli_epi32::<R>(x), _mm256_slli_epi32::<L>(x))
}

#[target_feature(enable = "avx2")]
#[inline]
fn choose(e: __m256i, f: __m256i, g: __m256i) -> __m256i {
    xor(g, _mm256_and_si256(e, xor(f, g)))
}

#[target_feature(enable = "avx2")]
#[inline]
fn majority(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
    xor(b, _mm256_and_si256(xor(a, b), xor(b, c)))
}

#[target_feature(enable = "avx2")]
#[inline]
fn big_sigma0(x: __m256i) -> __m256i {
    xor(xor(rotate::<2, 30>(x), rotate::<13, 19>(x)), rotate::<22, 10>(x))
}

#[target_feature(enable = "avx2")]
#[inline]
fn big_sigma1(x: __m256i) -> __m256i {
    xor(xor(rotate::<6, 26>(x), rotate::<11, 21>(x)), rotate::<25, 7>(x))
}

#[target_feature(enable = "avx2")]
#[inline]
fn small_sigma0(x: __m256i) -> __m256i {
    xor(xor(rotate::<7, 25>(x), rotate::<18, 14>(x)), _mm256_srli_epi32::<3>(x))
}

#[target_feature(enable = "avx2")]
#[inline]
fn small_sigma1(x: __m256i) -> __m256i {
    xor(xor(rotate::<17, 15>(x), rotate::<19, 13>(x)), _mm256_srli_epi32::<10>(x))
}

#[target_feature(enable = "avx2")]
#[inline]
fn gather(word: impl Fn(usize) -> u32) -> __m256i {
    let words: [u32; 8] = std::array::from_fn(word);
    // SAFETY: the array is as long as the register; the load needs no alignment.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn scatter(vector: __m256i) -> [u32; 8] {
    let mut words = [0; 8];
    // SAFETY: the array is as long as the register; the store needs no alignment.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), vector) };
    words
}

/// The sixteen words of one block of each message, transposed so that a register holds one word of
/// all, half a block at a time.
#[target_feature(enable = "avx2")]
#[inline]
fn load<'a>(block: impl Fn(usize) -> &'a [u8]) -> [__m256i; 16] {
    let quad = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    let big_endian = _mm256_broadcastsi128_si256(quad);
    let mut w = [_mm256_setzero_si256(); 16];
    for half in [0, 1] {
        let row = |lane: usize| {
            let bytes = &block(lane)[half * 32..half * 32 + 32];
            // SAFETY: half a block is as long as the register; the load needs no alignment.
            let row = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
            _mm256_shuffle_epi8(row, big_endian)
        };
        let mut u = [_mm256_setzero_si256(); 8];
        for base in [0, 4] {
            let (r0, r1, r2, r3) = (row(base), row(base + 1), row(base + 2), row(base + 3));
            let (t0, t1) = (_mm256_unpacklo_epi32(r0, r1), _mm256_unpackhi_epi32(r0, r1));
            let (t2, t3) = (_mm256_unpacklo_epi32(r2, r3), _mm256_unpackhi_epi32(r2, r3));
            u[base] = _mm256_unpacklo_epi64(t0, t2);
            u[base + 1] = _mm256_unpackhi_epi64(t0, t2);
            u[base + 2] = _mm256_unpacklo_epi64(t1, t3);
            u[base + 3] = _mm256_unpackhi_epi64(t1, t3);
        }
        for j in 0..4 {
            w[half * 8 + j] = _mm256_permute2x128_si256::<0x20>(u[j], u[4 + j]);
            w[half * 8 + 4 + j] = _mm256_permute2x128_si256::<0x31>(u[j], u[4 + j]);
        }
    }
    w
}
