//! The plugin's own memory.

/// Returns freed memory to the kernel. During a synchronization, the runtime sends all its data
/// about all containers of the node. The plugin keeps only a small part of this data.
pub(crate) fn give_memory_back() {
    // SAFETY: malloc_trim has no preconditions, and takes the allocator's own locks.
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}
