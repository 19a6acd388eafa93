//! Gives back the pages of the program that only its start needed.
//!
//! The kernel maps what lies around each page of a file that is touched, so that of a broker that has just started most of what is
//! resident is code that ran once, and its neighbours. `broker.rs` has them let go of a moment after the node serves. What is
//! needed again is found in the page cache, without a read. Never lets go of a page that the program has written.

#![allow(unsafe_code, reason = "the only way to tell the kernel; the argument stands at the call")]

use std::{collections::HashSet, fs, ops::Range};

use rustix::mm::{Advice, madvise};

/// What is mapped from files when the program begins.
#[derive(Debug, Default)]
pub struct StartPages(HashSet<(usize, usize)>);

impl StartPages {
    /// Notes what is mapped now. To be called while there is no other thread: what is mapped later is not touched.
    pub fn note() -> Self {
        // Where there is no /proc, nothing is given back.
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        Self(maps.lines().filter_map(file_mapping).map(|range| (range.start, range.end)).collect())
    }

    /// Lets go of the pages of these mappings; returns how many bytes were resident.
    pub fn release(&self) -> usize {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        let mut released = 0;
        for (range, resident) in unwritten(&smaps) {
            if !self.0.contains(&(range.start, range.end)) {
                continue;
            }
            let address = std::ptr::with_exposed_provenance_mut(range.start);
            // SAFETY: the mapping is of a file, nobody may write to it, and it has no page that differs from the file: the next
            // access finds the same bytes, as the first one did. It was there before the first thread, so nobody is about to
            // put another in its place: only the loader does such a thing, with libraries that it has just opened.
            if unsafe { madvise(address, range.len(), Advice::LinuxDontNeed) }.is_ok() {
                released += resident;
            }
        }
        released
    }
}

/// The mappings of files that nobody may write to and nobody has written to, and how many bytes of each are resident.
fn unwritten(smaps: &str) -> Vec<(Range<usize>, usize)> {
    let mut found: Vec<(Range<usize>, usize)> = Vec::new();
    let mut is_candidate = false;
    for line in smaps.lines() {
        let bytes = |name| Some(1024 * line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<usize>().ok()?);
        if let Some(resident) = bytes("Rss:") {
            found.last_mut().filter(|_| is_candidate).into_iter().for_each(|(_, size)| *size = resident);
        } else if bytes("Anonymous:").is_some_and(|written| written > 0) && is_candidate {
            found.pop();
            is_candidate = false;
        } else if !line.split_whitespace().next().is_some_and(|word| word.ends_with(':')) {
            let mapping = file_mapping(line);
            is_candidate = mapping.is_some();
            found.extend(mapping.map(|range| (range, 0)));
        }
    }
    found
}

/// The addresses of a line of `/proc/self/maps`, if it is a mapping of a file that may not be written to.
fn file_mapping(line: &str) -> Option<Range<usize>> {
    let mut words = line.split_whitespace();
    let (addresses, permissions, _offset, _device, inode) =
        (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
    let is_file = inode != "0" && permissions.starts_with('r') && !permissions.contains('w');
    let (from, until) = addresses.split_once('-').filter(|_| is_file)?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some(address(from)?..address(until)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_are_as_in_their_file_are_let_go_of() {
        let smaps = "\
1000-5000 r--p 00000000 fe:00 77 /bin/gregor
Size:                 16 kB
Rss:                  12 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
5000-9000 r-xp 00004000 fe:00 77 /bin/gregor
Rss:                  16 kB
Anonymous:             4 kB
9000-a000 rw-p 00008000 fe:00 77 /bin/gregor
Rss:                   4 kB
Anonymous:             0 kB
a000-b000 r--p 00000000 00:00 0 [vvar]
Rss:                   4 kB
Anonymous:             0 kB
b000-d000 r-xp 00000000 fe:00 78 /lib/libc.so.6
Rss:                   8 kB
Anonymous:             0 kB
";
        assert_eq!(unwritten(smaps), [(0x1000..0x5000, 12 << 10), (0xb000..0xd000, 8 << 10)]);
    }

    #[test]
    fn the_program_goes_on_when_its_pages_are_let_go_of() {
        let pages = StartPages::note();
        assert!(pages.release() > 0, "this test runs from a file");
        // Constants, code and the tables of the loader are all as they were.
        assert_eq!(format!("{:?}", "x".repeat(3).to_uppercase()), "\"XXX\"");
        assert!(std::panic::catch_unwind(|| panic!("unwinding reads its tables from the file")).is_err());
    }
}
