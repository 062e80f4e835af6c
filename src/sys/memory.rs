//! Pages of program files that waiting processes need not keep, and words that outlive the process that writes them.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::AtomicU64;

/// Numbers in memory that are shared: with whoever maps or reads the file, or else with children that are forked from now on. They begin
/// as what the file has there, or as 0, and stay for the life of the process. The file has to have eight bytes for each, and keep them.
pub fn shared_words<const N: usize>(file: Option<&File>) -> io::Result<&'static [AtomicU64; N]> {
    let (kind, fd) =
        file.map_or((libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1), |file| (libc::MAP_SHARED, file.as_raw_fd()));
    let length = size_of::<[AtomicU64; N]>();
    // SAFETY: a new mapping at a place of the kernel's choice touches nothing that is there.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, kind, fd, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is as long as the numbers, a page is aligned for any, it is readable and writable, and never unmapped; any
    // bytes are numbers, and who else maps them accesses them as atomically.
    Ok(unsafe { &*start.cast::<[AtomicU64; N]>() })
}

/// Gives the pages of program text back that starting up has touched, of this program and its libraries, and of its constants: 1 to
/// 2 MB of resident memory in a process that from now on only waits. What it needs again is mapped again from the page cache.
pub fn drop_text() {
    Text::find().drop_pages();
}

/// Where this process's program text is, for one that loses sight of /proc before it has done starting up.
#[derive(Debug)]
pub struct Text(Vec<(usize, usize)>);

impl Text {
    /// Looks. Without /proc there is nothing to know, and nothing lost.
    pub fn find() -> Self {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let program = std::fs::read_link("/proc/self/exe").unwrap_or_default();
        Self(maps.lines().filter_map(|line| text_of(line).or_else(|| constants_of(line, program.to_str()?))).collect())
    }

    /// As [`drop_text`].
    pub fn drop_pages(&self) {
        self.0.iter().for_each(|&range| drop_range(range));
    }
}

fn drop_range((start, length): (usize, usize)) {
    // SAFETY: the range is a private mapping of a file whose pages nobody has written (`text_of`, `constants_of`; this program maps
    // and unmaps no code), so they equal the file's: dropping them loses nothing, and the next fetch reads them back, those
    // of this very function included.
    unsafe {
        libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
    }
}

/// Start and length of a line of /proc/self/maps if it is program text of a file. Never what was writable once: read-only
/// data after relocation (RELRO) has no file to come back from.
fn text_of(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, mode) = (words.next()?, words.next()?);
    let inode = words.nth(2)?;
    if mode != "r-xp" || inode == "0" {
        return None;
    }
    range_of(range)
}

/// The same of this program's constants: what lies before its text in the file, from the file's beginning. RELRO lies behind it, and
/// a position-independent program has nothing to relocate there (a test looks).
fn constants_of(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, mode, offset) = (words.next()?, words.next()?, words.next()?);
    let mine = line.ends_with(program) && !program.is_empty();
    if mode != "r--p" || !offset.trim_start_matches('0').is_empty() || !mine {
        return None;
    }
    range_of(range)
}

fn range_of(range: &str) -> Option<(usize, usize)> {
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    (end > start).then(|| (start, end - start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_of_files_is_dropped() {
        assert_eq!(text_of("1000-3000 r-xp 00083000 fe:00 10018842    /usr/bin/x"), Some((0x1000, 0x2000)));
        for line in [
            "1000-3000 r--p 002fa000 fe:00 10018842 /usr/bin/x",
            "1000-3000 rw-p 00000000 fe:00 10018842 /usr/bin/x",
            "1000-3000 rwxp 00000000 fe:00 10018842 /usr/bin/x",
            "1000-3000 r-xp 00000000 00:00 0 [vdso]",
            "3000-1000 r-xp 00000000 fe:00 7 /usr/bin/x",
            "garbage",
            "",
        ] {
            assert_eq!(text_of(line), None, "{line}");
        }
    }

    #[test]
    fn constants_are_the_beginning_of_the_program_alone() {
        let found = |line| constants_of(line, "/usr/bin/x");
        assert_eq!(found("1000-3000 r--p 00000000 fe:00 10018842    /usr/bin/x"), Some((0x1000, 0x2000)));
        for line in [
            "1000-3000 r--p 002fa000 fe:00 10018842 /usr/bin/x",
            "1000-3000 rw-p 00000000 fe:00 10018842 /usr/bin/x",
            "1000-3000 r--p 00000000 fe:00 326279 /usr/lib/libc.so.6",
            "1000-3000 r--p 00000000 00:00 0",
            "",
        ] {
            assert_eq!(found(line), None, "{line}");
        }
        assert_eq!(constants_of("1000-3000 r--p 00000000 00:00 0", ""), None);
    }

    #[test]
    fn nobody_has_written_what_is_dropped() {
        // Relocated text or constants would be lost. A page of a private mapping that was written is no longer the file's.
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("proc");
        let Text(ranges) = Text::find();
        assert!(ranges.len() > 2, "{ranges:x?}");
        let mut dropped = false;
        for line in smaps.lines() {
            if let Some((range, _)) = line.split_once(' ').filter(|(range, _)| range.contains('-')) {
                dropped = range_of(range).is_some_and(|range| ranges.contains(&range));
            } else if dropped && line.starts_with("Anonymous:") {
                assert_eq!(line.split_ascii_whitespace().nth(1), Some("0"), "{line}");
            }
        }
    }

    #[test]
    fn the_program_goes_on() {
        drop_text();
        assert_eq!((1..=10).product::<u32>(), 3_628_800);
    }
}
