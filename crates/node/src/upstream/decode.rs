//! Compressed bodies by the names that narinfo and HTTP have for them.

use std::io::{self, BufRead, Read};

use brotli_decompressor::Decompressor;
use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::{MultiGzDecoder, ZlibDecoder};
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use shoal_wire::nix::narinfo::Compression;

/// What one xz decoder may allocate: the strongest preset takes 65 MiB, and several decoders run at once.
const XZ_MEMORY_BYTES_MAX: u64 = 256 << 20;
/// The same for zstd, as a power of two: what `zstd` itself takes without being asked.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// What the brotli decoder reads at once.
const BROTLI_BUFFER_BYTES: usize = 64 << 10;

pub type Bytes = Box<dyn Read + Send>;

/// Whether NARs compressed like this can be read here. The others are not offered by any cache that is known.
pub fn is_known(compression: Compression) -> bool {
    use Compression::{Brotli, Bzip2, Gzip, None, Xz, Zstd};
    matches!(compression, None | Xz | Zstd | Brotli | Bzip2 | Gzip)
}

/// The NAR in a file that its narinfo says is compressed like this; several streams end to end count as one.
pub fn nar(compression: Compression, file: impl BufRead + Send + 'static) -> io::Result<Bytes> {
    Ok(match compression {
        Compression::None => Box::new(file),
        Compression::Xz => {
            let stream = Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, CONCATENATED)?;
            Box::new(XzDecoder::new_stream(file, stream))
        }
        Compression::Zstd => zstd(file)?,
        Compression::Brotli => Box::new(Decompressor::new(file, BROTLI_BUFFER_BYTES)),
        Compression::Bzip2 => Box::new(MultiBzDecoder::new(file)),
        Compression::Gzip => Box::new(MultiGzDecoder::new(file)),
        other => return Err(unknown(&format!("compression '{}'", other.name()))),
    })
}

/// A body without the `Content-Encoding` that it came with. Nix's uploads may leave any of its compressions there.
pub fn content(encoding: &str, body: impl BufRead + Send + 'static) -> io::Result<Bytes> {
    match encoding.trim().to_ascii_lowercase().as_str() {
        "" | "identity" | "none" => Ok(Box::new(body)),
        "gzip" | "x-gzip" => nar(Compression::Gzip, body),
        "deflate" => Ok(Box::new(ZlibDecoder::new(body))),
        "br" => nar(Compression::Brotli, body),
        "zstd" => nar(Compression::Zstd, body),
        "bzip2" | "x-bzip2" => nar(Compression::Bzip2, body),
        "xz" => nar(Compression::Xz, body),
        other => Err(unknown(&format!("Content-Encoding '{other}'"))),
    }
}

fn zstd(file: impl BufRead + Send + 'static) -> io::Result<Bytes> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(file)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    Ok(Box::new(decoder))
}

fn unknown(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("{what} is not known here"))
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use super::*;

    fn round(compression: Compression, compressed: Vec<u8>) {
        let mut out = Vec::new();
        nar(compression, Cursor::new(compressed)).unwrap().read_to_end(&mut out).unwrap();
        assert_eq!(out, b"hello\n".repeat(1000), "{}", compression.name());
    }

    #[test]
    fn everything_that_caches_offer() {
        let plain = b"hello\n".repeat(1000);
        round(Compression::None, plain.clone());
        round(Compression::Zstd, zstd::encode_all(&plain[..], 3).unwrap());
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 6);
        xz.write_all(&plain).unwrap();
        round(Compression::Xz, xz.finish().unwrap());
        let mut bz = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bz.write_all(&plain).unwrap();
        round(Compression::Bzip2, bz.finish().unwrap());
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&plain).unwrap();
        round(Compression::Gzip, gz.finish().unwrap());
        // The same text as Google's encoder writes it at quality 9.
        round(Compression::Brotli, vec![27, 111, 23, 0, 36, 20, 106, 144, 199, 234, 240, 156, 78, 242, 0, 0]);
        assert!(nar(Compression::Lzip, Cursor::new(Vec::new())).is_err());
        assert!(content("rot13", Cursor::new(Vec::new())).is_err());
    }
}
