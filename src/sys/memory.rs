//! What the allocator does with large blocks.

/// Makes every block of 128 KiB or more a mapping of its own for good, so that a freed ring goes back to the kernel at
/// once. glibc raises that threshold to the size of whatever is freed (mallopt(3)), after which a burst of flows would
/// leave a heap that never shrinks. Elsewhere this is the allocator's own business.
pub fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only changes a parameter of the allocator; it is called before other threads exist.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
    }
}
