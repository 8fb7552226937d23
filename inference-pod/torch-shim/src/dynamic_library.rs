//! Finding and loading libtorch's own libraries at run time.
//!
//! Our programs link the CPU part of libtorch only, so that one binary serves machines with and without CUDA. The CUDA part
//! registers itself with the CPU part when it is loaded. Called by [`crate::device`].

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A function that every libtorch_cpu exports under a C name.
const SYMBOL_OF_LIBTORCH_CPU: &CStr = c"aoti_torch_device_type_cpu";

/// The folder that the running process has loaded libtorch_cpu from.
pub(crate) fn libtorch_folder() -> Option<PathBuf> {
    // SAFETY: the name is a C string; dlsym only looks it up among the libraries that are loaded already.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, SYMBOL_OF_LIBTORCH_CPU.as_ptr()) };
    if symbol.is_null() {
        return None;
    }
    // SAFETY: Dl_info is plain data of pointers and integers, for which all zeros is a value.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is valid for writing and lives through the call.
    let found = unsafe { libc::dladdr(symbol, &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: after success dli_fname is a C string owned by the loader, which keeps it while the library is loaded;
    // libtorch_cpu is linked and never unloaded.
    let path = unsafe { CStr::from_ptr(info.dli_fname) };
    Path::new(OsStr::from_bytes(path.to_bytes())).parent().map(Path::to_path_buf)
}

/// Loads a library for the rest of the process, its symbols visible to all. Returns the loader's complaint on failure.
pub(crate) fn load_globally(path: &Path) -> Result<(), String> {
    let name = CString::new(path.to_path_buf().into_os_string().into_vec())
        .map_err(|_| "the path holds a zero byte".to_owned())?;
    // SAFETY: `name` is a C string that lives through the call. The library's initialisers are libtorch's own; they
    // register kernels and are made to run on dlopen, which is how Python loads them too.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        // The handle is dropped on purpose: the library stays for the life of the process.
        return Ok(());
    }
    // SAFETY: dlerror returns null or a C string that stays valid until the next dl* call of this thread.
    let message = unsafe {
        let message = libc::dlerror();
        if message.is_null() { None } else { Some(CStr::from_ptr(message).to_string_lossy().into_owned()) }
    };
    Err(message.unwrap_or_else(|| "the loader gave no reason".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_folder_that_libtorch_was_loaded_from() {
        // Uses libtorch, so that it is linked.
        assert!(tch::get_num_threads() > 0);
        let folder = libtorch_folder().expect("libtorch_cpu is loaded");
        assert!(folder.join("libtorch_cpu.so").is_file(), "{}", folder.display());
    }

    #[test]
    fn a_library_that_is_absent_is_an_error_that_names_it() {
        let message = load_globally(Path::new("/nonexistent/libtorch_cuda.so")).expect_err("is absent");
        assert!(message.contains("/nonexistent/libtorch_cuda.so"), "{message}");
    }
}
