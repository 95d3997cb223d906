//! How near a client is, and so which form of a NAR serves it best.
//!
//! A client on the same machine or in the same room has its NAR sooner plain: decompressing costs it more than the bytes.
//! Over a slow link fewer bytes win. Who is far is told of the compressed form: Nix can resume it, and decompresses
//! several paths at once, which it does not do with an encoding of HTTP.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use http::header::ACCEPT_ENCODING;
use serde::Serialize;
use shoal_wire::nix::narinfo::Compression;

use super::Request;

/// Round trip of a client that has a fast link. Within a building it is a third of this, to another town ten times it.
const NEAR: Duration = Duration::from_millis(1);

/// The form of NARs that narinfos tell of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Offer {
    /// By the client's round trip.
    #[default]
    Auto,
    None,
    Zstd,
}

/// Round trip to the other end of a connection, as the kernel measured it so far.
pub fn round_trip(socket: &impl AsFd) -> Option<Duration> {
    // SAFETY: all-zero bytes are a value of this structure of integers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open, and `info` has room for `len` bytes.
    let got = unsafe {
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, std::ptr::from_mut(&mut info).cast(), &mut len)
    };
    (got == 0 && info.tcpi_rtt > 0).then(|| Duration::from_micros(u64::from(info.tcpi_rtt)))
}

impl Offer {
    /// The form that a client with this round trip is told of.
    pub fn compression(self, round_trip: Option<Duration>) -> Compression {
        match self {
            Offer::None => Compression::None,
            Offer::Zstd => Compression::Zstd,
            Offer::Auto if round_trip.is_none_or(|time| time < NEAR) => Compression::None,
            Offer::Auto => Compression::Zstd,
        }
    }
}

/// Whether the client decodes zstd as an encoding of HTTP.
pub fn takes_zstd(request: &Request) -> bool {
    let Some(encodings) = request.header(ACCEPT_ENCODING) else { return false };
    encodings.split(',').any(|encoding| {
        let mut parts = encoding.split(';').map(str::trim);
        let is_zstd = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("zstd"));
        is_zstd && !parts.any(|weight| matches!(weight, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_far_are_told_of_fewer_bytes() {
        let told = |micros| Offer::Auto.compression(Some(Duration::from_micros(micros)));
        assert_eq!((told(40), told(300), told(20_000)), (Compression::None, Compression::None, Compression::Zstd));
        assert_eq!(Offer::Zstd.compression(None), Compression::Zstd);
    }

    #[test]
    fn the_kernel_measures_the_round_trip() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert!(round_trip(&server).is_some_and(|time| time < Duration::from_secs(1)));
    }
}
