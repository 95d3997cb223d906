//! A flipped bit on disk is a 404 or a connection cut off, never wrong bytes.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use shoal_node::http::link::Offer;

use crate::lab::{Lab, file_nar, nar_url, noise, words};

fn segment(lab: &Lab) -> File {
    let mut files = fs::read_dir(lab.store.dir().join("segments")).unwrap();
    let path = files.next().unwrap().unwrap().path();
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Flips a bit in each of some places, one at a time, and hands what is served then to `check`.
fn with_flips(offer: Offer, contents: &[u8], check: impl Fn(&[u8], &crate::lab::Answer) -> bool) -> usize {
    const PREAMBLE: u64 = 16;
    let mut noticed = 0;
    for turn in 0..24 {
        // A store each: what is damaged is remembered.
        let lab = Lab::offering(offer);
        let info = lab.add("p", &file_nar(contents));
        let url = nar_url(&lab, &info);
        let whole = lab.get(&url).body;
        let file = segment(&lab);
        let len = file.metadata().unwrap().len();
        let at = PREAMBLE + (len - PREAMBLE) * turn / 24;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << (turn % 8)], at).unwrap();
        let Some(answer) = lab.try_get(&url) else {
            noticed += 1;
            continue;
        };
        assert!(
            check(&whole, &answer),
            "offset {at} of {len}: {}, {} of {}",
            answer.status,
            answer.body.len(),
            whole.len()
        );
        noticed += usize::from(answer.status == 404 || !answer.is_whole);
    }
    noticed
}

/// Nothing but bytes that are right, up to where the connection was cut.
fn is_right(whole: &[u8], answer: &crate::lab::Answer) -> bool {
    answer.status == 404 || (whole.starts_with(&answer.body) && answer.is_whole == (answer.body.len() == whole.len()))
}

#[test]
fn damage_never_becomes_wrong_bytes() {
    let contents = [words(900_000), noise(900_000)].concat();
    for offer in [Offer::None, Offer::Zstd] {
        let noticed = with_flips(offer, &contents, is_right);
        assert!(noticed >= 20, "{offer:?}: {noticed} of 24");
    }
}

#[test]
fn damage_at_the_beginning_is_a_clean_404() {
    for offer in [Offer::None, Offer::Zstd] {
        let noticed = with_flips(offer, &words(20_000), |_, answer| answer.status == 404 || answer.is_whole);
        assert!(noticed >= 20, "{offer:?}: {noticed} of 24");
    }
}
