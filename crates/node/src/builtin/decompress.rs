//! Compressed streams, told apart by their first bytes.

use std::io::{self, BufRead, Read};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

/// What an xz decoder may allocate. The strongest preset needs 65 MiB, 4 GiB dictionaries are legal.
const XZ_MEMORY_BYTES_MAX: u64 = 1 << 30;

/// Decompresses gzip, xz, bzip2 or zstd, each possibly several streams end to end; passes on anything else.
pub(super) fn any<'a>(mut compressed: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let head = compressed.fill_buf()?;
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(compressed)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(xz(compressed)?),
        [b'B', b'Z', b'h', ..] => Box::new(MultiBzDecoder::new(compressed)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(compressed)?),
        _ => Box::new(compressed),
    })
}

/// Decompresses xz, and takes nothing else.
pub(super) fn xz<R: BufRead>(compressed: R) -> io::Result<XzDecoder<R>> {
    let stream = Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, CONCATENATED)?;
    Ok(XzDecoder::new_stream(compressed, stream))
}
