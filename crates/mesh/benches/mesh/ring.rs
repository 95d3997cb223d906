//! What the holders say when the ring changes, in bytes.

use crate::parts::Report;
use shoal_grid::announce::owners;
use shoal_grid::catalogue::holdings::{BATCH_GAP_MS, Holdings};
use shoal_grid::ring::{Key, NodeId, Ring};
use shoal_wire::mesh::announcement::HolderMessage;
use shoal_wire::mesh::format::encode;

const HOLDERS: u64 = 20;
const PATHS: u64 = 100_000;
/// The key of a path, of which an owner has to hear.
const LEAST_A_PAIR: usize = size_of::<Key>();

fn key(number: u64) -> Key {
    *blake3::hash(&number.to_le_bytes()).as_bytes()
}

/// Bytes of all that is said, and of the answers where the owner lacks all records.
fn said(holdings: &mut Holdings) -> (usize, usize) {
    let (mut told, mut answers) = (0, 0);
    for now_ms in (0..).step_by(BATCH_GAP_MS as usize) {
        let due = holdings.due(&NodeId::default(), now_ms);
        if due.is_empty() {
            break;
        }
        for (owner, message) in due {
            told += encode(&message).len();
            let keys = match &message {
                HolderMessage::Holds(batch) => batch.iter().map(|holding| holding.key).collect(),
                _ => Vec::new(),
            };
            answers += encode(&HolderMessage::Lacks { life: 1, keys }).len();
            holdings.answered(&owner, &[]);
        }
    }
    (told, answers)
}

/// Twenty members with 100,000 paths each, and one that comes. The least is the key of each path to the newcomer where it
/// is an owner now.
pub fn change(report: &mut Report) {
    let ids: Vec<NodeId> = (0..=HOLDERS).map(|number| key(1 << 40 | number)).collect();
    let (newcomer, others) = ids.split_last().expect("some");
    let (before, after): (Ring, Ring) = (others.iter().copied().collect(), ids.iter().copied().collect());
    let (mut least, mut told, mut answers) = (0, 0, 0);
    for (holder, me) in others.iter().enumerate() {
        let mut holdings = Holdings::default();
        for path in 0..PATHS {
            let key = key((holder as u64) << 32 | path);
            holdings.add(key, [7; 16], &Ring::default());
            least += LEAST_A_PAIR * usize::from(owners(&after, &key).contains(newcomer));
        }
        holdings.ring_changed(me, &before, &after);
        let (said, answered) = said(&mut holdings);
        (told, answers) = (told + said, answers + answered);
    }
    let over = |bytes: usize| format!("{:.2} x", bytes as f64 / least as f64);
    let what = format!("announcements when one joins {HOLDERS} of {PATHS} paths each, over the least");
    report.add(&what, over(told), "<= 2");
    let mb = least as f64 / 1e6;
    report.add(&format!("… with answers that ask for every record (least: {mb:.1} MB)"), over(told + answers), "told");
}
