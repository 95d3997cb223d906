//! Percent-encoding of paths. Source: RFC 3986, section 2.1.

/// The bytes that a path component stands for; `None` where it is malformed. `+` is itself.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => out.push((digit(bytes.next()?)? << 4 | digit(bytes.next()?)?) as u8),
            byte => out.push(byte),
        }
    }
    Some(out)
}

/// The same where the bytes are text.
pub fn decode_text(text: &str) -> Option<String> {
    String::from_utf8(decode(text)?).ok()
}

/// A path component, safe in a URL and in a quoted attribute of HTML.
pub fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            byte if byte.is_ascii_alphanumeric() || b"-._~+=!,@:".contains(&byte) => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_itself(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let text = encode(&bytes);
            prop_assert!(!text.contains(['/', '"', '<', '>', '&', '?', '#', '\'']));
            prop_assert_eq!(decode(&text), Some(bytes));
        }
    }

    #[test]
    fn half_an_escape_is_refused() {
        for text in ["%", "%4", "%zz", "a%"] {
            assert_eq!(decode(text), None, "{text}");
        }
        assert_eq!(decode("a%21+%2f").as_deref(), Some(&b"a!+/"[..]));
    }
}
