//! What a node finds damaged in its own store comes back from a cache that has it.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::FileExt;

use shoal_node::upstream::CLIENT_BUDGET;
use shoal_store::Place;
use shoal_wire::nix::narinfo::Compression;
use shoal_wire::nix::store_path::StorePath;

use super::lab::{Lab, Published, cache, noise};
use super::server::Reply;

/// SplitMix64 from `SHOAL_SEED` or the clock; printed.
struct Rng(u64);

impl Rng {
    fn seeded() -> Rng {
        let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("SHOAL_SEED").map_or_else(|_| clock(), |seed| seed.parse().unwrap());
        println!("SHOAL_SEED={seed}");
        Rng(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) % limit
    }
}

fn flip(lab: &Lab, segment: u32, offset: u64, bit: u64) {
    let path = lab.store.dir().join(format!("segments/{segment:08x}.seg"));
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], offset).unwrap();
}

fn places(lab: &Lab, path: &StorePath) -> Vec<Place> {
    let frames = lab.store.stored_frames(path, 0..u64::MAX).unwrap().unwrap();
    frames.frames().map(|(_, place)| *place).collect()
}

/// What a reader gets: all of it, or an error.
fn read(lab: &Lab, path: &StorePath) -> Option<Vec<u8>> {
    let mut nar = Vec::new();
    lab.store.export(path).unwrap()?.read_to_end(&mut nar).ok()?;
    Some(nar)
}

fn heal(lab: &Lab) -> Vec<(StorePath, Result<(), String>)> {
    lab.upstreams.heal_all(&lab.store, &|| true).unwrap()
}

#[test]
fn a_flipped_bit_is_healed_wherever_it_is() {
    let mut rng = Rng::seeded();
    let server = cache(40);
    let text: Vec<u8> = (0..20_000u64).flat_map(|n| format!("line {n} of {}\n", n * n).into_bytes()).collect();
    let published = Published::new('1', &[noise(rng.below(1 << 40), 300_000), text].concat(), &[], Compression::Zstd);
    published.on(&server);
    let lab = Lab::behind(&[&server]);
    lab.upstreams.fetch(&published.path).unwrap();
    let chunks = places(&lab, &published.path).len();
    assert!(chunks > 5, "{chunks}");
    for turn in 0..4 * chunks {
        let place = places(&lab, &published.path)[turn / 4];
        let offset = match turn % 4 {
            0 => place.offset.into(),
            1 => place.frame_offset(),
            2 => place.end() - 1,
            _ => u64::from(place.offset) + rng.below(place.record_len()),
        };
        flip(&lab, place.segment, offset, rng.below(8));
        assert_eq!(read(&lab, &published.path), None, "{place:?} at {offset}");
        assert!(!lab.store.is_valid(&published.path).unwrap());
        assert_eq!(heal(&lab), [(published.path.clone(), Ok(()))]);
        assert!(read(&lab, &published.path).unwrap() == published.nar, "{place:?} at {offset}");
    }
    // Nothing depends on what a segment begins with while it is read.
    flip(&lab, 0, rng.below(16), 0);
    assert!(read(&lab, &published.path).unwrap() == published.nar);
    assert!(lab.store.verify(true).unwrap().damage.is_empty());
    assert_eq!(lab.store.path_info(&published.path).unwrap().unwrap().signatures.len(), 1);
}

/// A NAR is compared with what was recorded, so nobody needs to have signed it; other contents are no help.
#[test]
fn the_recorded_bytes_heal_and_no_others() {
    let (far, near) = (cache(50), cache(10));
    let published = Published::new('1', &noise(1, 200_000), &[], Compression::Xz);
    published.on(&far);
    let lab = Lab::behind(&[&far, &near]);
    lab.upstreams.fetch(&published.path).unwrap();
    let damage = |lab: &Lab| {
        let place = places(lab, &published.path)[0];
        flip(lab, place.segment, place.end() - 1, 3);
        assert_eq!(read(lab, &published.path), None);
    };
    damage(&lab);
    let mut unsigned = Published::new('1', &noise(1, 200_000), &[], Compression::Xz);
    unsigned.narinfo.info.signatures.clear();
    unsigned.on(&far);
    // Asked first: it has another NAR under that name, then one that lies about its hash.
    let other = Published::new('1', &noise(2, 200_000), &[], Compression::Xz);
    other.on(&near);
    assert_eq!(heal(&lab), [(published.path.clone(), Ok(()))]);
    assert_eq!((near.count(&other.nar_url()), read(&lab, &published.path)), (0, Some(published.nar.clone())));
    damage(&lab);
    published.on(&near);
    near.put(&published.nar_url(), Reply::Body(other.file.clone()));
    assert_eq!(heal(&lab), [(published.path.clone(), Ok(()))]);
    assert!(read(&lab, &published.path).unwrap() == published.nar);
}

#[test]
fn what_nobody_has_stays_a_miss_and_says_why() {
    let server = cache(40);
    let published = Published::new('1', &noise(1, 200_000), &[], Compression::None);
    published.on(&server);
    let lab = Lab::behind(&[&server]);
    lab.upstreams.fetch(&published.path).unwrap();
    let place = places(&lab, &published.path)[0];
    flip(&lab, place.segment, place.end() - 1, 3);
    assert_eq!(read(&lab, &published.path), None);
    server.put(&published.narinfo_url(), Reply::Status(404));
    assert_eq!(heal(&lab), [(published.path.clone(), Err("no upstream has it".into()))]);
    assert_eq!(read(&lab, &published.path), None);
    published.on(&server);
    server.put(&published.nar_url(), Reply::Status(404));
    let outcome = heal(&lab).remove(0).1;
    assert!(outcome.as_ref().is_err_and(|why| why.ends_with("its NAR is gone")), "{outcome:?}");
    // Any client that asks for it makes the node fetch it again, as any path that it does not have.
    published.on(&server);
    assert_eq!(lab.upstreams.offers(&BTreeSet::from([published.path.clone()]), CLIENT_BUDGET).len(), 1);
    assert!(lab.streamed(&published.path).unwrap().unwrap() == published.nar);
    lab.upstreams.fetch(&published.path).unwrap();
    assert!(read(&lab, &published.path).unwrap() == published.nar);
}
