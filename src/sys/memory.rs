//! What the allocator does with large blocks.

/// The size of a small ring (`stack::tcp::rings`): below it glibc zeroes a block by touching all of it, while a fresh
/// mapping costs only the pages that a flow uses.
const THRESHOLD: i32 = 64 * 1024;

/// Makes every block of [`THRESHOLD`] or more a mapping of its own for good, so that a freed ring goes back to the kernel at
/// once. glibc raises that threshold to the size of whatever is freed (mallopt(3)), after which a burst of flows would
/// leave a heap that never shrinks. Elsewhere this is the allocator's own business.
pub fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only changes a parameter of the allocator; it is called before other threads exist.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, THRESHOLD);
    }
}
