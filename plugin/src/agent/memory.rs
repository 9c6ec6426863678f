//! The plugin's own memory.

/// Returns freed memory to the kernel. A synchronization delivers all containers of the node with
/// all that the runtime knows about them. The plugin keeps only a fraction of this.
pub(crate) fn give_memory_back() {
    // SAFETY: malloc_trim has no preconditions, and takes the allocator's own locks.
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}
