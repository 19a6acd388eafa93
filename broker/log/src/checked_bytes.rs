//! Which bytes of a segment's file are known to be what their checksums say, so that a disk that has lost bits is noticed
//! before a reader gets them.
//!
//! What this program appended or recovered was checked then. What it found after a clean start is checked when it is read
//! for the first time. A read of the log's end therefore never pays, and a read of old data pays once.

use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

/// Positions are those of the segment's file. By default, everything is checked: a new segment.
#[derive(Debug, Default)]
pub(crate) struct CheckedBytes {
    /// From here on, this program checked or wrote everything.
    own_from: AtomicU32,
    /// Before that: the stretch that readers have checked last.
    read: Mutex<Range<u32>>,
}

impl CheckedBytes {
    /// Nothing of a file that is as long as this; what is appended later is checked before.
    pub(crate) fn none_of(len: u32) -> Self {
        Self { own_from: AtomicU32::new(len), read: Mutex::default() }
    }

    /// Everything was read and checked.
    pub(crate) fn all(&self) {
        self.own_from.store(0, Ordering::Release);
    }

    /// The file ends here now.
    pub(crate) fn cut(&self, len: u32) {
        self.own_from.fetch_min(len, Ordering::AcqRel);
    }

    /// Whether every byte of a range is checked.
    pub(crate) fn holds(&self, range: &Range<u32>) -> bool {
        let own_from = self.own_from.load(Ordering::Acquire);
        if range.start >= own_from {
            return true;
        }
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.start <= range.start && range.end.min(own_from) <= read.end
    }

    /// A reader has checked this range. A stretch that it does not continue is forgotten: readers go forward.
    pub(crate) fn add(&self, range: Range<u32>) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if range.start <= read.end && read.start <= range.end {
            *read = read.start.min(range.start)..read.end.max(range.end);
        } else {
            *read = range;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_appended_is_checked_and_what_was_found_is_not_until_it_is_read() {
        let checked = CheckedBytes::none_of(100);
        assert!(checked.holds(&(100..200)));
        assert!(!checked.holds(&(50..60)) && !checked.holds(&(90..110)));
        checked.add(40..80);
        checked.add(80..100);
        assert!(checked.holds(&(50..60)) && checked.holds(&(90..110)));
        assert!(!checked.holds(&(39..41)));
        checked.add(0..10);
        assert!(checked.holds(&(5..10)) && !checked.holds(&(50..60)));
        checked.cut(7);
        assert!(checked.holds(&(7..20)), "what stands there now was appended since");
        checked.all();
        assert!(checked.holds(&(0..200)));
    }
}
