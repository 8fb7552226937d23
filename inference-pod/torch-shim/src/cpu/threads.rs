//! Work shared among libtorch's own threads.
//!
//! libtorch computes on a team of OpenMP threads, which wait for its next operator by spinning. A second team of ours would fight
//! with it for the cores, so kernels run on the same one: libgomp's entry point, which compilers emit for `omp parallel`, is
//! looked up among the libraries that libtorch has brought along. Where there is none, the caller's thread does all the work.

use std::ffi::{c_uint, c_void};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags)`
type GompParallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// Calls `work` with ranges that together are `0..items`, each once, on as many threads as libtorch uses. A thread takes `grain`
/// items at a time and comes back for more, so a slow thread delays nobody.
pub(crate) fn share_out(items: usize, grain: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
    let job = Job { next: AtomicUsize::new(0), items, grain: grain.max(1), work };
    let data = (&raw const job).cast_mut().cast::<c_void>();
    let team = c_uint::try_from(tch::get_num_threads()).unwrap_or(1);
    match gomp_parallel() {
        Some(parallel) if team > 1 && items > job.grain => {
            // SAFETY: the function has this signature in every libgomp. It calls `run` with `data` on each thread of the team and
            // returns when all have; `job` lives until then, and `run` only shares it.
            unsafe { parallel(run, data, team, 0) };
        }
        _ => run(data),
    }
}

struct Job<'a> {
    next: AtomicUsize,
    items: usize,
    grain: usize,
    work: &'a (dyn Fn(Range<usize>) + Sync),
}

/// What each thread of a team does. A panic would end the process here; kernels have none.
extern "C" fn run(data: *mut c_void) {
    // SAFETY: `data` is the job that share_out keeps alive, and nobody has it exclusively.
    let job = unsafe { &*data.cast::<Job<'_>>() };
    loop {
        let begin = job.next.fetch_add(job.grain, Ordering::Relaxed);
        if begin >= job.items {
            return;
        }
        (job.work)(begin..job.items.min(begin + job.grain));
    }
}

fn gomp_parallel() -> Option<GompParallel> {
    static FOUND: OnceLock<Option<GompParallel>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        // SAFETY: the name is a C string; dlsym only looks it up among the libraries that are loaded already.
        let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"GOMP_parallel".as_ptr()) };
        if symbol.is_null() {
            return None;
        }
        // SAFETY: libgomp's symbol of this name is a function with this signature, which its ABI fixes. The library is never
        // unloaded, and a symbol that is not null has the size of a function pointer.
        Some(unsafe { std::mem::transmute::<*mut c_void, GompParallel>(symbol) })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn every_item_is_done_once() {
        for (items, grain) in [(0, 1), (1, 4), (7, 3), (64, 1), (1000, 7)] {
            let done = Mutex::new(vec![0; items]);
            share_out(items, grain, &|range| {
                for item in range {
                    done.lock().unwrap()[item] += 1;
                }
            });
            assert_eq!(done.into_inner().unwrap(), vec![1; items], "{items} {grain}");
        }
    }

    #[test]
    fn libtorch_brings_its_threads_along() {
        assert!(gomp_parallel().is_some());
    }
}
