//! The SHA-256 state between blocks, so that one NAR may be hashed by different code from block to
//! block. The compression itself is aws-lc's. Format: FIPS 180-4.

/// Bytes of one SHA-256 block.
pub const SHA_BLOCK: usize = 64;

/// The eight words after some whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State(pub [u32; 8]);

impl Default for State {
    fn default() -> Self {
        State([0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19])
    }
}

impl State {
    /// Compresses whole blocks: the length of `blocks` is a multiple of [`SHA_BLOCK`].
    pub fn compress(&mut self, blocks: &[u8]) {
        assert!(blocks.len().is_multiple_of(SHA_BLOCK));
        if blocks.is_empty() {
            return;
        }
        // SAFETY: the state is eight words, and the data as many whole blocks as are announced, at
        // least one: the function does not look at the count before the first.
        unsafe {
            aws_lc_sys::SHA256_TransformBlocks(self.0.as_mut_ptr(), blocks.as_ptr(), blocks.len() / SHA_BLOCK);
        }
    }

    /// The digest after the last bytes; `len` counts all bytes of the message.
    pub fn finish(mut self, last: &[u8], len: u64) -> [u8; 32] {
        let whole = last.len() - last.len() % SHA_BLOCK;
        self.compress(&last[..whole]);
        let rest = &last[whole..];
        let mut padded = [0; 2 * SHA_BLOCK];
        padded[..rest.len()].copy_from_slice(rest);
        padded[rest.len()] = 0x80;
        let end = if rest.len() + 9 <= SHA_BLOCK { SHA_BLOCK } else { 2 * SHA_BLOCK };
        padded[end - 8..end].copy_from_slice(&(len * 8).to_be_bytes());
        self.compress(&padded[..end]);
        let mut digest = [0; 32];
        for (to, word) in digest.chunks_exact_mut(4).zip(self.0) {
            to.copy_from_slice(&word.to_be_bytes());
        }
        digest
    }
}
