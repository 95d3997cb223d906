//! Standard base 64 with padding (RFC 4648 §4), and base 16, as hashes, keys and signatures are written.

use thiserror::Error;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const HEX: &[u8; 16] = b"0123456789abcdef";
const INVALID: u8 = 0xff;

const VALUES: [u8; 256] = {
    let mut table = [INVALID; 256];
    let mut value = 0;
    while value < ALPHABET.len() {
        table[ALPHABET[value] as usize] = value as u8;
        value += 1;
    }
    table
};

/// Why a text is not base 64 or base 16.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    #[error("'{}' is not a digit", .0.escape_ascii())]
    Digit(u8),
    #[error("wrong length or padding")]
    Length,
    #[error("the last digit has bits that belong to no byte")]
    Overflow,
}

/// Number of characters that `bytes` bytes take, padding included.
pub const fn encoded_len(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

/// The base-64 text of `bytes`, padded.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(encoded_len(bytes.len()));
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| chunk.get(index).map_or(0, |&byte| u32::from(byte));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4 {
            if index > chunk.len() {
                text.push('=');
            } else {
                let value = group >> (18 - 6 * index) & 0x3f;
                text.push(char::from(ALPHABET[value as usize]));
            }
        }
    }
    text
}

/// The bytes of a padded base-64 text. Only the one canonical text of a value is accepted.
pub fn decode(text: &str) -> Result<Vec<u8>, DecodeError> {
    if !text.len().is_multiple_of(4) {
        return Err(DecodeError::Length);
    }
    let digits = text.trim_end_matches('=');
    if text.len() - digits.len() > 2 {
        return Err(DecodeError::Length);
    }
    decode_unpadded(digits)
}

/// As [`decode`], for a text that carries no padding.
pub fn decode_unpadded(digits: &str) -> Result<Vec<u8>, DecodeError> {
    if digits.len() % 4 == 1 {
        return Err(DecodeError::Length);
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for chunk in digits.as_bytes().chunks(4) {
        let mut group = 0u32;
        for &digit in chunk {
            let value = VALUES[usize::from(digit)];
            if value == INVALID {
                return Err(DecodeError::Digit(digit));
            }
            group = group << 6 | u32::from(value);
        }
        let wide = (group << (6 * (4 - chunk.len()))).to_be_bytes();
        let used = chunk.len() * 6 / 8;
        bytes.extend_from_slice(&wide[1..=used]);
        if wide[1 + used..].iter().any(|&byte| byte != 0) {
            return Err(DecodeError::Overflow);
        }
    }
    Ok(bytes)
}

/// Lower-case base 16.
pub fn encode_hex(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(bytes.len() * 2);
    encode_hex_into(bytes, &mut text);
    text.into_iter().map(char::from).collect()
}

/// Appends lower-case base 16.
pub(crate) fn encode_hex_into(bytes: &[u8], text: &mut Vec<u8>) {
    for byte in bytes {
        text.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0xf)]]);
    }
}

/// Base 16 of either case, into a buffer of exactly the length of the value.
pub fn decode_hex_into(text: &[u8], bytes: &mut [u8]) -> Result<(), DecodeError> {
    if text.len() != bytes.len() * 2 {
        return Err(DecodeError::Length);
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(DecodeError::Digit(digit)),
    };
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Ok(())
}
