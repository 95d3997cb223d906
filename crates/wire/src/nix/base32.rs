//! Nix's base 32: its own alphabet (no `e o u t`), least significant group last, so the text reads backwards.
//! Source: `libutil/base-nix-32.cc`.

use thiserror::Error;

/// The 32 digits, in the order of their values.
pub const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

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

/// Why a text is not base 32.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Base32Error {
    #[error("'{}' is not a base-32 digit", .0.escape_ascii())]
    Digit(u8),
    #[error("no byte string is encoded in {0} base-32 digits")]
    Length(usize),
    #[error("the first base-32 digit does not fit in the last byte")]
    Overflow,
}

/// Number of digits that `bytes` bytes take.
pub const fn encoded_len(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

/// Whether `byte` is one of the 32 digits.
pub const fn is_digit(byte: u8) -> bool {
    VALUES[byte as usize] != INVALID
}

/// The base-32 text of `bytes`.
pub fn encode(bytes: &[u8]) -> String {
    let digit = |index: usize| {
        let (byte, shift) = (index * 5 / 8, index * 5 % 8);
        let low = u16::from(bytes[byte]);
        let high = bytes.get(byte + 1).map_or(0, |&next| u16::from(next));
        let value = (low | high << 8) >> shift & 0x1f;
        char::from(ALPHABET[usize::from(value)])
    };
    (0..encoded_len(bytes.len())).rev().map(digit).collect()
}

/// The bytes that `text` stands for. Their number follows from the length of the text.
pub fn decode(text: &str) -> Result<Vec<u8>, Base32Error> {
    let mut bytes = vec![0; text.len() * 5 / 8];
    decode_into(text.as_bytes(), &mut bytes)?;
    Ok(bytes)
}

/// As [`decode`], into a buffer whose length must be that of the value.
pub fn decode_into(text: &[u8], bytes: &mut [u8]) -> Result<(), Base32Error> {
    if text.len() != encoded_len(bytes.len()) {
        return Err(Base32Error::Length(text.len()));
    }
    bytes.fill(0);
    for (index, &digit) in text.iter().rev().enumerate() {
        let value = VALUES[usize::from(digit)];
        if value == INVALID {
            return Err(Base32Error::Digit(digit));
        }
        let (byte, shift) = (index * 5 / 8, index * 5 % 8);
        let wide = u16::from(value) << shift;
        let [low, high] = wide.to_le_bytes();
        bytes[byte] |= low;
        match bytes.get_mut(byte + 1) {
            Some(next) => *next |= high,
            None if high != 0 => return Err(Base32Error::Overflow),
            None => {}
        }
    }
    Ok(())
}
