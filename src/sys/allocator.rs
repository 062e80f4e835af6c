//! The allocator: large blocks are mappings of their own, all else is the system's.
//!
//! A flow's ring (`stack::tcp::rings`) must cost only the pages that it uses, and go back to the kernel when it is freed. glibc
//! promises neither: malloc looks at the top of its heap and at its free chunks before it makes a mapping, however low
//! M_MMAP_THRESHOLD is, and clears what it finds there by writing to all of it. Measured: one ring in five came out of the
//! heap, and 5000 idle flows cost 61 MiB more than the pages they had touched.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

/// Blocks of this size and more are mappings: a small ring, of 65 495 bytes, is one.
const LARGE: usize = 60 * 1024;
/// Alignment that every mapping has, at least.
const PAGE: usize = 4096;

/// See above. `tapway` has it as its global allocator.
#[derive(Debug, Default)]
pub struct Allocator;

fn is_mapping(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= PAGE
}

fn map(size: usize) -> *mut u8 {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing that exists.
    let at = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) };
    if at == libc::MAP_FAILED { ptr::null_mut() } else { at.cast() }
}

// SAFETY: whether a block is a mapping depends on its layout alone, which callers give back unchanged (GlobalAlloc's contract),
// so each block is freed and moved by what made it. Mappings are as large as asked for or larger, aligned to a page at least,
// zeroed by the kernel, and null stands for failure. Nothing here unwinds or allocates.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_mapping(layout) {
            return map(layout.size());
        }
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_mapping(layout) {
            return map(layout.size());
        }
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if !is_mapping(layout) {
            // SAFETY: the caller's contract is the same, and the block is the system's, as its layout says.
            return unsafe { System.dealloc(at, layout) };
        }
        // SAFETY: the block is a mapping of this size made by `map`, and the caller uses it no more. It fails only where the
        // process has as many mappings as it may and this would split one; then the pages go back, and the
        // addresses are lost, which harms nobody.
        unsafe {
            if libc::munmap(at.cast(), layout.size()) != 0 {
                libc::madvise(at.cast(), layout.size(), libc::MADV_DONTNEED);
            }
        }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // The caller has made sure that the new size is a valid layout's.
        // SAFETY: the alignment is that of a valid layout.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (is_mapping(layout), is_mapping(new)) {
            (false, false) => {
                // SAFETY: the caller's contract is the same, and the block is the system's.
                unsafe { System.realloc(at, layout, new_size) }
            }
            (true, true) => {
                // SAFETY: the block is a mapping of this size; moving it invalidates only what the caller gives up.
                let moved = unsafe { libc::mremap(at.cast(), layout.size(), new_size, libc::MREMAP_MAYMOVE) };
                if moved == libc::MAP_FAILED { ptr::null_mut() } else { moved.cast() }
            }
            _ => {
                // SAFETY: both blocks are valid for the smaller of both sizes and distinct; the old one is freed once,
                // and only if there is a new one (GlobalAlloc: after a failure the old one stays).
                unsafe {
                    let fresh = self.alloc(new);
                    if !fresh.is_null() {
                        ptr::copy_nonoverlapping(at, fresh, layout.size().min(new_size));
                        self.dealloc(at, layout);
                    }
                    fresh
                }
            }
        }
    }
}

/// So many zeros, which cost a page only where they are touched. None: there is no memory for them.
pub fn zeros(len: usize) -> Option<Vec<u8>> {
    let layout = Layout::array::<u8>(len).ok().filter(|layout| layout.size() > 0)?;
    // SAFETY: the layout has a size. A block that is not null is as long as the slice that it becomes, of the same
    // alignment, of initialised bytes, and nobody else's.
    unsafe {
        let at = std::alloc::alloc_zeroed(layout);
        (!at.is_null()).then(|| Box::from_raw(ptr::slice_from_raw_parts_mut(at, len)).into_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resident pages among those of a block (mincore(2)).
    fn resident(at: *mut u8, size: usize) -> usize {
        let mut pages = vec![0u8; size.div_ceil(PAGE)];
        // SAFETY: the block is mapped, page-aligned, and the vector has a byte for each of its pages.
        assert_eq!(unsafe { libc::mincore(at.cast(), size, pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|&&page| page & 1 != 0).count()
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no mincore(2)")]
    fn a_large_block_is_zero_and_costs_what_is_touched() {
        let layout = Layout::from_size_align(4 * LARGE, 1).expect("valid");
        // SAFETY: the layout's size is not zero; the block is written within its size and freed once with its layout.
        unsafe {
            let at = Allocator.alloc_zeroed(layout);
            assert!(!at.is_null() && at.addr().is_multiple_of(PAGE));
            assert_eq!(resident(at, layout.size()), 0);
            at.write(7);
            assert_eq!((*at.add(4 * LARGE - 1), resident(at, LARGE)), (0, 1));
            Allocator.dealloc(at, layout);
        }
    }

    #[test]
    fn a_block_keeps_its_bytes_across_the_border() {
        let sizes = [100, LARGE - 1, LARGE, 3 * LARGE, 2 * LARGE, LARGE - 2, 50, 10 * LARGE, 40];
        let layout = |size| Layout::from_size_align(size, 8).expect("valid");
        // SAFETY: sizes are not zero; reads and writes are below the smallest of them; each block is given up to the next
        // realloc, and the last freed, with its own layout.
        unsafe {
            let mut at = Allocator.alloc(layout(sizes[0]));
            for byte in 0..40 {
                at.add(byte).write(byte as u8);
            }
            for pair in sizes.windows(2) {
                at = Allocator.realloc(at, layout(pair[0]), pair[1]);
                assert!((0..40).all(|byte| *at.add(byte) == byte as u8), "{pair:?}");
            }
            Allocator.dealloc(at, layout(40));
        }
    }

    #[test]
    fn unusual_alignment_is_left_to_the_system() {
        let layout = Layout::from_size_align(LARGE, 2 * PAGE).expect("valid");
        // SAFETY: the size is not zero, and the block is freed once with its layout.
        unsafe {
            let at = Allocator.alloc(layout);
            assert!(at.addr().is_multiple_of(2 * PAGE));
            Allocator.dealloc(at, layout);
        }
    }
}
