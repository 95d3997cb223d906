//! Which ranges of packs are asked for so that frames come in the order of a NAR.
//!
//! Invariants:
//! - every frame lies whole in the span that it was planned for;
//! - a span is no longer than [`SPAN_LEN_MAX`], and of what it brings at most a half is not wanted.

/// Bytes of one request: they are in memory, and what a slow server sends within a minute.
pub const SPAN_LEN_MAX: u64 = 4 << 20;
/// What lies between two frames comes along where that is less than a request's trouble.
const GAP_LEN_MAX: u64 = 64 << 10;

/// A frame to be read: which pack of some list it lies in, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub pack: u32,
    pub offset: u64,
    pub len: u64,
}

/// One request, and which frames it brings, counted in the order in which they were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub pack: u32,
    pub range: std::ops::Range<u64>,
    pub frames: std::ops::Range<usize>,
}

/// Frames in a row become one span for as long as they follow each other upwards in one pack, with small gaps.
pub fn spans(frames: impl IntoIterator<Item = Frame>) -> impl Iterator<Item = Span> {
    let mut frames = frames.into_iter().enumerate().peekable();
    std::iter::from_fn(move || {
        let (first, frame) = frames.next()?;
        let mut span =
            Span { pack: frame.pack, range: frame.offset..frame.offset + frame.len, frames: first..first + 1 };
        let mut wanted = frame.len;
        while let Some((number, next)) = frames.next_if(|(_, next)| span.takes(next, wanted)) {
            wanted += next.len;
            span.range.end = next.offset + next.len;
            span.frames.end = number + 1;
        }
        Some(span)
    })
}

impl Span {
    fn takes(&self, next: &Frame, wanted: u64) -> bool {
        let end = next.offset + next.len;
        next.pack == self.pack
            && next.offset >= self.range.end
            && next.offset - self.range.end <= GAP_LEN_MAX
            && end - self.range.start <= SPAN_LEN_MAX.min(2 * (wanted + next.len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(pack: u32, offset: u64, len: u64) -> Frame {
        Frame { pack, offset, len }
    }

    #[test]
    fn what_follows_each_other_comes_at_once() {
        let planned: Vec<Span> =
            spans([frame(0, 0, 10), frame(0, 10, 5), frame(1, 15, 5), frame(1, 20, 5), frame(1, 0, 5)]).collect();
        let ranges: Vec<_> = planned.into_iter().map(|span| (span.pack, span.range, span.frames)).collect();
        assert_eq!(ranges, [(0, 0..15, 0..2), (1, 15..25, 2..4), (1, 0..5, 4..5)]);
    }

    proptest! {
        #[test]
        fn each_frame_is_in_its_span_and_spans_are_bounded(
            frames in proptest::collection::vec((0..2u32, 0..1u64 << 24, 1..1u64 << 18), 0..60),
            ascending in any::<bool>(),
        ) {
            let mut frames: Vec<Frame> = frames.into_iter().map(|(pack, offset, len)| frame(pack, offset, len)).collect();
            if ascending {
                frames.sort_by_key(|frame| (frame.pack, frame.offset));
            }
            let mut next = 0;
            for span in spans(frames.clone()) {
                prop_assert_eq!(span.frames.start, next);
                prop_assert!(span.frames.end > next);
                next = span.frames.end;
                let brought = span.range.end - span.range.start;
                prop_assert!(brought <= SPAN_LEN_MAX);
                let wanted: u64 = frames[span.frames.clone()].iter().map(|frame| frame.len).sum();
                prop_assert!(brought <= 2 * wanted);
                for frame in &frames[span.frames.clone()] {
                    prop_assert_eq!(frame.pack, span.pack);
                    prop_assert!(span.range.start <= frame.offset && frame.offset + frame.len <= span.range.end);
                }
            }
            prop_assert_eq!(next, frames.len());
        }
    }
}
