//! The C library's heap, from which libtorch takes its tensors on a CPU.

/// Gives back to the system what has been freed and is kept for later. Quantising a model while it is loaded frees some hundreds of
/// mebibytes, which the plan gives to the KV cache.
///
/// Does nothing where the C library has no such call.
pub fn release_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes no pointer, and locks the heaps by itself; callable at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
