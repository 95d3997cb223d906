use super::*;
use crate::source::Deliver;
use crate::table::Table;
use crate::testing::{self, Chunks};
use crate::tree::Tree;
use shoal_wire::mesh::manifest::Manifest;
use std::sync::mpsc;

/// Gives chunks one request at a time, in the order in which the test lets it.
struct Gate {
    chunks: Chunks,
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
    contents: Vec<u8>,
}

fn lab(options: &Options) -> Lab {
    let contents = testing::noise(5, 900_000);
    let (manifest, chunks) = testing::path(&[("", testing::file(&contents))]);
    let ((tell, asked), (open, opened)) = (mpsc::channel(), mpsc::channel());
    let source = Gate { chunks, asked: Mutex::new(tell), open: Mutex::new(opened) };
    let (fetches, _) = Fetches::start(Arc::new(source), options).unwrap();
    let shown = Table::default().insert("p", Tree::new(&manifest)).unwrap();
    Lab { fetches, shown, asked, open, contents }
}

impl Lab {
    fn read(&self, bytes: Range<u64>) -> mpsc::Receiver<Result<Vec<u8>, ReadFailed>> {
        let (tell, told) = mpsc::channel();
        let offset = match self.shown.tree.kind(0) {
            Some(crate::tree::Kind::Regular { offset, .. }) => offset,
            _ => 0,
        };
        let pieces = self.shown.tree.pieces(bytes.start + offset..bytes.end + offset);
        self.fetches.read(&self.shown, pieces, Box::new(move |bytes| tell.send(bytes.map(<[u8]>::to_vec)).unwrap()));
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
