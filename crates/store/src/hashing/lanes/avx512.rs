//! Sixteen messages in 512-bit registers.

use super::{K, SHA_BLOCK, State};
use std::arch::x86_64::*;

engine!("avx512f,avx512bw", 16, __m512i);

#[target_feature(enable = "avx512f")]
#[inline]
fn add(a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(a, b)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn splat(word: u32) -> __m512i {
    _mm512_set1_epi32(word as i32)
}

/// Truth tables of `vpternlog`: parity, choice by the first operand, majority.
const XOR3: i32 = 0x96;
const CHOOSE: i32 = 0xca;
const MAJORITY: i32 = 0xe8;

#[target_feature(enable = "avx512f")]
#[inline]
fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<XOR3>(a, b, c)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn choose(e: __m512i, f: __m512i, g: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<CHOOSE>(e, f, g)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn majority(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<MAJORITY>(a, b, c)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn big_sigma0(x: __m512i) -> __m512i {
    xor3(_mm512_ror_epi32::<2>(x), _mm512_ror_epi32::<13>(x), _mm512_ror_epi32::<22>(x))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn big_sigma1(x: __m512i) -> __m512i {
    xor3(_mm512_ror_epi32::<6>(x), _mm512_ror_epi32::<11>(x), _mm512_ror_epi32::<25>(x))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn small_sigma0(x: __m512i) -> __m512i {
    xor3(_mm512_ror_epi32::<7>(x), _mm512_ror_epi32::<18>(x), _mm512_srli_epi32::<3>(x))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn small_sigma1(x: __m512i) -> __m512i {
    xor3(_mm512_ror_epi32::<17>(x), _mm512_ror_epi32::<19>(x), _mm512_srli_epi32::<10>(x))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn gather(word: impl Fn(usize) -> u32) -> __m512i {
    let words: [u32; 16] = std::array::from_fn(word);
    // SAFETY: the array is as long as the register; the load needs no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn scatter(vector: __m512i) -> [u32; 16] {
    let mut words = [0; 16];
    // SAFETY: the array is as long as the register; the store needs no alignment.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), vector) };
    words
}

/// The sixteen words of one block of each message, transposed so that a register holds one word of
/// all: within 128-bit lanes first, then the lanes themselves.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn load<'a>(block: impl Fn(usize) -> &'a [u8]) -> [__m512i; 16] {
    let big_endian = _mm512_set4_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
    let row = |lane: usize| {
        let bytes = block(lane);
        assert!(bytes.len() == SHA_BLOCK);
        // SAFETY: a block is as long as the register; the load needs no alignment.
        let row = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
        _mm512_shuffle_epi8(row, big_endian)
    };
    let mut u = [_mm512_setzero_si512(); 16];
    for base in [0, 4, 8, 12] {
        let (r0, r1, r2, r3) = (row(base), row(base + 1), row(base + 2), row(base + 3));
        let (t0, t1) = (_mm512_unpacklo_epi32(r0, r1), _mm512_unpackhi_epi32(r0, r1));
        let (t2, t3) = (_mm512_unpacklo_epi32(r2, r3), _mm512_unpackhi_epi32(r2, r3));
        u[base] = _mm512_unpacklo_epi64(t0, t2);
        u[base + 1] = _mm512_unpackhi_epi64(t0, t2);
        u[base + 2] = _mm512_unpacklo_epi64(t1, t3);
        u[base + 3] = _mm512_unpackhi_epi64(t1, t3);
    }
    let mut w = u;
    for j in 0..4 {
        let v0 = _mm512_shuffle_i32x4::<0x44>(u[j], u[4 + j]);
        let v1 = _mm512_shuffle_i32x4::<0xee>(u[j], u[4 + j]);
        let v2 = _mm512_shuffle_i32x4::<0x44>(u[8 + j], u[12 + j]);
        let v3 = _mm512_shuffle_i32x4::<0xee>(u[8 + j], u[12 + j]);
        w[j] = _mm512_shuffle_i32x4::<0x88>(v0, v2);
        w[4 + j] = _mm512_shuffle_i32x4::<0xdd>(v0, v2);
        w[8 + j] = _mm512_shuffle_i32x4::<0x88>(v1, v3);
        w[12 + j] = _mm512_shuffle_i32x4::<0xdd>(v1, v3);
    }
    w
}
