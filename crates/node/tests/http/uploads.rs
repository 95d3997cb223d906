//! What is put: refused cleanly where there is no room, and never at the cost of what is there.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Command;

use shoal_store::{GcAction, GcRequest};
use shoal_wire::nix::hash::{Hash, sha256};
use shoal_wire::nix::store_path::{StoreDir, StorePath};

use crate::lab::{Answer, Lab, Wanted, file_nar, noise};

/// A small file system of its own, if this machine lets us have one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "shoal-test"]).arg(dir.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).output();
    }
}

/// A path, its NAR and where its files go.
struct Upload {
    path: StorePath,
    nar: Vec<u8>,
}

impl Upload {
    fn new(n: u64, len: usize) -> Upload {
        let mut hash = [0; 20];
        hash.copy_from_slice(&sha256(&n.to_le_bytes())[..20]);
        // No two share a chunk.
        let contents: Vec<u8> = noise(len).into_iter().map(|byte| byte.wrapping_add(n as u8)).collect();
        Upload { path: StorePath::from_parts(&hash, "upload").unwrap(), nar: file_nar(&contents) }
    }

    fn file(&self) -> String {
        format!("/nar/{}.nar", Hash::sha256(sha256(&self.nar)).to_nix32())
    }

    fn place(&self) -> String {
        format!("/{}.narinfo", self.path.hash_part())
    }

    fn narinfo(&self) -> String {
        let (hash, size) = (Hash::sha256(sha256(&self.nar)).to_nix32(), self.nar.len());
        format!(
            "StorePath: {}\nURL: {}\nCompression: none\nFileHash: sha256:{hash}\nFileSize: {size}\n\
             NarHash: sha256:{hash}\nNarSize: {size}\nReferences: \n",
            StoreDir::default().print(&self.path),
            &self.file()[1..]
        )
    }

    /// The answer to the narinfo, or to the NAR where that is refused.
    fn put(&self, lab: &Lab) -> Answer {
        let nar = lab.put(&self.file(), &self.nar);
        if nar.status != 200 { nar } else { lab.put(&self.place(), self.narinfo().as_bytes()) }
    }

    fn is_there(&self, lab: &Lab) -> bool {
        let narinfo = lab.get(&self.place());
        let url = narinfo.text().lines().find_map(|line| line.strip_prefix("URL: ").map(str::to_owned));
        narinfo.status == 200 && url.is_some_and(|url| lab.get(&format!("/{url}")).body == self.nar)
    }
}

/// 507 for what does not fit; all that was taken is there, whatever is tried again, and room that is made is used.
#[test]
fn a_full_disk_refuses_uploads_and_loses_none() {
    let Some(disk) = SmallDisk::mount(48 << 20) else {
        return println!("skipped: cannot mount a small file system");
    };
    let place = disk.0.path().join("store");
    let lab = Lab::with(Wanted { takes_uploads: true, store: Some(place), ..Wanted::default() });
    let waiting = Upload::new(255, 300_000);
    assert_eq!(lab.put(&waiting.file(), &waiting.nar).status, 200);
    let mut kept = Vec::new();
    let refused = loop {
        let upload = Upload::new(kept.len() as u64, 600_000);
        let answer = upload.put(&lab);
        match answer.status {
            200 => kept.push(upload),
            _ => break (upload, answer),
        }
        assert!(kept.len() < 200, "the disk never filled up");
    };
    assert_eq!(refused.1.status, 507, "{}", refused.1.text());
    assert!(kept.len() > 20, "{} paths", kept.len());
    for _ in 0..5 {
        assert_eq!(Upload::new(254, 2_000_000).put(&lab).status, 507);
    }
    assert!(kept.iter().all(|upload| upload.is_there(&lab)));
    assert_eq!(lab.get(&refused.0.place()).status, 404);
    assert_eq!(lab.store.paths().unwrap().len(), kept.len());
    lab.store.add_root("keep", &kept[0].path).unwrap();
    lab.store.collect(&GcRequest::new(GcAction::DeleteDead)).unwrap();
    assert_eq!(refused.0.put(&lab).status, 200);
    // What waited for its narinfo all the while is whole.
    assert_eq!(lab.put(&waiting.place(), waiting.narinfo().as_bytes()).status, 200);
    assert!([&refused.0, &waiting, &kept[0]].iter().all(|upload| upload.is_there(&lab)));
    let damage = lab.store.verify(true).unwrap().damage;
    assert!(damage.is_empty(), "{} chunks are damaged", damage.len());
}

/// The length that a client announces is the length that counts.
#[test]
fn lengths_that_lie() {
    let lab = Lab::with(Wanted { takes_uploads: true, ..Wanted::default() });
    let upload = Upload::new(1, 100_000);
    let len = upload.nar.len();
    // Shorter than the NAR: what follows is no request.
    let short = lab.put_head(&upload.file(), len - 100);
    assert_eq!(lab.send(&[short.as_bytes(), &upload.nar].concat(), false).unwrap().status, 400);
    // Longer: the client ends first.
    let long = lab.put_head(&upload.file(), len + 100);
    assert_eq!(lab.send_and_end(&[long.as_bytes(), &upload.nar].concat()).map(|answer| answer.status), Some(400));
    for nonsense in ["-1", "18446744073709551616", "1, 2", "0x10", ""] {
        let head = lab.put_head(&upload.file(), len).replace(&len.to_string(), nonsense);
        let answer = lab.send_and_end(&[head.as_bytes(), &upload.nar].concat());
        assert!(answer.is_none_or(|answer| (400..500).contains(&answer.status)), "'{nonsense}'");
    }
    // Both a length and chunks, as smugglers send it.
    let head = lab.put_head(&upload.file(), len).replacen("Host", "Transfer-Encoding: chunked\r\nHost", 1);
    let answer = lab.send_and_end(&[head.as_bytes(), &upload.nar].concat());
    assert!(answer.is_none_or(|answer| (400..500).contains(&answer.status)));
    assert_eq!(lab.store.paths().unwrap().len(), 0);
    assert_eq!(upload.put(&lab).status, 200);
    assert!(upload.is_there(&lab));
}

/// In chunks, without a length, as clients other than Nix may send it; and one that breaks off between chunks.
#[test]
fn bodies_in_chunks() {
    let lab = Lab::with(Wanted { takes_uploads: true, ..Wanted::default() });
    let upload = Upload::new(2, 100_000);
    let len = format!("Content-Length: {}\r\n", upload.nar.len());
    let head = lab.put_head(&upload.file(), upload.nar.len()).replace(&len, "Transfer-Encoding: chunked\r\n");
    let mut body = Vec::new();
    for piece in upload.nar.chunks(30_000) {
        body.extend(format!("{:x}\r\n", piece.len()).into_bytes());
        body.extend(piece);
        body.extend(b"\r\n");
    }
    let cut = [head.as_bytes(), &body].concat();
    assert_eq!(lab.send_and_end(&cut).map(|answer| answer.status), Some(400));
    assert_eq!(lab.put(&upload.place(), upload.narinfo().as_bytes()).status, 400);
    let whole = [head.replacen("Host", "Connection: close\r\nHost", 1).as_bytes(), &body, b"0\r\n\r\n"].concat();
    assert_eq!(lab.send(&whole, false).unwrap().status, 200);
    assert_eq!(lab.put(&upload.place(), upload.narinfo().as_bytes()).status, 200);
    assert!(upload.is_there(&lab));
}

#[test]
fn uploads_are_counted() {
    let lab = Lab::with(Wanted { takes_uploads: true, ..Wanted::default() });
    let upload = Upload::new(3, 100_000);
    let len = upload.nar.len();
    assert_eq!(lab.put(&upload.place(), upload.narinfo().as_bytes()).status, 400);
    assert_eq!(lab.put(&upload.file(), &upload.nar).status, 200);
    let metrics = lab.get("/metrics").text();
    let received = len + upload.narinfo().len();
    for line in [
        "shoal_http_uploads_total{outcome=\"taken\"} 1".to_owned(),
        "shoal_http_uploads_total{outcome=\"refused\"} 1".to_owned(),
        format!("shoal_http_received_bytes_total {received}"),
        "shoal_http_held_nars 1".to_owned(),
        format!("shoal_http_held_bytes {len}"),
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in\n{metrics}");
    }
}

/// What a NAR that waits relies on may be found damaged: no narinfo is acknowledged then, and the next attempt heals it.
#[test]
fn a_nar_that_relies_on_damage_is_to_be_sent_again() {
    let lab = Lab::with(Wanted { takes_uploads: true, ..Wanted::default() });
    let upload = Upload::new(1, 200_000);
    let known = lab.add("known", &upload.nar);
    assert_eq!(lab.put(&upload.file(), &upload.nar).status, 200);
    let segment = fs::read_dir(lab.store.dir().join("segments")).unwrap().next().unwrap().unwrap().path();
    let segment = OpenOptions::new().write(true).open(segment).unwrap();
    segment.write_all_at(b"damage", 5_000).unwrap();
    assert_eq!(lab.store.verify(true).unwrap().damage.len(), 1);
    let refused = lab.put(&upload.place(), upload.narinfo().as_bytes());
    assert_eq!((refused.status, refused.text().contains("bring it again")), (409, true), "{}", refused.text());
    assert_eq!(lab.ask("HEAD", &upload.file(), "").status, 404, "who looks whether it is here does not send it");
    assert_eq!(upload.put(&lab).status, 200);
    assert!(upload.is_there(&lab) && lab.store.is_valid(&known.path).unwrap());
}
