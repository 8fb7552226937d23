//! Prints how fast a product is by our kernel and by libtorch, for few and for many rows.
//!
//!     cargo run --release -p fairlead-torch-shim --example kernel_speed -- [THREADS]
//!
//! The best of several runs, over weights that together do not fit the cache, since in a model each comes from memory.

use std::error::Error;
use std::time::Instant;

use fairlead_torch_shim::cpu::linear;
use tch::{Device, Kind, TchError, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    let threads = std::env::args().nth(1).map(|text| text.parse()).transpose()?;
    fairlead_torch_shim::start_device(fairlead_torch_shim::DeviceRequest::Cpu, threads)?;
    let _no_grad = tch::no_grad_guard();
    for kind in [Kind::Float, Kind::BFloat16] {
        for (out, width) in [(5632, 2048), (2048, 5632), (3072, 768)] {
            let weights: Vec<Tensor> = (0..6)
                .map(|_| Tensor::f_randn([out, width], (Kind::Float, Device::Cpu))?.f_to_kind(kind))
                .collect::<Result<_, TchError>>()?;
            for rows in [1, 2, 3, 4, 8, 16, 32, 64, 256] {
                let x = Tensor::f_randn([rows, width], (Kind::Float, Device::Cpu))?.f_to_kind(kind)?;
                let ours = best(&weights, |weight| linear(&x, weight, None))?;
                let theirs = best(&weights, |weight| x.f_linear::<Tensor>(weight, None))?;
                let bytes = (out * width) as f64 * kind.elt_size_in_bytes() as f64;
                let operations = 2.0 * (out * width * rows) as f64;
                println!(
                    "{kind:?} {out:>5} x {width:<5} {rows:>4} rows: ours {:>7.3} ms ({:>5.1} GB/s, {:>5.1} GFLOP/s), \
                     libtorch {:>7.3} ms, {:.2} x",
                    ours * 1e3,
                    bytes / ours / 1e9,
                    operations / ours / 1e9,
                    theirs * 1e3,
                    theirs / ours
                );
            }
        }
    }
    Ok(())
}

/// Seconds of the fastest of some runs.
fn best(weights: &[Tensor], product: impl Fn(&Tensor) -> Result<Tensor, TchError>) -> Result<f64, TchError> {
    let mut best = f64::INFINITY;
    for weight in weights.iter().chain(weights) {
        let started = Instant::now();
        let _ = product(weight)?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(best)
}
