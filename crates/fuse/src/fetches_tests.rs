use super::*;
use crate::source::Deliver;
use crate::table::Table;
use crate::testing::{self, Chunks};
use crate::tree::Tree;
use shoal_wire::mesh::manifest::Manifest;
use std::sync::mpsc;

/// Gives chunks one request at a time, in the order in which the test lets it; those that are here at once.
struct Gate {
    chunks: Chunks,
    here: Chunks,
    root: Arc<Mutex<Option<[u8; 32]>>>,
    asked: Mutex<mpsc::Sender<Vec<ChunkRef>>>,
    open: Mutex<mpsc::Receiver<()>>,
}

impl Source for Gate {
    fn names(&self) -> Result<Vec<String>, SourceError> {
        Ok(Vec::new())
    }

    fn manifest(&self, _: &str) -> Result<Option<Manifest>, SourceError> {
        Ok(None)
    }

    fn content_root(&self, _: &str) -> Option<[u8; 32]> {
        *self.root.lock().unwrap()
    }

    fn fetch_here(&self, _: &str, chunks: &[ChunkRef], deliver: Deliver<'_>) {
        for (place, chunk) in chunks.iter().enumerate() {
            if let Some(contents) = self.here.get(&chunk.hash) {
                deliver(place, Ok(contents.clone()));
            }
        }
    }

    fn fetch(&self, _: &str, chunks: &[ChunkRef], deliver: Deliver<'_>) {
        self.asked.lock().unwrap().send(chunks.to_vec()).unwrap();
        if self.open.lock().unwrap().recv().is_err() {
            return;
        }
        for (place, chunk) in chunks.iter().enumerate().rev() {
            deliver(place, Ok(self.chunks[&chunk.hash].clone()));
            deliver(place, Err(SourceError::Missing));
        }
    }

    fn prefetch(&self, _: &str, _: &[ChunkRef]) {}
}

struct Lab {
    fetches: Arc<Fetches>,
    shown: Arc<Shown>,
    asked: mpsc::Receiver<Vec<ChunkRef>>,
    open: mpsc::Sender<()>,
    /// What the name means by now, where that is known.
    root: Arc<Mutex<Option<[u8; 32]>>>,
    contents: Vec<u8>,
}

fn lab(options: &Options) -> Lab {
    lab_with(options, testing::noise(5, 900_000), |_| false)
}

/// `is_here`: which chunks are, by their number.
fn lab_with(options: &Options, contents: Vec<u8>, is_here: impl Fn(usize) -> bool) -> Lab {
    let (manifest, chunks) = testing::path(&[("", testing::file(&contents))]);
    let here = manifest.chunks.iter().enumerate().filter(|(number, _)| is_here(*number));
    let here = here.map(|(_, chunk)| (chunk.hash, chunks[&chunk.hash].clone())).collect();
    let ((tell, asked), (open, opened)) = (mpsc::channel(), mpsc::channel());
    let root = Arc::<Mutex<Option<[u8; 32]>>>::default();
    let source = Gate { chunks, here, root: root.clone(), asked: Mutex::new(tell), open: Mutex::new(opened) };
    let (fetches, _) = Fetches::start(Arc::new(source), options).unwrap();
    let shown = Table::default().insert("p", Tree::new(&manifest)).unwrap();
    Lab { fetches, shown, asked, open, root, contents }
}

impl Lab {
    fn read(&self, bytes: Range<u64>) -> mpsc::Receiver<Result<Vec<u8>, ReadFailed>> {
        let (tell, told) = mpsc::channel();
        let offset = match self.shown.tree.kind(0) {
            Some(crate::tree::Kind::Regular { offset, .. }) => offset,
            _ => 0,
        };
        let pieces = self.shown.tree.pieces(bytes.start + offset..bytes.end + offset);
        // A test may have seen enough.
        let answer = move |bytes: Result<&[u8], ReadFailed>| drop(tell.send(bytes.map(<[u8]>::to_vec)));
        self.fetches.read(&self.shown, pieces, Box::new(answer));
        told
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.fetches.end();
    }
}

#[test]
fn a_read_over_several_chunks_gets_them_in_order_whatever_order_they_come_in() {
    let lab = lab(&Options::default());
    let told = lab.read(10..800_000);
    for _ in 0..20 {
        lab.open.send(()).unwrap();
    }
    assert!(told.recv().unwrap().unwrap() == lab.contents[10..800_000]);
    let again = lab.read(60_000..70_000);
    assert!(again.try_recv().unwrap().unwrap() == lab.contents[60_000..70_000], "at once, from memory");
}

#[test]
fn what_somebody_waits_for_is_asked_for_though_others_only_read_ahead() {
    let lab = lab(&Options::default());
    lab.fetches.read_ahead(&lab.shown, 0..12);
    // All that may read ahead are busy now.
    let busy: usize = (0..PATIENT_WORKERS).map(|_| lab.asked.recv().unwrap().len()).sum();
    assert!(busy < 12);
    let told = lab.read(750_000..750_010);
    assert_eq!(lab.asked.recv().unwrap().len(), 1, "another worker asks for it");
    (0..20).for_each(|_| lab.open.send(()).unwrap());
    assert!(told.recv().unwrap().unwrap() == lab.contents[750_000..750_010]);
}

#[test]
fn a_read_that_waits_when_all_ends_is_answered() {
    let lab = lab(&Options::default());
    let told = lab.read(0..10);
    lab.asked.recv().unwrap();
    lab.fetches.end();
    assert_eq!(told.recv().unwrap(), Err(ReadFailed));
    assert_eq!(lab.read(0..10).recv().unwrap(), Err(ReadFailed));
}

#[test]
fn an_empty_read_is_answered_with_nothing() {
    let lab = lab(&Options::default());
    assert_eq!(lab.read(5..5).recv().unwrap(), Ok(Vec::new()));
}

#[test]
fn what_is_here_does_not_wait_for_what_is_not() {
    let len = 6_000_000;
    let lab = lab_with(&Options::default(), testing::noise(6, len), |number| number == 0);
    let remote: Vec<_> = (1..len as u64 / 100_000).map(|at| lab.read(at * 100_000..at * 100_000 + 10)).collect();
    assert!(remote.len() > WORKERS * 2);
    // All that may wait for others do.
    (0..WORKERS).for_each(|_| drop(lab.asked.recv().unwrap()));
    let told = lab.read(0..10).recv_timeout(Duration::from_secs(20)).expect("an answer");
    assert!(told.unwrap() == lab.contents[..10]);
    assert!(remote.iter().all(|told| told.try_recv().is_err()));
}

#[test]
fn people_are_told_once_in_a_while_of_each_path_that_does_not_come() {
    let lab = lab(&Options::default());
    let (now, memory) = (Instant::now(), Duration::from_secs(5));
    let mut state = lab.fetches.state();
    assert!(state.is_news("one", now, memory));
    assert!(!state.is_news("one", now + Duration::from_secs(4), memory));
    assert!(state.is_news("two", now, memory));
    assert!(state.is_news("one", now + memory, memory));
}

#[test]
fn a_path_of_which_nobody_has_something_is_lost() {
    let lab = lab(&Options::default());
    let losses = lab.fetches.losses();
    let told = lab.read(0..10);
    let asked = lab.asked.recv().unwrap();
    lab.fetches.came(&lab.shown, &asked[0], Err(SourceError::Missing));
    assert_eq!(told.recv().unwrap(), Err(ReadFailed));
    assert!(Arc::ptr_eq(&losses.try_recv().unwrap(), &lab.shown));
    lab.fetches.end();
    assert!(losses.recv().is_err(), "who follows ends too");
}

/// Whoever has the path has other chunks, so that the old ones do not come however often they are asked for.
#[test]
fn what_a_path_was_before_it_was_made_again_is_lost() {
    let lab = lab(&Options::default());
    let losses = lab.fetches.losses();
    let failed = || Err(SourceError::Failed("nobody who is left has it".into()));
    let told = lab.read(0..10);
    let asked = lab.asked.recv().unwrap();
    *lab.root.lock().unwrap() = Some(*lab.shown.tree.content_root());
    lab.fetches.came(&lab.shown, &asked[0], failed());
    assert!(told.try_recv().is_err() && losses.try_recv().is_err(), "it is asked for again");
    *lab.root.lock().unwrap() = Some([7; 32]);
    lab.fetches.came(&lab.shown, &asked[0], failed());
    assert_eq!(told.recv().unwrap(), Err(ReadFailed));
    assert!(Arc::ptr_eq(&losses.recv().unwrap(), &lab.shown));
}
